"""Parameters that are sharded over ranks (FSDP): the part on this rank, and sums over all parts."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter


def local_part(tensor: Tensor) -> Tensor:
    """The part of a `DTensor` that lies on this rank; any other tensor itself."""
    return tensor if _is_plain(tensor) or not hasattr(tensor, "to_local") else tensor.to_local()


def real_part(tensor: Tensor) -> Tensor:
    """The part on this rank as real numbers; a complex number counts as two, as it does in the optimizers."""
    tensor = local_part(tensor)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def shard_groups(parameters: Iterable[Any]) -> list[dist.ProcessGroup]:
    """The process groups over which parameters are sharded, one for each such axis of their mesh."""
    for p in parameters:
        if _is_sharded(p):
            axes = [axis for axis, place in enumerate(p.placements) if place.is_shard()]
            return [p.device_mesh.get_group(axis) for axis in axes]
    return []


def sum_over_ranks(sums: Tensor, groups: list[dist.ProcessGroup]) -> Tensor:
    """The sum over all ranks of `groups`, in place."""
    for group in groups:
        dist.all_reduce(sums, group=group)
    return sums


def share_of_rank(parameter: Tensor, groups: list[dist.ProcessGroup]) -> float:
    """The weight of a parameter in this rank's sums: one that every rank holds whole must count once in all."""
    return 1.0 if _is_sharded(parameter) else 1.0 / math.prod(group.size() for group in groups)


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is certainly not a `DTensor`; looking up an attribute that a tensor lacks takes longer."""
    return type(tensor) in (Tensor, Parameter)


def _is_sharded(tensor: Any) -> bool:
    if _is_plain(tensor) or not hasattr(tensor, "placements"):
        return False
    return any(place.is_shard() for place in tensor.placements)
