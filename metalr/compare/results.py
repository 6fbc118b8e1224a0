"""Records become tables: selection, the two result tables, the wrong base LR, time to target. Pure numbers.

The two tables never mix. In the table "train" a trial is chosen on the train loss and reported on the train loss;
in the table "valid" it is chosen on the valid loss and reported on the test split. Every table reads records of its
own kind only, and only fresh seeds are reported.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from metalr.compare import statistics
from metalr.compare.selection import (
    REPORTED,
    SELECTION,
    Criterion,
    chosen_runs,
    contenders_of,
    edges,
    select,
    target_setter,
    trial_scores,
    tuned_best,
    untuned_runs,
)
from metalr.records import Record

Row = dict[str, Any]


def summary(losses: Sequence[float]) -> dict[str, float]:
    """Median, interquartile mean with its 95 % bootstrap interval, and mean of the worst tenth."""
    iqm = statistics.bootstrap(losses)
    return {
        "median": float(statistics.median(losses)),
        "iqm": iqm.value,
        "iqm_low": iqm.low,
        "iqm_high": iqm.high,
        "worst_decile": float(statistics.worst_decile(losses)),
    }


def time_table(
    records: Sequence[Record], curves: Mapping[str, Record], task: str, criterion: Criterion = "valid"
) -> list[Row]:
    """Inner steps until a loss is reached, a row for each contender, the fastest first.

    The target is the median over fresh seeds of the final loss of the best of four optimizers (kind "target"), or of
    the tuned best schedule where they were not trained. A curve has a point at each decision.

    Returns:
        Rows with contender, target, target_by, median (steps, infinite if most runs never get there) and reached (the
        share of runs that do).
    """
    by = target_setter(records, task, criterion)
    watched = SELECTION[criterion]
    target = float(statistics.median([run[watched] for run in chosen_runs(records, task, by, criterion)]))
    rows = []
    for name in contenders_of(records, task):
        runs = [curves[run["cell"]] for run in chosen_runs(records, task, name, criterion) if run["cell"] in curves]
        if runs:
            times = statistics.time_to_target(runs[0]["step"], [run[watched] for run in runs], target)
            reached, median = float(np.isfinite(times).mean()), float(statistics.median(times))
            rows.append({"contender": name, "target": target, "target_by": by, "median": median, "reached": reached})
    return sorted(rows, key=lambda row: (row["median"], -row["reached"]))


def result_table(records: Sequence[Record], task: str, criterion: Criterion) -> list[Row]:
    """One of the two tables: a row for each contender, the best interquartile mean first.

    A contender that was reported with and without trials has a row for each. Losses are those of `REPORTED`; the
    test metric is in the table "valid" only.
    """
    reported = REPORTED[criterion]
    best = {r["seed"]: r[reported] for r in chosen_runs(records, task, tuned_best(records, task, criterion), criterion)}
    rows = []
    for name in contenders_of(records, task):
        tuned = bool(select(records, task=task, contender=name, phase="tuning"))
        variants = [(True, chosen_runs(records, task, name, criterion))] if tuned else []
        if untuned := untuned_runs(records, task, name):
            variants.append((False, untuned))
        for with_trials, runs in variants:
            if not runs:
                continue  # a comparison that was stopped has tuned it and not reported it yet
            rows.append(_result_row(records, task, criterion, name, with_trials, runs, best))
    return sorted(rows, key=lambda row: row["iqm"])


def ratios_to_best(records: Sequence[Record], task: str, contender: str, criterion: Criterion) -> list[float]:
    """Loss over the tuned best's from the same seed, for every reported run of a contender."""
    reported = REPORTED[criterion]
    best = {r["seed"]: r[reported] for r in chosen_runs(records, task, tuned_best(records, task, criterion), criterion)}
    runs = chosen_runs(records, task, contender, criterion)
    if not runs:
        return []
    logs = statistics.log_ratio([run[reported] for run in runs], [best[run["seed"]] for run in runs])
    return np.exp(logs).tolist()


