"""Which classic schedule is best on which shipped task, and how much does the choice matter once each is tuned?

Every entry of `CONTENDERS` (schedules, reactive rules, hypergradient descent, Lookahead) on every shipped task that
needs no download, with the same number of trials over the same LR grid, reported on fresh seeds, in two tables that
never mix, with four optimizers setting each task's target.

    python -m experiments.all_schedules

Expected: tuned on train loss, the schedules that decay to (almost) zero are within a few percent of each other, and
constant, step and one-decade drops are behind them; no schedule is best on all tasks; no reactive rule beats the tuned
best schedule.

Found: on mnist1d-mlp so it is (most decays end at 0.99 to 1.08 times the tuned best's train loss, constant at 1.12,
step at 1.17). Elsewhere the first expectation fails: on digits-mlp, whose train loss ends near zero, cosine and linear
are at 2.8 and 3.4 and constant at 0.88; on the noisy quadratic cosine is at 2.0. Good everywhere is a plateau with a
fall: on average over the seven tasks wsd-linear has 1.00, the other WSDs 1.03, constant 1.18, cosine and linear 1.36,
step 2.1. On the test loss all are closer (WSD 1.00 to 1.02, cosine 1.13, constant 1.16). One rule beats the tuned best
once (GreedyLR on bytes-transformer, 0.97 of train loss from five seeds); on average the rules have 1.19 to 2.4. A
constant LR under Lookahead or with hypergradient descent is about as good as WSD (1.03 on train; 1.01 and 1.07 on
test). The two quadratics have no noise: their seeds are all the same run. bytes-transformer is costly: seven LRs, one
tuning seed and five fresh seeds there, for everyone.

About an hour of one CPU core, half of it for bytes-transformer. The run folders are `runs/all_schedules` and
`runs/all_schedules-bytes-transformer`; a stopped run resumes from them. Every run's record is published beside the
summary as `all_schedules-runs.jsonl.gz`.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.support import harness, plotting, records
from experiments.support.tables import print_table
from metalr.compare import results
from metalr.compare.comparison import Comparison, compare, progress_bar
from metalr.compare.selection import Criterion
from metalr.compare.settings import Settings
from metalr.reports import figures, report
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task

NAME = "all_schedules"
# Where a step is costly: fewer trials (still the same for everyone), fewer seeds, fewer steps.
_COSTLY: dict[str, dict[str, Any]] = {"bytes-transformer": {"num_lrs": 7, "tuning_seeds": 1, "report_seeds": 5}}
_HORIZONS = {"quadratic": 100, "noisy-quadratic": 300, "digits-cnn": 100, "mnist1d-cnn": 100, "bytes-transformer": 100}
_SHOWN = ("wsd-linear", "hold-then-linear", "rex", "linear", "cosine", "one-cycle", "constant", "step")


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    tasks: tuple[str, ...] = (
        "quadratic",
        "noisy-quadratic",
        "teacher-student",
        "digits-mlp",
        "mnist1d-mlp",
        "digits-cnn",
        "mnist1d-cnn",
        "bytes-transformer",
    )
    """Shipped tasks."""
    horizon: int = 400
    """Inner steps where a task is not shortened for its cost."""
    num_lrs: int = 11
    """LRs of the grid, log-spaced over three decades."""
    draws: int = 1
    """Parameter settings of every contender."""
    tuning_seeds: int = 3
    """Runs behind a score."""
    report_seeds: int = 10
    """Runs behind a reported number."""
    device: str = "cpu"
    """Where to train: cpu or cuda."""
    folder: Path = Path("runs/all_schedules")
    """Of the comparison."""

    def small(self) -> "Args":
        folder = Path("runs/all_schedules-smoke")
        few: dict[str, Any] = {"num_lrs": 2, "tuning_seeds": 1, "report_seeds": 2}
        return replace(self, tasks=("quadratic", "teacher-student"), folder=folder, **few)


def tasks_of(args: Args) -> list[Task]:
    """The tasks at their horizons."""
    horizons = {name: _HORIZONS.get(name, args.horizon) for name in args.tasks}
    return [make_task(name, horizon=20 if args.smoke else horizon) for name, horizon in horizons.items()]


def settings_of(args: Args) -> Settings:
    """Every contender, each with the same number of trials."""
    return Settings(
        contenders=None,
        num_lrs=args.num_lrs,
        draws=args.draws,
        tuning_seeds=args.tuning_seeds,
        report_seeds=args.report_seeds,
        factors=(),
        targets=True,
    )


def compare_all(args: Args) -> Comparison:
    """One comparison of the tasks that share their settings, one of each costly task, seen as one."""
    tasks, settings = tasks_of(args), settings_of(args)
    shared = [task for task in tasks if task.name not in _COSTLY]
    parts = [compare(shared, args.folder, settings, device=args.device, progress=progress_bar())]
    for task in tasks:
        if task.name in _COSTLY:
            folder = args.folder.with_name(f"{args.folder.name}-{task.name}")
            smaller = replace(settings, **_COSTLY[task.name])
            parts.append(compare(task, folder, smaller, device=args.device, progress=progress_bar()))
    runs = [record for part in parts for record in part.records]
    curves = {key: curve for part in parts for key, curve in part.curves.items()}
    return replace(parts[0], tasks=[task.name for task in tasks], records=runs, curves=curves)


def summary(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each task, table and contender."""
    rows = []
    for task in comparison.tasks:
        times = {row.contender: row for row in results.time_table(comparison.records, comparison.curves, task)}
        for criterion in Criterion:
            for row in results.result_table(comparison.records, task, criterion):
                time = times.get(row.contender)
                numbers = {
                    "base_lr": row.base_lr,
                    "median": row.median,
                    "iqm": row.iqm.value,
                    "iqm_low": row.iqm.low,
                    "iqm_high": row.iqm.high,
                    "worst_decile": row.worst_decile,
                    "over_best": row.over_best.value,
                    "steps_to_target": time.median if time else math.inf,
                }
                if row.test_metric is not None:
                    numbers["test_metric"] = row.test_metric
                rows.append(
                    {
                        "task": task,
                        "chosen_on": criterion,
                        "contender": row.contender,
                        "kind": row.kind,
                        "trials": row.trials,
                        "parameters": row.parameters,
                        **numbers,
                        "reached_target": time.reached if time else 0.0,
                        "num_runs": row.num_runs,
                        "diverged": row.diverged,
                        "no_progress": row.no_progress,
                        "edges": row.edges,
                        "seed": comparison.settings.seed,
                    }
                )
    return rows


