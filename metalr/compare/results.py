"""Records become rows of tables: the two result tables, the wrong base LR, time to target.

The two result tables never mix: each reads the losses of its own `Criterion` alone. Only fresh seeds are reported, and
every loss is a scored one, see `RunRecord.scored`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metalr.compare import statistics
from metalr.compare.calibrated import NAME as CALIBRATED
from metalr.compare.contenders import Kind
from metalr.compare.run_record import RunCurve, RunRecord
from metalr.compare.selection import (
    Criterion,
    chosen_runs,
    contenders_of,
    edges,
    kinds_of,
    select,
    target_setter,
    trial_scores,
    tuned_best_runs,
    tuning_runs,
    untuned_runs,
)
from metalr.compare.statistics import Interval


@dataclass(frozen=True)
class ResultRow:
    """A contender in one of the two result tables.

    Attributes:
        contender, kind: who.
        trials: that it had; 0 for none.
        base_lr, parameters: of its best trial.
        median, iqm, worst_decile: of the losses: the median, the interquartile mean with its interval, and the mean of
            the worst tenth.
        over_best: paired median ratio to the tuned best.
        improvement: probability that a run of it is better than one of the tuned best.
        num_runs, diverged, no_progress: how many runs, and how many of them failed in which way.
        edges: see `selection.edges`.
        test_metric: interquartile mean; NaN where there is none, None in the table that is chosen on train loss.
    """

    contender: str
    kind: Kind
    trials: int
    base_lr: float
    parameters: dict[str, Any]
    median: float
    iqm: Interval
    worst_decile: float
    over_best: Interval
    improvement: Interval
    num_runs: int
    diverged: int
    no_progress: int
    edges: list[str]
    test_metric: float | None


@dataclass(frozen=True)
class WrongBaseRow:
    """A contender from one wrong base LR, or a tuned reference.

    Attributes:
        contender: who.
        factor: of the base LR; None for a reference and for a contender that ignores the guess.
        loss: the statistic of the final losses.
        regret: paired median against the tuned best.
        over_best: paired median ratio to the tuned best.
        over_cosine: paired median ratio to tuned cosine; None where cosine was not tuned.
        over_calibrated: paired median ratio to the calibrated setting; None where there is none.
        num_runs, diverged, no_progress: how many runs, and how many of them failed in which way.
    """

    contender: str
    factor: float | None
    loss: Interval
    regret: Interval
    over_best: Interval
    over_cosine: Interval | None
    over_calibrated: Interval | None
    num_runs: int
    diverged: int
    no_progress: int


@dataclass(frozen=True)
class TimeRow:
    """A contender's inner steps to the target.

    Attributes:
        contender: who.
        target: the loss to reach.
        target_by: the contender that set it.
        median: of the steps; infinite if most runs never get there.
        reached: share of the runs that do.
    """

    contender: str
    target: float
    target_by: str
    median: float
    reached: float


@dataclass(frozen=True)
class PriceRow:
    """The price of tuning a contender.

    Attributes:
        contender, kind: who.
        loss: number of trials -> interquartile mean of the reported losses.
        over_best: number of trials -> paired median ratio to the tuned best, which has had all its trials.
    """

    contender: str
    kind: Kind
    loss: dict[int, Interval]
    over_best: dict[int, Interval]


@dataclass(frozen=True)
class LearnerRow:
    """A learner from one base LR.

    Attributes:
        learner: its name.
        factor: of the base LR.
        over_reference: geometric mean ratio to the reference, with an interval over everything that was drawn.
        training_seeds: how many controllers it trained.
    """

    learner: str
    factor: float
    over_reference: Interval
    training_seeds: int


@dataclass(frozen=True)
class AverageRow:
    """A contender over several tasks.

    Attributes:
        contender: who.
        mean, without_ruling: geometric mean of its ratios, over all tasks and over those that do not rule.
        median: over all tasks.
        ratios: task -> ratio to the task's tuned best.
    """

    contender: str
    mean: float
    without_ruling: float
    median: float
    ratios: dict[str, float]


def result_table(records: Sequence[RunRecord], task: str, criterion: Criterion) -> list[ResultRow]:
    """One of the two tables: a row for each contender, the lowest interquartile mean first.

    A contender that was reported with and without trials has a row for each.
    """
    best = _loss_by_seed(tuned_best_runs(records, task, criterion), criterion)
    rows = []
    for name in contenders_of(records, task):
        scores = trial_scores(records, task, name, criterion)
        # A comparison that was stopped may have tuned a contender and not reported it yet.
        if scores and (runs := chosen_runs(records, task, name, criterion)):
            rows.append(_result_row(runs, best, criterion, len(scores), edges(records, task, name, criterion)))
        if untuned := untuned_runs(records, task, name):
            rows.append(_result_row(untuned, best, criterion, trials=0, on_edges=[]))
    return sorted(rows, key=lambda row: row.iqm.value)


def _result_row(
    runs: Sequence[RunRecord], best: Mapping[int, float], criterion: Criterion, trials: int, on_edges: list[str]
) -> ResultRow:
    losses = [run.scored(criterion.reported_on) for run in runs]
    reference = [best[run.seed] for run in runs]
    return ResultRow(
        contender=runs[0].contender,
        kind=runs[0].kind,
        trials=trials,
        base_lr=runs[0].base_lr,
        parameters=runs[0].parameters,
        median=float(statistics.median(losses)),
        iqm=statistics.bootstrap(losses),
        worst_decile=float(statistics.worst_decile(losses)),
        over_best=statistics.paired_ratio(losses, reference),
        improvement=statistics.probability_of_improvement(losses, reference),
        num_runs=len(runs),
        diverged=sum(run.diverged for run in runs),
        no_progress=sum(run.no_progress for run in runs),
        edges=on_edges,
        test_metric=_test_metric(runs) if criterion is Criterion.VALID else None,
    )


def _test_metric(runs: Sequence[RunRecord]) -> float:
    metrics = np.array([run.test_metric for run in runs])
    return float(statistics.interquartile_mean(metrics)) if np.isfinite(metrics).all() else np.nan


def ratios_to_best(records: Sequence[RunRecord], task: str, contender: str, criterion: Criterion) -> list[float]:
    """Loss over the tuned best's from the same seed, for every reported run of a contender."""
    best = _loss_by_seed(tuned_best_runs(records, task, criterion), criterion)
    runs = chosen_runs(records, task, contender, criterion)
    if not runs:
        return []
    losses = [run.scored(criterion.reported_on) for run in runs]
    return np.exp(statistics.log_ratio(losses, [best[run.seed] for run in runs])).tolist()


