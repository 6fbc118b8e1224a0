"""Named, independent random streams of one seed.

Every random choice in metalr is a pure function of integers: (seed, stream, counter). Nothing is drawn from a
generator that the runs of a batch share, so run *i* never depends on its neighbours, and a resumed run continues
with the same numbers.
"""

import math

import torch
from torch import Tensor

STREAMS = {
    "init": 1,
    "data": 2,
    "outer": 3,
    "policy": 4,
    "variant": 5,
    "base_lr": 6,
    "noise": 7,
    "feature_mask": 8,
    "own_loop": 9,
}

_MULTIPLIER_1 = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit integer: 2**64 over the golden ratio
_MULTIPLIER_2 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9, first mixing constant of SplitMix64
_MULTIPLIER_3 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB, second mixing constant of SplitMix64


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own shift of int64 is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's output function (Steele, Lea and Flood 2014, figure 16) on int64, modulo 2**64."""
    value = (value ^ _shift_right(value, 30)) * _MULTIPLIER_2
    value = (value ^ _shift_right(value, 27)) * _MULTIPLIER_3
    return value ^ _shift_right(value, 31)


def hash_integers(*values: Tensor | int) -> Tensor:
    """Hash broadcastable int64 tensors (or ints) to int64, uniform over all 64 bits.

    Example:
        >>> hash_integers(torch.tensor([0, 1]), 7).tolist()
        [1300955537930879614, 3681697457321254924]
    """
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    result = torch.zeros((), dtype=torch.int64, device=device)
    for value in values:
        result = _mix(result + value + _MULTIPLIER_1)
    return result


def stream(seed: Tensor | int, name: str) -> Tensor:
    """Derive the named stream of a seed: int64 of the seed's shape, to be hashed further with counters.

    Raises:
        KeyError: the name is not in `STREAMS`.
    """
    return hash_integers(seed, STREAMS[name])


def uniform(*values: Tensor | int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform numbers in (0, 1), one for each element of the broadcast `values`, in `dtype`.

    Example:
        >>> round(uniform(0, 1).item(), 6)
        0.166396
    """
    # As many bits as the dtype holds exactly together with the half that keeps 0 and 1 out.
    bits = {torch.float64: 52, torch.float32: 23}.get(dtype, 8)
    top_bits = _shift_right(hash_integers(*values), 64 - bits)
    return ((top_bits.to(torch.float64) + 0.5) / 2.0**bits).to(dtype)


def normal(*values: Tensor | int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers in `dtype`, by the Box-Muller transform of two uniform numbers.

    Example:
        >>> round(normal(0, 1).item(), 6)
        -0.489444
    """
    radius = (-2.0 * uniform(*values, 0).log()).sqrt()
    return (radius * (2.0 * math.pi * uniform(*values, 1)).cos()).to(dtype)


def integers(high: int, *values: Tensor | int) -> Tensor:
    """Integers in [0, high), one for each element of the broadcast `values`. The bias is below high / 2**63.

    Example:
        >>> integers(10, 0, torch.arange(5)).tolist()
        [7, 7, 0, 5, 9]
    """
    return _shift_right(hash_integers(*values), 1) % high
