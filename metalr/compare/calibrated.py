"""The calibrated setting: one LR for each kind of optimizer under WSD with a linear end, whatever the guess.

It is the rival of every learned controller: it needs no trial on the task that it is used on, only those on other
tasks. The curves of final loss against LR come from the trials of the contender `wsd-linear-lr`; the LR of a kind is
the one with the lowest mean regret over the tasks of that kind.

    lrs = fit(curves_of(records, {task.name: optimizer_kind(task.optimizer) for task in tasks}))
    compare(new_task, folder, more_contenders=[calibrated({new_task.name: lrs[optimizer_kind(new_task.optimizer)]})])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metalr.compare.catalog import LR_ONLY, SCHEDULE_CONTENDERS
from metalr.compare.contenders import FixedContender
from metalr.compare.run_record import RunRecord
from metalr.compare.selection import Criterion, trial_scores, tuning_runs
from metalr.optimizers.classic import InnerOptimizer
from metalr.optimizers.own import OwnOptimizer

NAME = "calibrated"

# Log regret that is added per e-fold of the LR beyond the LRs that were tried.
_SLOPE = 0.7
# Candidates per e-fold of the LR.
_PER_FOLD = 50


@dataclass(frozen=True)
class LossCurve:
    """Final loss of a task against the LR.

    Attributes:
        task, kind: names of the task and of its kind of optimizer.
        log_lr: `(num_lrs,)`, ascending.
        regret: `(num_lrs,)`, log of the score over the lowest one.
    """

    task: str
    kind: str
    log_lr: NDArray[np.float64]
    regret: NDArray[np.float64]

    def at(self, log_lr: NDArray[np.float64]) -> NDArray[np.float64]:
        """The regret at any LR: interpolated, and rising beyond both ends."""
        beyond = np.maximum(self.log_lr[0] - log_lr, 0.0) + np.maximum(log_lr - self.log_lr[-1], 0.0)
        return np.interp(log_lr, self.log_lr, self.regret) + _SLOPE * beyond


def optimizer_kind(optimizer: InnerOptimizer) -> str:
    """Type and momentum of an inner optimizer: what its LRs depend on most.

    Example:
        >>> from metalr.optimizers.classic import SGD, Adam
        >>> optimizer_kind(SGD(momentum=0.9)), optimizer_kind(Adam())
        ('SGD, momentum 0.9', 'Adam')
    """
    if isinstance(optimizer, OwnOptimizer):
        return repr(optimizer)
    momentum = getattr(optimizer, "momentum", 0.0)
    return type(optimizer).__name__ + (f", momentum {momentum:g}" if momentum else "")


def curves_of(
    records: Sequence[RunRecord], kinds: Mapping[str, str], criterion: Criterion = Criterion.TRAIN
) -> list[LossCurve]:
    """The curves of the tasks that have trials of `wsd-linear-lr`.

    Args:
        records: of one comparison or several.
        kinds: task -> its kind of optimizer.
        criterion: whose selection loss counts.
    """
    found = []
    for task, kind in kinds.items():
        scores = trial_scores(records, task, LR_ONLY, criterion)
        if scores:
            lr = {record.trial: record.base_lr for record in tuning_runs(records, task, LR_ONLY)}
            trials = sorted(scores, key=lambda trial: lr[trial])
            log_score = np.log(np.maximum([scores[trial] for trial in trials], 1e-300))
            log_lr = np.log([lr[trial] for trial in trials])
            found.append(LossCurve(task, kind, log_lr, log_score - log_score.min()))
    return found


def fit(curves: Sequence[LossCurve]) -> dict[str, float]:
    """Kind of optimizer -> the LR with the lowest mean regret over its tasks; of equal ones the middle.

    Example:
        >>> import numpy as np
        >>> from metalr.compare.calibrated import LossCurve
        >>> bowl = np.array([1.0, 0.0, 1.0])
        >>> curves = [LossCurve("a", "SGD", np.log([0.01, 0.1, 1.0]), bowl)]
        >>> round(fit(curves)["SGD"], 3)
        0.1
    """
    fitted = {}
    for kind in dict.fromkeys(curve.kind for curve in curves):
        own = [curve for curve in curves if curve.kind == kind]
        low, high = min(c.log_lr[0] for c in own), max(c.log_lr[-1] for c in own)
        knots = np.concatenate([curve.log_lr for curve in own])
        candidates = np.sort(np.concatenate([knots, np.linspace(low, high, 2 + int((high - low) * _PER_FOLD))]))
        regret = np.mean([curve.at(candidates) for curve in own], axis=0)
        best = candidates[regret <= regret.min() + 1e-12]
        fitted[kind] = float(np.exp(best[len(best) // 2]))
    return fitted


def leave_one_out(curves: Sequence[LossCurve]) -> dict[str, float]:
    """Task -> the LR fitted on all other tasks of its kind; a task that is alone in its kind has none."""
    found = {}
    for curve in curves:
        others = [other for other in curves if other.kind == curve.kind and other.task != curve.task]
        if others:
            found[curve.task] = fit(others)[curve.kind]
    return found


def calibrated(lrs: Mapping[str, float]) -> FixedContender:
    """The calibrated setting as a contender.

    Args:
        lrs: task -> its LR, from `fit` or `leave_one_out`; it does not fit any other task.
    """
    schedule = SCHEDULE_CONTENDERS[LR_ONLY].schedule({})
    about = "one LR for each kind of optimizer, fitted on other tasks; it ignores the guess"
    return FixedContender(name=NAME, about=about, schedule=schedule, lrs=dict(lrs))
