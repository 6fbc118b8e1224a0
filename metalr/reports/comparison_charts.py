"""The charts of a comparison: LR and loss curves, regret against the base LR, performance profiles. Reads records."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metalr.compare import results, selection, statistics
from metalr.compare.comparison import Comparison
from metalr.compare.contenders import Kind
from metalr.compare.run_record import RunRecord
from metalr.compare.selection import Criterion
from metalr.reports.chart import INK, SCALE, Array, Chart, Dash, Line, colours

# More lines than this cannot be told apart.
MAX_LINES = 8
_DASHES: dict[Kind, Dash] = {Kind.ABLATION: "dashed", Kind.TARGET: "dotted"}
_TAU_TICKS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


def shown_contenders(comparison: Comparison, task: str, criterion: Criterion = Criterion.TRAIN) -> list[str]:
    """The contenders of a chart that names none: controllers, the tuned best, cosine, constant, then the others."""
    names = selection.contenders_of(comparison.records, task)
    kinds = selection.kinds_of(comparison.records)
    learned = [name for name in names if kinds[name] is Kind.LEARNED]
    best = selection.tuned_best(comparison.records, task, criterion)
    others = [name for name in names if kinds[name] in (Kind.ABLATION, Kind.SCHEDULE)]
    wanted = dict.fromkeys([*learned, best, "cosine", "constant", *others])
    return [name for name in wanted if name in names][:MAX_LINES]


def colours_of(comparison: Comparison) -> dict[str, str]:
    """One colour for each contender, the same in every chart of the comparison: controllers come first."""
    kinds = selection.kinds_of(comparison.records)
    rank = {Kind.LEARNED: 0, Kind.SCHEDULE: 1, Kind.ABLATION: 2}
    return colours(sorted(kinds, key=lambda name: (rank.get(kinds[name], 3), name not in ("cosine", "constant"))))


def _looks(comparison: Comparison, palette: Mapping[str, str] | None) -> dict[str, dict[str, Any]]:
    """Learned controllers are thick; ablations are dashed, target setters dotted."""
    own = palette or colours_of(comparison)
    return {
        name: {
            "colour": own[name],
            "width": 2.6 if kind is Kind.LEARNED else 1.5,
            "dash": _DASHES.get(kind, "solid"),
        }
        for name, kind in selection.kinds_of(comparison.records).items()
    }


def _run_charts(title: str, lines: Sequence[tuple[Line, Line]]) -> list[Chart]:
    """LR and loss side by side."""
    lr, loss = (tuple(pair[index] for pair in lines) for index in (0, 1))
    shared: dict[str, Any] = {"x_label": "inner step", "y_log": True}
    return [
        Chart(f"{title}: learning rate", lr, y_label="learning rate", decades=4.0, **shared),
        Chart(f"{title}: train loss", loss, y_label="train loss (minibatch mean)", decades=6.0, **shared),
    ]


def _of_runs(comparison: Comparison, runs: Sequence[RunRecord], name: str, look: Any) -> list[tuple[Line, Line]]:
    """LR and loss of some runs: medians with the middle half around them; none without curves."""
    curves = [comparison.curves[run.key] for run in runs if run.key in comparison.curves]
    if not curves:
        return []
    step = np.array([0, *curves[0].step], dtype=np.float64)
    return [
        (
            _band(step[:-1], [curve.lr for curve in curves], name, look),
            _band((step[1:] + step[:-1]) / 2, [curve.train_loss for curve in curves], name, look),
        )
    ]


def _band(x: Array, rows: Any, name: str, look: Mapping[str, Any]) -> Line:
    values = np.asarray(rows, dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    finite = np.isfinite(values).mean(0) >= 0.5  # where most runs have diverged, the line ends
    low, middle, high = np.nanquantile(values[:, finite], [0.25, 0.5, 0.75], axis=0)
    return Line(name, x[finite], middle, low=low, high=high, **look)


def curve_charts(
    comparison: Comparison,
    task: str | None = None,
    contenders: Sequence[str] | None = None,
    criterion: Criterion = Criterion.TRAIN,
    palette: Mapping[str, str] | None = None,
) -> list[Chart]:
    """LR and train loss over the run, medians over the fresh seeds with the middle half shaded.

    Args:
        comparison: with curves.
        task: its name; None for the first one.
        contenders: names; None for `shown_contenders`.
        criterion: which choice of the LR is drawn.
        palette: contender -> colour; None for `colours_of`.
    """
    name = task or comparison.tasks[0]
    drawn = shown_contenders(comparison, name, criterion) if contenders is None else contenders
    looks = _looks(comparison, palette)
    lines = []
    for contender in drawn:
        runs = selection.chosen_runs(comparison.records, name, contender, criterion)
        lines += _of_runs(comparison, runs, contender, looks[contender])
    return _run_charts(f"{name}, LR chosen on {criterion.selected_on} loss", lines)


def repair_charts(comparison: Comparison, contender: str, task: str | None = None) -> list[Chart]:
    """LR and train loss of one contender from each wrong base LR, a line for each factor.

    The dashed line is the tuned best schedule. The task is the first one unless named.
    """
    name = task or comparison.tasks[0]
    best = selection.tuned_best(comparison.records, name, Criterion.TRAIN)
    runs = selection.chosen_runs(comparison.records, name, best, Criterion.TRAIN)
    lines = _of_runs(comparison, runs, f"tuned {best}", {"colour": INK, "dash": "dashed"})
    factors = sorted(comparison.settings.factors)
    for index, factor in enumerate(factors):
        runs = selection.select(
            comparison.records, task=name, contender=contender, phase="wrong-base", base_lr_factor=factor
        )
        colour = SCALE[round(index * (len(SCALE) - 1) / max(len(factors) - 1, 1))]
        lines += _of_runs(comparison, runs, f"base LR x{factor:g}", {"colour": colour, "width": 1.8})
    return _run_charts(f"{name}, {contender} from wrong base LRs", lines)


def regret_chart(
    comparison: Comparison,
    task: str | None = None,
    contenders: Sequence[str] | None = None,
    criterion: Criterion = Criterion.TRAIN,
    palette: Mapping[str, str] | None = None,
) -> Chart:
    """Regret against the factor by which the base LR is wrong: medians over the seeds with 95 % intervals."""
    name = task or comparison.tasks[0]
    rows = results.wrong_base_table(comparison.records, name, contenders, criterion=criterion)
    kinds = selection.kinds_of(comparison.records)
    drawn = contenders
    if drawn is None:
        names = list(dict.fromkeys(row.contender for row in rows if row.factor is not None))
        drawn = sorted(names, key=lambda n: (kinds[n] is not Kind.LEARNED, names.index(n)))[:MAX_LINES]
    looks = _looks(comparison, palette)
    lines = []
    for contender in drawn:
        own = [row for row in rows if row.contender == contender and row.factor is not None]
        middle, low, high = np.array([row.regret for row in own]).reshape(-1, 3).T
        factors = np.array([row.factor for row in own])
        lines.append(Line(contender, factors, middle, low=low, high=high, marked=True, **looks[contender]))
    ends = np.array([min(comparison.settings.factors), max(comparison.settings.factors)])
    for row in rows:
        if row.factor is None and kinds.get(row.contender) is Kind.FIXED:  # whatever the base LR
            lines.append(Line(row.contender, ends, np.full(2, row.regret.value), INK, width=1.0, dash="dashed"))
    return Chart(
        f"{name}, final {criterion.reported_on} loss from wrong base LRs",
        tuple(lines),
        x_label="base LR / default base LR",
        y_label="regret: log(loss / tuned best)",
        x_log=True,
        x_ticks=tuple(sorted(comparison.settings.factors)),
    )


def profile_chart(
    comparison: Comparison,
    criterion: Criterion = Criterion.TRAIN,
    contenders: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
) -> Chart:
    """Share of the runs of all tasks whose loss is at most tau times the tuned best's from the same seed."""
    drawn = shown_contenders(comparison, comparison.tasks[0], criterion) if contenders is None else contenders
    looks, tau, lines = _looks(comparison, palette), np.geomspace(0.9, 4.0, 300), []
    for contender in drawn:
        ratios: list[float] = []
        for task in comparison.tasks:
            if contender in selection.contenders_of(comparison.records, task):
                ratios += results.ratios_to_best(comparison.records, task, contender, criterion)
        if ratios:
            lines.append(Line(contender, tau, statistics.score_profile(ratios, tau), **looks[contender]))
    return Chart(
        f"profile of the final {criterion.reported_on} loss",
        tuple(lines),
        x_label="tau",
        y_label="share of runs with loss ≤ tau · tuned best",
        x_log=True,
        y_limits=(-0.02, 1.02),
        x_ticks=_TAU_TICKS,
    )


def time_profile_chart(comparison: Comparison, palette: Mapping[str, str] | None = None) -> Chart:
    """Share of tasks on which the median run reaches the target within tau times the fastest contender's steps."""
    times = {
        task: {row.contender: row.median for row in results.time_table(comparison.records, comparison.curves, task)}
        for task in comparison.tasks
    }
    drawn = [
        name
        for name in shown_contenders(comparison, comparison.tasks[0], Criterion.VALID)
        if all(name in found for found in times.values())
    ]
    everyone = sorted(set.intersection(*(set(found) for found in times.values())))
    costs = np.array([[times[task][name] for task in comparison.tasks] for name in everyone])
    tau = np.geomspace(1.0, 10.0, 200)
    profile = dict(zip(everyone, statistics.performance_profile(costs, tau), strict=True))
    looks = _looks(comparison, palette)
    return Chart(
        "performance profile of the time to target (valid loss)",
        tuple(Line(name, tau, profile[name], **looks[name]) for name in drawn),
        x_label="tau",
        y_label="share of tasks at target in tau · fastest",
        x_log=True,
        y_limits=(-0.02, 1.02),
        x_ticks=(1.0, 2.0, 3.0, 5.0, 10.0),
    )
