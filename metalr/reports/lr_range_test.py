"""The LR range test: train briefly while the LR grows, see where the loss falls fastest and where it explodes.

One batch does it for many seeds at once, so the curve is a median and not one noisy run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metalr.reports import figures
from metalr.schedulers.plain_runs import runs_of
from metalr.tasks.task import Task

# Inner steps behind one point of the curve.
_STEPS_PER_POINT = 2
# Standard deviation of the smoothing window, in points. It is symmetric: a running mean lags behind by its length,
# which on this axis is a factor of the LR.
_WINDOW = 2.0
# Beyond the point where the loss is this much above its lowest value, the curve is past its useful part.
_EXPLODED = 4.0


@dataclass(frozen=True)
class LRCurve:
    """The result of an LR range test.

    Attributes:
        lr: `(num_points,)`, ascending.
        loss: `(num_points,)`, median over the seeds of the smoothed train loss; NaN once most runs have diverged.
        low, high: the middle half of the seeds.
        suggestion: an LR for a constant or decaying schedule.
        steepest: where the smoothed log loss falls fastest per log LR.
        lowest: where the smoothed loss is lowest; beyond it the LR is too big.
    """

    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    suggestion: float
    steepest: float
    lowest: float


def find_lr(
    task: Task,
    *,
    lr_range: tuple[float, float] = (1e-4, 1e3),
    num_points: int = 100,
    num_seeds: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> LRCurve:
    """Run the LR range test (Smith 2017, arXiv 1506.01186, section 3.3) on a task.

    The LR of point i is task.base_lr · low · (high / low) ** (i / (num_points - 1)); each lasts two inner steps. The
    suggestion is the geometric mean of the LR of the steepest fall and the LR of the lowest loss: the first is
    cautious, the second is already too big for a whole run.

    Args:
        task: its horizon is not used.
        lr_range: factors of the task's base LR.
        num_points: of the curve, at least 10.
        num_seeds: runs behind it.
        seed: the first of them.
        device: where to train.

    Raises:
        ValueError: the range is not one, there are too few points, or no LR in the range lowers the loss.
    """
    low, high = lr_range
    if not 0.0 < low < high < float("inf") or num_points < 10 or num_seeds < 1:
        raise ValueError(
            f"got the range {lr_range} with {num_points} points and {num_seeds} seeds, expected 0 < low < high, at "
            "least 10 points and 1 seed: pass for example (1e-4, 1e3), 100 and 16"
        )
    lrs = task.base_lr * np.geomspace(low, high, num_points)
    runs = runs_of(task, num_seeds, device=device)
    runs.init(torch.arange(seed, seed + num_seeds))
    logs = np.full((num_points, num_seeds), np.nan)
    for point, lr in enumerate(lrs):
        stats = runs.unroll(torch.full((num_seeds, 1), float(lr)).expand(-1, runs.num_groups), _STEPS_PER_POINT)
        alive = (stats.num_losses == _STEPS_PER_POINT) & ~runs.diverged
        logs[point] = torch.where(alive, stats.log_loss.double(), torch.nan).cpu().numpy()
    return read_curve(lrs, logs)


def _smooth(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian mean of log losses along the first axis, over the runs that have not diverged."""
    point = np.arange(len(logs))
    kernel = np.exp(-0.5 * ((point[:, None] - point) / _WINDOW) ** 2)
    known = np.isfinite(logs)
    smoothed = (kernel @ np.where(known, logs, 0.0)) / np.maximum(kernel @ known, 1e-12)
    return np.where(known, smoothed, np.nan)


def read_curve(lrs: NDArray[np.float64], logs: NDArray[np.float64]) -> LRCurve:
    """Smooth what a range test measured, and read the suggestion off it.

    Args:
        lrs: `(num_points,)`, ascending.
        logs: log losses, `(num_points, num_seeds)`; NaN where a run has diverged.

    Raises:
        ValueError: no LR lowers the loss.
    """
    logs = _smooth(logs)
    usable = np.isfinite(logs).mean(1) >= 0.5
    end = int(np.argmin(usable)) if not usable.all() else len(lrs)
    bands = np.full((3, len(lrs)), np.nan)
    bands[:, :end] = np.nanquantile(logs[:end], [0.25, 0.5, 0.75], axis=1) if end else bands[:, :0]
    middle = bands[1, :end]
    lowest = int(np.argmin(middle)) if end else 0
    if end < 3 or middle[0] - middle[lowest] < 0.01:
        raise ValueError(
            f"got no LR between {lrs[0]:.3g} and {lrs[-1]:.3g} that lowers the loss, expected one: check loss and "
            "data, or pass another lr_range"
        )
    slope = np.gradient(middle, np.log(lrs[:end]))
    steepest = int(np.argmin(slope[: lowest + 1]))
    suggestion = float(np.sqrt(lrs[steepest] * lrs[lowest]))
    below, loss, above = np.exp(bands)
    return LRCurve(lrs, loss, below, above, suggestion, float(lrs[steepest]), float(lrs[lowest]))


def lr_figure(curve: LRCurve, title: str = "LR range test") -> Any:
    """The curve with its suggestion.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    figure, (axis,) = figures.panels(1)
    spread = bool(np.nanmax(curve.high / curve.low) > 1.0)
    axis.plot(curve.lr, curve.loss, color="#0072B2", linewidth=1.8, label="median over seeds" if spread else "one run")
    axis.fill_between(curve.lr, curve.low, curve.high, color="#0072B2", alpha=0.15, linewidth=0)
    axis.axvline(curve.suggestion, color="#D55E00", label=f"suggestion {curve.suggestion:.3g}")
    axis.axvline(curve.steepest, color="grey", linestyle=":", label=f"steepest {curve.steepest:.3g}")
    axis.axvline(curve.lowest, color="grey", linestyle="--", label=f"lowest {curve.lowest:.3g}")
    best = float(np.nanmin(curve.loss))
    axis.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="smoothed train loss", title=title)
    top = max(_EXPLODED * best, 1.2 * float(curve.loss[0]))
    axis.set_ylim(0.9 * best, min(top, 1.3 * float(np.nanmax(curve.loss))))
    figures.plain_ticks(axis)
    axis.legend(frameon=False, fontsize=9)
    return figure


def save_figure(curve: LRCurve, path: str | Path, title: str = "LR range test") -> Path:
    """Write the figure to an image file."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    lr_figure(curve, title).savefig(target, dpi=150)
    return target
