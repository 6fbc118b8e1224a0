"""Do optimizers that need no tuning, by their own account, make a tuned schedule superfluous?

Schedule-Free, Prodigy, D-Adaptation, DoG, Mechanic and MoMo come from their own packages, as their authors advise (see
`metalr.compare.external_optimizers`), and have the same number of trials as the schedules: around their recommended
LR, which is the first trial. Every task comes with momentum and with AdamW, and everyone is compared with the same
inner optimizer: Schedule-Free AdamW with AdamW under cosine, WSD and a constant LR, not with momentum.

    pip install 'metalr[optimizers]'
    python -m experiments.schedule_free

Expected: Schedule-Free is better than a constant LR and about as good as a schedule; Prodigy is good at its own LR, 1.

Found with Schedule-Free and Prodigy alone, without decay for Prodigy, 11 LRs and the tasks' own momentum (the committed
records): tuned, the better of its two variants has the lowest train loss on all three tasks: 0.85, 0.76 and 0.63 of the
tuned best schedule (MNIST-1D with SGD, digits and teacher-student with AdamW, where the schedules had momentum: what of
that is AdamW's, these records do not say). On the test loss it is no better than a schedule on the first two (0.97 to
1.06). It does not spare the tuning of the LR: at the LRs that its authors recommend its train
loss is 1.13 to 1.51 on MNIST-1D, against 0.93 tuned and 1.09 for tuned cosine. Prodigy at its LR of 1 has the lowest
train loss of all on digits (0.0006), but is behind tuned cosine on the other two (1.34 and 0.020).
"""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.support import harness, records
from experiments.support.tables import print_table
from metalr.compare.comparison import Comparison, compare
from metalr.compare.external_optimizers import EXTERNAL_OPTIMIZERS
from metalr.compare.results import result_table
from metalr.compare.selection import Criterion
from metalr.compare.settings import Settings
from metalr.progress import ProgressLines
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task

NAME = "schedule_free"
_SCHEDULES = ("constant", "cosine", "wsd-linear")
_ADAMW_LR = 3e-3


@dataclass(frozen=True)
class Args(harness.Spread):
    """Options of the experiment."""

    tasks: tuple[str, ...] = ("mnist1d-mlp", "digits-mlp", "teacher-student")
    """Shipped tasks."""
    horizon: int = 400
    """Inner steps."""
    trials: int = 16
    """Candidates of everyone, over the LR and what else there is to tune."""
    tuning_seeds: int = 3
    """Runs behind a score."""
    report_seeds: int = 10
    """Runs behind a reported number."""
    folder: Path = Path("runs/schedule_free")
    """Of the comparison, which resumes from it."""

    def small(self) -> "Args":
        folder = Path("runs/schedule_free-smoke")
        few: dict[str, Any] = {"horizon": 20, "trials": 2, "tuning_seeds": 1, "report_seeds": 2}
        return replace(self, tasks=("teacher-student",), folder=folder, **few)


def tasks_of(args: Args) -> list[Task]:
    """Every task with both kinds of optimizer."""
    tasks = [make_task(name, horizon=args.horizon, optimizer="momentum") for name in args.tasks]
    adaptive = [task.with_(optimizer="adamw", base_lr=_ADAMW_LR, name=f"{task.name}, AdamW") for task in tasks]
    return [*tasks, *adaptive]


def installed() -> tuple[str, ...]:
    """The optimizers whose packages are there."""
    return tuple(name for name, entry in EXTERNAL_OPTIMIZERS.items() if importlib.util.find_spec(entry.package))


def settings_of(args: Args) -> Settings:
    """The schedules and the external optimizers, each with the same number of trials."""
    return Settings(
        contenders=(*_SCHEDULES, *installed()),
        trials=args.trials,
        tuning_seeds=args.tuning_seeds,
        report_seeds=args.report_seeds,
        factors=(1.0,),
        wrong_base=installed(),
    )


def rows_of(comparison: Comparison) -> list[dict[str, Any]]:
    """A record for each task, table and contender; `untuned` is the loss at the recommended LR."""
    rows = []
    for task in comparison.tasks:
        for criterion in Criterion:
            untuned = _untuned(comparison, task, criterion)
            for row in result_table(comparison.records, task, criterion):
                rows.append(
                    {
                        "task": task,
                        "chosen_on": criterion,
                        "contender": row.contender,
                        "kind": row.kind,
                        "base_lr": row.base_lr,
                        "iqm": row.iqm.value,
                        "low": row.iqm.low,
                        "high": row.iqm.high,
                        "over_best": row.over_best.value,
                        "untuned": untuned.get(row.contender),
                        "seed": comparison.settings.seed,
                    }
                )
    return rows


def _untuned(comparison: Comparison, task: str, criterion: Criterion) -> dict[str, float]:
    """Median loss of the external optimizers at the LR that their packages recommend."""
    found: dict[str, list[float]] = {}
    for record in comparison.records:
        if record.task == task and record.phase == "wrong-base":
            found.setdefault(record.contender, []).append(record.scored(criterion.reported_on))
    return {name: float(torch.tensor(values, dtype=torch.float64).quantile(0.5)) for name, values in found.items()}


def main(args: Args) -> None:
    """Compare, publish the records, print."""
    with args.start_workers() as workers:
        comparison = compare(tasks_of(args), args.folder, settings_of(args), progress=ProgressLines(), workers=workers)
    rows = rows_of(comparison)
    records.write(NAME, rows, device="cpu", smoke=args.smoke)
    for task in comparison.tasks:
        for criterion in ("train", "valid"):
            shown = [row for row in rows if (row["task"], row["chosen_on"]) == (task, criterion)]
            print(f"\n{task}: chosen on {criterion}")
            print_table(shown, ("contender", "base_lr", "iqm", "low", "high", "over_best", "untuned"))


if __name__ == "__main__":
    harness.run(main, Args)
