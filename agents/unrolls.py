"""Runs of the batched engine under learned meta-parameters, as pure functions that can be differentiated.

`Unroll` is shared by the meta-gradients, which differentiate it, and the evolution strategies, which only run it
forward.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from metalr import schedules
from metalr.agents.meta_losses import MetaLoss
from metalr.control import actions, loop
from metalr.control.controller import decision_steps
from metalr.control.loop import LoopState
from metalr.control.lr import lr_in_force, schedule_factor
from metalr.control.recurrent import RecurrentState
from metalr.engine.interval import measure, prospect, run_steps
from metalr.engine.runs import BatchedRuns
from metalr.engine.step import RunState, TrainingStep
from metalr.learned.module import Learned, OpenLoop
from metalr.learned.policies import ClosedLoop
from metalr.tasks.data import Batch, Split

# Elements that pass through the network at once when a final loss is evaluated.
_CHUNK = 4096


class Carry(NamedTuple):
    """Everything carried from one inner step to the next.

    Attributes:
        runs: state of the engine's runs.
        loop: state of a closed loop; None for an open one.
        loss_sum: sum of the minibatch losses so far, `(num_runs,)`.
    """

    runs: RunState
    loop: LoopState | None
    loss_sum: Tensor


class FirstOrderStep(TrainingStep):
    """A training step whose gradient is taken as a constant, without second derivatives."""

    def gradient_and_loss(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        gradient, loss = super().gradient_and_loss(params, batch)
        return gradient.detach(), loss


class LivePolicy:
    """A learned closed loop in the form of a controller, through which gradients flow.

    Args:
        policy: supplies the action, the decisions and the size of the memory.
        call: `(observation, memory) -> (action, memory)`: the policy itself, or with separate parameters for each run.
    """

    def __init__(self, policy: ClosedLoop, call: Callable[..., Any]) -> None:
        self.policy = policy
        self.call = call

    def init(self, like: Tensor) -> RecurrentState:
        """The state before the first decision, shaped `(num_runs, num_groups)` like `like`."""
        memory = like.new_zeros((*like.shape, self.policy.memory_size), dtype=torch.float64)
        return RecurrentState(memory, actions.initial_state(self.policy.action, like))

    def __call__(self, observation: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """One decision, as for `Controller`."""
        action, memory = self.call(observation, state.memory)
        multiplier, action_state = actions.act(self.policy.action, action, observation, state.action)
        return multiplier, RecurrentState(memory, action_state)


class Unroll:
    """Runs of one task from their seeds to the horizon under a learned module.

    Open loop: lr(t) = base_lr · learned(t / horizon). Closed loop: lr(t) = base_lr · schedule(t / horizon) ·
    multiplier, where the multiplier is decided `learned.decisions` times from the observation, as in
    `metalr.engine.episodes.run_episode`.

    Args:
        runs: the engine; its runs are restarted from `seeds`.
        learned: an open-loop or closed-loop module.
        seeds: `(num_runs,)` int64.
        base_lr: `(num_runs,)`, or None for the task's.
        call: called in place of `learned`, with arguments that have the leading axis num_runs: the module with separate
            meta-parameters for each run. None gives all runs those of the module.
        schedule: base schedule of a closed loop.
        order: 2 differentiates through the inner gradients; 1 takes them as constants.

    Raises:
        ValueError: `order` is neither 1 nor 2, `learned` is neither open-loop nor closed-loop, or the horizon is too
            short for the decisions.
    """

    def __init__(
        self,
        runs: BatchedRuns,
        learned: Learned,
        seeds: Tensor,
        base_lr: Tensor | None = None,
        *,
        call: Callable[..., Any] | None = None,
        schedule: schedules.Schedule | None = None,
        order: int = 2,
    ) -> None:
        if order not in (1, 2):
            raise ValueError(f"got order {order}, expected 1 or 2: 1 omits the second derivatives")
        if not isinstance(learned, (OpenLoop, ClosedLoop)):
            raise ValueError(
                f"got a {type(learned).__name__}, expected a module of metalr.learned.schedules: subclass those"
            )
        self.runs, self.learned, self.call = runs, learned, call
        self.horizon = runs.task.horizon
        self.schedule = schedule or schedules.Constant()
        runs.init(seeds)
        base = torch.full_like(seeds, runs.task.base_lr, dtype=torch.float64) if base_lr is None else base_lr
        base = learned.action.base(base) if isinstance(learned, ClosedLoop) else base
        self.base_lr = base.to(runs.device, runs.dtype)[:, None]
        self.step = (FirstOrderStep if order == 1 else TrainingStep)(runs.task, runs.layout, runs.module)
        self.stops = [self.horizon]
        self.controller: LivePolicy | None = None
        if isinstance(learned, ClosedLoop):
            self.controller = LivePolicy(learned, call or learned)
            self.stops = [*decision_steps(self.horizon, learned.decisions)[1:], self.horizon]
        self.like = torch.ones((runs.num_runs, runs.layout.num_groups), dtype=runs.dtype, device=runs.device)

    def start(self, dead: Tensor | None = None) -> Carry:
        """The state before the first inner step.

        Args:
            dead: runs to freeze from the start because they are known to diverge, `(num_runs,)` bool. A frozen run is
                fed zeros, so that none of its NaNs can reach the gradient of the others.
        """
        state = self.runs.state
        row = self.learned.initial_params() if self.call is None else None
        if row is not None:
            state = state._replace(params=row.to(state.params.dtype).expand(self.runs.num_runs, -1))
        if dead is not None:
            state = state._replace(diverged=state.diverged | dead)
        policy = self._first_decision(self.controller, state) if self.controller is not None else None
        return Carry(state, policy, torch.zeros_like(self.like[:, 0]))

    def advance(self, carry: Carry, start: int, stop: int) -> Carry:
        """The state after inner steps `start` to `stop`, with a decision of a closed loop at each of `self.stops`.

        A closed loop must start and stop at decisions, because the statistics of an interval are not carried.

        Args:
            carry: the state before inner step `start`.
            start: first inner step.
            stop: inner step before which to stop.
        """
        while start < stop:
            end = min(next(s for s in self.stops if s > start), stop)
            carry = self._interval(carry, start, end)
            start = end
        return carry

    def meta_loss(self, carry: Carry, kind: MetaLoss) -> Tensor:
        """The meta-loss of each run at the horizon, `(num_runs,)`; 0 for a diverged run."""
        value = self.split_loss(carry, kind.split) if kind.is_final else carry.loss_sum / self.horizon
        return torch.where(carry.runs.diverged, 0.0, value)

    def split_loss(self, carry: Carry, split: Split) -> Tensor:
        """The mean loss over a split, `(num_runs,)`."""
        params = torch.where(carry.runs.diverged[:, None], 0.0, carry.runs.params)
        total, seen = torch.zeros_like(carry.loss_sum), 0
        chunks = self.runs.data.chunks(split, self.runs.variants, 1 << 62, _CHUNK)
        for inputs, targets in chunks:
            total = total + vmap(self.step.run_loss)(params, inputs, targets) * inputs.shape[1]
            seen += inputs.shape[1]
        return total / seen

    def _interval(self, carry: Carry, start: int, stop: int) -> Carry:
        runs = self.runs
        batches = runs.data.batches(runs.seeds, runs.variants, carry.runs.step, stop - start, runs.task.batch_size)
        state, trace = run_steps(self._advance, carry.runs, batches, self._lrs(carry, start, stop))
        loss_sum = carry.loss_sum + torch.where(state.diverged, 0.0, trace.losses).sum(0)
        policy = carry.loop
        if self.controller is not None and policy is not None and stop < self.horizon:
            seen = measure(runs.layout, trace)
            policy = loop.decide(self.controller, policy, seen, stop, self.horizon)
        return Carry(state, policy, loss_sum)

    def _advance(self, state: RunState, batch: Batch, lr: Tensor) -> tuple[RunState, Tensor, Tensor]:
        # The LR of a dead run is replaced too: an infinite one times its zero gradient would be NaN.
        return self.step(state, batch, torch.where(state.diverged[:, None], 0.0, lr))

    def _lrs(self, carry: Carry, start: int, stop: int) -> Tensor:
        """The absolute LRs of an interval, `(num_steps, num_runs, num_groups)`."""
        progress = torch.arange(start, stop, device=self.runs.device, dtype=torch.float64) / self.horizon
        if carry.loop is not None:
            factor = schedule_factor(self.schedule, progress).to(self.runs.dtype)[:, None, None]
            return lr_in_force(self.base_lr, factor, carry.loop.multiplier)
        if self.call is None:
            multiplier = self.learned(progress)[:, None]
        else:
            multiplier = self.call(progress.expand(self.runs.num_runs, -1)).transpose(0, 1)
        return self.base_lr * multiplier.to(self.runs.dtype)

    def _first_decision(self, controller: LivePolicy, state: RunState) -> LoopState:
        runs = self.runs
        batches = runs.data.batches(runs.seeds, runs.variants, state.step, 1, runs.task.batch_size)
        state = state._replace(params=torch.where(state.diverged[:, None], 0.0, state.params))
        lr = lr_in_force(self.base_lr, self.schedule(0.0), self.like)
        new, loss, gradient = self.step.update(state, next(iter(batches)), lr)
        blank = loop.init(controller.init(self.like), self.like)
        first = prospect(runs.layout, state.params, new.params, gradient, loss)
        return loop.start(controller, blank, first, self.horizon)
