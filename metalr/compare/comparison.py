"""The comparison: every contender with the same number of trials, reported on fresh seeds, in two separate tables.

`compare` plans runs, trains what is missing and leaves a folder of records. Nothing but networks is trained here.
`metalr.compare.results` turns records into tables and `metalr.reports.report` into text and HTML.

    comparison = compare(make_task("mnist1d-mlp"), "runs/compare", controllers={"ppo": controller})
    print(report.text(comparison))
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metalr.compare.batches import Curves, batches_of, train_batch
from metalr.compare.contenders import Contender
from metalr.compare.plan import Plan, replay_of
from metalr.compare.run_record import Phase, PlannedRun, RunCurve, RunRecord
from metalr.compare.settings import Settings
from metalr.control.controller import Controller
from metalr.progress import Progress
from metalr.records import CURVES, RECORDS, RunFolder, read_config, read_curves, read_records
from metalr.tasks.task import Task
from metalr.workers import Unit, Workers

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
    workers: Workers | None = None,
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
        progress: called with runs done, runs in all, and the task and phase.
        workers: where batches are trained; this process if None. The records are the same wherever that is.

    Returns:
        The comparison. Stopped by Ctrl-C, it loses the batches in progress and nothing else.

    Raises:
        UnitError: a batch failed three times on one of several workers; all others of its phase are written.
        ValueError: the folder holds a different run, two contenders or tasks share a name, or the horizon is too
            short for a controller's decisions.
    """
    chosen = settings or Settings()
    task_list = [tasks] if isinstance(tasks, Task) else list(tasks)
    plan = Plan(task_list, chosen, controllers or {}, ablations or {}, more_contenders)
    with RunFolder.held(folder, "comparison", plan.describe()) as run_folder:

        def known() -> list[RunRecord]:
            return _records(run_folder.records, run_folder.path)

        trainer = _Trainer(plan, run_folder, device, progress, workers or Workers())
        trainer.train([_Part(task, "tuning", plan.tuning_runs(task)) for task in task_list])
        if chosen.extension:
            tuned = known()
            parts = [_Part(task, "tuning", plan.extension_runs(task, tuned), "extension") for task in task_list]
            trainer.train(parts)
        tuned = known()
        plan.add_calibrated(tuned)
        trainer.replay()
        parts = []
        for task in task_list:
            parts.append(_Part(task, "report", plan.report_runs(task, tuned)))
            parts.append(_Part(task, "wrong-base", plan.wrong_base_runs(task)))
        trainer.train(parts)
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


class _Part(NamedTuple):
    """The runs of a task that a phase needs; `label` names the phase where its own name would not do."""

    task: Task
    phase: Phase
    planned: Sequence[PlannedRun]
    label: str = ""


class _Batch(NamedTuple):
    """A batch of a part, and how many of the part's runs are done with it."""

    part: _Part
    runs: list[PlannedRun]
    done: int


@dataclass
class _Trainer:
    """Trains the planned runs that the folder does not hold yet."""

    plan: Plan
    folder: RunFolder
    device: torch.device | str
    progress: Progress | None
    workers: Workers

    def train(self, parts: Sequence[_Part]) -> None:
        """Train parts of the comparison, and write each batch as soon as it and those before it are finished.

        The batches of all tasks are units of one piece of work, so that many workers have enough to do.
        """
        shared = {part.task.name: (part.task, self.plan.contenders(part.task)) for part in parts}
        batches = [batch for part in parts for batch in self._batches(part, shared[part.task.name][1])]
        places = [place for place, batch in enumerate(batches) if self._is_missing(batch)]
        units = [
            Unit((batch.runs, _CURVES[batch.part.phase], *self._where()), shared[batch.part.task.name])
            for batch in map(batches.__getitem__, places)
        ]
        shown = self._show(batches, 0, places[0] if places else 0)
        for index, (records, curves) in self.workers.each(_train, units, ordered=True):
            self.folder.append([r.to_json() for r in records], [c.to_json() for c in curves])
            shown = self._show(batches, shown, places[index] + 1)
        self._show(batches, shown, len(batches))

    def _is_missing(self, batch: _Batch) -> bool:
        """A batch that was written in part is made again as a whole: the same batch gives the same bits."""
        return any(run.key not in self.folder.done for run in batch.runs)

    def replay(self) -> None:
        """Record the mean multipliers of the learned controllers, which the replays need."""
        asked = self.plan.replays()
        seeds = self.plan.settings.seeds("tuning")
        units = [Unit((contender.learned, seeds, *self._where()), shared=task) for task, contender in asked]
        for index, replay in self.workers.each(replay_of, units, ordered=True):
            self.plan.add_replay(*asked[index], replay)

    def _where(self) -> tuple[torch.dtype, torch.device | str]:
        return getattr(torch, self.plan.settings.dtype), self.device

    def _batches(self, part: _Part, contenders: Mapping[str, Contender]) -> Iterator[_Batch]:
        done = 0
        for runs in batches_of(part.planned, contenders, part.task, self.plan.settings.max_runs):
            done += len(runs)
            yield _Batch(part, runs, done)

    def _show(self, batches: Sequence[_Batch], start: int, stop: int) -> int:
        """Report progress on some batches."""
        if self.progress is not None:
            for part, _, done in batches[start:stop]:
                self.progress(done, len(part.planned), f"{part.task.name}: {part.label or part.phase}")
        return stop


def _train(
    shared: tuple[Task, Mapping[str, Contender]],
    batch: Sequence[PlannedRun],
    curves: Curves,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[list[RunRecord], list[RunCurve]]:
    """A unit: train one batch."""
    return train_batch(*shared, batch, curves=curves, dtype=dtype, device=device)
