"""Optimizers of other packages that promise to need no schedule, or no LR at all.

Schedule-Free (Defazio et al. 2024, arXiv 2405.15682) and Prodigy (Mishchenko and Defazio 2024, arXiv 2306.06101). They
are torch optimizers rather than pure functions, so their runs are made one at a time, from the weights and with the
minibatches that the same seed has in the engine. Needs their packages when a run is made and not before.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from metalr.engine.runs import BatchedRuns
from metalr.engine.step import divergence_limit
from metalr.registry import look_up


class ExternalOptimizer(NamedTuple):
    """An optimizer of another package.

    Attributes:
        package, kind: to import it from, and its class.
        options: that differ from the package's defaults.
        base_lr: the centre of its LR grid.
        about: one sentence.
    """

    package: str
    kind: str
    options: dict[str, Any]
    base_lr: float
    about: str


EXTERNAL_OPTIMIZERS: dict[str, ExternalOptimizer] = {
    "schedule-free-sgd": ExternalOptimizer(
        "schedulefree", "SGDScheduleFree", {"momentum": 0.9}, 1.0, "SGD, averaged iterates"
    ),
    "schedule-free-adamw": ExternalOptimizer(
        "schedulefree", "AdamWScheduleFree", {}, 2.5e-3, "AdamW, averaged iterates"
    ),
    "prodigy": ExternalOptimizer("prodigyopt", "Prodigy", {}, 1.0, "Adam that estimates its own LR"),
}


def make_optimizer(name: str, params: Sequence[Tensor], lr: float) -> Optimizer:
    """An optimizer of another package.

    Raises:
        ImportError: its package is missing.
    """
    entry = look_up(EXTERNAL_OPTIMIZERS, name, "external optimizer")
    try:
        package = importlib.import_module(entry.package)
    except ImportError as error:
        raise ImportError(f"{name} needs the package {entry.package!r}: pip install 'metalr[optimizers]'") from error
    return getattr(package, entry.kind)(params, lr=lr, **entry.options)


class LoneRun:
    """One run under an external optimizer.

    Args:
        runs: an engine of one run, started; it gives weights, minibatches, losses and evaluations.
        name: in `EXTERNAL_OPTIMIZERS`.
        lr: constant.
    """

    def __init__(self, runs: BatchedRuns, name: str, lr: float) -> None:
        self.runs = runs
        self.params = runs.state.params.clone().requires_grad_()  # (1, num_params)
        self.optimizer = make_optimizer(name, [self.params], lr)
        self.limit: float | None = None
        self.diverged = False

    def unroll(self, num_steps: int) -> float:
        """Make some inner steps and leave the weights in the engine.

        Returns:
            Mean loss of the steps' minibatches; infinite once the run has diverged.
        """
        state, losses = self.runs.state, []
        self._mode(training=True)
        batches = self.runs.data.batches(
            self.runs.seeds, self.runs.variants, state.step, num_steps, self.runs.task.batch_size
        )
        for batch in batches if not self.diverged else ():
            losses.append(self._step(batch))
            if self.limit is None:
                self.limit = divergence_limit(torch.tensor(losses[0], dtype=torch.float64)).item()
            self.diverged = not losses[-1] <= self.limit  # so is NaN
            if self.diverged:
                break
        self._mode(training=False)
        diverged = torch.full_like(state.diverged, self.diverged)
        self.runs.state = state._replace(
            params=self.params.detach().clone(), step=state.step + num_steps, diverged=diverged
        )
        return math.inf if self.diverged else sum(losses) / len(losses)

    def _step(self, batch: tuple[Tensor, Tensor]) -> float:
        self.optimizer.zero_grad()
        loss = self.runs.step.losses(self.params, *batch).sum()
        loss.backward()
        clip_norm = self.runs.task.optimizer.clip_norm
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([self.params], clip_norm)
        self.optimizer.step()
        return loss.item()

    def _mode(self, training: bool) -> None:
        """Schedule-Free is trained at one point and evaluated at another."""
        switch = getattr(self.optimizer, "train" if training else "eval", None)
        if switch is not None:
            switch()
