"""Which runs a table reports: the best trial by criterion, on fresh seeds."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from metalr.records import Record

Criterion = Literal["train", "valid"]
# What a trial is chosen on, and what is then reported.
SELECTION: dict[str, str] = {"train": "train_loss", "valid": "valid_loss"}
REPORTED: dict[str, str] = {"train": "train_loss", "valid": "test_loss"}


def select(records: Sequence[Record], **wanted: Any) -> list[Record]:
    """The records whose fields have these values, by ascending seed."""
    found = [r for r in records if all(r[key] == value for key, value in wanted.items())]
    return sorted(found, key=lambda record: record["seed"])


def trial_scores(records: Sequence[Record], task: str, contender: str, criterion: str) -> dict[int, float]:
    """Trial -> mean over the tuning seeds of the loss that it is chosen on; a diverged run makes it infinite."""
    by_trial: dict[int, list[float]] = {}
    for record in select(records, task=task, contender=contender, phase="tuning"):
        by_trial.setdefault(record["trial"], []).append(record[SELECTION[criterion]])
    return {trial: float(np.mean(losses)) for trial, losses in sorted(by_trial.items())}


def best_trial(records: Sequence[Record], task: str, contender: str, criterion: str) -> int:
    """The trial with the lowest score; of equal ones the first.

    Raises:
        ValueError: the contender has no trials.
    """
    scores = trial_scores(records, task, contender, criterion)
    if not scores:
        raise ValueError(f"got no trials of {contender!r} on {task!r}, expected tuning records: compare first")
    return min(scores, key=lambda trial: scores[trial])


def chosen_runs(records: Sequence[Record], task: str, contender: str, criterion: str) -> list[Record]:
    """The reported runs of a contender: those of its best trial, or its only ones if it has no trials."""
    has_trials = bool(select(records, task=task, contender=contender, phase="tuning"))
    trial = best_trial(records, task, contender, criterion) if has_trials else -1
    return select(records, task=task, contender=contender, phase="report", trial=trial)


def untuned_runs(records: Sequence[Record], task: str, contender: str) -> list[Record]:
    """Reported runs without any trial, at the task's base LR."""
    return select(records, task=task, contender=contender, phase="report", trial=-1)


def tuned_best(records: Sequence[Record], task: str, criterion: str) -> str:
    """The classic schedule whose best trial has the lowest score of all.

    It is named by its tuning score; its fresh seeds have no say, so that it does not win by luck there.
    """
    best = _best_of_kind(records, task, criterion, "schedule")
    if best is None:
        raise ValueError(f"got no tuned schedule on {task!r}, expected at least one: name one in `baselines`")
    return best


def edges(records: Sequence[Record], task: str, contender: str, criterion: str) -> list[str]:
    """Which of the values of the best trial lie on an edge of what was searched, for example ["lr low"]."""
    tuning = select(records, task=task, contender=contender, phase="tuning")
    if not tuning:
        return []
    trial = best_trial(records, task, contender, criterion)
    best = next(record for record in tuning if record["trial"] == trial)
    searched = {"lr": [record["base_lr"] for record in tuning]}
    searched |= {name: [record["parameters"][name] for record in tuning] for name in best["parameters"]}
    found = []
    for name, values in searched.items():
        value = best["base_lr"] if name == "lr" else best["parameters"][name]
        # With two values both are edges, which says nothing; a word has no order.
        if isinstance(value, (int, float)) and len(set(values)) > 2 and value in (min(values), max(values)):
            found.append(f"{name} {'low' if value == min(values) else 'high'}")
    return found


def contenders_of(records: Sequence[Record], task: str, phase: str = "report") -> list[str]:
    """Names in the order of their first record."""
    return list(dict.fromkeys(r["contender"] for r in records if r["task"] == task and r["phase"] == phase))


def target_setter(records: Sequence[Record], task: str, criterion: str) -> str:
    """Who sets the target: the best of the contenders of kind "target", else the tuned best schedule."""
    return _best_of_kind(records, task, criterion, "target") or tuned_best(records, task, criterion)


def _best_of_kind(records: Sequence[Record], task: str, criterion: str, kind: str) -> str | None:
    tuned = select(records, task=task, phase="tuning", kind=kind)
    names = sorted({record["contender"] for record in tuned})
    scores = {name: min(trial_scores(tuned, task, name, criterion).values()) for name in names}
    return min(names, key=lambda name: scores[name]) if names else None
