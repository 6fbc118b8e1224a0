"""Which classic schedule is best on which shipped task, and how much does the choice matter once each is tuned?

Every entry of `CONTENDERS` (schedules, reactive rules, hypergradient descent, Lookahead), the calibrated setting and
the optimizers of other packages that are installed, on every shipped task that needs no download. Everyone has the same
number of trials over the LR and its own parameters, and as many more on a task where the best LR of anyone lies on an
edge of the range; reported on fresh seeds, in two tables that never mix, with the price of tuning and with four
optimizers setting each task's target.

    pip install 'metalr[optimizers]'
    python -m experiments.all_schedules

Expected: with their own parameters tuned too, schedules that decay to a floor are within a few percent of each other on
most tasks, and step and constant behind them by less than a factor of two; no schedule is best on all tasks; no
reactive rule beats the tuned best schedule; one trial costs the most where the train loss ends near zero.

Found, with the LR alone tuned (11 LRs, the committed records): on mnist1d-mlp most decays end at 0.99 to 1.08 times the
tuned best's train loss, constant at 1.12, step at 1.17; on digits-mlp, whose train loss ends near zero, cosine and
linear are at 2.8 and 3.4 and constant at 0.88; on the noisy quadratic cosine is at 2.0. Good everywhere is a plateau
with a fall: on average over the seven tasks wsd-linear has 1.00, the other WSDs 1.03, constant 1.18, cosine and linear
1.36, step 2.1. On the test loss all are closer (WSD 1.00 to 1.02, cosine 1.13, constant 1.16). One rule beats the tuned
best once (GreedyLR on bytes-transformer, 0.97 of train loss from five seeds); on average the rules have 1.19 to 2.4. A
constant LR under Lookahead or with hypergradient descent is about as good as WSD (1.03 on train; 1.01 and 1.07 on
test). Since shapes were at their defaults, this ranks defaults as much as schedules. The two quadratics have no noise:
their seeds are all the same run. bytes-transformer is costly: one tuning seed and five fresh seeds there, for everyone.

About four hours of one CPU core, half of them for bytes-transformer and half an hour for the optimizers of other
packages, which train one run at a time (`--no-external` leaves them out). The run folders are `runs/all_schedules` and
`runs/all_schedules-bytes-transformer`; a stopped run resumes from them, and every trial is a line in their
records.jsonl. Every run's record is published beside the summary as `all_schedules-runs.jsonl.gz`.
"""

import importlib.util
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.support import harness, plotting, records
from experiments.support.tables import print_table
from metalr.compare import results
from metalr.compare.catalog import CONTENDERS
from metalr.compare.comparison import Comparison, compare
from metalr.compare.external_optimizers import EXTERNAL_OPTIMIZERS
from metalr.compare.results import PriceRow
from metalr.compare.selection import Criterion
from metalr.compare.settings import Settings
from metalr.progress import ProgressLines
from metalr.reports import figures, report
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task
from metalr.workers import Workers

NAME = "all_schedules"
# Where a step is costly: fewer seeds, fewer steps, as many trials.
_COSTLY: dict[str, dict[str, Any]] = {"bytes-transformer": {"tuning_seeds": 1, "report_seeds": 5}}
_HORIZONS = {"quadratic": 100, "noisy-quadratic": 300, "digits-cnn": 100, "mnist1d-cnn": 100, "bytes-transformer": 100}
_SHOWN = ("wsd-linear", "hold-then-linear", "rex", "linear", "cosine", "one-cycle", "constant", "step")


@dataclass(frozen=True)
class Args(harness.Spread):
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
    trials: int = 16
    """Candidates of everyone, over the LR and its own parameters together."""
    extension: int = 8
    """More candidates of everyone on a task where the best LR of anyone lies on an edge of the range."""
    external: bool = True
    """Also optimizers of other packages, those that are installed."""
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
        few: dict[str, Any] = {"trials": 2, "extension": 1, "tuning_seeds": 1, "report_seeds": 2}
        return replace(self, tasks=("quadratic", "teacher-student"), folder=folder, **few)


def tasks_of(args: Args) -> list[Task]:
    """The tasks at their horizons."""
    horizons = {name: _HORIZONS.get(name, args.horizon) for name in args.tasks}
    return [make_task(name, horizon=20 if args.smoke else horizon) for name, horizon in horizons.items()]


def installed() -> list[str]:
    """The optimizers of other packages whose packages are there."""
    return [name for name, entry in EXTERNAL_OPTIMIZERS.items() if importlib.util.find_spec(entry.package)]


