"""The search of a comparison: one seeded low-discrepancy sequence over the LR and a contender's own parameters.

The trials of a smaller count are the first ones of a larger count. Every contender sees the same LRs in the same order:
the LR is the first dimension of one sequence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Dimensions of the sequence, more than any shipped contender has: a dimension must not depend on how many are used.
_DIMENSIONS = 8
# Values of a dimension of the sequence.
_RESOLUTION = 1 << 30
# An extension reaches this far beyond both ends of the LR range.
_BEYOND = 8.0


@dataclass(frozen=True)
class Range:
    """A number between two ends.

    Attributes:
        default: its value in the first trial; it may lie outside, as a floor of 0 does on a logarithmic range.
        low, high: the ends.
        log: equal factors are equally likely, in place of equal differences.
        whole: integers only.

    Example:
        >>> Range(0.1, 0.01, 1.0, log=True).at(0.5), Range(2, 1, 4, whole=True).at(0.99)
        (0.1, 4)
    """

    default: float
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf or (self.log and self.low <= 0.0):
            raise ValueError(
                f"got a range from {self.low} to {self.high}, expected finite numbers low < high, above 0 on a "
                "logarithmic scale: swap them or leave out log=True"
            )

    def at(self, share: float) -> float:
        """The value at a share of the range, in [0, 1)."""
        low, high = self._ends()
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        return min(max(round(value), int(self.low)), int(self.high)) if self.whole else _rounded(value)

    def _ends(self) -> tuple[float, float]:
        """A whole number has half a unit on either side."""
        return (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)

    def share_of_default(self) -> float:
        """Where the default lies, in [0, 1); at the end next to it if it lies outside."""
        value = min(max(self.default, self.low), self.high)
        low, high = self._ends()
        share = math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)
        return min(share, 1.0 - 1.0 / _RESOLUTION)


@dataclass(frozen=True)
class Choice:
    """One of a few values without an order that counts.

    Attributes:
        default: its value in the first trial, one of the values.
        values: to try.
    """

    default: Any
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.default not in self.values:
            raise ValueError(f"got default {self.default!r} for {self.values}, expected one of the listed values")

    def at(self, share: float) -> Any:
        """The value at a share of the list, in [0, 1)."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def share_of_default(self) -> float:
        """Where the default lies: the middle of its part of the list."""
        return (self.values.index(self.default) + 0.5) / len(self.values)


Dimension = Range | Choice
Space = Mapping[str, Dimension]


def points(space: Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The first `count` points of a search: the defaults, then a scrambled Sobol sequence around them.

    A space without dimensions has one point.

    Example:
        >>> from metalr.compare.search import Range
        >>> [point["power"] for point in points({"power": Range(2.0, 0.5, 4.0)}, 3)]
        [2.0, 2.46727939229, 3.3757626079]
    """
    defaults = {name: dimension.default for name, dimension in space.items()}
    if not space or count < 2:
        return [defaults][:count]
    return [defaults, *_drawn(space, 1, count - 1, seed)]


def lr_trials(
    space: Space, count: int, lr_range: tuple[float, float], seed: int = 0, *, extension: int = 0
) -> list[tuple[dict[str, Any], float]]:
    """Trials of a contender: (parameters, factor of the base LR), the defaults at the base LR first.

    Args:
        space: of its own parameters.
        count: trials within the LR range.
        lr_range: factors of the base LR.
        seed: of the sequence.
        extension: more trials after those, with LRs up to 8 times beyond either end of the range; half of the
            sequence's values go below it and half above.
    """
    low, high = lr_range
    within: Space = {"lr": Range(1.0, low, high, log=True), **space}
    found = points(within, count, seed)
    beyond: Space = {"lr": Range(1.0, 1.0 / _BEYOND, _BEYOND, log=True), **space}
    for point in _drawn(beyond, count, extension, seed) if extension else ():
        found.append({**point, "lr": _rounded((low if point["lr"] < 1.0 else high) * point["lr"])})
    return [({name: value for name, value in point.items() if name != "lr"}, point["lr"]) for point in found]


def _drawn(space: Space, skipped: int, count: int, seed: int) -> list[dict[str, Any]]:
    """Points of the sequence after the first `skipped`."""
    engine = torch.quasirandom.SobolEngine(max(_DIMENSIONS, len(space)), scramble=True, seed=seed)
    drawn = (engine.draw(skipped + count, dtype=torch.float64) * _RESOLUTION).long()[:, : len(space)]
    # A digital shift keeps the even spread. This one moves the first point onto the defaults, so that the defaults and
    # the first 3, 15 or 63 other points fill every fourth, sixteenth or sixty-fourth of the LR range once.
    onto = torch.tensor([int(dimension.share_of_default() * _RESOLUTION) for dimension in space.values()])
    shares = ((drawn ^ drawn[0] ^ onto)[skipped:].double() / _RESOLUTION).tolist()
    return [
        {name: dimension.at(share) for (name, dimension), share in zip(space.items(), row, strict=True)}
        for row in shares
    ]


def _rounded(value: float) -> float:
    """Twelve digits: a value must be the same on every machine, as it is part of the name of a run."""
    return float(f"{value:.12g}")
