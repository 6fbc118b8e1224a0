"""Optimizers of other packages that promise to need no schedule, or no LR at all.

Schedule-Free (Defazio et al. 2024, arXiv 2405.15682), Prodigy (Mishchenko and Defazio 2024, arXiv 2306.06101),
D-Adaptation (Defazio and Mishchenko 2023, arXiv 2301.07733), DoG (Ivgi et al. 2023, arXiv 2302.12022), Mechanic
(Cutkosky et al. 2023, arXiv 2306.00144) and MoMo (Schaipp et al. 2024, arXiv 2305.07583), each as its authors advise:
with their LR, with the decay or the averaging that they name, and with the inner optimizer of the task. They are torch
optimizers rather than pure functions, so their runs are made one at a time, from the weights and with the minibatches
that the same seed has in the engine. Needs their packages when a run is made and not before.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metalr.engine.runs import BatchedRuns
from metalr.engine.step import divergence_limit
from metalr.registry import look_up
from metalr.schedules import Constant, Cosine, Schedule


@dataclass(frozen=True, kw_only=True)
class ExternalOptimizer:
    """An optimizer of another package.

    Attributes:
        package, kind: to import it from, and its class (or what makes one from `wraps`).
        options: that differ from the package's defaults.
        base_lr: the middle of its LR range: what its authors recommend.
        inner: the class of the inner optimizer that it is a variant of, a part of the name of the task's.
        about: one sentence.
        schedule: that its authors advise.
        wraps: the torch optimizer inside, for a package that takes its class.
        averager: a class of the package that averages the weights; the average is what is evaluated.
        takes_loss: its step wants the loss.
    """

    package: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    base_lr: float
    inner: str
    about: str
    schedule: Schedule = field(default_factory=Constant)
    wraps: type[Optimizer] | None = None
    averager: str | None = None
    takes_loss: bool = False


EXTERNAL_OPTIMIZERS: dict[str, ExternalOptimizer] = {
    "schedule-free-sgd": ExternalOptimizer(
        package="schedulefree",
        kind="SGDScheduleFree",
        options={"momentum": 0.9},
        base_lr=1.0,
        inner="SGD",
        about="SGD, averaged iterates",
    ),
    "schedule-free-adamw": ExternalOptimizer(
        package="schedulefree",
        kind="AdamWScheduleFree",
        base_lr=2.5e-3,
        inner="Adam",
        about="AdamW, averaged iterates",
    ),
    "prodigy": ExternalOptimizer(
        package="prodigyopt",
        kind="Prodigy",
        base_lr=1.0,
        inner="Adam",
        about="Adam that estimates its own LR, with cosine decay",
        schedule=Cosine(),
    ),
    "d-adaptation-sgd": ExternalOptimizer(
        package="dadaptation",
        kind="DAdaptSGD",
        options={"momentum": 0.9},
        base_lr=1.0,
        inner="SGD",
        about="SGD with momentum that estimates its own LR, with cosine decay",
        schedule=Cosine(),
    ),
    "d-adaptation-adam": ExternalOptimizer(
        package="dadaptation",
        kind="DAdaptAdam",
        base_lr=1.0,
        inner="Adam",
        about="Adam that estimates its own LR, with cosine decay",
        schedule=Cosine(),
    ),
    "dog": ExternalOptimizer(
        package="dog",
        kind="DoG",
        base_lr=1.0,
        inner="SGD",
        about="SGD whose LR is distance over gradients, averaged weights",
        averager="PolynomialDecayAverager",
    ),
    "mechanic-sgd": ExternalOptimizer(
        package="mechanic_pytorch",
        kind="mechanize",
        options={"momentum": 0.9},
        base_lr=1.0,
        inner="SGD",
        about="SGD with momentum under a learned scale, with cosine decay",
        schedule=Cosine(),
        wraps=torch.optim.SGD,
    ),
    "mechanic-adamw": ExternalOptimizer(
        package="mechanic_pytorch",
        kind="mechanize",
        base_lr=1.0,
        inner="Adam",
        about="AdamW under a learned scale, with cosine decay",
        schedule=Cosine(),
        wraps=torch.optim.AdamW,
    ),
    "momo": ExternalOptimizer(
        package="momo",
        kind="Momo",
        base_lr=1.0,
        inner="SGD",
        about="SGD with momentum under a Polyak step that caps the LR",
        takes_loss=True,
    ),
    "momo-adam": ExternalOptimizer(
        package="momo",
        kind="MomoAdam",
        base_lr=1e-2,
        inner="Adam",
        about="Adam under a Polyak step that caps the LR",
        takes_loss=True,
    ),
}


def _package(name: str) -> Any:
    entry = look_up(EXTERNAL_OPTIMIZERS, name, "external optimizer")
    try:
        return importlib.import_module(entry.package)
    except ImportError as error:
        raise ImportError(f"{name} needs the package {entry.package!r}: pip install 'metalr[optimizers]'") from error


def make_optimizer(name: str, params: Sequence[Tensor], lr: float) -> Optimizer:
    """An optimizer of another package.

    Raises:
        ImportError: its package is missing.
    """
    package, entry = _package(name), EXTERNAL_OPTIMIZERS[name]
    made = getattr(package, entry.kind)
    return (made(entry.wraps) if entry.wraps else made)(params, lr=lr, **entry.options)


class _Holder(nn.Module):
    """The weights as a module, which an averager wants."""

    def __init__(self, params: nn.Parameter) -> None:
        super().__init__()
        self.params = params


class LoneRun:
    """One run under an external optimizer.

    Args:
        runs: an engine of one run, started; it gives weights, minibatches, losses and evaluations.
        name: in `EXTERNAL_OPTIMIZERS`.
        lr: that the schedule of the optimizer multiplies.
    """

    def __init__(self, runs: BatchedRuns, name: str, lr: float) -> None:
        self.runs, self.lr = runs, lr
        self.params = nn.Parameter(runs.state.params.clone())  # (1, num_params)
        self.optimizer = make_optimizer(name, [self.params], lr)
        self.entry = EXTERNAL_OPTIMIZERS[name]
        make_averager = getattr(_package(name), self.entry.averager) if self.entry.averager else None
        self.averager = make_averager(_Holder(self.params)) if make_averager else None
        self.limit: float | None = None
        self.diverged = False

    def lr_at(self, step: int) -> float:
        """The LR of an inner step."""
        return self.lr * self.entry.schedule(step / self.runs.task.horizon)

    def unroll(self, num_steps: int) -> float:
        """Make some inner steps and leave the weights in the engine: their average where the optimizer has one.

        Returns:
            Mean loss of the steps' minibatches; infinite once the run has diverged.
        """
        state, losses = self.runs.state, []
        start = int(state.step)
        self._mode(training=True)
        batches = self.runs.data.batches(
            self.runs.seeds, self.runs.variants, state.step, num_steps, self.runs.task.batch_size
        )
        for step, batch in enumerate(batches if not self.diverged else (), start):
            losses.append(self._step(batch, self.lr_at(step)))
            if self.limit is None:
                self.limit = divergence_limit(torch.tensor(losses[0], dtype=torch.float64)).item()
            self.diverged = not losses[-1] <= self.limit  # so is NaN
            if self.diverged:
                break
        self._mode(training=False)
        diverged = torch.full_like(state.diverged, self.diverged)
        shown = self.averager.averaged_model.params if self.averager else self.params
        self.runs.state = state._replace(params=shown.detach().clone(), step=state.step + num_steps, diverged=diverged)
        return math.inf if self.diverged else sum(losses) / len(losses)

    def _step(self, batch: tuple[Tensor, Tensor], lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss = self.runs.step.losses(self.params, *batch).sum()
        loss.backward()
        clip_norm = self.runs.task.optimizer.clip_norm
        if clip_norm is not None:
            nn.utils.clip_grad_norm_([self.params], clip_norm)
        step: Callable[..., Any] = self.optimizer.step
        step(**({"loss": loss.detach()} if self.entry.takes_loss else {}))
        if self.averager:
            self.averager.step()
        return loss.item()

    def _mode(self, training: bool) -> None:
        """Schedule-Free is trained at one point and evaluated at another."""
        switch = getattr(self.optimizer, "train" if training else "eval", None)
        if switch is not None:
            switch()
