"""A picture of what a `LearnedLR` saw and did in a run. Reads `scheduler.history`; needs matplotlib when it draws."""

from pathlib import Path
from typing import Any

from metalr.reports.figures import panels, plain_ticks
from metalr.schedulers.learned_lr import LearnedLR

# The features that say most; the masks are shown where they are asked for.
SHOWN = ("loss_total", "loss_slope", "update_ratio", "polyak_left", "overshoot_mean", "loss_exploded")


def draw_decisions(scheduler: LearnedLR, path: str | Path, features: tuple[str, ...] = SHOWN, group: int = 0) -> Path:
    """Draw the LR multiplier, inside its bounds, and the features behind it over the run.

    Args:
        scheduler: after at least one decision.
        path: of the figure; its ending says the format.
        features: names of the features to show.
        group: which controlled group.

    Returns:
        The path.

    Raises:
        ValueError: no decision has been taken, or a feature is unknown.
        ImportError: matplotlib is missing.
    """
    history = scheduler.history
    if not history:
        raise ValueError("got a scheduler that has not decided yet, expected one that is in use: train first")
    unknown = sorted(set(features) - set(history[0]["features"]))
    if unknown:
        raise ValueError(f"got features {unknown}, expected names among {', '.join(history[0]['features'])}")
    updates = [entry["updates"] for entry in history]
    figure, (left, right) = panels(2)
    draw_multiplier(left, scheduler, updates, [entry["lr_multiplier"][group] for entry in history])
    for name in features:
        right.plot(updates, [entry["features"][name][group] for entry in history], label=name, linewidth=1.5)
    right.set(ylim=(-1.05, 1.05), xlabel="optimizer updates", ylabel="feature", title="what it saw")
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    return Path(path)


def draw_multiplier(axis: Any, scheduler: LearnedLR, updates: list[int], multipliers: list[float]) -> None:
    """Draw the multiplier over the run, with its bounds where they are near."""
    until = max(scheduler.updates, updates[-1])  # the last decision holds to the present end
    axis.step([*updates, until], [*multipliers, multipliers[-1]], where="post", color="#0072B2", linewidth=1.8)
    axis.axhline(1.0, color="#7F7F7F", linewidth=0.8)
    bottom, top = 0.5 * min(*multipliers, 1.0), 2.0 * max(*multipliers, 1.0)
    action = getattr(scheduler.controller, "action", None)
    for bound in () if action is None else (action.low, action.high):
        if bottom / 3.0 <= bound <= 3.0 * top:  # one that is far away would flatten the line
            axis.axhline(bound, color="#7F7F7F", linewidth=0.8, linestyle="--")
            bottom, top = min(bottom, 0.8 * bound), max(top, 1.25 * bound)
    axis.set(yscale="log", ylim=(bottom, top), xlabel="optimizer updates", title="what it did")
    axis.set_ylabel("LR multiplier: 1 is base LR · schedule,\ndashed a bound that is near", fontsize=9)
    plain_ticks(axis)
