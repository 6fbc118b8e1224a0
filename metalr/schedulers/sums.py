"""Squared norms and scalar products of lists of tensors, each by the quickest route on its device.

On a CPU the sums are plain numbers, which are quicker to add than tensors; elsewhere they stay tensors, so that nothing
waits for the device.
"""

from typing import Any

import torch
from torch import Tensor

Number = float | Tensor

_HALF = (torch.float16, torch.bfloat16)
# Torch's own allocations begin on a boundary of this many bytes.
_BOUNDARY = 64


def on_host(tensors: list[Tensor]) -> bool:
    """Whether tensors that lie together are on the CPU."""
    return tensors[0].is_cpu


def as_float(tensor: Tensor) -> Tensor:
    """The tensor in at least float32: squares of half-precision gradients overflow."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def compare(held: list[Tensor], last: list[Tensor], params: list[Tensor], weights: list[float] | None) -> list[Number]:
    """Squared norms of three lists of tensors, and the scalar product of the first two.

    Args:
        held: gradients of one update, one tensor per parameter; may be overwritten.
        last: gradients of the next update, in the same shapes.
        params: the parameters.
        weights: of each parameter in the sums; None for ones.

    Returns:
        |held|², |last|², |params|² and held · last.
    """
    if on_host(last):
        # Tensor by tensor, so that each pass finds in the cache what the one before brought there.
        rows = [_compare_one(*three) for three in zip(held, last, params, strict=True)]
        return [_total(column, weights) for column in zip(*rows, strict=True)]
    squares = _squares(held + last + params).view(3, -1)
    products = torch.stack([_product(a, b) for a, b in zip(held, last, strict=True)])
    return [*_total(torch.cat([squares, products[None]]), weights)]


def square_sum(tensors: list[Tensor], weights: list[float] | None) -> Number:
    """The weighted sum of the squared norms of some tensors.

    Example:
        >>> square_sum([torch.tensor([3.0, 4.0]), torch.tensor([1.0])], weights=[1.0, 0.5])
        25.5
    """
    if on_host(tensors):
        return _total([_square(tensor).item() for tensor in tensors], weights)
    return _total(_squares(tensors), weights)


def _compare_one(held: Tensor, last: Tensor, param: Tensor) -> tuple[float, ...]:
    return _square(held).item(), _square(last).item(), _square(param).item(), _product(held, last).item()


def _squares(tensors: list[Tensor]) -> Tensor:
    half = any(tensor.dtype in _HALF for tensor in tensors)
    norms = torch.stack(torch._foreach_norm(tensors, 2.0, dtype=torch.float32 if half else None))
    return norms * norms


def _square(tensor: Tensor) -> Tensor:
    if _suits_dot(tensor):
        return torch.dot(tensor.view(-1), tensor.view(-1))
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float32 if tensor.dtype in _HALF else None)
    return norm * norm


def _product(held: Tensor, last: Tensor) -> Tensor:
    if _suits_dot(held) and _suits_dot(last):
        return torch.dot(held.view(-1), last.view(-1))
    if held.dtype in _HALF:
        return (as_float(held) * as_float(last)).sum()
    return held.mul_(last).sum()  # in place, so that the products need no tensor of their own


def _suits_dot(tensor: Tensor) -> bool:
    # The last bits of a scalar product depend on where the numbers lie in memory, unless they begin on a boundary, and
    # a resumed run must repeat them.
    aligned = tensor.data_ptr() % _BOUNDARY == 0 and tensor.is_contiguous()
    return aligned and tensor.dtype not in _HALF and tensor.numel() < 2**31


def _total(values: Any, weights: list[float] | None) -> Any:
    """Weighted sum over the parameters: of numbers, or over the last axis of a tensor."""
    if isinstance(values, Tensor):
        return (values if weights is None else values * values.new_tensor(weights)).sum(-1)
    return sum(values) if weights is None else sum(v * w for v, w in zip(values, weights, strict=True))