def settings_of(args: Args) -> Settings:
    """Every contender, each with the same number of trials."""
    return Settings(
        contenders=(*CONTENDERS, *(installed() if args.external else ())),
        trials=args.trials,
        extension=args.extension,
        tuning_seeds=args.tuning_seeds,
        report_seeds=args.report_seeds,
        factors=(),
        targets=True,
    )


def compare_all(args: Args, workers: Workers) -> Comparison:
    """One comparison of the tasks that share their settings, one of each costly task, seen as one."""
    tasks, settings = tasks_of(args), settings_of(args)
    shared = [task for task in tasks if task.name not in _COSTLY]
    rest: dict[str, Any] = {"device": args.device, "progress": ProgressLines(), "workers": workers}
    parts = [compare(shared, args.folder, settings, **rest)]
    for task in tasks:
        if task.name in _COSTLY:
            folder = args.folder.with_name(f"{args.folder.name}-{task.name}")
            smaller = replace(settings, **_COSTLY[task.name])
            parts.append(compare(task, folder, smaller, **rest))
    runs = [record for part in parts for record in part.records]
    curves = {key: curve for part in parts for key, curve in part.curves.items()}
    return replace(parts[0], tasks=[task.name for task in tasks], records=runs, curves=curves)


def summary(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each task, table and contender."""
    rows = []
    for task in comparison.tasks:
        own = [record for record in comparison.records if record.task == task]
        times = {row.contender: row for row in results.time_table(own, comparison.curves, task)}
        for criterion in Criterion:
            prices = {row.contender: row for row in results.price_table(own, task, criterion)}
            for row in results.result_table(own, task, criterion):
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
                if row.contender in prices:
                    numbers |= price_columns(prices[row.contender])
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


def price_columns(price: PriceRow) -> dict[str, float]:
    """Loss and ratio to the tuned best after each number of trials, with their intervals."""
    columns: dict[str, float] = {}
    for what, by_count in (("iqm", price.loss), ("over_best", price.over_best)):
        for count, found in by_count.items():
            columns |= {f"{what}_at_{count}": found.value}
            columns |= {f"{what}_at_{count}_low": found.low, f"{what}_at_{count}_high": found.high}
    return columns


def ratio_table(rows: list[dict[str, Any]], names: list[str], criterion: str) -> list[dict[str, Any]]:
    """Paired median ratio to each task's tuned best, a row for each contender, the best on average first."""
    ratios: dict[str, dict[str, float]] = {}
    for row in rows:
        # An optimizer of weights has no row on the noisy quadratic.
        if row["chosen_on"] == criterion and row["task"] in names:
            ratios.setdefault(row["contender"], {})[row["task"]] = row["over_best"]
    kinds = {row["contender"]: row["kind"] for row in rows}
    averages, ruling = results.average_table(ratios)
    print(f"the mean is ruled by {', '.join(ruling) or 'no task'}")
    return [
        {
            "contender": average.contender,
            "kind": kinds[average.contender],
            "mean": average.mean,
            "without ruling": average.without_ruling,
            "median": average.median,
            "tasks": len(average.ratios),
            **average.ratios,
        }
        for average in averages
    ]


def price_of_tuning(rows: list[dict[str, Any]], names: list[str], counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Geometric mean over the tasks of the train loss over the tuned best's, after each number of trials."""
    lines = []
    for contender in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == contender and row["chosen_on"] == "train"]
        line = {"contender": contender}
        for count in counts:
            ratios = {row["task"]: row.get(f"over_best_at_{count}") for row in own if row["task"] in names}
            known = {task: ratio for task, ratio in ratios.items() if ratio is not None}
            if known and len(known) == len(ratios):
                line[f"{count} trials"] = results.average_table({contender: known})[0][0].mean
        lines.append(line)
    return [line for line in lines if len(line) > 1]


def main(args: Args) -> None:
    """Compare, publish the records, print, draw."""
    with args.start_workers() as workers:
        found = compare_all(args, workers)
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
        print_table(
            ratio_table(rows, names, criterion),
            ("contender", "kind", "mean", "without ruling", "median", "tasks", *names),
        )
    print("\nthe price of tuning, mean train loss over each task's tuned best schedule:")
    counts = tuple(count for count in (1, 4, 16, 64) if count <= args.trials)
    print_table(price_of_tuning(rows, names, counts), ("contender", *(f"{count} trials" for count in counts)))


if __name__ == "__main__":
    harness.run(main, Args)
