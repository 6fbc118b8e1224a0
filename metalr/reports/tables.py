"""The tables of a comparison as grids of text: the columns, and the sentences below them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from metalr.compare import results, selection
from metalr.compare.comparison import Comparison
from metalr.compare.contenders import Kind
from metalr.compare.results import ResultRow, WrongBaseRow
from metalr.compare.selection import Criterion
from metalr.compare.statistics import Interval
from metalr.reports.text_table import Cell, Estimate, Grid

_FAILURES = (
    "div: diverged runs, which count with the loss of the untrained net. idle: runs without progress (final train loss "
    "above 0.9 of the untrained loss). A loss below 1e-3 of the untrained one counts as that."
)


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


def interval(value: Interval, show: Callable[[float], str] = number) -> Estimate:
    """A cell that reads `1.060 [1.030, 1.070]`.

    Example:
        >>> from metalr.compare.statistics import Interval
        >>> str(interval(Interval(1.0, 0.5, 2.0)))
        '1.000 [0.5000, 2.000]'
    """
    return Estimate(show(value.value), show(value.low), show(value.high))


def _three_decimals(value: float) -> str:
    return f"{value:.3f}" if value < 100.0 else number(value)


def result_grid(comparison: Comparison, task: str, criterion: Criterion) -> Grid:
    """One of the two result tables."""
    rows = results.result_table(comparison.records, task, criterion)
    header = ["contender", "trials", "base LR", "IQM [95 %]", "median", "worst", "/best", "div", "idle"]
    cells = [_result_cells(row) for row in rows]
    metrics = [number(row.test_metric) for row in rows]
    if any(metric != "-" for metric in metrics):
        header.insert(7, "metric")
        for line, metric in zip(cells, metrics, strict=True):
            line.insert(7, metric)
    best = selection.tuned_best(comparison.records, task, criterion)
    notes = [
        f"{comparison.settings.report_seeds} fresh seeds, last step. worst: mean of the worst tenth. /best: paired "
        f"median ratio to the tuned best, {best}. {_FAILURES}",
        *edge_warnings(rows),
    ]
    marked = frozenset(index for index, row in enumerate(rows) if row.kind is Kind.LEARNED)
    dispensable = ("idle", "worst", "median", "metric", "trials", "div", "base LR")
    return Grid(f"{task}: {criterion.label}", header, cells, notes, marked, dispensable)


def _result_cells(row: ResultRow) -> list[Cell]:
    return [
        row.contender,
        str(row.trials or "none"),
        f"{row.base_lr:.3g}" + ("!" if row.edges else ""),
        interval(row.iqm),
        number(row.median),
        number(row.worst_decile),
        _three_decimals(row.over_best.value),
        str(row.diverged or ""),
        str(row.no_progress or ""),
    ]


def edge_warnings(rows: Sequence[ResultRow]) -> list[str]:
    """A sentence for each search whose best value lies on an edge of what was searched."""
    return [
        f"! {row.contender}: the best value lies on an edge of its search ({', '.join(row.edges)}); a wider one "
        "may do better."
        for row in rows
        if row.edges
    ]


@dataclass(frozen=True)
class WrongBaseColumn:
    """A number that the table of wrong base LRs can show for each contender and factor.

    Attributes:
        title: of the table; `{split}` stands for the split whose losses are read.
        statistic: the number in words, for the note below the table.
        of: its interval in a row; None where it does not exist.
        show: how the number is written.
        with_failures: whether the table lists failed runs.
    """

    title: str
    statistic: str
    of: Callable[[WrongBaseRow], Interval | None]
    show: Callable[[float], str] = _three_decimals
    with_failures: bool = False


LOSS = WrongBaseColumn("final {split} loss", "interquartile mean", lambda row: row.loss, number, with_failures=True)
OVER_BEST = WrongBaseColumn("{split} loss ratio", "loss / tuned best's, paired median", lambda row: row.over_best)
OVER_CALIBRATED = WrongBaseColumn(
    "{split} loss ratio", "loss / calibrated setting's, paired median", lambda row: row.over_calibrated
)
REGRET = WrongBaseColumn(
    "regret, {split} loss", "log(loss / tuned best), floored at 0, paired median", lambda row: row.regret
)
OVER_COSINE = WrongBaseColumn("{split} loss ratio", "loss / tuned cosine's, paired median", lambda row: row.over_cosine)


def wrong_base_grid(
    comparison: Comparison,
    task: str,
    contenders: Sequence[str] | None = None,
    criterion: Criterion = Criterion.TRAIN,
    shown: WrongBaseColumn = LOSS,
) -> Grid:
    """One number by contender and base LR factor.

    Args:
        comparison: where it comes from.
        task: its name.
        contenders: in this order; None for all.
        criterion: see `results.wrong_base_table`.
        shown: `LOSS`, `REGRET`, `OVER_BEST`, `OVER_CALIBRATED` or `OVER_COSINE`.
    """
    rows = results.wrong_base_table(comparison.records, task, contenders, criterion=criterion)
    factors = sorted({row.factor for row in rows if row.factor is not None})
    by_name: dict[str, dict[float | None, WrongBaseRow]] = {}
    for row in rows:
        by_name.setdefault(row.contender, {})[row.factor] = row
    settings = comparison.settings
    trials = f"{settings.trials} trials" + (f" (or {settings.extension} more)" if settings.extension else "")
    notes = [
        f"{shown.statistic} [95 %] over {settings.report_seeds} fresh seeds; contenders at their default parameters. "
        f"The tuned rows have had {trials} and are the same in every column."
    ]
    kinds = selection.kinds_of(comparison.records)
    fixed = [name for name in by_name if kinds.get(name) is Kind.FIXED]
    if fixed:
        notes.append(f"The same in every column, because the guess is ignored: {', '.join(fixed)}.")
    if shown.with_failures:
        notes += [note for name, found in by_name.items() for note in _failures(name, found)]
    return Grid(
        f"{task}: {shown.title.format(split=criterion.reported_on)} when the base LR is wrong",
        ["base LR", *(f"x{factor:g}" for factor in factors)],
        [[name, *_wrong_base_cells(found, factors, shown)] for name, found in by_name.items()],
        notes,
        frozenset(index for index, name in enumerate(by_name) if kinds.get(name) is Kind.LEARNED),
        [f"x{factor:g}" for factor in sorted(factors, key=lambda factor: abs(math.log(factor))) if factor != 1.0],
    )


def _wrong_base_cells(
    found: Mapping[float | None, WrongBaseRow], factors: Sequence[float], shown: WrongBaseColumn
) -> list[Cell]:
    """A reference has one row, at factor None, which stands in every column."""
    rows = [found.get(factor, found.get(None)) for factor in factors]
    values = [None if row is None else shown.of(row) for row in rows]
    return ["-" if value is None else interval(value, shown.show) for value in values]


def _failures(name: str, rows: Mapping[float | None, WrongBaseRow]) -> list[str]:
    """A sentence about the failed runs of a contender, if there are any; none about a reference's."""
    diverged, idle = [], []
    for factor, row in sorted((factor, row) for factor, row in rows.items() if factor is not None):
        diverged += [f"{row.diverged} of {row.num_runs} at x{factor:g}"] if row.diverged else []
        idle += [f"{row.no_progress} of {row.num_runs} at x{factor:g}"] if row.no_progress else []
    parts = [f"{', '.join(diverged)} diverged"] if diverged else []
    parts += [f"{', '.join(idle)} made no progress"] if idle else []
    return [f"{name}: {'; '.join(parts)}."] if parts else []


