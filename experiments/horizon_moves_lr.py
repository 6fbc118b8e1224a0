"""Does the best constant LR depend on how long one trains, and on which split it is judged?

MNIST-1D, an MLP 40-50-10 with tanh, SGD, batch 50, a constant LR from a grid, T = 50, 200, 1000 and 4000 inner steps.
One batch trains every LR and seed to the longest horizon; with a constant LR the shorter runs are its beginnings.

    python -m experiments.horizon_moves_lr

Expected: the LR with the lowest final *test* loss is 0.62, 0.62, 0.40 and 0.10 at the four horizons; the best for the
*train* loss does not fall like that, since overfitting is what a small LR protects from.

Found, on a grid of eight LRs a decade, ten seeds: best by test loss 0.47, 0.63, 0.36 and 0.08, one grid point off at
T = 50 (where 0.63 is within two standard errors) and at most that elsewhere; by train loss 0.63, 0.84, 0.84 and 0.63;
by test *accuracy* 0.63, 0.84, 0.63 and 0.11. Under a minute on one CPU core.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from experiments.support import harness, plotting, records
from experiments.support.mnist1d_tanh import make_task
from experiments.support.tables import print_table
from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import SGD
from metalr.tasks.data import Split

NAME = "horizon_moves_lr"
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    horizons: tuple[int, ...] = (50, 200, 1000, 4000)
    """Inner steps, ascending."""
    low: float = 0.02
    """Smallest LR of the log-spaced grid."""
    high: float = 2.0
    """Largest LR of the grid."""
    num_lrs: int = 17
    """LRs in the grid; the default has eight a decade."""
    num_seeds: int = 10
    """Runs of each LR."""

    def small(self) -> "Args":
        return replace(self, horizons=(20, 40), num_lrs=4, num_seeds=2)


def train(args: Args) -> list[dict[str, Any]]:
    """A row for each LR, seed and horizon."""
    grid = np.geomspace(args.low, args.high, args.num_lrs)
    lrs = torch.tensor(np.repeat(grid, args.num_seeds), dtype=torch.float32)[:, None]
    seeds = torch.arange(args.num_seeds).repeat(args.num_lrs)
    runs = BatchedRuns(make_task(SGD(), max(args.horizons)), len(seeds))
    runs.init(seeds)
    rows: list[dict[str, Any]] = []
    done = 0
    for horizon in args.horizons:
        runs.unroll(lrs, horizon - done)
        done = horizon
        found = {split: runs.evaluate(split) for split in SPLITS}
        for run, seed in enumerate(seeds.tolist()):
            row: dict[str, Any] = {"horizon": horizon, "lr": float(f"{lrs[run, 0]:.6g}"), "seed": seed}
            row["diverged"] = bool(runs.state.diverged[run])
            for split, evaluation in found.items():
                row[f"{split}_loss"] = float(f"{evaluation.loss[run]:.6g}")
            row["test_accuracy"] = float(found["test"].metric[run])
            rows.append(row)
        print(f"T = {horizon} done", flush=True)
    return rows


def curve(rows: list[dict[str, Any]], horizon: int, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """LRs, mean over the seeds, and its standard error."""
    lrs = sorted({row["lr"] for row in rows})
    values = np.array([[r[column] for r in rows if r["horizon"] == horizon and r["lr"] == lr] for lr in lrs])
    return np.array(lrs), values.mean(1), values.std(1, ddof=1) / np.sqrt(values.shape[1])


def best_lrs(rows: list[dict[str, Any]], args: Args) -> list[dict[str, Any]]:
    """For each horizon the best LR of the grid by each split, and those that are as good within two standard errors."""
    found = []
    for horizon in args.horizons:
        row: dict[str, Any] = {"horizon": horizon}
        for split in SPLITS:
            lrs, mean, error = curve(rows, horizon, f"{split}_loss")
            best = int(mean.argmin())
            close = lrs[mean <= mean[best] + 2.0 * error[best]]
            row[f"best by {split}"] = f"{lrs[best]:.2f} ({close.min():.2f} to {close.max():.2f})"
        lrs, mean, _ = curve(rows, horizon, "test_accuracy")
        row["best by test accuracy"] = f"{lrs[int(mean.argmax())]:.2f} ({100.0 * mean.max():.1f} %)"
        found.append(row)
    return found


def draw(rows: list[dict[str, Any]], args: Args) -> None:
    """Final loss against the LR, a line for each horizon; a dot marks the best."""
    figure, axes = plotting.panels(2)
    for axis, split in zip(axes, ("train", "test"), strict=True):
        for horizon, colour in zip(args.horizons, plotting.COLOURS, strict=False):
            lrs, mean, error = curve(rows, horizon, f"{split}_loss")
            axis.plot(lrs, mean, color=colour, label=f"T = {horizon}")
            axis.fill_between(lrs, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
            axis.plot(lrs[mean.argmin()], mean.min(), "o", color=colour)
        axis.set(xscale="log", xlabel="constant learning rate", ylabel=f"final {split} loss")
    plotting.legend(figure, axes[0])
    plotting.save(figure, NAME, smoke=args.smoke)


def main(args: Args) -> None:
    """Train, write the records, print, draw."""
    rows = train(args)
    records.write(NAME, rows, device="cpu", smoke=args.smoke)
    draw(rows, args)
    columns = ("horizon", "best by train", "best by valid", "best by test", "best by test accuracy")
    print_table(best_lrs(rows, args), columns)


if __name__ == "__main__":
    harness.run(main, Args)