def wrong_base_table(
    records: Sequence[RunRecord],
    task: str,
    contenders: Sequence[str] | None = None,
    statistic: Callable[[Any], Any] = statistics.interquartile_mean,
    criterion: Criterion = Criterion.TRAIN,
) -> list[WrongBaseRow]:
    """Final losses from a wrong base LR, a row for each contender and factor.

    The references "tuned cosine" (if cosine was tuned) and "tuned best" come first, at factor None: they have had
    their trials, whatever the base LR.

    Args:
        records: of a comparison.
        task: its name.
        contenders: names, in the order of the rows; None for all.
        statistic: of the final losses over the seeds.
        criterion: which losses are reported, and what the references were chosen on.
    """
    references = {"tuned best": tuned_best_runs(records, task, criterion)}
    if tuning_runs(records, task, "cosine"):
        references = {"tuned cosine": chosen_runs(records, task, "cosine", criterion), **references}
    groups: list[tuple[str, float | None, list[RunRecord]]] = [(name, None, runs) for name, runs in references.items()]
    for name in contenders_of(records, task, "wrong-base") if contenders is None else contenders:
        found = select(records, task=task, contender=name, phase="wrong-base")
        for factor in sorted({run.base_lr_factor for run in found}):
            runs = [run for run in found if run.base_lr_factor == factor]
            groups.append((name, None if runs[0].kind is Kind.FIXED else factor, runs))
    if calibrated := untuned_runs(records, task, CALIBRATED):
        references[CALIBRATED] = calibrated
    losses = {name: _loss_by_seed(runs, criterion) for name, runs in references.items()}
    return [_wrong_base_row(name, factor, runs, losses, statistic, criterion) for name, factor, runs in groups]


