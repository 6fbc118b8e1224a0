"""Decays with a closed formula: exponential, inverse, linear, polynomial."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metalr.schedules.base import Schedule, guarded_floor, tolerance
from metalr.schedules.parameters import flag, real


def _intervals(progress: Tensor, every: float, staircase: bool) -> Tensor:
    """Progress in units of `every`, rounded down on a staircase."""
    intervals = progress / every
    return guarded_floor(intervals) if staircase else intervals


@dataclass(frozen=True)
class Exponential(Schedule):
    """Multiply the LR by a rate per interval, smoothly or as a staircase.

    Equation: multiplier = rate ** (progress / every); staircase: rate ** floor(progress / every).
    Units: rate is a factor per interval; every is a fraction of the run.
    After progress 1: continues.
    Source: torch `ExponentialLR` (every = 1 / horizon); TensorFlow `exponential_decay`.

    Example:
        >>> Exponential(rate=0.25, every=0.5)(0.25)
        0.5
        >>> Exponential(rate=0.25, every=0.5, staircase=True)(0.25)
        1.0
    """

    rate: float = real(0.5, above=0.0)
    every: float = real(0.1, above=0.0)
    staircase: bool = flag(False)

    def multiplier(self, progress: Tensor) -> Tensor:
        return torch.pow(self.rate, _intervals(progress, self.every, self.staircase))


@dataclass(frozen=True)
class NaturalExponential(Schedule):
    """Exponential decay with a rate in the exponent, smoothly or as a staircase.

    Equation: multiplier = exp(-rate * progress / every); staircase: exp(-rate * floor(progress / every)).
    Units: rate is the fall of log(LR) per interval; every is a fraction of the run.
    After progress 1: continues.
    Source: TensorFlow `natural_exp_decay`.

    Example:
        >>> round(NaturalExponential(rate=2.0, every=0.5)(0.25), 6)
        0.367879
    """

    rate: float = real(1.0, at_least=0.0)
    every: float = real(0.2, above=0.0)
    staircase: bool = flag(False)

    def multiplier(self, progress: Tensor) -> Tensor:
        return torch.exp(-self.rate * _intervals(progress, self.every, self.staircase))


@dataclass(frozen=True)
class InverseTime(Schedule):
    """Decay as one over time, smoothly or as a staircase.

    Equation: multiplier = 1 / (1 + rate * x), x = progress / every; staircase: x = floor(progress / every).
    Units: rate is the rise of 1 / multiplier per interval; every is a fraction of the run.
    After progress 1: continues.
    Source: TensorFlow `inverse_time_decay`; Robbins and Monro 1951 for the 1 / t law.

    Example:
        >>> InverseTime(rate=1.0, every=0.25)(0.75)
        0.25
    """

    rate: float = real(1.0, at_least=0.0)
    every: float = real(0.1, above=0.0)
    staircase: bool = flag(False)

    def multiplier(self, progress: Tensor) -> Tensor:
        return 1.0 / (1.0 + self.rate * _intervals(progress, self.every, self.staircase))


@dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """Linear warmup, then decay as one over the square root of time.

    Equation: multiplier = start + (1 - start) * progress / warmup up to warmup, then sqrt(warmup / progress).
    Units: warmup is a fraction of the run; start is the multiplier of the first update (the paper's is 0,
    which wastes that update).
    After progress 1: continues.
    Source: Vaswani et al. 2017, arXiv 1706.03762, section 5.3, scaled to a peak of 1.

    Example:
        >>> InverseSquareRoot(warmup=0.1, start=0.0)(0.05), InverseSquareRoot(warmup=0.1)(0.4)
        (0.5, 0.5)
    """

    warmup: float = real(0.1, above=0.0)
    start: float = real(0.01, at_least=0.0)

    def multiplier(self, progress: Tensor) -> Tensor:
        ramp = self.start + (1.0 - self.start) * (progress / self.warmup).clamp(max=1.0)
        return ramp * torch.sqrt(self.warmup / progress.clamp(min=self.warmup))


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from one factor to another.

    Equation: multiplier = start + (end - start) * progress.
    Units: start and end are factors of the base LR.
    After progress 1: holds end.
    Source: torch `LinearLR`.

    Example:
        >>> Linear(start=1.0, end=0.5)(0.5)
        0.75
    """

    start: float = real(1.0, at_least=0.0)
    end: float = real(0.0, at_least=0.0)

    def multiplier(self, progress: Tensor) -> Tensor:
        done = progress.clamp(max=1.0)
        # Both ends are weighted because start + (end - start) * done could round to below 0.
        return self.start * (1.0 - done) + self.end * done


@dataclass(frozen=True)
class Polynomial(Schedule):
    """Decay as a power of the remaining fraction of the run.

    Equation: multiplier = end + (1 - end) * (1 - progress / period) ** power, with period 1. With cycle the
    period is the least whole number >= progress: the LR jumps back up at 1, 2, 3, ... and falls to end again.
    Units: end is a factor of the base LR; power has none.
    After progress 1: holds end; with cycle, continues.
    Source: torch `PolynomialLR`; TensorFlow `polynomial_decay`.

    Example:
        >>> Polynomial(power=2.0, end=0.2)(0.5)
        0.4
        >>> Polynomial(cycle=True)(1.5)
        0.25
    """

    power: float = real(1.0, above=0.0)
    end: float = real(0.0, at_least=0.0)
    cycle: bool = flag(False)

    def multiplier(self, progress: Tensor) -> Tensor:
        remaining = (1.0 - self._done(progress)).clamp(min=0.0)
        falling = torch.pow(remaining, self.power)
        return falling + self.end * (1.0 - falling)

    def _done(self, progress: Tensor) -> Tensor:
        if not self.cycle:
            return progress
        # A ceiling that tolerates rounding, the mirror of `guarded_floor`. Progress 0 belongs to the first period.
        guarded = progress - tolerance(progress.dtype) * progress.clamp(min=1.0)
        return progress / torch.ceil(guarded).clamp(min=1.0)
