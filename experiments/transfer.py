"""Does a controller work on tasks that it was not trained on?

    python -m experiments.transfer                                # the shipped demo controller
    python -m experiments.transfer --controllers a.safetensors b.safetensors

Each controller gets no trial; cosine is tuned over 11 LRs on every task. Shown is the final train loss over that of
tuned cosine (paired median over ten fresh seeds, 95 % interval), from a base LR that is a tenth, right and ten times.

Expected for the shipped demo controller, trained on MNIST-1D for 200 updates with momentum: about 1 on its own task and
on wider or deeper versions of it, worse the further the task is away; one training task does not make it general.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from experiments.meta_records import print_table, write_records
from metalr.artefacts.controller_file import load_controller
from metalr.compare.comparison import compare, progress_bar
from metalr.compare.results import wrong_base_table
from metalr.compare.settings import Settings
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task

TASKS: dict[str, dict] = {
    "mnist1d-mlp, T 200 (its own)": {"task": "mnist1d-mlp", "horizon": 200},
    "mnist1d-mlp, T 800": {"task": "mnist1d-mlp", "horizon": 800},
    "mnist1d-mlp, 3 x 64 wide": {"task": "mnist1d-mlp", "horizon": 200, "width": 64, "depth": 3},
    "mnist1d-mlp, Adam": {"task": "mnist1d-mlp", "horizon": 200, "optimizer": "adam", "base_lr": 5e-3},
    "digits-mlp": {"task": "digits-mlp", "horizon": 200},
    "digits-cnn": {"task": "digits-cnn", "horizon": 200},
    "teacher-student": {"task": "teacher-student", "horizon": 200},
}


@dataclass
class Args:
    """Options of the experiment."""

    controllers: tuple[str, ...] = ("mnist1d-mlp",)
    """Files, or names of shipped controllers."""
    name: str = "transfer"
    """Of the records."""
    seeds: int = 10
    """Fresh seeds behind each number."""
    smoke: bool = False
    """A quick run on one task."""


def rows_of(label: str, task: Task, args: Args) -> list[dict]:
    """One record for each contender and base LR."""
    small = {"num_lrs": 3, "tuning_seeds": 1} if args.smoke else {}
    factors = (0.1, 1.0, 10.0)
    seeds = 2 if args.smoke else args.seeds
    settings = Settings(contenders=("cosine",), factors=factors, ablations=False, report_seeds=seeds, **small)
    slug = "".join(c if c.isalnum() else "-" for c in label)
    controllers = {Path(source).stem: load_controller(source) for source in args.controllers}
    folder = Path("runs") / f"{args.name}{'-smoke' if args.smoke else ''}" / slug
    comparison = compare(task, folder, settings, controllers=controllers)
    rows = []
    for row in wrong_base_table(comparison.records, comparison.tasks[0]):
        if row.factor is not None and row.over_cosine is not None:
            ratio = row.over_cosine
            rows.append(
                {
                    "experiment": args.name,
                    "task": label,
                    "contender": row.contender,
                    "factor": row.factor,
                    "train_loss": row.loss.value,
                    "over_tuned_cosine": ratio.value,
                    "low": ratio.low,
                    "high": ratio.high,
                    "diverged": row.diverged,
                    "no_progress": row.no_progress,
                    "runs": row.num_runs,
                }
            )
    return rows


def shown(rows: list[dict]) -> list[dict]:
    """A line for each task and contender, a column for each base LR."""
    lines: dict[tuple[str, str], dict] = {}
    for row in rows:
        line = lines.setdefault((row["task"], row["contender"]), {"task": row["task"], "contender": row["contender"]})
        line[f"x{row['factor']:g}"] = f"{row['over_tuned_cosine']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return list(lines.values())


def main(args: Args) -> None:
    """Run the experiment."""
    torch.set_num_threads(1)
    tasks = dict(list(TASKS.items())[:1]) if args.smoke else TASKS
    show = progress_bar()
    rows = []
    for index, (label, options) in enumerate(tasks.items()):
        show(index, len(tasks), label)
        options = dict(options)
        rows += rows_of(label, make_task(options.pop("task"), **options), args)
    write_records(args.name, rows, args.smoke)
    print_table(shown(rows), ["task", "contender", "x0.1", "x1", "x10"])


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
