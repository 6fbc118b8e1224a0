"""The outer loop: an estimate of the meta-gradient, clipped, goes into an outer optimizer; repeated and resumable.

The same loop serves meta-gradients (MAML, Meta-SGD, learned schedules and policies) and evolution strategies
(`metalr.agents.pes`): both are estimators. Every random choice is a function of (seed, outer step), so a resumed
run continues bit for bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalr import seeding
from metalr.agents.estimates import Estimate, Estimator
from metalr.agents.meta_gradients import Route, meta_gradient
from metalr.agents.meta_losses import MetaLoss
from metalr.engine.runs import BatchedRuns
from metalr.files import whole_file
from metalr.learned.module import Learned, MetaVector
from metalr.tasks.families import draw_base_lr
from metalr.tasks.task import Task

OUTER_OPTIMIZERS = ("adam", "sgd")


class MetaTrainingError(RuntimeError):
    """The meta-loss or its gradient stopped being finite; the message names outer step, task and checkpoint."""


class MetaGradients:
    """Exact (or first-order, or truncated) meta-gradients over tasks that take turns, with new seeds every time.

    Args:
        learned: the module whose meta-parameters are learned.
        tasks: one or more.
        num_seeds: runs per outer step.
        seeds: `(num_seeds,)` to use at every outer step, for a fixed problem; None draws new ones.
        base_lr_range: factors of the task's base LR, drawn log-uniformly for every run.
        seed: of the drawing.
        meta_loss, backend, order, route, segment_length: as in `meta_gradient`.
        log: give the gradient of log(meta-loss): the same directions on a scale that does not fall with the loss,
            so that an outer optimizer with a memory of gradient sizes does not slow down.
        dtype, device: of the engine.
    """

    def __init__(
        self,
        learned: Learned,
        tasks: Sequence[Task],
        *,
        num_seeds: int = 16,
        seeds: Tensor | None = None,
        base_lr_range: tuple[float, float] = (1.0, 1.0),
        seed: int = 0,
        meta_loss: str | MetaLoss = MetaLoss.MEAN_TRAIN,
        backend: str = "batched",
        order: int = 2,
        route: Route = "full",
        segment_length: int | None = None,
        log: bool = False,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if not tasks:
            raise ValueError("got no tasks, expected at least one: pass a list of tasks")
        self.learned, self.seed, self.seeds, self.base_lr_range = learned, seed, seeds, base_lr_range
        self.log = log
        count = num_seeds if seeds is None else len(seeds)
        self.runs = [BatchedRuns(task, count, dtype=dtype, device=device) for task in tasks]
        self.options: dict[str, Any] = {
            "meta_loss": MetaLoss(meta_loss),
            "backend": backend,
            "order": order,
            "route": route,
            "segment_length": segment_length,
        }

    def estimate(self, outer_step: int, progress: float = 0.0) -> Estimate:
        """The meta-gradient at the task whose turn it is; `progress` changes nothing."""
        runs = self.runs[outer_step % len(self.runs)]
        seeds = self.seeds
        if seeds is None:
            key = seeding.stream(self.seed, "outer")
            seeds = seeding.hash_integers(key, outer_step, torch.arange(runs.num_runs))
        base_lr = draw_base_lr(runs.task, seeds, self.base_lr_range)
        result = meta_gradient(self.learned, runs, seeds, base_lr, **self.options)
        vector = result.vector() / result.loss if self.log else result.vector()
        return Estimate(result.loss, vector, runs.task.name, result.diverged.double().mean().item())

    def state(self) -> dict[str, Any]:
        """Nothing: every draw is a function of the outer step."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


@dataclass(frozen=True)
class OuterConfig:
    """How the meta-parameters are moved.

    Attributes:
        outer_steps: meta-updates.
        optimizer: "adam" or "sgd".
        lr: of the outer optimizer, at the first outer step; for knots and constants in units of log LR.
        final_lr: what it falls to along a cosine; None keeps it.
        betas: of Adam.
        clip_norm: the meta-gradient is scaled down to this Euclidean norm; None leaves it alone.
        checkpoint: file to save to and to resume from; None saves nothing.
        checkpoint_every: outer steps between saves.
    """

    outer_steps: int = 200
    optimizer: str = "adam"
    lr: float = 0.1
    final_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        if self.outer_steps < 1 or self.checkpoint_every < 1 or not self.lr > 0.0:
            raise ValueError(
                f"got outer_steps {self.outer_steps}, checkpoint_every {self.checkpoint_every}, lr {self.lr}, expected "
                "at least 1, at least 1 and a positive number"
            )
        if self.optimizer not in OUTER_OPTIMIZERS:
            raise ValueError(f"got outer optimizer {self.optimizer!r}, expected one of {', '.join(OUTER_OPTIMIZERS)}")
        if self.clip_norm is not None and not self.clip_norm > 0.0:
            raise ValueError(f"got clip_norm {self.clip_norm}, expected a positive number, or None for no clipping")

    def lr_at(self, outer_step: int) -> float:
        """The outer LR: final + (lr - final) · (1 + cos(pi · progress)) / 2."""
        if self.final_lr is None:
            return self.lr
        wave = 0.5 * (1.0 + math.cos(math.pi * outer_step / self.outer_steps))
        return self.final_lr + (self.lr - self.final_lr) * wave


