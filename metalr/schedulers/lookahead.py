"""The base schedule of a run, evaluated for many updates at once, which is faster than one at a time."""

import torch

from metalr.control.lr import schedule_factor
from metalr.schedules import Schedule

# Updates in a block. Blocks begin at multiples of this number, so that a resumed run evaluates the same blocks.
_BLOCK = 256


class ScheduleAhead:
    """A schedule as a function of the update count.

    Args:
        schedule: progress -> multiplier.

    Example:
        >>> ScheduleAhead(lambda progress: 1.0 - progress).factor(5, horizon=10)
        0.5
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._held: tuple[int, int | None] | None = None
        self._factors: list[float] = []

    def factor(self, update: int, horizon: int | None) -> float:
        """The value of the schedule for an update, with progress 0 throughout if the horizon is None."""
        block, index = divmod(update, _BLOCK)
        if self._held != (block, horizon):
            updates = torch.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=torch.float64)
            progress = updates / horizon if horizon else torch.zeros_like(updates)
            self._held, self._factors = (block, horizon), schedule_factor(self._schedule, progress).tolist()
        return self._factors[index]
