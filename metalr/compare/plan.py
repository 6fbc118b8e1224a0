"""What a comparison does: its settings, its contenders, the trials of each, and the cells of each phase.

A plan depends on settings and records alone, so a comparison that is gone on with makes the same one again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from metalr.compare.ablations import controls_of, mean_replay
from metalr.compare.batches import Cell, at_seeds
from metalr.compare.contenders import CLASSIC, Baseline, get_baseline, of_controller, target_baselines
from metalr.compare.selection import SELECTION, best_trial
from metalr.control.controller import Controller, decision_steps
from metalr.engine.episodes import run_episode
from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import ExpectedSGD
from metalr.records import Record
from metalr.tasks.data import Data, TensorData
from metalr.tasks.task import Task

# Report seeds start this far above tuning seeds, and another comparison seed this far above both.
_SEED_GAP = 1 << 20


@dataclass(frozen=True)
class Settings:
    """What a comparison does. Two comparisons of equal settings give equal records.

    Attributes:
        baselines: names in `BASELINES` or `OUTSIDE_BASELINES`.
        num_lrs, lr_range: the LR grid, log-spaced factors of the task's base LR, both ends included.
        draws: parameter settings for each LR of the grid. Every contender gets num_lrs · draws trials; one with
            fewer parameter settings than draws spends the rest on a finer LR grid over the same range.
        tuning_seeds, report_seeds: how many of each; they never overlap.
        factors: of the task's base LR, for the comparison with a wrong base LR; empty leaves it out.
        wrong_base: baselines in that comparison, at their default parameters; None for all.
        tune_controllers: also give every learned controller its trials, over the same LR grid.
        targets: also train four optimizers under the same budget; the best of them sets the target that the times
            to target are measured against. Without them the tuned best schedule sets it.
        controls: show the base schedule, random, untrained and replayed policy beside each learned controller.
        seed: of everything that is drawn.
        max_runs: largest batch.
        dtype: "float32" or "float64".
    """

    baselines: tuple[str, ...] = CLASSIC
    num_lrs: int = 11
    lr_range: tuple[float, float] = (1.0 / 32.0, 32.0)
    draws: int = 1
    tuning_seeds: int = 3
    report_seeds: int = 10
    factors: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    wrong_base: tuple[str, ...] | None = None
    tune_controllers: bool = False
    targets: bool = False
    controls: bool = True
    seed: int = 0
    max_runs: int = 256
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("draws", "tuning_seeds", "report_seeds", "max_runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name} {getattr(self, name)}, expected at least 1")
        low, high = self.lr_range
        if self.num_lrs < 2 or not 0.0 < low < high < float("inf"):
            raise ValueError(
                f"got {self.num_lrs} LRs in {self.lr_range}, expected at least 2 in a range 0 < low < high of "
                "factors of the base LR: pass for example num_lrs=11, lr_range=(0.03, 30)"
            )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"got dtype {self.dtype!r}, expected 'float32' or 'float64'")
        if any(not 0.0 < factor < float("inf") for factor in self.factors):
            raise ValueError(f"got base LR factors {self.factors}, expected positive finite numbers")
        if max(self.tuning_seeds, self.report_seeds) >= _SEED_GAP:
            raise ValueError(f"got more than {_SEED_GAP} seeds, expected fewer")
        for name in (*self.baselines, *(self.wrong_base or ())):
            get_baseline(name)

    @property
    def num_trials(self) -> int:
        """Trials of every contender that is tuned."""
        return self.num_lrs * self.draws

    def seeds(self, phase: str) -> list[int]:
        """The seeds of a phase. Tuning has its own; the report and the wrong base LRs share fresh ones."""
        start = 2 * self.seed * _SEED_GAP
        if phase == "tuning":
            return list(range(start, start + self.tuning_seeds))
        return list(range(start + _SEED_GAP, start + _SEED_GAP + self.report_seeds))


def trials_of(baseline: Baseline, settings: Settings) -> list[tuple[dict[str, Any], float]]:
    """The trials of a contender: (parameters, base LR factor), `settings.num_trials` of them.

    Example:
        >>> from metalr.compare.contenders import get_baseline
        >>> from metalr.compare.plan import Settings
        >>> [round(factor, 3) for _, factor in trials_of(get_baseline("constant"), Settings(num_lrs=3))]
        [0.031, 1.0, 32.0]
    """
    # At least two LRs for each parameter setting, so that every setting sees both ends of the range.
    drawn = baseline.settings(min(settings.draws, settings.num_trials // 2), settings.seed)
    share, more = divmod(settings.num_trials, len(drawn))
    trials = []
    for index, parameters in enumerate(drawn):
        for factor in np.geomspace(*settings.lr_range, share + (index < more)):
            trials.append((parameters, float(factor)))
    return trials


class Plan:
    """Which contenders there are and which cells they need; nothing is trained here but the replays' episodes."""

    def __init__(
        self,
        tasks: list[Task],
        settings: Settings,
        controllers: Mapping[str, Controller],
        controls: Mapping[str, Controller],
        more: list[Baseline],
    ) -> None:
        self.settings = settings
        self.tasks = tasks
        self.controllers = dict(controllers)
        self.tuned = [*(get_baseline(name) for name in settings.baselines), *more]
        self.learned = [of_controller(name, controller) for name, controller in controllers.items()]
        beside = dict(controls)
        for name, controller in controllers.items() if settings.controls else ():
            beside |= {f"{name}: {what}": c for what, c in controls_of(controller, settings.seed).items()}
        self.controls = [of_controller(name, control, "control") for name, control in beside.items()]
        self.replays: dict[tuple[str, str], Baseline] = {}
        wrong = [get_baseline(name) for name in settings.wrong_base or ()]
        self.wrong = self.tuned if settings.wrong_base is None else wrong
        every = [*self.tuned, *self.learned, *self.controls]
        _require_different([b.name for b in every], "contender")
        _require_different([task.name for task in tasks], "task")
        self.contenders = {b.name: b for b in [*every, *self.wrong]}
        self.targets = target_baselines() if settings.targets else []
        self.contenders |= {b.name: b for b in self.targets}
        for task in tasks:
            for controller in [*controllers.values(), *beside.values()]:
                decision_steps(task.horizon, controller.decisions)

    def describe(self) -> dict[str, Any]:
        """Everything that the records depend on, for config.json."""
        every = [*self.tuned, *self.learned, *self.controls]
        return {
            **asdict(self.settings),
            "tasks": {task.name: describe_task(task) for task in self.tasks},
            "contenders": {b.name: describe_baseline(b) for b in self.tuned},
            "controllers": {b.name: fingerprint(b.build()) for b in every if b.kind in ("controller", "control")},
        }

    def searched(self, task: Task) -> list[Baseline]:
        """Who gets trials on a task."""
        return _that_fit(task, [*self.tuned, *(self.learned if self.settings.tune_controllers else []), *self.targets])

    def tuning_cells(self, task: Task) -> list[Cell]:
        """Every trial of every contender that is tuned, on the tuning seeds."""
        cells = []
        for baseline in self.searched(task):
            for trial, (parameters, factor) in enumerate(trials_of(baseline, self.settings)):
                cell = _cell(task, baseline, "tuning", trial, parameters, factor)
                cells += at_seeds(cell, self.settings.seeds("tuning"))
        return cells

    def report_cells(self, task: Task, records: Sequence[Record]) -> list[Cell]:
        """The winner of each search on each criterion, and what has no search at the task's base LR."""
        seeds = self.settings.seeds("report")
        cells = []
        for baseline in self.searched(task):
            winners = {best_trial(records, task.name, baseline.name, criterion) for criterion in SELECTION}
            for trial in sorted(winners):
                parameters, factor = trials_of(baseline, self.settings)[trial]
                cells += at_seeds(_cell(task, baseline, "report", trial, parameters, factor), seeds)
        for baseline in [*self.learned, *self._controls(task)]:
            cells += at_seeds(_cell(task, baseline, "report", -1, {}, 1.0), seeds)
        return cells

    def wrong_base_cells(self, task: Task) -> list[Cell]:
        """Baselines at their default parameters, controllers and controls, from every wrong base LR."""
        seeds = self.settings.seeds("wrong-base")
        return [
            cell
            for baseline in _that_fit(task, [*self.wrong, *self.learned, *self._controls(task)])
            for factor in self.settings.factors
            for cell in at_seeds(_cell(task, baseline, "wrong-base", -1, baseline.defaults, factor), seeds)
        ]

    def add_replays(self, task: Task, device: torch.device | str) -> None:
        """Record each learned controller's mean multipliers on the tuning seeds, from the task's base LR."""
        seeds = torch.tensor(self.settings.seeds("tuning"))
        for name, controller in self.controllers.items() if self.settings.controls else ():
            runs = BatchedRuns(task, len(seeds), dtype=getattr(torch, self.settings.dtype), device=device)
            base_lr = torch.full((len(seeds),), task.base_lr, dtype=torch.float64)
            episode = run_episode(controller, runs, seeds, base_lr, splits=())
            replay = of_controller(f"{name}: replay", mean_replay(controller, episode.multipliers), "control")
            self.replays[task.name, name] = replay
            self.contenders[replay.name] = replay

    def _controls(self, task: Task) -> list[Baseline]:
        return [*self.controls, *(replay for (name, _), replay in self.replays.items() if name == task.name)]


