"""One run of a comparison: planned, then recorded, with a curve beside the record.

On disk the key of a run is the field "cell" of its record and of its curve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from metalr.compare.contenders import Kind
from metalr.tasks.data import Split

Phase = Literal["tuning", "report", "wrong-base"]

# The trial of a run whose contender has none.
NO_TRIAL = -1
# A loss counts as at least this share of the untrained one: what is below is a matter of luck and of rounding.
_LOWEST_SHARE = 1e-3
_KEY_ON_DISK = "cell"


@dataclass(frozen=True)
class PlannedRun:
    """A run that a comparison needs.

    Attributes:
        task, contender: names.
        phase: the part of the comparison that needs it.
        trial: index of the trial in the contender's search, or `NO_TRIAL`.
        parameters: of the contender, as (name, value) pairs in order of the names.
        base_lr_factor: the base LR over the contender's own on this task.
        base_lr: absolute.
        seed: of weights and data order.
    """

    task: str
    contender: str
    phase: Phase
    trial: int
    parameters: tuple[tuple[str, Any], ...]
    base_lr_factor: float
    base_lr: float
    seed: int

    @property
    def key(self) -> str:
        """Names the run in its records: unique within a comparison."""
        return "|".join(
            (self.task, self.phase, self.contender, str(self.trial), f"x{self.base_lr_factor:.6g}", str(self.seed))
        )

    def at_seeds(self, seeds: Sequence[int]) -> "list[PlannedRun]":
        """The same run from several seeds."""
        return [replace(self, seed=seed) for seed in seeds]


@dataclass(frozen=True)
class RunRecord:
    """A finished run: what was planned, and how it ended.

    Attributes:
        key, task, phase, contender, trial, base_lr_factor, base_lr, seed: see `PlannedRun`.
        kind: of the contender.
        parameters: of the contender, by name.
        diverged: its losses are infinite then.
        no_progress: it has not diverged, and its train loss is hardly below the untrained one.
        untrained_loss, untrained_valid_loss, untrained_test_loss: train, valid and test loss of the initial weights.
        train_loss, valid_loss, test_loss: at the end; infinite if it diverged.
        train_metric, valid_metric, test_metric: the same of the task's metric; NaN where there is none.
    """

    key: str
    task: str
    phase: Phase
    contender: str
    kind: Kind
    trial: int
    parameters: dict[str, Any]
    base_lr_factor: float
    base_lr: float
    seed: int
    diverged: bool
    no_progress: bool
    untrained_loss: float
    train_loss: float
    train_metric: float
    valid_loss: float
    valid_metric: float
    test_loss: float
    test_metric: float
    untrained_valid_loss: float
    untrained_test_loss: float

    def loss(self, split: Split) -> float:
        """The final loss on a split."""
        return {"train": self.train_loss, "valid": self.valid_loss, "test": self.test_loss}[split]

    def scored(self, split: Split) -> float:
        """The final loss as it counts: not below 1e-3 of the untrained loss, and not above it.

        A diverged run counts as the untrained loss, and is counted separately.
        """
        untrained = {
            "train": self.untrained_loss,
            "valid": self.untrained_valid_loss,
            "test": self.untrained_test_loss,
        }[split]
        return min(max(self.loss(split), _LOWEST_SHARE * untrained), untrained)

    def to_json(self) -> dict[str, Any]:
        """As `metalr.records` writes it: there infinity and NaN become null."""
        return _key_renamed(asdict(self), "key", _KEY_ON_DISK)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "RunRecord":
        """The record of a line. A loss of null is infinite, a metric of null is NaN.

        Older records call an ablation a control, and hold one untrained loss for all splits.
        """
        untrained = record["untrained_loss"]
        values = {"untrained_valid_loss": untrained, "untrained_test_loss": untrained}
        values |= _key_renamed(record, _KEY_ON_DISK, "key")
        for name, value in values.items():
            if value is None:
                values[name] = math.inf if name.endswith("_loss") else math.nan
        kind = Kind.ABLATION if values["kind"] == "control" else Kind(values["kind"])
        return RunRecord(**{**values, "kind": kind})


@dataclass(frozen=True)
class RunCurve:
    """LR and losses over a run, a point at the end of every decision interval.

    Attributes:
        key: of the run.
        step: inner steps done.
        lr: at the first inner step of the interval.
        train_loss: of the interval's minibatches.
        valid_loss: at its end; empty where it was not asked for.
    """

    key: str
    step: list[int]
    lr: list[float]
    train_loss: list[float]
    valid_loss: list[float]

    def loss(self, split: Split) -> list[float]:
        """The losses on a split that has a curve, "train" or "valid"."""
        return {"train": self.train_loss, "valid": self.valid_loss}[split]

    def to_json(self) -> dict[str, Any]:
        """As `metalr.records` writes it: there infinity and NaN become null."""
        return _key_renamed(asdict(self), "key", _KEY_ON_DISK)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "RunCurve":
        """The curve of a line. A loss of null is infinite."""
        values = _key_renamed(record, _KEY_ON_DISK, "key")
        for field in fields(RunCurve):
            if field.name.endswith("_loss"):
                values[field.name] = [math.inf if loss is None else loss for loss in values[field.name]]
        return RunCurve(**values)


def _key_renamed(record: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in record.items()}