def _wrong_base_row(
    name: str,
    factor: float | None,
    runs: Sequence[RunRecord],
    references: Mapping[str, Mapping[int, float]],
    statistic: Callable[[Any], Any],
    criterion: Criterion,
) -> WrongBaseRow:
    losses = [run.scored(criterion.reported_on) for run in runs]
    paired = {reference: [by_seed[run.seed] for run in runs] for reference, by_seed in references.items()}
    over = {reference: statistics.paired_ratio(losses, values) for reference, values in paired.items()}
    return WrongBaseRow(
        contender=name,
        factor=factor,
        loss=statistics.bootstrap(losses, statistic),
        regret=statistics.bootstrap(statistics.regret(losses, paired["tuned best"]), statistics.median),
        over_best=over["tuned best"],
        over_cosine=over.get("tuned cosine"),
        over_calibrated=over.get(CALIBRATED),
        num_runs=len(runs),
        diverged=sum(run.diverged for run in runs),
        no_progress=sum(run.no_progress for run in runs),
    )


def time_table(
    records: Sequence[RunRecord], curves: Mapping[str, RunCurve], task: str, criterion: Criterion = Criterion.VALID
) -> list[TimeRow]:
    """Inner steps until a loss is reached, a row for each contender, the fastest first.

    The target is the median over fresh seeds of the final loss of the best of four optimizers, or of the tuned best
    schedule where they were not trained. A curve has a point at each decision.
    """
    by, watched = target_setter(records, task, criterion), criterion.selected_on
    target = float(statistics.median([run.scored(watched) for run in chosen_runs(records, task, by, criterion)]))
    rows = []
    for name in contenders_of(records, task):
        found = [curves[run.key] for run in chosen_runs(records, task, name, criterion) if run.key in curves]
        if found:
            times = statistics.time_to_target(found[0].step, [curve.loss(watched) for curve in found], target)
            median, reached = float(statistics.median(times)), float(np.isfinite(times).mean())
            rows.append(TimeRow(name, target, by, median, reached))
    return sorted(rows, key=lambda row: (row.median, -row.reached))


def learner_table(
    records: Sequence[RunRecord],
    tasks: Sequence[str],
    learners: Mapping[str, Sequence[str]],
    criterion: Criterion = Criterion.TRAIN,
    reference: str | None = None,
) -> list[LearnerRow]:
    """How good the controllers of a learner are, over its training seeds, tasks and evaluation seeds.

    Args:
        records: of a comparison.
        tasks: their names.
        learners: learner -> its controllers, one for each training seed; at least five.
        criterion: which losses are reported, and what the reference was chosen on.
        reference: an untuned contender such as the calibrated setting; None for each task's tuned best.

    Returns:
        A row for each learner and base LR factor, in order.

    Raises:
        ValueError: a learner has fewer than five training seeds.
    """
    best = {}
    for task in tasks:
        runs = untuned_runs(records, task, reference) if reference else tuned_best_runs(records, task, criterion)
        best[task] = _loss_by_seed(runs, criterion)
    rows = []
    for learner, names in learners.items():
        own = [r for r in records if r.contender in names and r.task in best and r.phase == "wrong-base"]
        for factor in sorted({record.base_lr_factor for record in own}):
            at = [record for record in own if record.base_lr_factor == factor]
            losses = {(r.contender, r.task, r.seed): r.scored(criterion.reported_on) for r in at}
            logs = [[_log_ratios(losses, name, task, best[task]) for task in tasks] for name in names]
            found = statistics.hierarchical_bootstrap(logs, draw_tasks=len(tasks) > 1)
            rows.append(LearnerRow(learner, factor, Interval(*map(math.exp, found)), len(names)))
    return rows