def _cell(task: Task, baseline: Baseline, phase: str, trial: int, parameters: Mapping[str, Any], factor: float) -> Cell:
    pairs = tuple(sorted(parameters.items()))
    base_lr = (task.base_lr if baseline.base_lr is None else baseline.base_lr) * factor
    return Cell(task.name, baseline.name, phase, trial, pairs, factor, base_lr, seed=0)


def _that_fit(task: Task, baselines: list[Baseline]) -> list[Baseline]:
    """An optimizer of weights cannot stand in for one that follows their second moments."""
    expected = isinstance(task.optimizer, ExpectedSGD)
    return [b for b in baselines if not (expected and b.kind in ("optimizer", "outside", "target"))]


def _require_different(names: list[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"got the {what} names {twice} more than once, expected different ones: rename one")


def describe_task(task: Task) -> dict[str, Any]:
    """What a task is, JSON-able: enough to notice that a folder belongs to another one."""
    return {
        "optimizer": repr(task.optimizer),
        "base_lr": task.base_lr,
        "horizon": task.horizon,
        "batch_size": task.batch_size,
        "model": repr(task.build()),
        "schedule": repr(task.schedule),
        "data": _data_digest(task.data),
    }


def _data_digest(data: Data) -> str:
    """SHA-256 of resident tensors; a stream has none, and its name must do."""
    if not isinstance(data, TensorData):
        return type(data).__name__
    digest = hashlib.sha256()
    for tensor in (part for split in (data.train, data.valid, data.test) for part in split):
        digest.update(str(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe_baseline(baseline: Baseline) -> dict[str, Any]:
    """What a baseline is, JSON-able: its space, and what it builds at its defaults as far as that can be written."""
    described = {"kind": baseline.kind, "about": baseline.about, "space": dict(baseline.space)}
    if baseline.kind in ("optimizer", "outside", "target"):
        return {**described, "defaults": dict(baseline.defaults)}
    try:
        return {**described, "defaults": baseline.controller({}, horizon=100).config()}
    except ValueError:  # a user's function has no name that a file could hold
        return {**described, "defaults": "a Python function"}


def fingerprint(controller: Controller) -> dict[str, Any]:
    """A controller's config and the SHA-256 of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(controller.tensors().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return {**controller.config(), "sha256": digest.hexdigest()}
