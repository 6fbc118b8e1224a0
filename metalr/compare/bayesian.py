"""Bayesian search of a contender's LR and parameters, as an alternative to the sequence of a comparison.

Optuna's Gaussian-process sampler proposes one trial after the other, or a few at once; each is trained on the tuning
seeds in one batch. Needs optuna, which is imported when a search is run and not before.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metalr.compare.batches import train_batch
from metalr.compare.contenders import Contender
from metalr.compare.run_record import PlannedRun, RunRecord
from metalr.compare.search import Choice, Dimension
from metalr.compare.selection import Criterion, mean_score
from metalr.tasks.task import Task
from metalr.workers import Unit, Workers


@dataclass(frozen=True)
class Trial:
    """One candidate and its score, as `metalr.compare.selection` has it: a diverged run counts as untrained."""

    parameters: dict[str, Any]
    base_lr: float
    score: float


@dataclass(frozen=True)
class SearchResult:
    """All trials in order, and the best."""

    trials: list[Trial]

    @property
    def best(self) -> Trial:
        """The trial with the lowest score; of equal ones the first."""
        return min(self.trials, key=lambda trial: trial.score)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("a Bayesian search needs the package 'optuna': pip install 'metalr[hpo]'") from error
    return optuna


def search(
    task: Task,
    contender: Contender,
    *,
    num_trials: int = 20,
    lr_range: tuple[float, float] = (1.0 / 32.0, 32.0),
    tuning_seeds: int = 3,
    criterion: Criterion = Criterion.TRAIN,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
    at_once: int = 1,
    workers: Workers | None = None,
) -> SearchResult:
    """Search LR and parameters of one contender with a Gaussian process.

    The LR is searched on a log scale over its range, and every parameter in the contender's own range.

    Args:
        task: what is trained.
        contender: what is searched.
        num_trials: how many candidates.
        lr_range: factors of the contender's base LR on the task.
        tuning_seeds: seeds 0, 1, … behind each score: those of a comparison with seed 0.
        criterion: whose selection loss is minimised.
        seed: of the sampler.
        device: where to train.
        progress: called after every trial with trials done, trials in all and the contender's name.
        at_once: trials that are proposed together, before the scores of any of them are known; this changes the search.
        workers: where the trials are trained; this process if None. That changes nothing.

    Raises:
        ImportError: optuna is missing; the message names the extra.
        ValueError: there is not at least one trial or seed, or the range is not one.
    """
    low, high = lr_range
    if num_trials < 1 or not 0.0 < low < high < math.inf:
        raise ValueError(
            f"got {num_trials} trials in {lr_range}, expected at least 1 in a range 0 < low < high of factors of the "
            "base LR: pass for example 20 and (0.03, 30)"
        )
    if tuning_seeds < 1:
        raise ValueError(f"got tuning_seeds {tuning_seeds}, expected at least 1")
    if at_once < 1:
        raise ValueError(f"got {at_once} trials at once, expected at least 1")
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=seed))
    trials: list[Trial] = []
    shared = task, contender
    while len(trials) < num_trials:
        proposed = [sampler.ask() for _ in range(min(at_once, num_trials - len(trials)))]
        runs = [_proposed_run(one, len(trials) + i, task, contender, lr_range) for i, one in enumerate(proposed)]
        units = [Unit((run.at_seeds(range(tuning_seeds)), device), shared) for run in runs]
        for index, records in (workers or Workers()).each(_train, units, ordered=True):
            score = mean_score(records, criterion.selected_on)
            sampler.tell(proposed[index], math.log(max(score, 1e-300)))
            trials.append(Trial(dict(runs[index].parameters), runs[index].base_lr, score))
            if progress is not None:
                progress(len(trials), num_trials, contender.name)
    return SearchResult(trials)


def _train(shared: tuple[Task, Contender], batch: Sequence[PlannedRun], device: torch.device | str) -> list[RunRecord]:
    """A unit: train one trial."""
    task, contender = shared
    return train_batch(task, {contender.name: contender}, batch, device=device)[0]


def _proposed_run(
    proposed: Any, trial: int, task: Task, contender: Contender, lr_range: tuple[float, float]
) -> PlannedRun:
    factor = proposed.suggest_float("lr", *lr_range, log=True)
    parameters = {name: _suggest(proposed, name, dimension) for name, dimension in contender.space.items()}
    base_lr = factor * contender.base_lr(task)
    pairs = tuple(sorted(parameters.items()))
    return PlannedRun(task.name, contender.name, "tuning", trial, pairs, factor, base_lr, seed=0)


def _suggest(proposed: Any, name: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        return proposed.suggest_categorical(name, list(dimension.values))
    if dimension.whole:
        return proposed.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log)
    return proposed.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