def _log_ratios(
    losses: Mapping[tuple[str, str, int], float], name: str, task: str, reference: Mapping[int, float]
) -> list[float]:
    return statistics.log_ratio([losses[name, task, seed] for seed in reference], list(reference.values())).tolist()


def price_table(
    records: Sequence[RunRecord], task: str, criterion: Criterion, counts: Sequence[int] = (1, 4, 16, 64)
) -> list[PriceRow]:
    """Reported loss against the number of trials: what tuning costs each contender, a row for each.

    After n trials the best of the first n by its tuning score is reported, on fresh seeds.

    Args:
        records: of a comparison.
        task: its name.
        criterion: which loss chooses, and which is reported.
        counts: numbers of trials, `Settings.price_at`; one whose winner was not reported is left out. All of the
            trials are always there.
    """
    best = _loss_by_seed(tuned_best_runs(records, task, criterion), criterion)
    rows = []
    for name in contenders_of(records, task, "tuning"):
        total = len(trial_scores(records, task, name, criterion))
        loss, over_best = {}, {}
        for count in sorted({*(n for n in counts if n < total), total}):
            runs = chosen_runs(records, task, name, criterion, first=count)
            losses = [run.scored(criterion.reported_on) for run in runs if run.seed in best]
            if losses:
                loss[count] = statistics.bootstrap(losses)
                over_best[count] = statistics.paired_ratio(losses, [best[run.seed] for run in runs])
        if loss:
            rows.append(PriceRow(name, kinds_of(records)[name], loss, over_best))
    return sorted(rows, key=lambda row: row.loss[max(row.loss)].value)


def average_table(ratios: Mapping[str, Mapping[str, float]]) -> tuple[list[AverageRow], list[str]]:
    """Ratios to each task's tuned best, averaged over the tasks with and without those that rule the average.

    A task rules when its share of all log ratios is more than twice an equal share: contenders are then ranked by that
    task and by little else.

    Args:
        ratios: contender -> task -> ratio.

    Returns:
        A row for each contender, the lowest geometric mean first, and the names of the tasks that rule.

    Example:
        >>> rows, ruling = average_table({"a": {"t": 1.0, "u": 1.0, "v": 9.0}, "b": {"t": 1.1, "u": 1.0, "v": 1.0}})
        >>> ruling, [(row.contender, round(row.mean, 2), row.without_ruling) for row in rows]
        (['v'], [('b', 1.03, 1.0488088481701516), ('a', 2.08, 1.0)])
    """
    logs = {name: {task: math.log(max(ratio, 1e-300)) for task, ratio in own.items()} for name, own in ratios.items()}
    tasks = list(dict.fromkeys(task for own in logs.values() for task in own))
    weight = {task: sum(abs(own.get(task, 0.0)) for own in logs.values()) for task in tasks}
    ruling = [task for task in tasks if weight[task] * len(tasks) > 2.0 * sum(weight.values())]

    def mean(values: list[float]) -> float:
        return math.exp(sum(values) / len(values)) if values else math.nan

    rows = [
        AverageRow(
            contender=name,
            mean=mean(list(own.values())),
            without_ruling=mean([value for task, value in own.items() if task not in ruling]),
            median=math.exp(float(np.median(list(own.values())))),
            ratios=dict(ratios[name]),
        )
        for name, own in logs.items()
    ]
    return sorted(rows, key=lambda row: row.mean), ruling


def _loss_by_seed(runs: Sequence[RunRecord], criterion: Criterion) -> dict[int, float]:
    return {run.seed: run.scored(criterion.reported_on) for run in runs}
