"""A run of the batched engine under learned meta-parameters, as a pure function that gradients go through.

`Unroll` is shared by the meta-gradients, which differentiate it, and by the evolution strategies, which only
run it forward. Knows nothing of outer steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from metalr import schedules
from metalr.control import actions
from metalr.control.actions import ActionState
from metalr.control.controller import decision_steps
from metalr.engine.runs import BatchedRuns
from metalr.engine.step import RunState, TrainingStep
from metalr.learned.module import Learned, OpenLoop
from metalr.learned.policies import ClosedLoop
from metalr.signals import observations, stats
from metalr.signals.observations import Context, ObservationState
from metalr.signals.stats import RunStats
from metalr.tasks.data import Batch

META_LOSSES = ("mean-train", "final-train", "final-valid")
# Elements that the evaluation of a final loss puts through the network at once.
_CHUNK = 4096


class Policy(NamedTuple):
    """What a closed-loop policy carries, all `(num_runs, num_groups, …)`; empty for an open loop."""

    multiplier: Tensor
    observed: ObservationState
    action: ActionState
    memory: Tensor


class Carry(NamedTuple):
    """Everything that passes from one inner step to the next.

    Attributes:
        runs: of the engine.
        policy: None for an open loop.
        loss_sum: `(num_runs,)`, sum of the minibatch losses so far.
    """

    runs: RunState
    policy: Policy | None
    loss_sum: Tensor


class FirstOrderStep(TrainingStep):
    """A training step whose gradient counts as a constant: no second derivatives."""

    def gradient_and_loss(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        gradient, loss = super().gradient_and_loss(params, batch)
        return gradient.detach(), loss


class Unroll:
    """Runs of one task from their seeds to the horizon under a learned module.

    Open loop: lr(t) = base_lr · learned(t / horizon). Closed loop: lr(t) = base_lr · schedule(t / horizon) ·
    multiplier, decided `learned.decisions` times from the observation, as in `metalr.engine.episodes.run_episode`.

    Args:
        runs: the engine; its runs are started anew from `seeds`.
        learned: an open-loop or closed-loop module.
        seeds: `(num_runs,)` int64.
        base_lr: `(num_runs,)`, or None for the task's.
        call: what to call in place of `learned`, with arguments that have the leading axis num_runs: the module
            with meta-parameters of each run's own. None gives all runs the module's.
        schedule: base schedule of a closed loop.
        order: 2 differentiates through the inner gradients, 1 takes them as constants.

    Raises:
        ValueError: `order` is neither 1 nor 2, or the horizon is too short for the decisions.
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
            raise ValueError(f"got order {order}, expected 1 or 2: 1 leaves out the second derivatives")
        if not isinstance(learned, (OpenLoop, ClosedLoop)):
            raise ValueError(
                f"got a {type(learned).__name__}, expected a module of metalr.learned.schedules: subclass those"
            )
        self.runs, self.learned, self.call = runs, learned, call
        self.horizon = runs.task.horizon
        self.schedule = schedule or schedules.Constant()
        runs.init(seeds)
        base = torch.full_like(seeds, runs.task.base_lr, dtype=torch.float64) if base_lr is None else base_lr
        self.base_lr = base.to(runs.device, runs.dtype)[:, None]
        self.step = (FirstOrderStep if order == 1 else TrainingStep)(runs.task, runs.layout, runs.module)
        self.stops = [self.horizon]
        if isinstance(learned, ClosedLoop):
            self.stops = [*decision_steps(self.horizon, learned.decisions)[1:], self.horizon]
        self.like = torch.ones((runs.num_runs, runs.layout.num_groups), dtype=runs.dtype, device=runs.device)

    def start(self, dead: Tensor | None = None) -> Carry:
        """Before the first inner step.

        Args:
            dead: `(num_runs,)` bool, runs that are frozen from the start: those that are known to diverge. A frozen
                run is fed zeros, so that no NaN of its own can reach the gradient of the others.
        """
        state = self.runs.state
        row = self.learned.initial_params() if self.call is None else None
        if row is not None:
            state = state._replace(params=row.to(state.params.dtype).expand(self.runs.num_runs, -1))
        if dead is not None:
            state = state._replace(diverged=state.diverged | dead)
        policy = self._first_decision(state) if isinstance(self.learned, ClosedLoop) else None
        return Carry(state, policy, torch.zeros_like(self.like[:, 0]))

    def advance(self, carry: Carry, start: int, stop: int) -> Carry:
        """Inner steps `start` to `stop`; a closed loop decides anew at each of `self.stops` on the way.

        A closed loop must start and stop at decisions, since the statistics of an interval are not carried.
        """
        while start < stop:
            end = min(next(s for s in self.stops if s > start), stop)
            carry = self._interval(carry, start, end)
            start = end
        return carry

    def meta_loss(self, carry: Carry, name: str) -> Tensor:
        """The meta-loss of each run at the horizon, `(num_runs,)`; 0 for a diverged run.

        Args:
            carry: at the horizon.
            name: "mean-train" (minibatch loss, mean over all inner steps), "final-train" or "final-valid" (mean
                over the whole split after the last inner step).
        """
        check_meta_loss(name)
        value = carry.loss_sum / self.horizon if name == "mean-train" else self.split_loss(carry, name[6:])
        return torch.where(carry.runs.diverged, 0.0, value)

    def split_loss(self, carry: Carry, split: str) -> Tensor:
        """Mean loss over a split, `(num_runs,)`."""
        params = torch.where(carry.runs.diverged[:, None], 0.0, carry.runs.params)
        total, seen = torch.zeros_like(carry.loss_sum), 0
        chunks = self.runs.data.chunks(split, self.runs.variants, 1 << 62, _CHUNK)  # type: ignore[arg-type]
        for inputs, targets in chunks:
            total = total + vmap(self.step.run_loss)(params, inputs, targets) * inputs.shape[1]
            seen += inputs.shape[1]
        return total / seen

    def _interval(self, carry: Carry, start: int, stop: int) -> Carry:
        state, runs = carry.runs, self.runs
        lrs = self._lrs(carry, start, stop)
        batches = runs.data.batches(runs.seeds, runs.variants, state.step, stop - start, runs.task.batch_size)
        losses: list[Tensor] = []
        gradient_before = params_before = gradient = torch.empty(0)
        for lr, batch in zip(lrs, batches, strict=True):
            gradient_before, params_before = gradient, state.params
            # The LR of a dead run is replaced too: an infinite one times its zero gradient would be NaN.
            state, loss, gradient = self.step(state, batch, torch.where(state.diverged[:, None], 0.0, lr))
            losses.append(loss)
        together = torch.stack(losses)  # (num_steps, num_runs)
        loss_sum = carry.loss_sum + torch.where(state.diverged, 0.0, together).sum(0)
        policy = carry.policy
        if policy is not None and stop < self.horizon:
            seen = self._stats(together, gradient_before, gradient, params_before, state.params)
            policy = self._decide(policy, seen, stop)
        return Carry(state, policy, loss_sum)

    def _lrs(self, carry: Carry, start: int, stop: int) -> Tensor:
        """`(num_steps, num_runs, num_groups)` absolute LRs of an interval."""
        progress = torch.arange(start, stop, device=self.runs.device, dtype=torch.float64) / self.horizon
        if carry.policy is not None:
            factor = self.schedule(progress).to(self.runs.dtype)[:, None, None]
            return self.base_lr * factor * carry.policy.multiplier
        if self.call is None:
            multiplier = self.learned(progress)[:, None]
        else:
            multiplier = self.call(progress.expand(self.runs.num_runs, -1)).transpose(0, 1)
        return self.base_lr * multiplier.to(self.runs.dtype)

    def _stats(self, losses: Tensor, before: Tensor, last: Tensor, params_before: Tensor, params: Tensor) -> RunStats:
        group_sum = self.runs.layout.group_sum
        square_before, square_last = group_sum(before.square()), group_sum(last.square())
        update = group_sum((params - params_before).square())
        return RunStats(
            *stats.loss_stats(losses),
            gradient_norm=stats.gradient_norm(square_before, square_last),
            gradient_cosine=stats.cosine(group_sum(before * last), square_before, square_last),
            update_ratio=stats.ratio(update, group_sum(params_before.square())),
        )

    def _first_decision(self, state: RunState) -> Policy:
        runs, layout = self.runs, self.runs.layout
        policy = self._policy()
        num_runs, num_groups = self.like.shape
        blank = Policy(
            self.like,
            observations.initial_state(num_runs, num_groups, self.like),
            actions.initial_state(policy.action, num_runs, num_groups, self.like),
            self.like.new_zeros((num_runs, num_groups, policy.memory_size), dtype=torch.float64),
        )
        batches = runs.data.batches(runs.seeds, runs.variants, state.step, 1, runs.task.batch_size)
        params = torch.where(state.diverged[:, None], 0.0, state.params)
        gradient, _ = self.step.gradient_and_loss(params, next(iter(batches)))
        lr = layout.expand(self.base_lr * self.schedule(0.0) * self.like)
        new, _ = runs.task.optimizer.update(gradient, state.optimizer, params, lr, state.step[:, None])
        ratio = stats.ratio(layout.group_sum((new - params).square()), layout.group_sum(params.square()))
        return self._act(blank, observations.observe_start(ratio, self._context(blank, 0.0)))

    def _decide(self, policy: Policy, seen: RunStats, stop: int) -> Policy:
        # Before the first interval the memory is NaN. The features of change then come out as 0, but by way of
        # a NaN whose derivative would poison everything: the present value in its place gives the same 0.
        zero = torch.zeros_like(self.like)
        log_loss, log_norm = seen.log_loss[:, None] + zero, seen.gradient_norm.log()
        known = policy.observed
        known = known._replace(
            last_log_loss=torch.where(known.last_log_loss.isnan(), log_loss, known.last_log_loss),
            last_log_norm=torch.where(known.last_log_norm.isnan(), log_norm, known.last_log_norm),
        )
        observation, observed = observations.observe(seen, known, self._context(policy, stop / self.horizon))
        return self._act(policy._replace(observed=observed), observation)

    def _act(self, policy: Policy, observation: Tensor) -> Policy:
        action, memory = (self.call or self.learned)(observation, policy.memory)
        exploded, has_history = (observations.feature(observation, name) for name in ("loss_exploded", "has_history"))
        spec = self._policy().action
        multiplier, state = actions.apply(spec, action, exploded, has_history, policy.action)
        return Policy(multiplier, policy.observed, state, memory)

    def _policy(self) -> ClosedLoop:
        assert isinstance(self.learned, ClosedLoop)
        return self.learned

    def _context(self, policy: Policy, progress: float) -> Context:
        return Context(self.like * progress, policy.multiplier, self.like, self.like)


def check_meta_loss(name: str) -> None:
    """Raise ValueError unless `name` is one of `META_LOSSES`."""
    if name not in META_LOSSES:
        raise ValueError(f"got meta-loss {name!r}, expected one of {', '.join(META_LOSSES)}: use one of these")
