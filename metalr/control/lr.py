"""The LR in force: base LR times base schedule times multiplier. Everything that sets an LR uses this formula.

Both factors are kept within bounds here, where they are applied: a schedule or a controller from a file may be hostile.
"""

import math
from functools import lru_cache
from typing import Any, overload

import torch
from torch import Tensor

from metalr.schedules import Schedule

# The peak of a schedule is looked for at so many points of twice the run; one between two of them may be higher by so
# much.
_LOOKED_AT, _SLACK = 4001, 1.1


@lru_cache(maxsize=64)
def schedule_limit(schedule: Schedule) -> float:
    """The bound on the factor of a base schedule: a little more than its peak.

    Example:
        >>> schedule_limit(lambda progress: 2.0 - progress)
        2.2
    """
    values = schedule(torch.linspace(0.0, 2.0, _LOOKED_AT, dtype=torch.float64))
    return round(_SLACK * max(values[values.isfinite()].tolist(), default=0.0), 12)


def schedule_factor(schedule: Schedule, progress: Tensor) -> Tensor:
    """The factor of a base schedule, within [0, `schedule_limit`] and 0 where the schedule is not a number."""
    limit = max(schedule_limit(schedule), 0.0)
    return schedule(progress).nan_to_num(nan=0.0, posinf=math.inf, neginf=0.0).clamp(0.0, limit)


def bounded_multiplier(bounds: tuple[float, float], multiplier: Tensor, before: Tensor) -> Tensor:
    """A multiplier within bounds; the one before where it is not a number."""
    return torch.where(multiplier.isnan(), before, multiplier).clamp(*bounds)


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
    factor = schedule_factor(schedule, step.double() / horizon)
    return lr_in_force(base_lr[:, None], factor[..., None], multiplier.double())
