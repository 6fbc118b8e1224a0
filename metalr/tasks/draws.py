"""`Draws`: a stream of random numbers that is a function of one integer, for everything that is drawn once per task.

Runs draw from `metalr.seeding` instead, which needs no order.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from metalr import seeding

T = TypeVar("T")


class Draws:
    """Numbers from a generator of its own, one after another.

    Args:
        *key: integers; each combination has its own stream.

    Example:
        >>> Draws(1, 2).choice(["a", "b", "c"]) == Draws(1, 2).choice(["a", "b", "c"])
        True
    """

    def __init__(self, *key: int) -> None:
        self.seed = int(seeding.integers(1 << 31, *key))
        self.generator = torch.Generator().manual_seed(self.seed)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def log_uniform(self, low: float, high: float) -> float:
        """A number in [low, high) whose logarithm is uniform."""
        return low * (high / low) ** self.uniform()

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return min(int(self.uniform(low, high + 1)), high)

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.uniform() < probability

    def choice(self, values: Sequence[T]) -> T:
        """One of the values, all alike."""
        return values[self.integer(0, len(values) - 1)]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """One of the keys, in proportion to its weight."""
        left = self.uniform(0.0, sum(weights.values()))
        for value, weight in weights.items():
            left -= weight
            if left < 0.0:
                return value
        return value

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 numbers."""
        return torch.randn(shape, generator=self.generator)

    def rand(self, *shape: int) -> Tensor:
        """Uniform float32 numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Whole numbers in [0, high), int64."""
        return torch.randint(high, shape, generator=self.generator)

    def permutation(self, length: int) -> Tensor:
        """The numbers below `length` in random order."""
        return torch.randperm(length, generator=self.generator)
