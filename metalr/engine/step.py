"""One inner step of many runs, pure and out of place: the one definition of training.

The params of a run are one flat row, so that an inner optimizer is a few operations on a matrix whatever the network.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from metalr.engine.gradients import RunLosses
from metalr.engine.layout import ParameterLayout
from metalr.optimizers.classic import OptimizerState
from metalr.tasks.data import Batch
from metalr.tasks.task import Task
from metalr.trees import map_leaves

# A run whose loss exceeds this multiple of its first loss has diverged.
DIVERGED_AT = 100.0


class RunState(NamedTuple):
    """Everything that a run carries from one inner step to the next, for `num_runs` runs.

    Attributes:
        params: `(num_runs, num_params)`.
        optimizer: buffers of the inner optimizer, each `(num_runs, num_params)`.
        step: `(num_runs,)` int64, updates done.
        initial_loss: `(num_runs,)`, loss of the first minibatch; NaN before it.
        diverged: `(num_runs,)` bool; a diverged run is frozen.
    """

    params: Tensor
    optimizer: OptimizerState
    step: Tensor
    initial_loss: Tensor
    diverged: Tensor


def divergence_limit(initial_loss: Tensor) -> Tensor:
    """The loss above which a run has diverged, from that of its first minibatch; `(num_runs,)` each."""
    return DIVERGED_AT * initial_loss.abs()


class TrainingStep:
    """One inner step of every run: `(state, batch, lr) -> (state, loss, gradient)`, pure and differentiable.

    Args:
        task: the task to train.
        layout: where each parameter lies.
        module: a template of the network; only frozen parameters and buffers are read from it.

    Attributes:
        losses: losses and gradients of the runs.
    """

    def __init__(self, task: Task, layout: ParameterLayout, module: nn.Module) -> None:
        self.task = task
        self.layout = layout
        self.device = next(module.parameters()).device
        self.losses = RunLosses(task, layout, module)

    def run_loss(self, row: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of one run with weights `(num_params,)` on a minibatch."""
        return self.losses.of_one(row, inputs, targets)

    def gradient_and_loss(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Clipped gradient `(num_runs, num_params)` and loss `(num_runs,)`."""
        gradient, loss = self.losses.gradient(params, batch)
        return self.task.optimizer.clip(gradient), loss

    def update(self, state: RunState, batch: Batch, lr: Tensor) -> tuple[RunState, Tensor, Tensor]:
        """The update of every run, whether or not it has diverged; `initial_loss` and `diverged` stay as they are.

        Args and returns as for the step itself, of which this is the whole arithmetic.
        """
        gradient, loss = self.gradient_and_loss(state.params, batch)
        params, optimizer = self.task.optimizer.update(
            gradient, state.optimizer, state.params, self.layout.expand(lr), state.step[:, None]
        )
        return RunState(params, optimizer, state.step + 1, state.initial_loss, state.diverged), loss, gradient

    def __call__(self, state: RunState, batch: Batch, lr: Tensor) -> tuple[RunState, Tensor, Tensor]:
        """Advance every run by one update, except those that have diverged, which are frozen.

        Args:
            state: of `num_runs` runs.
            batch: inputs and targets with the leading axes (num_runs, batch).
            lr: `(num_runs, num_groups)`, absolute.

        Returns:
            The new state, the loss before the update `(num_runs,)` and the gradient `(num_runs, num_params)`.
        """
        # The inputs of a dead run are replaced as well as its outputs: a NaN that is only masked afterwards
        # would still make the meta-gradient of every run NaN.
        new, loss, gradient = self.update(_with_zeros(state, state.diverged), batch, lr)
        initial_loss = _initial_loss(state, loss)
        diverged = state.diverged | ~(loss.detach() <= divergence_limit(initial_loss))
        if torch.is_grad_enabled() and bool((diverged & ~state.diverged).any()):
            # The loss that overflows right now is in the graph already: take the step again without it.
            new, again, gradient = self.update(_with_zeros(state, diverged), batch, lr)
            loss = torch.where(diverged, loss.detach(), again)
        frozen = diverged[:, None]
        params, optimizer = map_leaves(lambda old, new: torch.where(frozen, old, new), state[:2], new[:2])
        step = torch.where(diverged, state.step, new.step)
        new = RunState(params, optimizer, step, initial_loss, diverged)
        return new, torch.where(state.diverged, torch.nan, loss), gradient


class UnmaskedStep:
    """The training step without its masks, to the bit, until the first run diverges; made anew for each interval.

    A mask costs as much as an update of the optimizer, and nearly no step needs one. Whether a run diverges is asked
    at every step, so this is for the CPU, where asking does not wait for a device.

    Args:
        step: of runs none of which has diverged.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.healthy = True
        self.limit: Tensor | None = None

    def __call__(self, state: RunState, batch: Batch, lr: Tensor) -> tuple[RunState, Tensor, Tensor]:
        """As `TrainingStep`."""
        if not self.healthy:
            return self.step(state, batch, lr)
        new, loss, gradient = self.step.update(state, batch, lr)
        if self.limit is None:
            new = new._replace(initial_loss=_initial_loss(state, loss))
            self.limit = divergence_limit(new.initial_loss)
        within = loss <= self.limit
        self.healthy = bool(within.all() if len(within) > 1 else within)
        return (new, loss, gradient) if self.healthy else self.step(state, batch, lr)


def _with_zeros(state: RunState, which: Tensor) -> RunState:
    """The state with weights of zero for the runs of a mask `(num_runs,)`."""
    return state._replace(params=torch.where(which[:, None], 0.0, state.params))


def _initial_loss(state: RunState, loss: Tensor) -> Tensor:
    """The loss of each run's first minibatch, which may be the present one."""
    return torch.where(state.step == 0, loss.detach(), state.initial_loss)
