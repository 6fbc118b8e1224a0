"""`Runs`: the interface of many training runs of one task, whichever way they are trained.

`metalr.engine.runs.BatchedRuns` advances them in one device pass, `metalr.schedulers.plain_runs.PlainRuns` one after
the other in torch's own terms. Both are final.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from metalr.engine.evaluation import Evaluation
from metalr.signals.stats import Prospect, RunStats
from metalr.tasks.data import Split
from metalr.tasks.task import Task


class Runs(ABC):
    """`num_runs` training runs of one task. Run *i* depends on its own seed alone.

    Args:
        task: the task to train.
        num_runs: number of runs.
        dtype: of weights, data and losses.
        device: of the runs and their data.

    Raises:
        ValueError: `num_runs` is below 1.

    Attributes:
        seeds: of the runs in progress, `(num_runs,)` int64.
    """

    seeds: Tensor

    def __init__(self, task: Task, num_runs: int, dtype: torch.dtype, device: torch.device | str) -> None:
        if num_runs < 1:
            raise ValueError(f"got num_runs {num_runs}, expected at least 1: it is the number of parallel runs")
        self.task = task
        self.num_runs = num_runs
        self.dtype = dtype
        self.device = torch.device(device)

    @property
    @abstractmethod
    def num_groups(self) -> int:
        """Number of learning rates of a run."""

    @property
    @abstractmethod
    def diverged(self) -> Tensor:
        """Whether each run has diverged and is frozen, `(num_runs,)` bool."""

    @abstractmethod
    def init(self, seeds: Tensor) -> None:
        """Start all runs anew from their seeds, `(num_runs,)` int64."""

    @abstractmethod
    def reset_runs(self, which: Tensor, seeds: Tensor) -> None:
        """Start some runs anew and leave every bit of the others as it is.

        Args:
            which: `(num_runs,)` bool.
            seeds: `(num_runs,)` int64; only the entries of `which` are read.
        """

    @abstractmethod
    def unroll(self, lr: Tensor, num_steps: int) -> RunStats:
        """Apply `num_steps` inner steps and measure them.

        Args:
            lr: `(num_runs, num_groups)` or `(num_runs,)` for one LR throughout, or `(num_steps, num_runs,
                num_groups)`; absolute, finite and not negative.
            num_steps: at least 2, since gradients are compared over the last two.

        Raises:
            ValueError: an LR is negative or not finite, its shape is wrong, or `num_steps` is below 2.
        """

    @abstractmethod
    def probe(self, lr: Tensor) -> Prospect:
        """The next update as it would be at an LR `(num_runs, num_groups)`.

        Pure: a run after it has the same bits as one without it.
        """

    @abstractmethod
    def evaluate(self, split: Split, max_examples: int = 1 << 62, which: Tensor | None = None) -> Evaluation:
        """Mean loss and metric over a split (or its first `max_examples` examples).

        Args:
            split: "train", "valid" or "test".
            max_examples: limit for each run.
            which: indices of the runs to evaluate; None for all.

        Returns:
            One entry for each evaluated run; a diverged run has infinite loss.
        """

    @abstractmethod
    def module_of(self, run: int) -> nn.Module:
        """A plain module with the present weights of one run."""

    def _require_one_each(self, values: Tensor, name: str) -> None:
        if tuple(values.shape) != (self.num_runs,):
            raise ValueError(
                f"got {name} of shape {tuple(values.shape)}, expected ({self.num_runs},): one for each run"
            )

    def _check_unroll(self, lr: Tensor, num_steps: int) -> Tensor:
        """The LR of every step of an interval, `(num_steps, num_runs, num_groups)`, once checked."""
        if num_steps < 2:
            raise ValueError(f"got num_steps {num_steps}, expected at least 2: statistics compare the last two steps")
        return self._check_lr(lr, num_steps)

    def _check_lr(self, lr: Tensor, num_steps: int) -> Tensor:
        lr = lr.to(self.device, self.dtype)
        shape = (num_steps, self.num_runs, self.num_groups)
        if lr.dim() == 1:
            lr = lr[:, None].expand(-1, shape[2])
        if tuple(lr.shape) not in (shape, shape[1:]):
            raise ValueError(
                f"got an LR of shape {tuple(lr.shape)}, expected (num_runs, num_groups) = {shape[1:]} or "
                f"(num_steps, num_runs, num_groups) = {shape}"
            )
        if self.device.type == "cpu":  # elsewhere asking would wait for the device
            low, high = (bound.item() for bound in torch.aminmax(lr))
            if not 0.0 <= low <= high < float("inf"):
                raise ValueError(
                    f"got LRs between {low} and {high}, expected finite numbers "
                    "that are not negative: check the schedule or controller that made them"
                )
        return lr.expand(shape)
