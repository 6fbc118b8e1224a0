"""A picture of schedules. Needs matplotlib when it draws."""

from typing import Any

import torch

from metalr.reports.chart import COLOURS
from metalr.reports.figures import panels
from metalr.schedules import Schedule

_POINTS = 1001


def plot(*schedules: Schedule, base_lr: float | None = None, horizon: int | None = None, **named: Schedule) -> Any:
    """Draw schedules over a run, as a matplotlib figure.

    Args:
        schedules: labelled as they print.
        base_lr: draws LRs in place of multipliers.
        horizon: draws optimizer updates in place of progress.
        named: schedules with labels of your own.

    Raises:
        ValueError: there is no schedule, or there are more than lines that can be told apart.
        ImportError: matplotlib is missing.

    Example:
        metalr.reports.plot(Cosine(), Warmup(Linear(), length=0.1), base_lr=1e-3).savefig("schedules.png")
    """
    lines = [(str(schedule), schedule) for schedule in schedules] + list(named.items())
    if not 1 <= len(lines) <= len(COLOURS):
        raise ValueError(f"got {len(lines)} schedules, expected 1 to {len(COLOURS)}: draw several figures")
    figure, (axis,) = panels(1)
    progress = torch.linspace(0.0, 1.0, _POINTS, dtype=torch.float64)
    for colour, (label, schedule) in zip(COLOURS, lines, strict=False):
        values = schedule(progress) * (1.0 if base_lr is None else base_lr)
        axis.plot((progress * (horizon or 1)).numpy(), values.numpy(), label=label, color=colour, linewidth=1.8)
    axis.set_xlabel("progress" if horizon is None else "optimizer updates")
    axis.set_ylabel("multiplier of the base LR" if base_lr is None else "learning rate")
    axis.set_xlim(0.0, horizon or 1.0)
    axis.set_ylim(bottom=min(axis.get_ylim()[0], 0.0))
    figure.legend(loc="outside upper left", frameon=False, fontsize=9)
    return figure
