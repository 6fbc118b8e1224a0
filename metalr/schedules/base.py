"""The interface of a schedule, and the arithmetic of progress that all schedules share.

A schedule maps progress to a multiplier of the base LR. It is a frozen dataclass of numbers, without state,
optimizer or step count, so that one object serves a batch of 4096 runs, a plot and a user's scheduler alike.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from metalr.schedules.parameters import validate


@dataclass(frozen=True)
class Schedule(abc.ABC):
    """A pure function `progress -> lr_multiplier`.

    Progress is t / horizon, where t is the number of optimizer updates already made: 0 at the first update. It is
    a float or a floating-point tensor of any shape, dtype and device, and the result is of the same kind. Every
    schedule is defined above progress 1 (a run longer than planned); progress below 0 is never passed.

    Subclasses are final: they declare parameters and implement `multiplier`.

    Raises:
        ValueError: a parameter is out of range, or two parameters do not fit together.
    """

    def __post_init__(self) -> None:
        validate(self)
        self.check_together()

    @abc.abstractmethod
    def multiplier(self, progress: Tensor) -> Tensor:
        """Compute the multiplier of a floating-point tensor with torch operations only: no sync, no branch on data."""

    def check_together(self) -> None:  # noqa: B027 - most schedules have nothing to add
        """Raise ValueError if parameters that are valid one by one do not fit together."""

    @overload
    def __call__(self, progress: Tensor) -> Tensor: ...

    @overload
    def __call__(self, progress: float) -> float: ...

    def __call__(self, progress: Tensor | float) -> Tensor | float:
        """Return the multiplier: a float for a number, a tensor of the same shape and dtype for a tensor.

        Raises:
            ValueError: progress is a tensor of a dtype that is not floating-point.
        """
        return evaluate(self.multiplier, progress)


def evaluate(function: Callable[[Tensor], Tensor], progress: Tensor | float) -> Tensor | float:
    """Apply a tensor function to a tensor or a number, and return the same kind.

    A number goes through a float64 tensor on the CPU rather than a second formula in `math`: two formulas
    would drift apart.

    Raises:
        ValueError: progress is a tensor of a dtype that is not floating-point.
    """
    if not isinstance(progress, Tensor):
        return function(torch.tensor(progress, dtype=torch.float64, device="cpu")).item()
    if not progress.is_floating_point():
        raise ValueError(
            f"got progress of dtype {progress.dtype}, expected a floating-point dtype; pass steps.double() / horizon"
        )
    return function(progress)


def tolerance(dtype: torch.dtype) -> float:
    """Bound on the rounding error of progress, relative to max(1, progress)."""
    return max(1e-9, 8.0 * torch.finfo(dtype).eps)


def guarded_floor(value: Tensor) -> Tensor:
    """Floor that tolerates rounding.

    Progress is a rounded quotient: 0.3 / 0.1 is 2.9999999999999996, and a plain floor would change the LR one
    update late. An update advances progress by 1 / horizon, so the guard is never mistaken for one (below
    1e9 updates in float64, below 1e6 in float32).

    Example:
        >>> guarded_floor(torch.tensor(0.3 / 0.1, dtype=torch.float64)).item()
        3.0
    """
    return torch.floor(value + tolerance(value.dtype) * value.clamp(min=1.0))


def reached(progress: Tensor, boundary: float) -> Tensor:
    """Mask of where progress is at or past a boundary, with the tolerance of `guarded_floor`."""
    return progress >= boundary - tolerance(progress.dtype) * max(1.0, boundary)


def part_progress(progress: Tensor, start: float, end: float) -> Tensor:
    """Progress within the part of a run from start to end: 0 up to start, 1 at end, above 1 after it.

    A remainder within the rounding error becomes exactly 0: a square root would turn 1e-16 into 1e-8.
    """
    local = (progress - start) / (end - start)
    return torch.where(local > tolerance(progress.dtype) / (end - start), local, 0.0)


def cosine_fall(fraction: Tensor) -> Tensor:
    """Half a cosine wave: 1 at fraction 0, 1/2 at 1/2, 0 at 1."""
    return 0.5 * (1.0 + torch.cos(torch.pi * fraction))