def _result_row(
    records: Sequence[Record],
    task: str,
    criterion: Criterion,
    name: str,
    with_trials: bool,
    runs: list[Record],
    best: dict[int, float],
) -> Row:
    losses = [run[REPORTED[criterion]] for run in runs]
    reference = [best[run["seed"]] for run in runs]
    scores = trial_scores(records, task, name, criterion) if with_trials else {}
    row: Row = {
        "contender": name,
        "kind": runs[0]["kind"],
        "trials": len(scores),
        "base_lr": runs[0]["base_lr"],
        "parameters": runs[0]["parameters"],
        **summary(losses),
        "over_best": statistics.paired_ratio(losses, reference),
        "improvement": statistics.probability_of_improvement(losses, reference),
        "num_runs": len(runs),
        "diverged": sum(run["diverged"] for run in runs),
        "no_progress": sum(run["no_progress"] for run in runs),
        "edges": edges(records, task, name, criterion) if with_trials else [],
    }
    if criterion == "valid":
        metrics = np.array([run["test_metric"] for run in runs])
        row["test_metric"] = float(statistics.interquartile_mean(metrics)) if np.isfinite(metrics).all() else np.nan
    return row


def wrong_base_table(
    records: Sequence[Record],
    task: str,
    contenders: Sequence[str] | None = None,
    statistic: Callable[[Any], Any] = statistics.interquartile_mean,
    criterion: Criterion = "train",
) -> list[Row]:
    """What every contender reaches when the base LR is wrong, a row for each contender and factor.

    The references "tuned cosine" (if cosine was tuned) and "tuned best" come first, at factor None: they have had
    their trials, whatever the base LR.

    Args:
        records: of a comparison.
        task: its name.
        contenders: which ones; all by default.
        statistic: of the final losses over the seeds.
        criterion: "train" for train losses, "valid" for test losses against references chosen on valid.

    Returns:
        Rows with contender, factor, `loss` (the statistic as an `statistics.Interval`), `regret` and `over_cosine`
        (paired medians over the seeds as intervals; the latter a ratio), num_runs, diverged, no_progress.
    """
    best = tuned_best(records, task, criterion)
    references = {"tuned best": chosen_runs(records, task, best, criterion)}
    if select(records, task=task, contender="cosine", phase="tuning"):
        references = {"tuned cosine": chosen_runs(records, task, "cosine", criterion), **references}
    groups: list[tuple[str, float | None, list[Record]]] = [(name, None, runs) for name, runs in references.items()]
    for name in contenders or contenders_of(records, task, "wrong-base"):
        cells = select(records, task=task, contender=name, phase="wrong-base")
        for factor in sorted({cell["base_lr_factor"] for cell in cells}):
            groups.append((name, factor, [cell for cell in cells if cell["base_lr_factor"] == factor]))
    return [_wrong_base_row(name, factor, runs, references, statistic, criterion) for name, factor, runs in groups]


def _wrong_base_row(
    name: str,
    factor: float | None,
    runs: list[Record],
    references: dict[str, list[Record]],
    statistic: Callable[[Any], Any],
    criterion: Criterion,
) -> Row:
    reported = REPORTED[criterion]
    losses = [run[reported] for run in runs]
    paired = {
        reference: [{run["seed"]: run[reported] for run in found}[run["seed"]] for run in runs]
        for reference, found in references.items()
    }
    regrets = statistics.regret(losses, paired["tuned best"])
    row: Row = {
        "contender": name,
        "factor": factor,
        "loss": statistics.bootstrap(losses, statistic),
        "regret": statistics.bootstrap(regrets, statistics.median),
        "num_runs": len(runs),
        "diverged": sum(run["diverged"] for run in runs),
        "no_progress": sum(run["no_progress"] for run in runs),
    }
    if "tuned cosine" in paired:
        row["over_cosine"] = statistics.paired_ratio(losses, paired["tuned cosine"])
    return row
