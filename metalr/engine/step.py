"""One inner step of many runs, pure and out of place: the one definition of training.

Meta-gradients go through `TrainingStep`; the executors call it. The params of a run are one flat row, so that an
inner optimizer is a few operations on a matrix whatever the network. Knows nothing of intervals or devices.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from metalr.engine.batched_losses import over_runs
from metalr.engine.layout import ParameterLayout, parameter_places
from metalr.optimizers.classic import OptimizerState
from metalr.tasks.data import Batch
from metalr.tasks.models import takes_runs
from metalr.tasks.task import Loss, Task

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


class _OneRun:
    """The gradient of a single run as a user's own loop takes it: `backward()` into gradients that lie in one row.

    Nothing is split or joined at each step, so that one run costs no more than it would without the engine.
    """

    def __init__(self, module: nn.Module, layout: ParameterLayout) -> None:
        self.module = copy.deepcopy(module)
        like = next(module.parameters())
        self.row, self.gradient = (like.new_zeros(layout.num_params).detach() for _ in range(2))
        weights, gradients = layout.unflatten(self.row), layout.unflatten(self.gradient)
        for table, key, name, _ in parameter_places(self.module):
            leaf = weights[name].detach().requires_grad_()
            leaf.grad = gradients[name]
            weights[name] = table[key] = leaf  # a tied weight has several places

    def __call__(self, row: Tensor, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
        """Gradient `(1, num_params)` and loss `(1,)` of weights `(num_params,)` on a minibatch `(1, batch, …)`."""
        self.row.copy_(row)
        self.gradient.zero_()
        with torch.enable_grad():
            value = loss(self.module(batch[0][0]), batch[1][0])
        if value.requires_grad:
            value.backward()
        return self.gradient[None].clone(), value.detach()[None]


class TrainingStep:
    """One inner step of every run: `(state, batch, lr) -> (state, loss, gradient)`, pure and differentiable.

    Args:
        task: what is trained.
        layout: where each parameter lies.
        module: a template of the network; its own weights are not read.
    """

    def __init__(self, task: Task, layout: ParameterLayout, module: nn.Module) -> None:
        self.task = task
        self.layout = layout
        self.module = module
        self.device = next(module.parameters()).device
        frozen = any(not p.requires_grad for p in module.parameters())
        # Weights, inputs and outputs of all runs in one call of the module, without vmap.
        self.takes_runs = takes_runs(module) and not frozen
        self._run_losses = over_runs(task.loss)
        self._run_metrics = over_runs(task.metric) if task.metric else None
        self._places = parameter_places(module)
        self._one_run: _OneRun | None = None

    def run_loss(self, row: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of one run with weights `(num_params,)` on a minibatch."""
        return self.task.loss(self._call(self.layout.unflatten(row), inputs), targets)

    def losses(self, params: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each run, `(num_runs,)`, from params `(num_runs, num_params)` and a minibatch of each."""
        weights = self.layout.unflatten(params[0] if len(params) == 1 else params)
        return self._losses(weights, inputs, targets)

    def evaluation(self, params: Tensor, inputs: Tensor, targets: Tensor, one_by_one: bool) -> tuple[Tensor, Tensor]:
        """Loss and metric of each run, `(num_runs,)` each; the metric is NaN for a task that has none.

        Args:
            params, inputs, targets: of each run.
            one_by_one: call the network for one run at a time. It is not done by itself for a single row, whose bits
                would then depend on how many others happen to be evaluated with it.
        """
        if one_by_one:
            parts = [self._run_evaluation(*row) for row in zip(params, inputs, targets, strict=True)]
            return torch.stack([loss for loss, _ in parts]), torch.stack([metric for _, metric in parts])
        if not self.takes_runs:
            return vmap(self._run_evaluation)(params, inputs, targets)
        outputs = self._call(self.layout.unflatten(params), inputs)
        loss = self._run_losses(outputs, targets)
        unknown = torch.full_like(loss, torch.nan)
        return loss, self._run_metrics(outputs, targets) if self._run_metrics else unknown

    def gradient_and_loss(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Clipped gradient `(num_runs, num_params)` and loss `(num_runs,)`.

        The runs do not depend on each other, so the gradient of the sum of their losses is that of each. Where
        nobody differentiates further it is taken from torch's own tape, which is faster than `torch.func`.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            gradient, (_, loss) = grad_and_value(self._total, has_aux=True)(params, *batch)
        else:
            gradient, loss = self._taped(params, *batch)
        return self.task.optimizer.clip(gradient), loss

    def __call__(self, state: RunState, batch: Batch, lr: Tensor) -> tuple[RunState, Tensor, Tensor]:
        """Advance every run by one update, except those that have diverged.

        Args:
            state: of `num_runs` runs.
            batch: inputs and targets with the leading axes (num_runs, batch).
            lr: `(num_runs, num_groups)`, absolute.

        Returns:
            The new state, the loss before the update `(num_runs,)` and the gradient `(num_runs, num_params)`.
        """
        dead = state.diverged[:, None]
        # The inputs of a dead run are replaced as well as its outputs: a NaN that is only masked afterwards
        # would still make the meta-gradient of every run NaN.
        params = torch.where(dead, 0.0, state.params)
        gradient, loss = self.gradient_and_loss(params, batch)
        initial_loss, within = self._first_and_within(state, loss)
        diverged = state.diverged | ~within
        if torch.is_grad_enabled() and bool((diverged & ~state.diverged).any()):
            # The loss that overflows right now is in the graph already: take the step again without it.
            params = torch.where(diverged[:, None], 0.0, state.params)
            gradient, again = self.gradient_and_loss(params, batch)
            loss = torch.where(diverged, loss.detach(), again)
        new_params, new_optimizer = self._update(state, gradient, params, lr)
        frozen = diverged[:, None]
        new_state = RunState(
            torch.where(frozen, state.params, new_params),
            tuple(torch.where(frozen, old, new) for old, new in zip(state.optimizer, new_optimizer, strict=True)),
            state.step + (~diverged).long(),
            initial_loss,
            diverged,
        )
        return new_state, torch.where(state.diverged, torch.nan, loss), gradient

    def without_masks(
        self, state: RunState, batch: Batch, lr: Tensor, limit: Tensor | None = None
    ) -> tuple[RunState, Tensor, Tensor] | None:
        """The same step to the bit where no run of `state` has diverged and none does so now; otherwise None.

        A mask costs as much as an update of the optimizer, and nearly no step needs one. Asks the host, so it is
        for the CPU only.

        Args:
            state, batch, lr: as above.
            limit: `(num_runs,)`, loss above which a run has diverged; None where a run may be at its first step.
        """
        gradient, loss = self.gradient_and_loss(state.params, batch)
        initial_loss = state.initial_loss
        if limit is None:
            initial_loss, within = self._first_and_within(state, loss)
        else:
            within = loss <= limit
        if not bool(within.all() if len(within) > 1 else within):
            return None
        params, optimizer = self._update(state, gradient, state.params, lr)
        return RunState(params, optimizer, state.step + 1, initial_loss, state.diverged), loss, gradient

    def _first_and_within(self, state: RunState, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each run's first minibatch, and whether the present one is within its limit."""
        initial_loss = torch.where(state.step == 0, loss.detach(), state.initial_loss)
        return initial_loss, loss.detach() <= divergence_limit(initial_loss)

    def _update(self, state: RunState, gradient: Tensor, params: Tensor, lr: Tensor) -> tuple[Tensor, OptimizerState]:
        return self.task.optimizer.update(
            gradient, state.optimizer, params, self.layout.expand(lr), state.step[:, None]
        )

    def _losses(self, weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """`(num_runs,)`; a single run's weights come without the axis num_runs."""
        if inputs.shape[0] == 1:
            return self.task.loss(self._call(weights, inputs[0]), targets[0])[None]
        if self.takes_runs:
            return self._run_losses(self._call(weights, inputs), targets)
        return vmap(lambda w, x, y: self.task.loss(self._call(w, x), y))(weights, inputs, targets)

    def _total(self, params: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.losses(params, inputs, targets)
        return loss.sum(), loss

    def _taped(self, params: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if params.shape[0] == 1:
            if self._one_run is None:
                self._one_run = _OneRun(self.module, self.layout)
            return self._one_run(params[0], (inputs, targets), self.task.loss)
        pieces = [piece.requires_grad_() for piece in self.layout.pieces(params)]
        with torch.enable_grad():
            loss = self._losses(dict(zip(self.layout.names, pieces, strict=True)), inputs, targets)
        if not loss.requires_grad:
            return torch.zeros_like(params), loss
        found = torch.autograd.grad(loss, pieces, torch.ones_like(loss), allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten(1) for gradient in found], -1), loss.detach()

    def _run_evaluation(self, row: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._call(self.layout.unflatten(row), inputs)
        metric = self.task.metric(outputs, targets) if self.task.metric else row.new_full((), torch.nan)
        return self.task.loss(outputs, targets), metric

    def _call(self, weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """`functional_call` with the places of the weights known beforehand: looking them up takes as long as a small
        network's forward pass. The compiler knows `functional_call` only.
        """
        if torch.compiler.is_compiling():
            return functional_call(self.module, weights, (inputs,))
        try:
            for table, key, name, _ in self._places:
                table[key] = weights[name]  # type: ignore[assignment]
            return self.module(inputs)
        finally:
            for table, key, _, parameter in self._places:
                table[key] = parameter
