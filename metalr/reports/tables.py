"""The tables of a comparison as grids of text: what stands in which column, and the sentences below it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from metalr.compare import results, selection
from metalr.compare.results import Row
from metalr.compare.statistics import Interval
from metalr.reports.text_table import Grid

if TYPE_CHECKING:
    from metalr.compare.comparison import Comparison

_FAILURES = "div: diverged runs. idle: runs without progress (final train loss above 0.9 of the untrained loss)."
_TITLES = {
    "train": "chosen on train loss, reported on train loss",
    "valid": "chosen on valid loss, reported on test loss",
}


def number(value: float | None) -> str:
    """Four significant digits, trailing zeros kept so that columns align; `-` for nothing.

    Example:
        >>> number(1.1), number(1234.5), number(float("inf"))
        ('1.100', '1234', 'inf')
    """
    if value is None or value != value:
        return "-"
    if value == 0.0:
        return "0"
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e5 else f"{value:#.4g}".removesuffix(".")


def interval(value: Interval, show: Callable[[float], str] = number) -> str:
    """`1.060 [1.030, 1.070]`.

    Example:
        >>> from metalr.compare.statistics import Interval
        >>> interval(Interval(1.0, 0.5, 2.0))
        '1.000 [0.5000, 2.000]'
    """
    return f"{show(value.value)} [{show(value.low)}, {show(value.high)}]"


def _three_decimals(value: float) -> str:
    return f"{value:.3f}" if value < 100.0 else number(value)


def result_grid(comparison: "Comparison", task: str, criterion: selection.Criterion) -> Grid:
    """One of the two result tables."""
    rows = results.result_table(comparison.records, task, criterion)
    seeds = comparison.settings.report_seeds
    header = ["contender", "trials", "base LR", "IQM [95 %]", "median", "worst", "/best", "div", "idle"]
    cells = [_result_cells(row) for row in rows]
    if criterion == "valid" and any(row["test_metric"] == row["test_metric"] for row in rows):
        header.insert(7, "metric")
        for line, row in zip(cells, rows, strict=True):
            line.insert(7, number(row["test_metric"]))
    best = selection.tuned_best(comparison.records, task, criterion)
    notes = [
        f"{seeds} fresh seeds, last step. worst: mean of the worst tenth. /best: paired median ratio to the tuned "
        f"best, {best}. {_FAILURES}",
        *edge_warnings(rows),
    ]
    marked = frozenset(index for index, row in enumerate(rows) if row["kind"] == "controller")
    return Grid(f"{task}: {_TITLES[criterion]}", header, cells, notes, marked)


def _result_cells(row: Row) -> list[str]:
    iqm = Interval(row["iqm"], row["iqm_low"], row["iqm_high"])
    lr = f"{row['base_lr']:.3g}" + ("!" if row["edges"] else "")
    counts = [str(row[name] or "") for name in ("diverged", "no_progress")]
    values = [number(row["median"]), number(row["worst_decile"]), _three_decimals(row["over_best"].value)]
    return [row["contender"], str(row["trials"] or "none"), lr, interval(iqm), *values, *counts]


def edge_warnings(rows: Sequence[Row]) -> list[str]:
    """A sentence for each search whose best value lies on an edge of what was searched."""
    return [
        f"! {row['contender']}: the best value lies on an edge of its search ({', '.join(row['edges'])}); a wider one "
        "may do better."
        for row in rows
        if row["edges"]
    ]


def wrong_base_grid(
    comparison: "Comparison",
    task: str,
    contenders: Sequence[str] | None = None,
    criterion: selection.Criterion = "train",
    value: str = "loss",
) -> Grid:
    """Final loss (or regret, or ratio to tuned cosine) by contender and base LR factor.

    Args:
        comparison: what to show.
        task: its name.
        contenders: in this order; all by default.
        criterion: see `results.wrong_base_table`.
        value: "loss", "regret" or "over_cosine".
    """
    rows = results.wrong_base_table(comparison.records, task, contenders, criterion=criterion)
    factors = sorted({row["factor"] for row in rows if row["factor"] is not None})
    names = list(dict.fromkeys(row["contender"] for row in rows))
    at = {(row["contender"], row["factor"]): row for row in rows}
    cells: list[list[str]] = []
    failures: list[str] = []
    for name in names:
        reference = at.get((name, None))
        found = [at.get((name, factor), reference) for factor in factors]
        shown = number if value == "loss" else _three_decimals
        cells.append([name, *(interval(row[value], shown) if row else "-" for row in found)])
        failures += _failures(name, [] if reference or value != "loss" else [row for row in found if row])
    what = {
        "loss": "interquartile mean",
        "regret": "log(loss / tuned best), floored at 0, paired median",
        "over_cosine": "loss / tuned cosine's, paired median",
    }[value]
    split = "train" if criterion == "train" else "test"
    notes = [
        f"{what} [95 %] over {comparison.settings.report_seeds} fresh seeds; baselines at their default parameters. "
        f"The tuned rows have had {comparison.settings.num_trials} trials and are the same in every column.",
        *failures,
    ]
    kinds = {record["contender"]: record["kind"] for record in comparison.records}
    marked = frozenset(index for index, name in enumerate(names) if kinds.get(name) == "controller")
    header = ["base LR", *(f"x{factor:g}" for factor in factors)]
    title = {"loss": f"final {split} loss", "regret": f"regret, {split} loss", "over_cosine": f"{split} loss ratio"}[
        value
    ]
    return Grid(f"{task}: {title} when the base LR is wrong", header, cells, notes, marked)


def _failures(name: str, rows: Sequence[Row]) -> list[str]:
    counts = []
    for kind, word in (("diverged", "diverged"), ("no_progress", "made no progress")):
        where = [f"{row[kind]} of {row['num_runs']} at x{row['factor']:g}" for row in rows if row[kind]]
        counts += [f"{', '.join(where)} {word}"] if where else []
    return [f"{name}: {'; '.join(counts)}."] if counts else []


def time_grid(comparison: "Comparison", task: str) -> Grid:
    """Steps to the target on the valid loss."""
    rows = results.time_table(comparison.records, comparison.curves, task)
    cells = [[row["contender"], number(row["median"]), f"{100 * row['reached']:.0f} %"] for row in rows]
    note = (
        f"Target: valid loss {number(rows[0]['target'])}, the final median of {rows[0]['target_by']}. "
        "A run that never gets there counts as infinite."
        if rows
        else "No curves were recorded."
    )
    return Grid(f"{task}: inner steps to the target", ["contender", "median steps", "reached"], cells, [note])


def trials_grid(comparison: "Comparison", task: str, contender: str) -> Grid:
    """Mean train and valid loss of every trial of one contender over the tuning seeds."""
    runs = selection.select(comparison.records, task=task, contender=contender, phase="tuning")
    first = {run["trial"]: run for run in reversed(runs)}
    scores = {c: selection.trial_scores(comparison.records, task, contender, c) for c in selection.SELECTION}
    winners = {selection.best_trial(comparison.records, task, contender, c) for c in selection.SELECTION}
    rows = [
        [
            ", ".join(f"{key}={value}" for key, value in first[trial]["parameters"].items()) or "-",
            f"{first[trial]['base_lr']:.3g}",
            *(number(scores[criterion][trial]) for criterion in selection.SELECTION),
        ]
        for trial in sorted(first)
    ]
    marked = frozenset(index for index, trial in enumerate(sorted(first)) if trial in winners)
    return Grid(f"{task}, {contender}", ["parameters", "base LR", "train loss", "valid loss"], rows, (), marked)
