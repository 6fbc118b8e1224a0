"""The decisions of a `LearnedLR` for an experiment tracker: each as one flat dict of numbers.

No tracker is imported. `wandb.log` and `mlflow.log_metrics` take such a dict as it is; the writer of TensorBoard takes
one number at a time, which `tensorboard` hides.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from metalr.control.lr import lr_in_force, schedule_factor
from metalr.schedulers.learned_lr import LearnedLR

# Takes the numbers by name, and the optimizer updates made before the decision.
Send = Callable[[dict[str, float], int], Any]


class DecisionLog:
    """Sends every new decision of a scheduler to a tracker.

    Args:
        scheduler: whose decisions are sent; those that it has taken already are not.
        send: called with the result of `flat_entry` and the update count of the decision.
        prefix: of every name.

    Example:
        log = DecisionLog(scheduler, wandb.log)                 # or mlflow.log_metrics, or tensorboard(writer)
        for x, y in loader:
            ...
            scheduler.step()
            log()
    """

    def __init__(self, scheduler: LearnedLR, send: Send, prefix: str = "scheduler/") -> None:
        self.scheduler = scheduler
        self.send = send
        self.prefix = prefix
        self._sent = self._latest()

    def __call__(self) -> None:
        """Send what is new; call after `scheduler.step()`, or less often."""
        latest = self._latest()
        if latest < self._sent:  # a new run has begun, in its turn of a SequentialLR
            self._sent = -1
        if latest == self._sent:
            return
        for entry in self.scheduler.history:
            if entry["updates"] > self._sent:
                self.send(flat_entry(self.scheduler, entry, self.prefix), entry["updates"])
        self._sent = latest

    def _latest(self) -> int:
        """The update count of the latest decision; -1 before any."""
        return next((int(updates) for updates, _ in self.scheduler.run.history.multipliers(1)), -1)


def flat_entry(scheduler: LearnedLR, entry: Mapping[str, Any], prefix: str = "scheduler/") -> dict[str, float]:
    """A decision as numbers by name.

    Args:
        scheduler: that took it.
        entry: of `scheduler.history`.
        prefix: of every name.

    Returns:
        `lr` that the decision set, `lr_multiplier`, `breaker` (1 if the decision followed an explosion of the loss) and
        `features/…`. With several controlled groups each name ends in `/0`, `/1`, …
    """
    values = {
        "lr": lrs_at(scheduler, entry["updates"], entry["lr_multiplier"]),
        "lr_multiplier": entry["lr_multiplier"],
        "breaker": entry["features"]["loss_exploded"],
        **{f"features/{name}": numbers for name, numbers in entry["features"].items()},
    }
    groups = len(entry["lr_multiplier"])
    ends = [""] if groups == 1 else [f"/{group}" for group in range(groups)]
    return {
        f"{prefix}{name}{end}": numbers[group] for name, numbers in values.items() for group, end in enumerate(ends)
    }


def lrs_at(scheduler: LearnedLR, updates: int, multipliers: Sequence[float]) -> list[float]:
    """The LR of each controlled group after so many updates, under the scheduler's present horizon.

    Args:
        scheduler: for its base LRs and its base schedule.
        updates: made before.
        multipliers: in force, one for each controlled group.
    """
    progress = torch.tensor(updates / scheduler.horizon if scheduler.horizon else 0.0, dtype=torch.float64)
    factor = schedule_factor(scheduler.controller.schedule, progress).item()
    pairs = zip(scheduler.base_lrs, multipliers, strict=False)  # a single controlled group: its first parameter group
    return [lr_in_force(scheduler.controller.base(float(base)), factor, multiplier) for base, multiplier in pairs]


class ScalarWriter(Protocol):
    """The one method of TensorBoard's `SummaryWriter` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write one number."""


def tensorboard(writer: ScalarWriter) -> Send:
    """A `SummaryWriter` as a tracker that takes a dict at a time."""

    def send(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return send
