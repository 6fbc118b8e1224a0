"""Decays for a known budget, which differ in how long they keep the LR high."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metalr.schedules.base import Schedule, cosine_fall, part_progress
from metalr.schedules.parameters import choice, real


@dataclass(frozen=True)
class KDecay(Schedule):
    """Polynomial or cosine decay in progress ** k: a larger k keeps the LR high for longer, then drops it faster.

    Equation: multiplier = floor + (1 - floor) * f(progress ** k), where f(x) = (1 - x) ** power for the shape
    "polynomial" and (1 + cos(pi * x)) / 2 for "cosine" (which ignores power).
    Units: floor is a factor of the base LR; k and power have none.
    After progress 1: holds floor.
    Source: Zhang and Li 2020, "k-decay", arXiv 2004.05909.

    Example:
        >>> KDecay(k=2.0)(0.5)
        0.75
    """

    k: float = real(1.5, above=0.0)
    power: float = real(1.0, above=0.0)
    floor: float = real(0.0, at_least=0.0, at_most=1.0)
    shape: str = choice("polynomial", "cosine")

    def multiplier(self, progress: Tensor) -> Tensor:
        done = torch.pow(progress.clamp(max=1.0), self.k)
        fall = cosine_fall(done) if self.shape == "cosine" else torch.pow(1.0 - done, self.power)
        return self.floor + (1.0 - self.floor) * fall


@dataclass(frozen=True)
class Tanh(Schedule):
    """Hyperbolic-tangent decay (HTD): flat, then a smooth fall, then flat.

    Equation: multiplier = floor + (1 - floor) * (1 - tanh(lower + (upper - lower) * progress)) / 2.
    Units: lower and upper are the arguments of tanh at progress 0 and 1; floor is a factor of the base LR.
    After progress 1: holds its final value, floor + (1 - floor) * (1 - tanh(upper)) / 2 (0.0025 by default).
    Source: Hsueh, Li and Wu 2019, arXiv 1806.01593; the defaults are the paper's HTD(-6, 3).

    Example:
        >>> Tanh(lower=-4.0, upper=4.0)(0.5)
        0.5
    """

    lower: float = real(-6.0)
    upper: float = real(3.0)
    floor: float = real(0.0, at_least=0.0, at_most=1.0)

    def check_together(self) -> None:
        if self.lower >= self.upper:
            raise ValueError(f"got Tanh(lower={self.lower}, upper={self.upper}), expected lower < upper; swap them")

    def multiplier(self, progress: Tensor) -> Tensor:
        position = self.lower + (self.upper - self.lower) * progress.clamp(max=1.0)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 - torch.tanh(position))


@dataclass(frozen=True)
class REX(Schedule):
    """Reflected exponential: above a straight line throughout, and steep at the end.

    Equation: multiplier = floor + (1 - floor) * r / (1/2 + r/2), where r = 1 - progress.
    Units: floor is a factor of the base LR.
    After progress 1: holds floor.
    Source: Chen, Wolfe and Kyrillidis 2022, "REX", arXiv 2107.04197.

    Example:
        >>> round(REX()(0.5), 12)
        0.666666666667
    """

    floor: float = real(0.0, at_least=0.0, at_most=1.0)

    def multiplier(self, progress: Tensor) -> Tensor:
        rest = 1.0 - progress.clamp(max=1.0)
        return self.floor + (1.0 - self.floor) * rest / (0.5 + 0.5 * rest)


@dataclass(frozen=True)
class WSD(Schedule):
    """Warmup, stable, decay: a linear rise, a plateau, and a final fall of a chosen shape.

    Equation: multiplier = start + (1 - start) * progress / warmup before warmup; 1 up to 1 - decay; then
    floor + (1 - floor) * f(x), where x = (progress - 1 + decay) / decay is the completed fraction of the decay
    and f(x) = 1 - sqrt(x) ("1-sqrt"), 1 - x ("linear") or (1 + cos(pi * x)) / 2 ("cosine").
    Units: warmup and decay are fractions of the run, together at most 1; start and floor are factors of the
    base LR. warmup = 0 or decay = 0 leaves that part out.
    After progress 1: holds its final value.
    Source: Hu et al. 2024, arXiv 2404.06395 (WSD); Haegele et al. 2024, arXiv 2405.18392 (1-sqrt, decay 0.2).

    Example:
        >>> round(WSD(decay=0.2, shape="1-sqrt")(0.85), 12)
        0.5
    """

    warmup: float = real(0.05, at_least=0.0, at_most=1.0)
    decay: float = real(0.2, at_least=0.0, at_most=1.0)
    shape: str = choice("1-sqrt", "linear", "cosine")
    start: float = real(0.01, at_least=0.0, at_most=1.0)
    floor: float = real(0.0, at_least=0.0, at_most=1.0)

    def check_together(self) -> None:
        if self.warmup + self.decay > 1.0 + 1e-9:
            raise ValueError(
                f"got WSD(warmup={self.warmup}, decay={self.decay}), expected a sum of at most 1; shorten one"
            )

    def multiplier(self, progress: Tensor) -> Tensor:
        result = torch.ones_like(progress)
        if self.warmup > 0.0:
            result = self.start + (1.0 - self.start) * (progress / self.warmup).clamp(max=1.0)
        if self.decay > 0.0:
            done = part_progress(progress, 1.0 - self.decay, 1.0).clamp(max=1.0)
            result = result * (self.floor + (1.0 - self.floor) * self._fall(done))
        return result

    def _fall(self, done: Tensor) -> Tensor:
        if self.shape == "linear":
            return 1.0 - done
        return cosine_fall(done) if self.shape == "cosine" else 1.0 - torch.sqrt(done)
