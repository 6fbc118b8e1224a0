"""A picture of a run under a `LearnedLR`, from its `history`. Needs matplotlib when it draws."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from metalr.reports.decision_figure import draw_multiplier
from metalr.reports.figures import panels, plain_ticks
from metalr.schedulers.decision_log import lrs_at
from metalr.schedulers.learned_lr import LearnedLR

_POINTS = 500
_BREAKER = {"color": "#D55E00", "linewidth": 1.0, "linestyle": ":"}


def plot_history(scheduler: LearnedLR, group: int = 0) -> Any:
    """Draw LR, multiplier and loss over the run, as a matplotlib figure; dotted where the breaker cut the LR.

    The LR is drawn under the present horizon. The loss is the mean between two decisions, in units of the loss at the
    start; it is missing where none was passed.

    Args:
        scheduler: after at least one decision.
        group: which controlled group.

    Raises:
        ValueError: no decision has been taken.
        ImportError: matplotlib is missing.
    """
    history = scheduler.history
    if not history:
        raise ValueError("got a scheduler that has not decided yet, expected one that is in use: train first")
    updates = [entry["updates"] for entry in history]
    multipliers = [entry["lr_multiplier"] for entry in history]
    figure, axes = panels(3)
    _draw_lr(axes[0], scheduler, updates, multipliers, group)
    draw_multiplier(axes[1], scheduler, updates, [numbers[group] for numbers in multipliers])
    axes[1].set(title="multiplier", ylabel="LR multiplier: 1 is base LR · schedule")
    _draw_loss(axes[2], history, group)
    events = [entry["updates"] for entry in history if entry["features"]["loss_exploded"][group]]
    for axis in axes:
        for index, event in enumerate(events):
            axis.axvline(event, **_BREAKER, label="" if index else "the breaker cut the LR")
    if events:
        handles, labels = axes[2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", frameon=False, fontsize=9)
    return figure


def _draw_lr(axis: Any, scheduler: LearnedLR, updates: list[int], multipliers: list[list[float]], group: int) -> None:
    until = max(scheduler.updates - 1, updates[-1])
    grid = sorted({*np.linspace(updates[0], until, _POINTS).astype(int).tolist(), *updates})
    lrs = [lrs_at(scheduler, t, multipliers[bisect_right(updates, t) - 1])[group] for t in grid]
    axis.plot(grid, lrs, color="#0072B2", linewidth=1.8)
    axis.set(xlabel="optimizer updates", ylabel="learning rate", title="learning rate", yscale="log")
    _short_axis(axis, lrs)


def _draw_loss(axis: Any, history: Sequence[dict[str, Any]], group: int) -> None:
    seen = [entry for entry in history if entry["features"]["has_loss"][group]]
    ratios = [loss_ratio(entry["features"]["loss_total"][group]) for entry in seen]
    axis.plot([entry["updates"] for entry in seen], ratios, color="#009E73", linewidth=1.8, marker="o", markersize=3)
    axis.set(xlabel="optimizer updates", ylabel="loss / loss at the start", title="train loss", yscale="log")
    if ratios:
        _short_axis(axis, ratios)


def _short_axis(axis: Any, values: Sequence[float]) -> None:
    known = [value for value in values if 0.0 < value < math.inf]
    if known and max(known) / min(known) < 30.0:  # too few powers of ten to read a value off
        plain_ticks(axis)


def loss_ratio(feature: float) -> float:
    """The mean loss of an interval over the loss at the start, from the feature `loss_total`: x / (1 + |x|) of its log.

    Example:
        >>> loss_ratio(0.0), round(loss_ratio(-0.5), 3)
        (1.0, 0.368)
    """
    return math.exp(feature / (1.0 - abs(feature))) if abs(feature) < 1.0 else math.nan
