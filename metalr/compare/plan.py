"""The contenders of a comparison and the runs that each phase needs.

A plan depends on settings and records alone, so a comparison that is resumed makes the same one again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from metalr.compare import calibrated
from metalr.compare.ablations import ablations_of, mean_replay
from metalr.compare.catalog import get_contender, target_contenders
from metalr.compare.contenders import Ablation, Contender, LearnedContender, Parameters
from metalr.compare.fingerprints import describe_task
from metalr.compare.run_record import NO_TRIAL, Phase, PlannedRun, RunRecord
from metalr.compare.selection import Criterion, best_trial, edges
from metalr.compare.settings import Settings, trials_of
from metalr.control.controller import Controller
from metalr.control.reference import ReplayController
from metalr.engine.episodes import run_episode
from metalr.schedulers.plain_runs import runs_of
from metalr.tasks.task import Task


class Plan:
    """Who is compared, and on which runs.

    Args:
        tasks: to compare on, of different names.
        settings: of the comparison.
        controllers: name -> learned controller.
        ablations: more ablations than those that follow from the controllers.
        more_contenders: more contenders than the registered ones.

    Attributes:
        tuned: contenders with trials.
        learned: the controllers.
        ablations: those that need no training, on every task alike.
        fixed: contenders at an absolute LR: those that were passed, and what `add_calibrated` has made.
        wrong: contenders that start from wrong base LRs, beside the controllers and their ablations.
        targets: optimizers that set the targets.

    Raises:
        ValueError: two contenders or tasks share a name, or a horizon is too short for a controller's decisions.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        settings: Settings,
        controllers: Mapping[str, Controller],
        ablations: Mapping[str, Controller],
        more_contenders: Iterable[Contender],
    ) -> None:
        self.tasks, self.settings = tasks, settings
        more = list(more_contenders)
        self.tuned = [*settings.registered(), *(contender for contender in more if not contender.ignores_guess)]
        self.fixed = [contender for contender in more if contender.ignores_guess]
        self.learned = [LearnedContender(name=name, learned=learned) for name, learned in controllers.items()]
        self.ablations = _ablations(controllers if settings.ablations else {}, ablations, settings.seed)
        self._replays: dict[str, list[Ablation]] = {task.name: [] for task in tasks}
        by_name = {contender.name: contender for contender in self.tuned}
        names = by_name if settings.wrong_base is None else settings.wrong_base
        self.wrong = [by_name.get(name) or get_contender(name) for name in names]
        self.targets = target_contenders() if settings.targets else []
        _require_different([c.name for c in (*self.tuned, *self.fixed, *self.learned, *self.ablations)], "contender")
        _require_different([task.name for task in tasks], "task")
        for task in tasks:
            for controller in (*(c.learned for c in self.learned), *(c.variant for c in self.ablations)):
                controller.decision_steps(task.horizon)

    def contenders(self, task: Task) -> dict[str, Contender]:
        """Everyone who may have runs on a task, by name."""
        return {contender.name: contender for contender in (*self._everyone(), *self._replays[task.name])}

    def describe(self) -> dict[str, Any]:
        """Everything that the records depend on, for config.json."""
        return {
            **asdict(self.settings),
            "tasks": {task.name: describe_task(task) for task in self.tasks},
            "described": {c.name: c.describe() for c in self._everyone()},
        }

    def tuning_runs(self, task: Task) -> list[PlannedRun]:
        """The trials of every contender that is tuned, on the tuning seeds."""
        return self._trials(task, 0, self.settings.trials)

    def extension_runs(self, task: Task, records: Sequence[RunRecord]) -> list[PlannedRun]:
        """The same number of further trials for everyone, if the best LR of anyone lies on an edge of the range."""
        own = [record for record in records if record.task == task.name and record.trial < self.settings.trials]
        on_edge = any(
            edge.startswith("lr ")
            for contender in self._searched(task)
            for criterion in Criterion
            for edge in edges(own, task.name, contender.name, criterion)
        )
        return self._trials(task, self.settings.trials, None) if on_edge else []

    def report_runs(self, task: Task, records: Sequence[RunRecord]) -> list[PlannedRun]:
        """The winners of each search on each criterion, and whoever has no search at its base LR.

        A search has a winner after each number of trials in `Settings.price_at`, and one after all of them.
        """
        own = [record for record in records if record.task == task.name]
        planned = []
        for contender in self._searched(task):
            stops = [*(count for count in self.settings.price_at if count < self.settings.trials), None]
            winners = {best_trial(own, task.name, contender.name, c, stop) for c in Criterion for stop in stops}
            for trial in sorted(winners):
                parameters, factor = trials_of(contender, self.settings)[trial]
                planned += self._at_all_seeds(task, contender, "report", trial, parameters, factor)
        for contender in self._untuned(task):
            planned += self._at_all_seeds(task, contender, "report", NO_TRIAL, {}, 1.0)
        return planned

    def wrong_base_runs(self, task: Task) -> list[PlannedRun]:
        """Contenders at their default parameters, from every wrong base LR; from one if it makes no difference."""
        factors = self.settings.factors
        return [
            run
            for contender in (*self.wrong, *self._untuned(task))
            if contender.fits(task)
            for factor in ((1.0,) if contender.ignores_guess and factors else factors)
            for run in self._at_all_seeds(task, contender, "wrong-base", NO_TRIAL, contender.defaults, factor)
        ]

    def replays(self) -> list[tuple[Task, LearnedContender]]:
        """The learned controllers whose mean multipliers are wanted, and the tasks to record them on."""
        return [(task, contender) for task in self.tasks for contender in self.learned if self.settings.ablations]

    def add_replay(self, task: Task, contender: LearnedContender, replay: ReplayController) -> None:
        """Let a replay of a learned controller take part on a task; see `replay_of`."""
        self._replays[task.name].append(Ablation(name=f"{contender.name}: replay", variant=replay))

    def add_calibrated(self, records: Sequence[RunRecord]) -> None:
        """Fit the calibrated setting of each task on the trials of the others, where there are any of its kind."""
        kinds = {task.name: calibrated.optimizer_kind(task.optimizer) for task in self.tasks}
        lrs = calibrated.leave_one_out(calibrated.curves_of(records, kinds))
        if lrs and calibrated.NAME not in [contender.name for contender in self.fixed]:
            self.fixed.append(calibrated.calibrated(lrs))

    def _trials(self, task: Task, start: int, stop: int | None) -> list[PlannedRun]:
        """Some of the trials of every contender that is tuned."""
        return [
            run
            for contender in self._searched(task)
            for trial, (parameters, factor) in list(enumerate(trials_of(contender, self.settings)))[start:stop]
            for run in self._at_all_seeds(task, contender, "tuning", trial, parameters, factor)
        ]

    def _everyone(self) -> list[Contender]:
        """All but the replays; a contender may be named twice."""
        return [*self.tuned, *self.fixed, *self.learned, *self.ablations, *self.wrong, *self.targets]

    def _searched(self, task: Task) -> list[Contender]:
        learned = self.learned if self.settings.tune_controllers else []
        return [contender for contender in (*self.tuned, *learned, *self.targets) if contender.fits(task)]

    def _untuned(self, task: Task) -> list[Contender]:
        fixed = [contender for contender in self.fixed if contender.fits(task)]
        return [*fixed, *self.learned, *self.ablations, *self._replays[task.name]]

    def _at_all_seeds(
        self, task: Task, contender: Contender, phase: Phase, trial: int, parameters: Parameters, factor: float
    ) -> list[PlannedRun]:
        pairs = tuple(sorted(parameters.items()))
        base_lr = contender.base_lr(task) * factor
        run = PlannedRun(task.name, contender.name, phase, trial, pairs, factor, base_lr, seed=0)
        return run.at_seeds(self.settings.seeds(phase))


def replay_of(
    task: Task, learned: Controller, seeds: Sequence[int], dtype: torch.dtype, device: torch.device | str
) -> ReplayController:
    """The mean multipliers of a controller on a task, from the task's base LR."""
    runs = runs_of(task, len(seeds), dtype=dtype, device=device)
    base_lr = torch.full((len(seeds),), task.base_lr, dtype=torch.float64)
    episode = run_episode(learned, runs, torch.tensor(seeds), base_lr, splits=())
    return mean_replay(learned, episode.multipliers * (learned.base(task.base_lr) / task.base_lr))


def _ablations(controllers: Mapping[str, Controller], more: Mapping[str, Controller], seed: int) -> list[Ablation]:
    """The ablations that were passed, then those of each controller."""
    variants = dict(more)
    for name, controller in controllers.items():
        variants |= {f"{name}: {what}": variant for what, variant in ablations_of(controller, seed).items()}
    return [Ablation(name=name, variant=variant) for name, variant in variants.items()]


def _require_different(names: list[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"got the {what} names {twice} more than once, expected different ones: rename one")
