"""LRs in the parameter groups of a torch optimizer: reading, writing and restoring them, as floats or tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def same_number(first: float | Tensor, second: float | Tensor) -> bool:
    """Whether two LRs are the same number, as floats or tensors."""
    return float(first) == float(second)


def adopt_new_groups(scheduler: LRScheduler) -> None:
    """Give each parameter group added after the scheduler was made a base LR: its own."""
    if len(scheduler.optimizer.param_groups) == len(scheduler.base_lrs):
        return
    for group in scheduler.optimizer.param_groups[len(scheduler.base_lrs) :]:
        scheduler.base_lrs.append(copy_of(group.setdefault("initial_lr", copy_of(group["lr"]))))
        if hasattr(scheduler, "_last_lr"):
            scheduler._last_lr.append(copy_of(group["lr"]))


def copy_of(lr: float | Tensor) -> float | Tensor:
    """An LR that later writes in place do not change."""
    return lr.clone() if isinstance(lr, Tensor) else lr


def numbers_like(old: list[float | Tensor], values: list[float]) -> list[float | Tensor]:
    """The numbers `values`, each as a float or a tensor like the old value in its place."""
    return [torch.full_like(o, v) if isinstance(o, Tensor) else float(v) for o, v in zip(old, values, strict=True)]


def write_lr(group: dict[str, Any], lr: float) -> None:
    """Set the LR of a group, in place for a tensor, which a captured or compiled step keeps reading."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def restore_lr(optimizer: Optimizer, constructed: list[float], saved: list[float]) -> None:
    """Undo the change that constructing the scheduler made to the LRs of an optimizer loaded before.

    Args:
        optimizer: loaded before or not.
        constructed: the LRs when the scheduler was made; groups added since have none.
        saved: the LRs of all groups.
    """
    for index, (group, lr) in enumerate(zip(optimizer.param_groups, saved, strict=True)):
        if index >= len(constructed) or same_number(group["lr"], constructed[index]):
            write_lr(group, lr)


def check_state(state: Mapping[str, Any], keys: tuple[str, ...], num_groups: int) -> None:
    """Check the state of a scheduler before it is loaded.

    Raises:
        ValueError: one of `keys` is missing, or the number of parameter groups is not `num_groups`.
    """
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(f"got a scheduler state without {missing}, expected one of the same kind of scheduler")
    if len(state["base_lrs"]) != num_groups:
        raise ValueError(
            f"got the state of {len(state['base_lrs'])} parameter groups, expected {num_groups}: "
            "build the optimizer with the same groups before loading"
        )
