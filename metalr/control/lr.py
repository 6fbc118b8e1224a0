"""The LR in force: base LR times base schedule times multiplier. Everything that sets an LR uses this formula."""

from typing import Any, overload

import torch
from torch import Tensor

from metalr.schedules import Schedule


@overload
def lr_in_force(base_lr: float, schedule_factor: float, multiplier: float) -> float: ...


@overload
def lr_in_force(base_lr: Tensor, schedule_factor: Tensor | float, multiplier: Tensor) -> Tensor: ...


def lr_in_force(base_lr: Any, schedule_factor: Any, multiplier: Any) -> Any:
    """The LR base_lr · schedule(t / horizon) · lr_multiplier, for numbers or broadcastable tensors.

    Example:
        >>> lr_in_force(0.5, 0.25, 2.0)
        0.25
    """
    return base_lr * schedule_factor * multiplier


def interval_lr(
    schedule: Schedule, base_lr: Tensor, multiplier: Tensor, first_step: Tensor, num_steps: int, horizon: int
) -> Tensor:
    """The LR of each inner step of an interval.

    Args:
        schedule: the base schedule.
        base_lr: `(num_runs,)` float64.
        multiplier: `(num_runs, num_groups)`.
        first_step: of the interval, `(num_runs,)` int64.
        num_steps: inner steps in the interval.
        horizon: inner steps in the run.

    Returns:
        `(num_steps, num_runs, num_groups)` float64.
    """
    step = first_step + torch.arange(num_steps, device=first_step.device)[:, None]  # (num_steps, num_runs)
    factor = schedule(step.double() / horizon)
    return lr_in_force(base_lr[:, None], factor[..., None], multiplier.double())