def time_grid(comparison: Comparison, task: str) -> Grid:
    """Steps to the target on the valid loss."""
    rows = results.time_table(comparison.records, comparison.curves, task)
    cells = [[row.contender, number(row.median), f"{100 * row.reached:.0f} %"] for row in rows]
    note = (
        f"Target: valid loss {number(rows[0].target)}, the final median of {rows[0].target_by}. "
        "A run that never gets there counts as infinite."
        if rows
        else "No curves were recorded."
    )
    marked = _learned(comparison, task, [row.contender for row in rows])
    return Grid(f"{task}: inner steps to the target", ["contender", "median steps", "reached"], cells, [note], marked)


def price_grid(comparison: Comparison, task: str, criterion: Criterion = Criterion.TRAIN) -> Grid:
    """The price of tuning: reported loss after 1, 4, 16, 64 trials."""
    rows = results.price_table(comparison.records, task, criterion, comparison.settings.price_at)
    counts = sorted({count for row in rows for count in row.loss})
    cells: list[list[Cell]] = [
        [row.contender, *(interval(row.loss[count]) if count in row.loss else "-" for count in counts)] for row in rows
    ]
    note = (
        f"interquartile mean [95 %] of the {criterion.reported_on} loss over {comparison.settings.report_seeds} fresh "
        f"seeds, of the best of the first trials by its {criterion.selected_on} loss on "
        f"{comparison.settings.tuning_seeds} tuning seeds. The first trial is the defaults at the base LR."
    )
    names = [f"{count} trial{'s' if count > 1 else ''}" for count in counts]
    marked = _learned(comparison, task, [row.contender for row in rows])
    drop_first = [*names[1:-1], *names[:1]]
    return Grid(f"{task}: the price of tuning", ["contender", *names], cells, [note], marked, drop_first=drop_first)


