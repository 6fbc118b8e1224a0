"""Figures of the experiments, in the style of all other figures of the project."""

from pathlib import Path
from typing import Any

from experiments.support.records import place
from metalr.reports import figures
from metalr.reports.chart import COLOURS

__all__ = ["COLOURS", "legend", "panels", "save"]


def panels(columns: int, rows: int = 1, height: float = 4.0) -> tuple[Any, list[Any]]:
    """A figure with axes side by side, row after row.

    Args:
        columns: axes in a row.
        rows: how many rows.
        height: of a row, in inches.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    figure, axes = figures.panels(columns * rows, height)
    if rows > 1:  # made as one row, then moved
        figure.set_size_inches(5.2 * columns + 2.0, rows * height)
        grid = figure.add_gridspec(rows, columns)
        for index, axis in enumerate(axes):
            axis.set_subplotspec(grid[index])
    for axis in axes:
        axis.set_prop_cycle(color=COLOURS)
    return figure, axes


def legend(figure: Any, axis: Any) -> None:
    """The labels of one axis, to the right of all."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)


def save(figure: Any, name: str, *, smoke: bool) -> Path:
    """Write a figure to its place; returns the path."""
    path = place(name, smoke=smoke, kind="figures", ending="png")
    figure.savefig(path, dpi=110)
    return path
