"""Schedules that rise and fall, each with a momentum that moves against the LR."""

import itertools
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from metalr.schedules.base import Schedule, evaluate, guarded_floor
from metalr.schedules.parameters import choice, flag, integer, real


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One rise to the full LR and one long fall to far below the start, while momentum does the opposite.

    Equation: the multiplier goes from 1 / div_factor to 1 at progress pct_start and then to
    1 / (div_factor * final_div_factor) at progress 1. With three_phase it returns to 1 / div_factor at
    progress 2 * pct_start, and falls from there. Each part is half a cosine ("cos") or a line ("linear").
    `momentum(progress)` goes from max_momentum to base_momentum and back along the same parts.
    Units: pct_start is a fraction of the run; the base LR is torch's max_lr; momenta are absolute.
    steps: torch counts the knots in whole updates, one early: at pct_start * steps - 1, at twice that, and at
    steps - 1. Pass the horizon as steps to get torch's LRs exactly; None puts the knots where the equation does.
    After progress 1: holds its final value (torch raises an error).
    Source: Smith and Topin 2018, arXiv 1708.07120; torch `OneCycleLR`.

    Example:
        >>> OneCycle(div_factor=25.0)(0.0), OneCycle(pct_start=0.3)(0.3)
        (0.04, 1.0)
        >>> OneCycle().momentum(0.3)
        0.85
    """

    pct_start: float = real(0.3, above=0.0, below=1.0)
    anneal_strategy: str = choice("cos", "linear")
    div_factor: float = real(25.0, above=0.0)
    final_div_factor: float = real(1e4, above=0.0)
    three_phase: bool = flag(False)
    base_momentum: float = real(0.85, at_least=0.0, at_most=1.0)
    max_momentum: float = real(0.95, at_least=0.0, at_most=1.0)
    steps: int | None = integer(None, at_least=2, optional=True)

    def check_together(self) -> None:
        knots = self._knots()
        if any(right <= left for left, right in itertools.pairwise(knots)):
            raise ValueError(
                f"got OneCycle(pct_start={self.pct_start}, three_phase={self.three_phase}, "
                f"steps={self.steps}) with knots at {knots}, expected them to ascend; move pct_start "
                f"away from {'0 and 0.5' if self.three_phase else '0 and 1'} or use more steps"
            )

    def multiplier(self, progress: Tensor) -> Tensor:
        initial = 1.0 / self.div_factor
        final = initial / self.final_div_factor
        return self._along(progress, [initial, 1.0, initial, final] if self.three_phase else [initial, 1.0, final])

    @overload
    def momentum(self, progress: Tensor) -> Tensor: ...

    @overload
    def momentum(self, progress: float) -> float: ...

    def momentum(self, progress: Tensor | float) -> Tensor | float:
        """The momentum (SGD) or beta1 (Adam) that goes with the LR at this progress."""
        high, low = self.max_momentum, self.base_momentum
        values = [high, low, high, high] if self.three_phase else [high, low, high]
        return evaluate(lambda tensor: self._along(tensor, values), progress)

    def _knots(self) -> list[float]:
        early = 0.0 if self.steps is None else 1.0 / self.steps
        peak = self.pct_start - early
        return [0.0, peak, 2.0 * peak, 1.0 - early] if self.three_phase else [0.0, peak, 1.0 - early]

    def _along(self, progress: Tensor, values: list[float]) -> Tensor:
        """Interpolate between the values at the knots."""
        result = torch.full_like(progress, values[0])
        parts = zip(itertools.pairwise(self._knots()), itertools.pairwise(values), strict=True)
        for (left, right), (start, end) in parts:
            done = ((progress - left) / (right - left)).clamp(0.0, 1.0)
            result = torch.where(progress > left, self._anneal(start, end, done), result)
        return result

    def _anneal(self, start: float, end: float, done: Tensor) -> Tensor:
        if self.anneal_strategy == "linear":
            return start + (end - start) * done
        return end + (start - end) / 2.0 * (1.0 + torch.cos(torch.pi * done))


@dataclass(frozen=True)
class Cyclic(Schedule):
    """Triangles between a low and a high LR, with momentum moving against them.

    Equation: multiplier = low + (high - low) * height, and
    momentum(progress) = max_momentum - (max_momentum - base_momentum) * height; height = triangle * scale.
    The triangle rises from 0 to 1 over up and falls back over down. The scale is 1 ("triangular"),
    1 / 2 ** (complete cycles) ("triangular2") or gamma ** progress ("exp_range").
    Units: up and down are fractions of the run (down=None: equal to up); low and high are factors of the base LR;
    gamma is the factor per run, torch's gamma ** horizon (read by "exp_range" only); momenta are absolute.
    After progress 1: continues.
    Source: Smith 2017, arXiv 1506.01186; torch `CyclicLR`.

    Example:
        >>> Cyclic(up=0.25, low=0.5)(0.125), Cyclic(up=0.25, low=0.5, mode="triangular2")(0.75)
        (0.75, 0.75)
        >>> round(Cyclic(up=0.25).momentum(0.25), 12)
        0.8
    """

    up: float = real(0.1, above=0.0)
    down: float | None = real(None, above=0.0, optional=True)
    low: float = real(0.1, at_least=0.0)
    high: float = real(1.0, at_least=0.0)
    mode: str = choice("triangular", "triangular2", "exp_range")
    gamma: float = real(0.1, above=0.0, at_most=1.0)
    base_momentum: float = real(0.8, at_least=0.0, at_most=1.0)
    max_momentum: float = real(0.9, at_least=0.0, at_most=1.0)

    def check_together(self) -> None:
        if self.low > self.high:
            raise ValueError(f"got Cyclic(low={self.low}, high={self.high}), expected low <= high; swap them")

    def multiplier(self, progress: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * self._height(progress)

    @overload
    def momentum(self, progress: Tensor) -> Tensor: ...

    @overload
    def momentum(self, progress: float) -> float: ...

    def momentum(self, progress: Tensor | float) -> Tensor | float:
        """The momentum (SGD) or beta1 (Adam) that goes with the LR at this progress."""
        return evaluate(self._momentum, progress)

    def _momentum(self, progress: Tensor) -> Tensor:
        return self.max_momentum - (self.max_momentum - self.base_momentum) * self._height(progress)

    def _height(self, progress: Tensor) -> Tensor:
        """The scaled triangle, between 0 and 1."""
        down = self.up if self.down is None else self.down
        length = self.up + down
        cycles = guarded_floor(progress / length)
        # The guarded floor may start a new cycle slightly early, where `within` rounds to below 0.
        within = (progress - cycles * length).clamp(min=0.0)
        triangle = torch.minimum(within / self.up, (length - within).clamp(min=0.0) / down)
        if self.mode == "triangular2":
            return triangle * torch.pow(0.5, cycles)
        return triangle * torch.pow(self.gamma, progress) if self.mode == "exp_range" else triangle
