"""Pictures of a comparison: LR and loss curves, regret against the base LR, performance profiles.

Reads records and never trains. Needs matplotlib, which is imported when a figure is drawn and not before.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metalr.compare import results, selection, statistics
from metalr.compare.comparison import Comparison
from metalr.compare.contenders import Kind
from metalr.compare.run_record import RunRecord
from metalr.compare.selection import Criterion

# Okabe and Ito's palette without yellow: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A", "#7F7F7F")
_DASHES = {Kind.ABLATION: (0, (4, 2)), Kind.TARGET: (0, (1, 1.5))}
# More lines than this cannot be told apart.
MAX_LINES = 8


def _figure_class() -> Any:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a figure needs the package 'matplotlib': pip install 'metalr[plot]'") from error
    matplotlib.rcParams["svg.hashsalt"] = "metalr"  # the same picture gives the same bytes
    return Figure


def panels(count: int, height: float = 3.6) -> tuple[Any, list[Any]]:
    """A figure with `count` axes side by side, in the style of all our figures.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    figure = _figure_class()(figsize=(5.2 * count + 2.0, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return figure, list(axes)


def _line_styles(names: Sequence[str], kinds: Mapping[str, Kind]) -> dict[str, dict[str, Any]]:
    """Learned controllers are thick and on top; ablations are dashed, target setters dotted."""
    styles = {}
    for index, name in enumerate(names):
        kind = kinds.get(name, Kind.SCHEDULE)
        styles[name] = {
            "color": COLOURS[index % len(COLOURS)],
            "linewidth": 2.6 if kind is Kind.LEARNED else 1.5,
            "linestyle": _DASHES.get(kind, "-"),
            "zorder": 3 if kind is Kind.LEARNED else 2,
        }
    return styles


def shown_contenders(comparison: Comparison, task: str, criterion: Criterion = Criterion.TRAIN) -> list[str]:
    """The contenders of a figure that names none: controllers, the tuned best, cosine, constant, then the others."""
    names = selection.contenders_of(comparison.records, task)
    kinds = selection.kinds_of(comparison.records)
    learned = [name for name in names if kinds[name] is Kind.LEARNED]
    best = selection.tuned_best(comparison.records, task, criterion)
    others = [name for name in names if kinds[name] in (Kind.ABLATION, Kind.SCHEDULE)]
    wanted = dict.fromkeys([*learned, best, "cosine", "constant", *others])
    return [name for name in wanted if name in names][:MAX_LINES]


def repair_figure(comparison: Comparison, contender: str, task: str | None = None) -> Any:
    """LR and train loss of one contender from each wrong base LR, a line for each factor.

    The dashed line is the tuned best schedule. The task is the first one unless named.
    """
    name = task or comparison.tasks[0]
    best = selection.tuned_best(comparison.records, name, Criterion.TRAIN)
    groups = {f"tuned {best}": selection.chosen_runs(comparison.records, name, best, Criterion.TRAIN)}
    for factor in sorted(comparison.settings.factors):
        groups[f"base LR x{factor:g}"] = selection.select(
            comparison.records, task=name, contender=contender, phase="wrong-base", base_lr_factor=factor
        )
    figure, (lr_axis, loss_axis) = panels(2)
    for index, (label, runs) in enumerate(groups.items()):
        style = {"color": COLOURS[index - 1], "linewidth": 1.8} if index else {"color": "black", "linestyle": "--"}
        _draw_run(lr_axis, loss_axis, comparison, runs, label, style)
    _finish_run_axes(lr_axis, loss_axis)
    figure.suptitle(f"{name}: {contender} from wrong base LRs", fontsize=11)
    _legend(figure, loss_axis)
    return figure


def _draw_run(
    lr_axis: Any,
    loss_axis: Any,
    comparison: Comparison,
    runs: Sequence[RunRecord],
    label: str,
    style: Mapping[str, Any],
) -> None:
    curves = [comparison.curves[run.key] for run in runs if run.key in comparison.curves]
    if not curves:
        return
    step = np.array([0, *curves[0].step])
    _band(lr_axis, step[:-1], [curve.lr for curve in curves], label, style)
    _band(loss_axis, (step[1:] + step[:-1]) / 2, [curve.train_loss for curve in curves], label, style)


def _finish_run_axes(lr_axis: Any, loss_axis: Any) -> None:
    for axis, label in ((lr_axis, "learning rate"), (loss_axis, "train loss (minibatch mean)")):
        axis.set(xlabel="inner step", ylabel=label, yscale="log", xlim=(0, None))
    _readable_range(lr_axis, decades=4.0)
    _readable_range(loss_axis, decades=6.0)


def curves_figure(
    comparison: Comparison,
    task: str | None = None,
    contenders: Sequence[str] | None = None,
    criterion: Criterion = Criterion.TRAIN,
) -> Any:
    """LR and train loss over the run, medians over the fresh seeds with the middle half shaded.

    Args:
        comparison: with curves.
        task: its name; None for the first one.
        contenders: names; None for `shown_contenders`.
        criterion: which choice of the LR is drawn.

    Returns:
        A matplotlib figure.
    """
    name = task or comparison.tasks[0]
    drawn = shown_contenders(comparison, name, criterion) if contenders is None else contenders
    styles = _line_styles(drawn, selection.kinds_of(comparison.records))
    figure, (lr_axis, loss_axis) = panels(2)
    for contender in drawn:
        runs = selection.chosen_runs(comparison.records, name, contender, criterion)
        _draw_run(lr_axis, loss_axis, comparison, runs, contender, styles[contender])
    _finish_run_axes(lr_axis, loss_axis)
    figure.suptitle(f"{name}: LR chosen on {criterion.selected_on} loss", fontsize=11)
    _legend(figure, loss_axis)
    return figure


def _band(axis: Any, x: Any, rows: Any, label: str, style: Mapping[str, Any]) -> None:
    values = np.asarray(rows, dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    finite = np.isfinite(values).mean(0) >= 0.5  # where most runs have diverged, the line ends
    values, x = values[:, finite], np.asarray(x)[finite]
    low, middle, high = np.nanquantile(values, [0.25, 0.5, 0.75], axis=0)
    axis.plot(x, middle, label=label, **style)
    axis.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _readable_range(axis: Any, decades: float) -> None:
    """A schedule that ends at 0 would otherwise squeeze everything else into a corner."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, high / 10.0**decades), high)
    if high / axis.get_ylim()[0] < 50.0:  # too few powers of ten to read a value off
        plain_ticks(axis)


def plain_ticks(axis: Any) -> None:
    """Label a short logarithmic axis 1, 1.5, 2, 3, … rather than with powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)


def regret_figure(
    comparison: Comparison,
    task: str | None = None,
    contenders: Sequence[str] | None = None,
    criterion: Criterion = Criterion.TRAIN,
) -> Any:
    """Regret against the factor by which the base LR is wrong: medians over the seeds with 95 % intervals."""
    name = task or comparison.tasks[0]
    rows = results.wrong_base_table(comparison.records, name, contenders, criterion=criterion)
    kinds = selection.kinds_of(comparison.records)
    drawn = contenders
    if drawn is None:
        names = list(dict.fromkeys(row.contender for row in rows if row.factor is not None))
        drawn = sorted(names, key=lambda n: (kinds[n] is not Kind.LEARNED, names.index(n)))[:MAX_LINES]
    styles = _line_styles(drawn, kinds)
    figure, (axis,) = panels(1)
    for contender in drawn:
        own = [row for row in rows if row.contender == contender and row.factor is not None]
        factor = [row.factor for row in own]
        middle, low, high = np.array([row.regret for row in own]).reshape(-1, 3).T
        axis.plot(factor, middle, label=contender, marker="o", markersize=4, **styles[contender])
        axis.fill_between(factor, low, high, color=styles[contender]["color"], alpha=0.12, linewidth=0)
    for row in rows:
        if row.factor is None and kinds.get(row.contender) is Kind.FIXED:  # whatever the base LR
            axis.axhline(row.regret.value, color="black", linewidth=0.8, linestyle="--", label=row.contender)
    axis.axhline(0.0, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="base LR / default base LR", ylabel="regret: log(loss / tuned best)")
    axis.set_title(f"{name}: final {criterion.reported_on} loss", fontsize=11)
    _legend(figure, axis)
    return figure


def profile_figure(
    comparison: Comparison, criterion: Criterion = Criterion.TRAIN, contenders: Sequence[str] | None = None
) -> Any:
    """Share of the runs of all tasks whose loss is at most tau times the tuned best's from the same seed."""
    drawn = shown_contenders(comparison, comparison.tasks[0], criterion) if contenders is None else contenders
    styles = _line_styles(drawn, selection.kinds_of(comparison.records))
    figure, (axis,) = panels(1)
    tau = np.geomspace(0.9, 4.0, 300)
    for contender in drawn:
        ratios: list[float] = []
        for task in comparison.tasks:
            if contender in selection.contenders_of(comparison.records, task):
                ratios += results.ratios_to_best(comparison.records, task, contender, criterion)
        if ratios:
            axis.plot(tau, statistics.score_profile(ratios, tau), label=contender, **styles[contender])
    ticks = [1.0, 1.25, 1.5, 2.0, 3.0, 4.0]
    axis.set(xscale="log", xlabel="tau", ylabel="share of runs with loss ≤ tau · tuned best", ylim=(-0.02, 1.02))
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_title(f"profile of the final {criterion.reported_on} loss", fontsize=11)
    _legend(figure, axis)
    return figure


def time_profile_figure(comparison: Comparison) -> Any:
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
    styles = _line_styles(drawn, selection.kinds_of(comparison.records))
    figure, (axis,) = panels(1)
    for contender in drawn:
        axis.plot(tau, profile[contender], label=contender, **styles[contender])
    axis.set(xscale="log", xlabel="tau", ylabel="share of tasks at target in tau · fastest", ylim=(-0.02, 1.02))
    axis.set_title("performance profile of the time to target (valid loss)", fontsize=11)
    _legend(figure, axis)
    return figure


def to_svg(figure: Any) -> str:
    """The figure as SVG text, the same bytes for the same picture."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
