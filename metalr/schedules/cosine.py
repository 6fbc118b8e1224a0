"""The cosine family: plain, with restarts, and multiplied by a line with or without noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metalr import seeding
from metalr.schedules.base import Schedule, cosine_fall, guarded_floor
from metalr.schedules.parameters import flag, integer, real


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave from 1 to floor.

    Equation: multiplier = floor + (1 - floor) * (1 + cos(pi * progress)) / 2.
    Units: floor is a factor of the base LR.
    After progress 1: holds floor (torch's `CosineAnnealingLR` rises again).
    Source: Loshchilov and Hutter 2017, arXiv 1608.03983; torch `CosineAnnealingLR`; TensorFlow
    `cosine_decay`.

    Example:
        >>> round(Cosine(floor=0.1)(0.5), 12)
        0.55
    """

    floor: float = real(0.0, at_least=0.0, at_most=1.0)

    def multiplier(self, progress: Tensor) -> Tensor:
        return self.floor + (1.0 - self.floor) * cosine_fall(progress.clamp(max=1.0))


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Successive half cosine waves, each t_mul times as long and m_mul times as high as the one before.

    Equation: period i has length period * t_mul ** i; with x its completed fraction,
    multiplier = floor + (1 - floor) * m_mul ** i * (1 + cos(pi * x)) / 2.
    Units: period is a fraction of the run; t_mul and m_mul are factors per restart; floor is a factor of the base
    LR. The last period ends with the run if period * (1 + t_mul + t_mul ** 2 + ...) = 1.
    After progress 1: continues.
    Source: Loshchilov and Hutter 2017, arXiv 1608.03983; torch `CosineAnnealingWarmRestarts` (t_mul is
    T_mult); TensorFlow `cosine_decay_restarts` (its default t_mul is 2).

    Example:
        >>> round(CosineRestarts(period=0.25, m_mul=0.5)(0.375), 12)
        0.25
    """

    period: float = real(0.25, above=0.0)
    t_mul: float = real(1.0, at_least=1.0)
    m_mul: float = real(1.0, at_least=0.0)
    floor: float = real(0.0, at_least=0.0, at_most=1.0)

    def multiplier(self, progress: Tensor) -> Tensor:
        restarts, done = self._restarts(progress / self.period)
        wave = torch.pow(self.m_mul, restarts) * cosine_fall(done)
        return self.floor + (1.0 - self.floor) * wave

    def _restarts(self, periods: Tensor) -> tuple[Tensor, Tensor]:
        """Number of restarts so far, and the completed fraction of the current period."""
        growth = self.t_mul - 1.0
        if growth == 0.0:
            restarts = guarded_floor(periods)
            return restarts, periods - restarts
        # log1p and expm1, so that t_mul close to 1 approaches t_mul = 1 instead of 0 / 0.
        log_t_mul = math.log1p(growth)
        restarts = guarded_floor(torch.log1p(periods * growth) / log_t_mul)
        begun = torch.expm1(restarts * log_t_mul) / growth  # 1 + t_mul + ..., the length of the completed periods
        return restarts, (periods - begun) * torch.exp(-restarts * log_t_mul)


@dataclass(frozen=True)
class LinearCosine(Schedule):
    """A falling line times a cosine.

    Equation: multiplier = (alpha + 1 - progress) * (1 + cos(2 * pi * num_periods * progress)) / 2 + beta.
    Units: alpha and beta are factors of the base LR; num_periods counts whole cosine waves in the run.
    After progress 1: holds its final value.
    Source: Bello et al. 2017, arXiv 1709.07417; TensorFlow `linear_cosine_decay`.

    Example:
        >>> round(LinearCosine(beta=0.0)(0.5), 12)
        0.25
    """

    num_periods: float = real(0.5, at_least=0.0)
    alpha: float = real(0.0, at_least=0.0)
    beta: float = real(0.001, at_least=0.0)

    def multiplier(self, progress: Tensor) -> Tensor:
        done = progress.clamp(max=1.0)
        return (self.alpha + 1.0 - done) * cosine_fall(2.0 * self.num_periods * done) + self.beta


@dataclass(frozen=True)
class NoisyLinearCosine(Schedule):
    """`LinearCosine` with Gaussian noise of shrinking variance on the line.

    Equation: multiplier = max(0, (alpha + 1 - progress + noise) * wave + beta), where
    wave = (1 + cos(2 * pi * num_periods * progress)) / 2 and noise is normal with variance
    initial_variance / (1 + n) ** variance_decay, n = floor(draws * progress). The noise is a hash of (seed, n)
    rather than a draw from a generator, so it is the same on every call and after a resume.
    Units: draws is the number of noise values in a run (TensorFlow: one per update, so the horizon);
    the rest is as in `LinearCosine`. A negative LR would climb the loss, so it is clipped at 0; signed=True keeps
    it, as TensorFlow does.
    After progress 1: holds its final value, including the last noise.
    Source: Bello et al. 2017, arXiv 1709.07417; TensorFlow `noisy_linear_cosine_decay`.

    Example:
        >>> round(NoisyLinearCosine(initial_variance=0.0, beta=0.0)(0.5), 12)
        0.25
    """

    initial_variance: float = real(1.0, at_least=0.0)
    variance_decay: float = real(0.55, at_least=0.0)
    num_periods: float = real(0.5, at_least=0.0)
    alpha: float = real(0.0, at_least=0.0)
    beta: float = real(0.001, at_least=0.0)
    draws: int = integer(1000, at_least=1)
    seed: int = integer(0)
    signed: bool = flag(False)

    def multiplier(self, progress: Tensor) -> Tensor:
        done = progress.clamp(max=1.0)
        line = self.alpha + 1.0 - done + self._noise(done)
        result = line * cosine_fall(2.0 * self.num_periods * done) + self.beta
        return result if self.signed else result.clamp(min=0.0)

    def _noise(self, done: Tensor) -> Tensor:
        draw = guarded_floor(done * self.draws)
        variance = self.initial_variance / torch.pow(1.0 + draw, self.variance_decay)
        stream = seeding.stream(self.seed, "noise")
        return variance.sqrt() * seeding.normal(stream, draw.long(), dtype=done.dtype)