def ratio_table(rows: list[dict[str, Any]], names: list[str], criterion: str) -> list[dict[str, Any]]:
    """Paired median ratio to each task's tuned best, a row for each contender, the best on average first."""
    found = []
    for contender in dict.fromkeys(row["contender"] for row in rows):
        own = {row["task"]: row for row in rows if row["contender"] == contender and row["chosen_on"] == criterion}
        # An optimizer of weights has no row on the noisy quadratic.
        ratios = {name: own[name]["over_best"] for name in names if name in own}
        logs = [math.log(max(ratio, 1e-300)) if math.isfinite(ratio) else math.inf for ratio in ratios.values()]
        average = math.exp(sum(logs) / len(logs))
        kind = next(iter(own.values()))["kind"]
        found.append({"contender": contender, "kind": kind, "average": average, "tasks": len(ratios), **ratios})
    return sorted(found, key=lambda row: row["average"])


def main(args: Args) -> None:
    """Compare, publish the records, print, draw."""
    found = compare_all(args)
    rows = summary(found)
    records.write(NAME, rows, device=args.device, smoke=args.smoke)
    if not args.smoke:
        runs = [record.to_json() for record in found.records]
        records.write_lines(records.place(f"{NAME}-runs", smoke=False, ending="jsonl.gz"), runs)
    plotting.save(figures.profile_figure(found, contenders=_SHOWN), NAME, smoke=args.smoke)
    report.html(found, args.folder / "report.html")
    # On the quadratic of the older literature every tuned schedule reaches 0, so a ratio says nothing there.
    names = [name for name in found.tasks if name != "quadratic"]
    for criterion in ("train", "valid"):
        print(f"\nchosen on {criterion}, loss over each task's tuned best schedule:")
        print_table(ratio_table(rows, names, criterion), ("contender", "kind", "average", "tasks", *names))


if __name__ == "__main__":
    harness.run(main, Args)
