"""Schedules built from other schedules or from a user's own function."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metalr.schedules.base import Schedule, part_progress, reached
from metalr.schedules.decay import Linear
from metalr.schedules.parameters import Refused, choice, real, reals, sequence_items
from metalr.schedules.steps import Constant


def _one_schedule(value: Any) -> Schedule:
    if not isinstance(value, Schedule):
        raise Refused("a schedule (wrap your own function in Function)")
    return value


def _schedules(value: Any) -> tuple[Schedule, ...]:
    return tuple(_one_schedule(item) for item in sequence_items(value, "schedules"))


def _function(value: Any) -> Callable[[Tensor], Tensor | float]:
    if not callable(value):
        raise Refused("a function of progress, such as `lambda progress: 1 - progress`")
    return value


@dataclass(frozen=True)
class Warmup(Schedule):
    """A warmup before any schedule, which then sees its own progress from 0 to 1 over the rest of the run.

    Equation: multiplier = ramp * schedule(max(0, (progress - length) / (1 - length))), where
    ramp = start + (1 - start) * x ("linear") or start ** (1 - x) ("exponential"), and
    x = min(1, progress / length).
    Units: length is a fraction of the run; start is a factor of the schedule's first value (0 wastes the
    first update, and "exponential" cannot rise from it).
    After progress 1: as the wrapped schedule.
    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2 (linear); torch `LinearLR` before another scheduler
    in `SequentialLR`. The exponential ramp is linear in log(LR), as in an LR range test (Smith 2017, arXiv
    1506.01186).

    Example:
        >>> from metalr.schedules import Cosine
        >>> Warmup(Cosine(), length=0.2, start=0.0)(0.1), round(Warmup(Cosine(), length=0.2)(0.6), 12)
        (0.5, 0.5)
    """

    schedule: Schedule = field(default=Constant(), metadata={"check": _one_schedule})
    length: float = real(0.1, above=0.0, below=1.0)
    start: float = real(0.01, at_least=0.0)
    shape: str = choice("linear", "exponential")

    def check_together(self) -> None:
        if self.shape == "exponential" and self.start == 0.0:
            raise ValueError(
                "got Warmup(start=0.0, shape='exponential'), expected start > 0, since no factor lifts an LR "
                "from 0; pass 0.01, for example"
            )

    def multiplier(self, progress: Tensor) -> Tensor:
        return self._ramp(progress) * self.schedule.multiplier(part_progress(progress, self.length, 1.0))

    def _ramp(self, progress: Tensor) -> Tensor:
        done = (progress / self.length).clamp(max=1.0)
        if self.shape == "exponential":
            return torch.pow(self.start, 1.0 - done)
        return self.start + (1.0 - self.start) * done


@dataclass(frozen=True)
class Sequence(Schedule):
    """Schedules in sequence, each with its own progress from 0 to 1 over its part of the run.

    Equation: multiplier = `schedules[i]((progress - left) / (right - left))`, where i is the number of
    milestones <= progress, and left and right are the ends of part i (0 and 1 at the ends of the run).
    Units: milestones are fractions of the run, one fewer than schedules.
    After progress 1: as the last schedule after its own progress 1.
    Source: torch `SequentialLR`.

    Example:
        >>> from metalr.schedules import Constant, Linear
        >>> Sequence((Constant(0.5), Linear()), milestones=(0.75,))(0.8125)
        0.75
    """

    schedules: tuple[Schedule, ...] = field(default=(Constant(), Linear()), metadata={"check": _schedules})
    milestones: tuple[float, ...] = reals((0.5,), above=0.0, below=1.0, ordered=True, distinct=True)

    def check_together(self) -> None:
        if len(self.schedules) != len(self.milestones) + 1:
            raise ValueError(
                f"got Sequence with {len(self.schedules)} schedules and {len(self.milestones)} milestones, "
                "expected one more schedule than milestones; add or remove schedules or milestones"
            )

    def multiplier(self, progress: Tensor) -> Tensor:
        # Every part is evaluated everywhere and `where` selects: a branch would need the data on the host. Earlier
        # parts are clamped at their own end, so that a user's function never sees progress beyond it.
        last = len(self.schedules) - 1
        result = progress
        parts = itertools.pairwise((0.0, *self.milestones, 1.0))
        for index, (schedule, (left, right)) in enumerate(zip(self.schedules, parts, strict=True)):
            local = part_progress(progress, left, right)
            value = schedule.multiplier(local if index == last else local.clamp(max=1.0))
            result = value if index == 0 else torch.where(reached(progress, left), value, result)
        return result


@dataclass(frozen=True)
class Function(Schedule):
    """A user's own function of progress.

    Equation: multiplier = fn(progress).
    Units: fn receives a floating-point tensor of any shape and returns one of that shape, or a number. It handles
    batches only if it is written with torch operations; with `math` and `if` it handles one run at a time.
    After progress 1: whatever fn returns.
    Source: torch `LambdaLR`, with progress in place of the epoch.

    It cannot be saved: a file that holds code is not safe to load.

    Raises:
        ValueError: when called, if fn fails on a tensor or returns another shape.

    Example:
        >>> Function(lambda progress: 1.0 - progress**2)(0.5)
        0.75
    """

    fn: Callable[[Tensor], Tensor | float] = field(metadata={"check": _function})

    def multiplier(self, progress: Tensor) -> Tensor:
        try:
            result = self.fn(progress)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"got an error from a Function on progress of shape {tuple(progress.shape)} ({error}), "
                "expected a function that accepts tensors; use torch.cos, torch.where, ... instead of `math` and `if`"
            ) from error
        if isinstance(result, Tensor) and result.shape not in (progress.shape, torch.Size([])):
            raise ValueError(
                f"got shape {tuple(result.shape)} from a Function for progress of shape "
                f"{tuple(progress.shape)}, expected the same shape or a number; use elementwise operations"
            )
        return (torch.zeros_like(progress) + result).to(progress.dtype)
