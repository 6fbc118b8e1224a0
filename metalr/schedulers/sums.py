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


def compare(
    before: list[Tensor], after: list[Tensor], update: list[Tensor], params: list[Tensor], weights: list[float] | None
) -> list[Any]:
    """The sums of `metalr.signals.stats.UpdateSums`, in its order.

    Args:
        before: gradients before an update, one tensor per parameter.
        after: gradients after it, in the same shapes.
        update: in the same shapes.
        params: after the update.
        weights: of each parameter in the sums; None for ones.
    """
    if on_host(after):
        # Tensor by tensor, so that each pass finds in the cache what the one before brought there.
        rows = [_compare_one(*four) for four in zip(before, after, update, params, strict=True)]
        return [_total(column, weights) for column in zip(*rows, strict=True)]
    squares = _squares(before + after + update + params).view(4, -1)
    pairs = ((before, after), (before, update), (after, update))
    products = [torch.stack([_product(a, b) for a, b in zip(*pair, strict=True)]) for pair in pairs]
    return [*_total(torch.stack([squares[0], squares[1], *products, squares[2], squares[3]]), weights)]


def _compare_one(before: Tensor, after: Tensor, update: Tensor, params: Tensor) -> tuple[float, ...]:
    pairs = ((before, before), (after, after), (before, after), (before, update), (after, update), (update, update))
    return *(_product(*pair).item() for pair in pairs), _product(params, params).item()


def _squares(tensors: list[Tensor]) -> Tensor:
    half = any(tensor.dtype in _HALF for tensor in tensors)
    norms = torch.stack(torch._foreach_norm(tensors, 2.0, dtype=torch.float32 if half else None))
    return norms * norms


def _product(left: Tensor, right: Tensor) -> Tensor:
    if _suits_dot(left) and _suits_dot(right):
        return torch.dot(left.view(-1), right.view(-1))
    return (as_float(left) * as_float(right)).sum()


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
