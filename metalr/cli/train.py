"""`metalr train`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from metalr.agents.run_folder import TrainOptions, build_tasks
from metalr.agents.training_folder import CONTROLLER
from metalr.cli.checks import check_device
from metalr.control.controller import Controller
from metalr.progress import ProgressLines
from metalr.reports.tables import interval
from metalr.reports.text_table import Cell, Grid, as_text, screen_width
from metalr.tasks.task import Task

# Tasks whose fresh runs are shown after a training.
_SHOWN_TASKS = 4


@dataclass
class Train:
    """Train a controller by PPO, DQN or cloning, and try it on fresh seeds.

    Leaves controller.safetensors in the folder, and says what to type next.

    A training that was stopped continues with `metalr train --resume FOLDER`.
    """

    options: Annotated[TrainOptions, tyro.conf.arg(name="")] = field(default_factory=TrainOptions)
    folder: Path = Path("runs/train")
    """Folder of the run: a new one, or that of a stopped run with the same options."""
    resume: Path | None = None
    """Folder of a stopped run to continue; every option but the workers is read from it."""
    workers: int = 1
    """Local processes that share the training; the controller is the same however many."""
    cluster: str | None = None
    """Address of a Ray cluster that trains a clone instead, or `auto`."""

    def run(self) -> None:
        """Train, or continue a training."""
        from metalr.agents.run_folder import read_options, train
        from metalr.workers import Workers

        folder, options = self.folder, self.options
        if self.resume is not None:
            folder, options = self.resume, read_options(self.resume)
        check_device(options.device)
        progress = ProgressLines()
        with Workers(self.workers, self.cluster) as workers:
            controller = train(options, folder, workers=workers, progress=progress)
        progress.finish()
        if not workers.here:
            print(workers.costs)
        tasks = build_tasks(options)
        _print_fresh_runs(controller, tasks, options)
        print(f"controller: {folder / CONTROLLER}")
        _print_what_next(folder / CONTROLLER, tasks, options)


def _print_fresh_runs(controller: Controller, tasks: list[Task], options: TrainOptions) -> None:
    """A trained controller on fresh seeds of its first few tasks."""
    from metalr.agents.fresh_runs import fresh_rows

    rows = fresh_rows(controller, tasks[:_SHOWN_TASKS], device=options.device)
    factors = list(rows[0].loss)
    cells: list[list[Cell]] = [
        [
            f"{row.task}, {'its base schedule alone' if row.alone else options.agent}",
            *(interval(row.loss[factor]) for factor in factors),
        ]
        for row in rows
    ]
    marked = frozenset(index for index, row in enumerate(rows) if not row.alone)
    notes = ["Interquartile mean [95 %] of the final train loss over 10 fresh seeds, by base LR."]
    if len(tasks) > _SHOWN_TASKS:
        notes.append(f"The first {_SHOWN_TASKS} of its {len(tasks)} tasks.")
    header = ["base LR", *(f"x{factor:g}" for factor in factors)]
    print(as_text(Grid("On fresh seeds", header, cells, notes, marked), screen_width()))


def _print_what_next(path: Path, tasks: list[Task], options: TrainOptions) -> None:
    names = [options.task] if options.family is None else list(dict.fromkeys(task.name for task in tasks))
    compare = f"metalr compare --task {' '.join(names)} --horizon {tasks[0].horizon}"
    if options.family is None and options.optimizer is not None:
        compare += f" --optimizer {options.optimizer}"
    print(f"compare it: {compare} --controllers {path}")
    print(f'use it:     metalr.load_scheduler("{path}", optimizer, horizon={tasks[0].horizon})')
