"""The base schedule of a run, evaluated for many updates at once, which is quicker than one by one."""

import torch

from metalr.schedules import Schedule

# Updates in a block. Blocks begin at multiples of it, so that a resumed run evaluates the same ones.
_BLOCK = 256


class ScheduleAhead:
    """A schedule by update count.

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
        """The schedule's value for an update, at progress 0 throughout where the horizon is unknown."""
        block, index = divmod(update, _BLOCK)
        if self._held != (block, horizon):
            updates = torch.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=torch.float64)
            progress = updates / horizon if horizon else torch.zeros_like(updates)
            self._held, self._factors = (block, horizon), self._schedule(progress).tolist()
        return self._factors[index]
