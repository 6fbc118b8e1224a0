"""A schedule through given values, the exported form of those that meta-gradients and evolution strategies learn."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metalr.schedules.base import Schedule
from metalr.schedules.parameters import reals


@dataclass(frozen=True)
class Knots(Schedule):
    """Values at equally spaced points of progress, joined by straight lines in log space.

    Equation: multiplier = values[i] ** (1 - x) * values[i + 1] ** x, where i is the knot at or before progress
    and x is the fraction of the way to the next knot; knot i of n lies at progress i / (n - 1).
    Units: values are factors of the base LR.
    After progress 1: holds the last value.
    Source: the open-loop schedule of `metalr.learned.schedules.KnotLR`; log space because LRs act by ratios.

    Example:
        >>> round(Knots(values=(1.0, 4.0, 0.25))(0.25), 12)
        2.0
    """

    values: tuple[float, ...] = reals((1.0, 1.0, 0.1), above=0.0)

    def check_together(self) -> None:
        if len(self.values) < 2:
            raise ValueError(
                f"got Knots with {len(self.values)} values, expected at least 2: one at each end of the run; "
                "use Constant for a single value"
            )

    def multiplier(self, progress: Tensor) -> Tensor:
        # A loop over Python numbers, not a table look-up: a table would be copied to the device on every call.
        position = progress.clamp(max=1.0) * (len(self.values) - 1)
        result = torch.zeros_like(progress)
        logs = [math.log(value) for value in self.values]
        for index, (left, right) in enumerate(itertools.pairwise(logs)):
            line = left + (right - left) * (position - index)
            result = torch.where(position >= index, line, result)
        return result.exp()
