"""The comparison: every contender with the same number of trials, reported on fresh seeds, in two separate tables.

`compare` plans runs, trains what is missing and leaves a folder of records. Nothing but networks is trained here.
`metalr.compare.results` turns records into tables and `metalr.reports.report` into text and HTML.

    comparison = compare(make_task("mnist1d-mlp"), "runs/compare", controllers={"ppo": controller})
    print(report.text(comparison))
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from metalr.compare.batches import Curves, batches_of, train_batch
from metalr.compare.contenders import Contender
from metalr.compare.plan import Plan
from metalr.compare.run_record import Phase, PlannedRun, RunCurve, RunRecord
from metalr.compare.settings import Settings
from metalr.control.controller import Controller
from metalr.progress import Progress
from metalr.records import CURVES, RECORDS, RunFolder, read_config, read_curves, read_records
from metalr.tasks.task import Task

_CURVES: dict[Phase, Curves] = {"tuning": "none", "report": "full", "wrong-base": "train"}
# Older folders call two of the settings otherwise.
_OLD_NAMES = {"baselines": "contenders", "controls": "ablations"}


@dataclass
class Comparison:
    """A comparison, finished or as far as it got.

    Attributes:
        settings: that it was made with.
        tasks: names, in order.
        records: one for each run.
        curves: key of a run -> its curve, for all runs but those of the tuning.
        config: the content of config.json: settings, contenders and versions.
        folder: where it is.
    """

    settings: Settings
    tasks: list[str]
    records: list[RunRecord]
    curves: dict[str, RunCurve]
    config: dict[str, Any]
    folder: Path


def compare(
    tasks: Task | Sequence[Task],
    folder: str | Path,
    settings: Settings | None = None,
    *,
    controllers: Mapping[str, Controller] | None = None,
    ablations: Mapping[str, Controller] | None = None,
    more_contenders: Iterable[Contender] = (),
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Comparison:
    """Compare contenders; only what the folder does not hold yet is trained.

    Args:
        tasks: one or several, of different names.
        folder: for config.json, records.jsonl and curves.jsonl; new, or of the same comparison.
        settings: the defaults if None.
        controllers: name -> learned controller; reported at the task's base LR without any trial.
        ablations: more of them to show beside the controllers, for example {"ppo: state-blind": …}.
        more_contenders: beside the registered ones, for example from `of_schedule`; one at an absolute LR has no trial.
        device: where to train.
        progress: called between batches with runs done, runs in all, and the task and phase.

    Returns:
        The comparison. Stopped by Ctrl-C, it loses the batch in progress and nothing else.

    Raises:
        ValueError: the folder holds a different run, two contenders or tasks share a name, or the horizon is too
            short for a controller's decisions.
    """
    chosen = settings or Settings()
    task_list = [tasks] if isinstance(tasks, Task) else list(tasks)
    plan = Plan(task_list, chosen, controllers or {}, ablations or {}, more_contenders)
    with RunFolder.held(folder, "comparison", plan.describe()) as run_folder:

        def known() -> list[RunRecord]:
            return _records(run_folder.records, run_folder.path)

        runners = [_Runner(task, plan, run_folder, device, progress) for task in task_list]
        for runner in runners:
            runner.run("tuning", plan.tuning_runs(runner.task))
            if chosen.extension:
                runner.run("tuning", plan.extension_runs(runner.task, known()), "extension")
        plan.add_calibrated(known())
        for runner in runners:
            plan.add_replays(runner.task, device)
            runner.run("report", plan.report_runs(runner.task, known()))
            runner.run("wrong-base", plan.wrong_base_runs(runner.task))
        return _comparison(chosen, run_folder.path, run_folder.records, run_folder.config)


def load(folder: str | Path) -> Comparison:
    """The comparison in a folder, finished or as far as it got.

    Raises:
        ValueError: the folder holds no comparison.
    """
    path = Path(folder)
    config = read_config(path, "comparison")
    known = {field.name for field in fields(Settings)}
    stored: dict[str, Any] = {}
    if "num_lrs" in config["settings"]:  # older folders: a grid of LRs for each drawn setting
        stored["trials"] = config["settings"]["num_lrs"] * config["settings"]["draws"]
    for name, value in config["settings"].items():
        if (name := _OLD_NAMES.get(name, name)) in known and not isinstance(value, dict):
            stored[name] = tuple(value) if isinstance(value, list) else value
    return _comparison(Settings(**stored), path, read_records(path / RECORDS), config)


def _comparison(
    settings: Settings, path: Path, records: Iterable[Mapping[str, Any]], config: dict[str, Any]
) -> Comparison:
    curves = {key: _read(RunCurve.from_json, curve, path / CURVES) for key, curve in read_curves(path).items()}
    return Comparison(settings, list(config["settings"]["tasks"]), _records(records, path), curves, config, path)


def _records(lines: Iterable[Mapping[str, Any]], path: Path) -> list[RunRecord]:
    return [_read(RunRecord.from_json, line, path / RECORDS) for line in lines]


def _read(convert: Callable[[Mapping[str, Any]], Any], line: Mapping[str, Any], path: Path) -> Any:
    try:
        return convert(line)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"got {path} with a damaged record of {line['cell']!r} ({error}), expected all its fields: delete that "
            "line, and what it held is made again"
        ) from error


@dataclass
class _Runner:
    """Trains the planned runs of a task that its folder does not hold yet."""

    task: Task
    plan: Plan
    folder: RunFolder
    device: torch.device | str
    progress: Progress | None

    def run(self, phase: Phase, planned: Sequence[PlannedRun], label: str = "") -> None:
        """Train a phase, batch after batch; a batch is written as soon as it is finished."""
        settings, contenders, done = self.plan.settings, self.plan.contenders(self.task), 0
        for batch in batches_of(planned, contenders, self.task, settings.max_runs):
            if any(run.key not in self.folder.done for run in batch):
                self._show(done, planned, label or phase)
                # A batch that was written in part is made again as a whole: the same batch gives the same bits.
                records, curves = train_batch(
                    self.task,
                    contenders,
                    batch,
                    curves=_CURVES[phase],
                    dtype=getattr(torch, settings.dtype),
                    device=self.device,
                )
                self.folder.append([r.to_json() for r in records], [c.to_json() for c in curves])
            done += len(batch)
        self._show(done, planned, label or phase)

    def _show(self, done: int, planned: Sequence[PlannedRun], label: str) -> None:
        if self.progress is not None and planned:
            self.progress(done, len(planned), f"{self.task.name}: {label}")
