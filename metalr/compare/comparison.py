"""The comparison: every contender with the same number of trials, reported on fresh seeds, in two separate tables.

Which loop: the inner one only; nothing is trained here but networks. `compare` plans cells, trains what is missing
and leaves a folder of records; `metalr.compare.results` turns records into tables and `metalr.reports.report` into
text and HTML.

    comparison = compare(make_task("mnist1d-mlp"), "runs/compare", controllers={"ppo": controller})
    print(report.text(comparison))
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from metalr.compare.batches import Cell, Curves, chunks, run_cells
from metalr.compare.contenders import Baseline
from metalr.compare.plan import Plan, Settings, trials_of
from metalr.control.controller import Controller
from metalr.records import RECORDS, Record, RunFolder, read_config, read_curves, read_lines
from metalr.tasks.task import Task

__all__ = ["Comparison", "Progress", "Settings", "compare", "load", "progress_bar", "trials_of"]

# Called with runs done, runs in all and what is being done.
Progress = Callable[[int, int, str], None]


@dataclass
class Comparison:
    """What came out.

    Attributes:
        settings: that it was made with.
        tasks: names, in order.
        records: one for each run.
        curves: record key -> steps, LRs and losses over the run, for all runs but those of the tuning.
        config: what is in config.json: settings, contenders and versions.
        folder: where it is.
    """

    settings: Settings
    tasks: list[str]
    records: list[Record]
    curves: dict[str, Record]
    config: dict[str, Any]
    folder: Path


def compare(
    tasks: Task | Sequence[Task],
    folder: str | Path,
    settings: Settings | None = None,
    *,
    controllers: Mapping[str, Controller] | None = None,
    controls: Mapping[str, Controller] | None = None,
    contenders: Iterable[Baseline] = (),
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Comparison:
    """Compare baselines and controllers; go on with what the folder already holds.

    Args:
        tasks: one or several, of different names.
        folder: for config.json, records.jsonl and curves.jsonl. A folder with the same settings is gone on with.
        settings: the defaults if None.
        controllers: name -> learned controller; reported at the task's base LR without any trial.
        controls: more controls to show beside them, for example {"ppo: state-blind": …}.
        contenders: more baselines than the registered ones, for example from `of_schedule`.
        device: where to train.
        progress: called after every batch; see `progress_bar`.

    Returns:
        The comparison. Stopped by Ctrl-C, it loses the batch in progress and nothing else.

    Raises:
        ValueError: the folder holds a different run, two contenders or tasks share a name, or the horizon is too
            short for a controller's decisions.
    """
    chosen = settings or Settings()
    task_list = [tasks] if isinstance(tasks, Task) else list(tasks)
    plan = Plan(task_list, chosen, controllers or {}, controls or {}, list(contenders))
    run_folder = RunFolder(folder, "comparison", plan.describe())
    for task in task_list:
        runner = _Runner(task, plan, run_folder, device, progress)
        runner.run("tuning", plan.tuning_cells(task))
        plan.add_replays(task, device)
        runner.run("report", plan.report_cells(task, run_folder.records))
        runner.run("wrong-base", plan.wrong_base_cells(task))
    return Comparison(
        chosen,
        [task.name for task in task_list],
        run_folder.records,
        read_curves(run_folder.path),
        run_folder.config,
        run_folder.path,
    )


def load(folder: str | Path) -> Comparison:
    """The comparison in a folder, finished or not, as far as it got.

    Raises:
        ValueError: the folder holds no comparison.
    """
    path = Path(folder)
    config = read_config(path, "comparison")
    names = {item.name for item in fields(Settings)}
    stored: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config["settings"].items()
        if key in names
    }
    settings = Settings(**stored)
    return Comparison(
        settings, list(config["settings"]["tasks"]), read_lines(path / RECORDS), read_curves(path), config, path
    )


@dataclass
class _Runner:
    task: Task
    plan: Plan
    folder: RunFolder
    device: torch.device | str
    progress: Progress | None

    def run(self, phase: str, cells: list[Cell]) -> None:
        """Train the cells of a phase that are not in the folder yet; each batch is written when it is finished."""
        settings, done = self.plan.settings, 0
        wanted: dict[str, Curves] = {"report": "full", "wrong-base": "train"}
        for chunk in chunks(cells, self.plan.contenders, self.task, settings.max_runs):
            if any(cell.key not in self.folder.done for cell in chunk):
                # A batch that was written in part is made again as a whole: the same batch gives the same bits.
                records, curves = run_cells(
                    self.task,
                    self.plan.contenders,
                    chunk,
                    curves=wanted.get(phase, "none"),
                    dtype=getattr(torch, settings.dtype),
                    device=self.device,
                )
                self.folder.append(records, curves)
            done += len(chunk)
            if self.progress is not None:
                self.progress(done, len(cells), f"{self.task.name}: {phase}")


def progress_bar() -> Progress:
    """A bar on the terminal.

    Raises:
        ImportError: tqdm is missing; the message says which extra brings it.
    """
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("a progress bar needs the package 'tqdm': pip install 'metalr[cli]'") from error
    bars: dict[str, Any] = {}

    def show(done: int, total: int, label: str) -> None:
        if label not in bars:
            bars[label] = tqdm(total=total, desc=label, unit="run")
        bars[label].update(done - bars[label].n)
        if done >= total:
            bars[label].close()

    return show
