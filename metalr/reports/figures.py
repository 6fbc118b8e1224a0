"""Charts as pictures, in the style of all our figures. Needs matplotlib, which is imported when a figure is drawn."""

from collections.abc import Sequence
from typing import Any

from metalr.compare.comparison import Comparison
from metalr.compare.selection import Criterion
from metalr.reports import comparison_charts
from metalr.reports.chart import INK, Chart, Line

_DASHES = {"solid": "-", "dashed": (0, (4, 2)), "dotted": (0, (1, 1.5))}


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


def draw(charts: Sequence[Chart]) -> Any:
    """Charts side by side, with one legend.

    Returns:
        A matplotlib figure.
    """
    figure, axes = panels(len(charts))
    for axis, chart in zip(axes, charts, strict=True):
        for line in chart.lines:
            _draw_line(axis, line)
        _set_axes(axis, chart)
    handles, labels = axes[-1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return figure


def _draw_line(axis: Any, line: Line) -> None:
    colour = "black" if line.colour == INK else line.colour
    order = 3 if line.width > 2.0 else 2
    look = {"color": colour, "linewidth": line.width, "linestyle": _DASHES[line.dash], "zorder": order}
    marker = {"marker": "o", "markersize": 4} if line.marked else {}
    axis.plot(line.x, line.y, label=line.name, **look, **marker)
    if line.low is not None and line.high is not None:
        axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.12, linewidth=0)


def _set_axes(axis: Any, chart: Chart) -> None:
    axis.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axis.set_title(chart.title, fontsize=11)
    if chart.x_log:
        axis.set_xscale("log")
    else:
        axis.set_xlim(0, None)
    if chart.x_ticks is not None:
        axis.set_xticks(chart.x_ticks, [f"{tick:g}" for tick in chart.x_ticks])
        axis.set_xticks([], minor=True)
    if chart.y_limits is not None:
        axis.set_ylim(chart.y_limits)
    if chart.y_log:
        axis.set_yscale("log")
        _readable_range(axis, chart.decades)


def _readable_range(axis: Any, decades: float) -> None:
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


def curves_figure(
    comparison: Comparison,
    task: str | None = None,
    contenders: Sequence[str] | None = None,
    criterion: Criterion = Criterion.TRAIN,
) -> Any:
    """LR and train loss over the run; see `comparison_charts.curve_charts`."""
    return draw(comparison_charts.curve_charts(comparison, task, contenders, criterion))


def repair_figure(comparison: Comparison, contender: str, task: str | None = None) -> Any:
    """LR and train loss of one contender from each wrong base LR; see `comparison_charts.repair_charts`."""
    return draw(comparison_charts.repair_charts(comparison, contender, task))


def regret_figure(comparison: Comparison, task: str | None = None) -> Any:
    """Regret against the factor by which the base LR is wrong; see `comparison_charts.regret_chart`."""
    return draw([comparison_charts.regret_chart(comparison, task)])


def profile_figure(
    comparison: Comparison, criterion: Criterion = Criterion.TRAIN, contenders: Sequence[str] | None = None
) -> Any:
    """Share of runs within a factor of the tuned best; see `comparison_charts.profile_chart`."""
    return draw([comparison_charts.profile_chart(comparison, criterion, contenders)])
