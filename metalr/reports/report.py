"""A comparison as a person reads it: tables for the terminal, figures, one self-contained HTML file.

Reads records and never trains. Only the figures need matplotlib; `show` uses rich where it is installed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalr.compare.comparison import Comparison
from metalr.compare.selection import Criterion
from metalr.files import write_whole
from metalr.reports import figures, page, tables, text_table
from metalr.reports.sections import all_grids, settings_line


def text(comparison: Comparison, width: int = text_table.WIDTH) -> str:
    """All tables as plain text, at most `width` columns wide as long as names are short."""
    head = "\n".join(text_table.wrap(settings_line(comparison), width))
    return "\n\n".join([head, *(text_table.as_text(grid, width) for grid in all_grids(comparison))])


def wrong_base_text(comparison: Comparison, task: str | None = None, contenders: Sequence[str] | None = None) -> str:
    """Final train loss of each contender for each base LR factor, as plain text.

    Args:
        comparison: where it comes from.
        task: its name; None for the first one.
        contenders: in this order; None for all.
    """
    return text_table.as_text(tables.wrong_base_grid(comparison, task or comparison.tasks[0], contenders))


def show(comparison: Comparison) -> None:
    """Print all tables as wide as the terminal, in colour where rich is installed."""
    width = text_table.screen_width()
    try:
        from rich.console import Console
    except ImportError:
        print(text(comparison, width))
        return
    console = Console(width=width)
    if not console.is_terminal:
        print(text(comparison, width))
        return
    console.print(settings_line(comparison))
    for grid in all_grids(comparison):
        console.print()
        console.print(text_table.as_rich(grid, width))


def figure(
    comparison: Comparison,
    path: str | Path,
    task: str | None = None,
    contenders: Sequence[str] | None = None,
    criterion: Criterion = Criterion.TRAIN,
) -> Path:
    """Write the LR and loss curves to an image file; its ending says which kind (.png, .svg, .pdf).

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    return _save(figures.curves_figure(comparison, task, contenders, criterion), path)


def repair_figure(comparison: Comparison, path: str | Path, contender: str, task: str | None = None) -> Path:
    """Write LR and loss curves of one contender from every wrong base LR to an image file."""
    return _save(figures.repair_figure(comparison, contender, task), path)


def _save(drawn: Any, path: str | Path) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(target, dpi=150)
    return target


def html(comparison: Comparison, path: str | Path) -> Path:
    """Write one HTML file with every table, chart and setting; it needs no network and no other file."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, page.page(comparison))
    return target
