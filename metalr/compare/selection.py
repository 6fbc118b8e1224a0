"""The runs that a table reports: those of the best trial by a criterion, on fresh seeds.

A run counts with its `RunRecord.scored` loss everywhere, and several runs with the geometric mean of those.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np

from metalr.compare.contenders import Kind
from metalr.compare.run_record import NO_TRIAL, Phase, RunRecord
from metalr.tasks.data import Split


class Criterion(StrEnum):
    """The loss that decides between trials, and with it the loss that is then reported.

    Example:
        >>> Criterion.VALID.selected_on, Criterion.VALID.reported_on
        ('valid', 'test')
    """

    TRAIN = "train"
    VALID = "valid"

    @property
    def selected_on(self) -> Split:
        """The split whose final loss chooses a trial."""
        return "train" if self is Criterion.TRAIN else "valid"

    @property
    def reported_on(self) -> Split:
        """The split whose final loss is then reported: never one that has chosen anything, unless it is trained on."""
        return "train" if self is Criterion.TRAIN else "test"

    @property
    def label(self) -> str:
        """For a title."""
        return f"chosen on {self.selected_on} loss, reported on {self.reported_on} loss"


def select(records: Sequence[RunRecord], **wanted: Any) -> list[RunRecord]:
    """The records whose fields have these values, by ascending seed."""
    found = [r for r in records if all(getattr(r, name) == value for name, value in wanted.items())]
    return sorted(found, key=lambda record: record.seed)


def tuning_runs(records: Sequence[RunRecord], task: str, contender: str) -> list[RunRecord]:
    """The runs of all trials of a contender; none if it was not tuned."""
    return select(records, task=task, contender=contender, phase="tuning")


def mean_score(records: Sequence[RunRecord], split: Split) -> float:
    """Geometric mean of the scored losses of some runs; infinite where the untrained loss is."""
    return float(np.exp(np.mean(np.log(np.maximum([record.scored(split) for record in records], 1e-300)))))


def trial_scores(records: Sequence[RunRecord], task: str, contender: str, criterion: Criterion) -> dict[int, float]:
    """Trial -> geometric mean over the tuning seeds of the loss that it is chosen on."""
    by_trial: dict[int, list[RunRecord]] = {}
    for record in tuning_runs(records, task, contender):
        by_trial.setdefault(record.trial, []).append(record)
    return {trial: mean_score(runs, criterion.selected_on) for trial, runs in sorted(by_trial.items())}


def best_trial(
    records: Sequence[RunRecord], task: str, contender: str, criterion: Criterion, first: int | None = None
) -> int:
    """The trial with the lowest score; of equal ones the first.

    Args:
        records: of a comparison.
        task: its name.
        contender: its name.
        criterion: whose selection loss counts.
        first: of the first so many trials; None for all.

    Raises:
        ValueError: the contender has no trials.
    """
    scores = trial_scores(records, task, contender, criterion)
    if not scores:
        raise ValueError(f"got no trials of {contender!r} on {task!r}, expected tuning records: compare first")
    return min(list(scores)[:first], key=lambda trial: scores[trial])


def chosen_runs(
    records: Sequence[RunRecord], task: str, contender: str, criterion: Criterion, first: int | None = None
) -> list[RunRecord]:
    """The reported runs of a contender: those of its best trial (of the first so many), or its only ones."""
    has_trials = bool(tuning_runs(records, task, contender))
    trial = best_trial(records, task, contender, criterion, first) if has_trials else NO_TRIAL
    return select(records, task=task, contender=contender, phase="report", trial=trial)


def untuned_runs(records: Sequence[RunRecord], task: str, contender: str) -> list[RunRecord]:
    """Reported runs without any trial, at the task's base LR."""
    return select(records, task=task, contender=contender, phase="report", trial=NO_TRIAL)


def tuned_best(records: Sequence[RunRecord], task: str, criterion: Criterion) -> str:
    """The classic schedule whose best trial has the lowest score of all.

    It is named by its tuning score; its fresh seeds have no say, so that it does not win by luck there.

    Raises:
        ValueError: no schedule was tuned.
    """
    best = _best_of_kind(records, task, criterion, Kind.SCHEDULE)
    if best is None:
        raise ValueError(f"got no tuned schedule on {task!r}, expected at least one: name one in `contenders`")
    return best


def tuned_best_runs(records: Sequence[RunRecord], task: str, criterion: Criterion) -> list[RunRecord]:
    """The reported runs of the tuned best schedule, the reference of every table."""
    return chosen_runs(records, task, tuned_best(records, task, criterion), criterion)


def target_setter(records: Sequence[RunRecord], task: str, criterion: Criterion) -> str:
    """The contender that sets the target: the best of the optimizers for it, else the tuned best schedule."""
    return _best_of_kind(records, task, criterion, Kind.TARGET) or tuned_best(records, task, criterion)


def _best_of_kind(records: Sequence[RunRecord], task: str, criterion: Criterion, kind: Kind) -> str | None:
    tuned = select(records, task=task, phase="tuning", kind=kind)
    names = sorted({record.contender for record in tuned})
    scores = {name: min(trial_scores(tuned, task, name, criterion).values()) for name in names}
    return min(names, key=lambda name: scores[name]) if names else None


def edges(records: Sequence[RunRecord], task: str, contender: str, criterion: Criterion) -> list[str]:
    """The values of the best trial that lie on an edge of the search, for example ["lr low"].

    A value is on an edge when no trial has a lower one or none a higher one. Nothing lies below a floor of 0.
    """
    tuning = tuning_runs(records, task, contender)
    if not tuning:
        return []
    trial = best_trial(records, task, contender, criterion)
    best = next(record for record in tuning if record.trial == trial)
    searched = {"lr": (best.base_lr, [record.base_lr for record in tuning])}
    searched |= {name: (value, [r.parameters[name] for r in tuning]) for name, value in best.parameters.items()}
    found = []
    for name, (value, values) in searched.items():
        # With two values both are edges, which says nothing; a word has no order.
        if isinstance(value, (int, float)) and len(set(values)) > 2 and value and value in (min(values), max(values)):
            found.append(f"{name} {'low' if value == min(values) else 'high'}")
    return found


def contenders_of(records: Sequence[RunRecord], task: str, phase: Phase = "report") -> list[str]:
    """Names in the order of their first record."""
    return list(dict.fromkeys(r.contender for r in records if r.task == task and r.phase == phase))


def kinds_of(records: Sequence[RunRecord]) -> dict[str, Kind]:
    """Contender -> its kind."""
    return {record.contender: record.kind for record in records}
