"""Does the shipped controller work on the shipped tasks?

    python -m experiments.transfer                                # the shipped controller
    python -m experiments.transfer --controllers a.safetensors b.safetensors

Each controller gets no trial. The reference on every task is the *tuned best* of nine classic schedules, each with 16
trials over LR and shape on 3 seeds. Shown is the final train loss over that of the tuned best (paired median over ten
fresh seeds, 95 % interval), from a base LR that is a tenth, right and ten times; beside it two of the schedules from
the same base LRs, at their default shapes. `general` has seen digits in its training and none of the other data.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.support import harness, records
from experiments.support.tables import by_factor, print_table
from metalr.artefacts.controller_file import load_controller
from metalr.compare.catalog import CLASSIC
from metalr.compare.comparison import compare, progress_bar
from metalr.compare.results import wrong_base_table
from metalr.compare.settings import Settings
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task

TASKS: dict[str, dict[str, Any]] = {
    "mnist1d-mlp, T 200": {"task": "mnist1d-mlp", "horizon": 200},
    "mnist1d-mlp, T 800": {"task": "mnist1d-mlp", "horizon": 800},
    "mnist1d-mlp, 3 x 64 wide": {"task": "mnist1d-mlp", "horizon": 200, "width": 64, "depth": 3},
    "mnist1d-mlp, Adam": {"task": "mnist1d-mlp", "horizon": 200, "optimizer": "adam", "base_lr": 5e-3},
    "digits-mlp": {"task": "digits-mlp", "horizon": 200},
    "digits-cnn": {"task": "digits-cnn", "horizon": 200},
    "teacher-student": {"task": "teacher-student", "horizon": 200},
}


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    controllers: tuple[str, ...] = ("general",)
    """Files, or names of shipped controllers."""
    name: str = "transfer"
    """Of the records."""
    seeds: int = 10
    """Fresh seeds behind each number."""

    def small(self) -> "Args":
        return replace(self, seeds=2)


def rows_of(label: str, task: Task, args: Args) -> list[dict[str, Any]]:
    """One record for each contender and base LR."""
    few: dict[str, Any] = {"trials": 3, "tuning_seeds": 1} if args.smoke else {}
    settings = Settings(
        contenders=(*CLASSIC, "wsd-linear"),
        factors=(0.1, 1.0, 10.0),
        wrong_base=("cosine", "wsd-linear"),
        ablations=False,
        report_seeds=args.seeds,
        **few,
    )
    slug = "".join(c if c.isalnum() else "-" for c in label)
    controllers = {Path(source).stem: load_controller(source) for source in args.controllers}
    folder = Path("runs") / f"{args.name}{'-smoke' if args.smoke else ''}" / slug
    comparison = compare(task, folder, settings, controllers=controllers)
    rows = []
    for row in wrong_base_table(comparison.records, comparison.tasks[0]):
        if row.factor is not None:
            rows.append(
                {
                    "task": label,
                    "contender": row.contender,
                    "factor": row.factor,
                    "train_loss": row.loss.value,
                    "over_tuned_best": row.over_best.value,
                    "low": row.over_best.low,
                    "high": row.over_best.high,
                    "diverged": row.diverged,
                    "no_progress": row.no_progress,
                    "runs": row.num_runs,
                    "seed": settings.seed,
                }
            )
    return rows


def ratio(row: dict[str, Any]) -> str:
    """The ratio to the tuned best with its interval."""
    return f"{row['over_tuned_best']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def main(args: Args) -> None:
    """Compare on each task, write the records, print."""
    tasks = dict(list(TASKS.items())[:1]) if args.smoke else TASKS
    show = progress_bar()
    rows = []
    for index, (label, options) in enumerate(tasks.items()):
        show(index, len(tasks), label)
        options = dict(options)
        rows += rows_of(label, make_task(options.pop("task"), **options), args)
    records.write(args.name, rows, device="cpu", smoke=args.smoke)
    print_table(by_factor(rows, ratio), ["task", "contender", "x0.1", "x1", "x10"])


if __name__ == "__main__":
    harness.run(main, Args)
