"""Schedules that are constant between jumps.

As in torch, the new value already applies at the jump: `Step(every=0.5)` over 100 updates changes before update 50.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metalr.schedules.base import Schedule, guarded_floor, reached
from metalr.schedules.parameters import real, reals


@dataclass(frozen=True)
class Constant(Schedule):
    """The same LR throughout.

    Equation: multiplier = value.
    Units: value is a factor of the base LR.
    After progress 1: the same.
    Source: torch `ConstantLR` with unlimited `total_iters`.

    Example:
        >>> Constant(0.5)(0.3)
        0.5
    """

    value: float = real(1.0, at_least=0.0)

    def multiplier(self, progress: Tensor) -> Tensor:
        return torch.full_like(progress, self.value)


@dataclass(frozen=True)
class Step(Schedule):
    """Multiply the LR by gamma at equal intervals.

    Equation: multiplier = gamma ** floor(progress / every).
    Units: every is a fraction of the run; gamma is a factor.
    After progress 1: continues.
    Source: torch `StepLR`, with every = step_size / horizon.

    Example:
        >>> round(Step(every=0.3, gamma=0.1)(0.65), 12)
        0.01
    """

    every: float = real(0.3, above=0.0)
    gamma: float = real(0.1, at_least=0.0)

    def multiplier(self, progress: Tensor) -> Tensor:
        return torch.pow(self.gamma, guarded_floor(progress / self.every))


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiply the LR by gamma at each milestone.

    Equation: multiplier = gamma ** (number of milestones <= progress). A milestone given twice counts twice.
    Units: milestones are fractions of the run; gamma is a factor.
    After progress 1: passes any milestones above 1, then holds the last value.
    Source: torch `MultiStepLR`.

    Example:
        >>> MultiStep(milestones=(0.5, 0.75), gamma=0.5)(0.8)
        0.25
    """

    milestones: tuple[float, ...] = reals((0.5, 0.75), above=0.0, ordered=True)
    gamma: float = real(0.1, at_least=0.0)

    def multiplier(self, progress: Tensor) -> Tensor:
        # A loop over Python numbers, not `bucketize`, which needs a tensor copied to the device on every call.
        passed = torch.zeros_like(progress)
        for milestone in self.milestones:
            passed = passed + reached(progress, milestone)
        return torch.pow(self.gamma, passed)


@dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """A given value between each pair of neighbouring boundaries.

    Equation: multiplier = values[number of boundaries <= progress].
    Units: boundaries are fractions of the run; values are factors of the base LR, not of each other.
    After progress 1: passes any boundaries above 1, then holds the last value.
    Source: TensorFlow `piecewise_constant`, which changes one update later (`tensorflow` accounts for that).

    Example:
        >>> PiecewiseConstant(boundaries=(0.5, 0.75), values=(1.0, 0.3, 0.7))(0.6)
        0.3
    """

    boundaries: tuple[float, ...] = reals((0.5, 0.75), above=0.0, ordered=True, distinct=True)
    values: tuple[float, ...] = reals((1.0, 0.1, 0.01), at_least=0.0)

    def check_together(self) -> None:
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"got PiecewiseConstant with {len(self.values)} values for {len(self.boundaries)} "
                f"boundaries, expected one more value than boundaries; pass {len(self.boundaries) + 1} values"
            )

    def multiplier(self, progress: Tensor) -> Tensor:
        result = torch.full_like(progress, self.values[0])
        for boundary, value in zip(self.boundaries, self.values[1:], strict=True):
            result = torch.where(reached(progress, boundary), value, result)
        return result