def _learned(comparison: Comparison, task: str, names: Sequence[str]) -> frozenset[int]:
    """Places of the learned controllers among contenders."""
    kinds = selection.kinds_of([record for record in comparison.records if record.task == task])
    return frozenset(index for index, name in enumerate(names) if kinds[name] is Kind.LEARNED)


def average_grid(comparison: Comparison, criterion: Criterion) -> Grid:
    """Ratios to the tuned best of every task, with their mean with and without the tasks that rule it."""
    ratios: dict[str, dict[str, float]] = {}
    for task in comparison.tasks:
        own = [record for record in comparison.records if record.task == task]
        for row in results.result_table(own, task, criterion):
            name = row.contender if row.trials or row.kind is not Kind.LEARNED else f"{row.contender}, untuned"
            ratios.setdefault(name, {})[task] = row.over_best.value
    averages, ruling = results.average_table(ratios)
    without = ["without ruling"] if ruling else []
    cells: list[list[Cell]] = []
    for average in averages:
        means = [average.mean, *([average.without_ruling] if ruling else []), average.median]
        by_task = [average.ratios.get(task) for task in comparison.tasks]
        shown = ["-" if value is None else _three_decimals(value) for value in (*means, *by_task)]
        cells.append([average.contender, *shown])
    notes = ["loss / tuned best's, paired median over fresh seeds; mean: geometric mean over the tasks."]
    if ruling:
        notes.append(f"Ruling the mean, with more than twice an equal share of all log ratios: {', '.join(ruling)}.")
    header = ["contender", "mean", *without, "median", *comparison.tasks]
    return Grid(f"All tasks: {criterion.label}", header, cells, notes)


def trials_grid(comparison: Comparison, task: str, contender: str) -> Grid:
    """Train and valid loss of every trial of one contender, geometric means over the tuning seeds.

    The winners are marked.
    """
    runs = selection.tuning_runs(comparison.records, task, contender)
    first = {run.trial: run for run in reversed(runs)}
    scores = {c: selection.trial_scores(comparison.records, task, contender, c) for c in Criterion}
    winners = {selection.best_trial(comparison.records, task, contender, c) for c in Criterion}
    rows = [
        [
            ", ".join(f"{name}={value}" for name, value in first[trial].parameters.items()) or "-",
            f"{first[trial].base_lr:.3g}",
            *(number(scores[criterion][trial]) for criterion in Criterion),
        ]
        for trial in sorted(first)
    ]
    header = ["parameters", "base LR", *(f"{criterion.selected_on} loss" for criterion in Criterion)]
    marked = frozenset(index for index, trial in enumerate(sorted(first)) if trial in winners)
    return Grid(f"{task}, {contender}", header, rows, marked=marked)