class MetaTrainer:
    """The outer loop around an estimator.

    Args:
        learned: the module that is trained, in place.
        estimator: `MetaGradients`, `PES` or `Turns` over the same module.
        config: see `OuterConfig`.
        progress: called after every outer step with its record: outer_step, task, meta_loss, gradient_norm,
            diverged and lr.

    Attributes:
        history: the records so far.

    Raises:
        MetaTrainingError: while training, when the meta-loss of a step or its gradient is not finite.

    Example:
        >>> from metalr.agents.outer_loop import MetaGradients, OuterConfig
        >>> from metalr.learned.schedules import ConstantLR
        >>> from metalr.tasks.catalog import make_task
        >>> learned = ConstantLR(1.0)
        >>> gradients = MetaGradients(learned, [make_task("quadratic", horizon=2)], num_seeds=1)
        >>> trainer = MetaTrainer(learned, gradients, OuterConfig(outer_steps=60, lr=0.1, final_lr=0.001))
        >>> _ = trainer.train()
        >>> round(0.2 * learned.schedule().value, 1)  # (w + 1)² has curvature 2, so the best LR is 1/2
        0.5
    """

    def __init__(
        self,
        learned: Learned,
        estimator: Estimator,
        config: OuterConfig,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.learned, self.estimator, self.config, self.progress = learned, estimator, config, progress
        self.meta = MetaVector(learned)
        trained = list(self.meta.params.values())
        self.optimizer: torch.optim.Optimizer
        if config.optimizer == "adam":
            self.optimizer = torch.optim.Adam(trained, lr=config.lr, betas=config.betas)
        else:
            self.optimizer = torch.optim.SGD(trained, lr=config.lr)
        self.outer_step = 0
        self.history: list[dict[str, Any]] = []
        self._saved_at: int | None = None

    def train(self) -> Learned:
        """Run to the last outer step, from the checkpoint if there is one."""
        path = self.config.checkpoint
        if path is not None and Path(path).is_file() and self.outer_step == 0:
            self.load(path)
        while self.outer_step < self.config.outer_steps:
            self._advance()
            due = self.outer_step % self.config.checkpoint_every == 0
            if path is not None and (due or self.outer_step == self.config.outer_steps):
                self.save(path)
        return self.learned

    def save(self, path: str | Path) -> None:
        """Write a checkpoint: tensors, numbers and strings only, whole or not at all."""
        state = {
            "outer_step": self.outer_step,
            "meta_params": self.meta.read(),
            "optimizer": self.optimizer.state_dict(),
            "estimator": self.estimator.state(),
            "history": self.history,
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            torch.save(state, partial)
        self._saved_at = self.outer_step

    def load(self, path: str | Path) -> None:
        """Continue from a checkpoint, to the bit.

        Raises:
            ValueError: it is damaged, or belongs to other meta-parameters.
        """
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # damage shows in many ways: a bad zip, a missing part
            raise ValueError(
                f"got {path}, which is damaged ({type(error).__name__}), expected a checkpoint: put back a copy, or "
                "remove it to train from the start"
            ) from error
        if len(state["meta_params"]) != len(self.meta):
            raise ValueError(
                f"got a checkpoint of {len(state['meta_params'])} meta-parameters, expected {len(self.meta)}: "
                "build the same module, or choose another file"
            )
        self.outer_step = int(state["outer_step"])
        self.meta.write(state["meta_params"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.estimator.load_state(state["estimator"])
        self.history = list(state["history"])
        self._saved_at = self.outer_step

    def _advance(self) -> None:
        step, config = self.outer_step, self.config
        estimate = self.estimator.estimate(step, step / config.outer_steps)
        norm = estimate.vector.norm().item()
        if not math.isfinite(norm) or (estimate.completed and not math.isfinite(estimate.loss)):
            raise MetaTrainingError(self._explain(estimate, norm))
        lr = config.lr_at(step)
        scale = min(1.0, config.clip_norm / (norm + 1e-12)) if config.clip_norm is not None else 1.0
        self._update(estimate.vector * scale, lr)
        self.outer_step = step + 1
        record = {
            "outer_step": step,
            "task": estimate.task,
            "meta_loss": estimate.loss,
            "gradient_norm": norm,
            "diverged": estimate.diverged,
            "lr": lr,
        }
        self.history.append(record)
        if self.progress is not None:
            self.progress(record)

    def _update(self, gradient: Tensor, lr: float) -> None:
        for name, piece in self.meta.split(gradient).items():
            p = self.meta.params[name]
            p.grad = piece.to(p)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.learned.project()

    def _explain(self, estimate: Estimate, norm: float) -> str:
        path = self.config.checkpoint
        where = f"the last good checkpoint is {path} (outer step {self._saved_at})"
        if self._saved_at is None:
            where = "no checkpoint was saved"
        return (
            f"got meta-loss {estimate.loss} and gradient norm {norm} at outer step {self.outer_step} on task "
            f"{estimate.task!r} ({estimate.diverged:.0%} of its runs diverged), expected finite numbers; {where}: "
            "lower the base LR or the outer lr, or set clip_norm"
        )
