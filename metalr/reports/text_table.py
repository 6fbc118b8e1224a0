"""Tables as text.

`plain` aligns a header and rows, and is all that a script needs. A `Grid` also has a title, notes and marked rows, and
is drawn as plain text, with rich, or as HTML.
"""

import html
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any

WIDTH = 100


def screen_width() -> int:
    """Columns of the terminal; `WIDTH` where there is none and COLUMNS does not say either."""
    return shutil.get_terminal_size((WIDTH, 24)).columns


@dataclass(frozen=True)
class Estimate:
    """A cell with a value and its interval, which a narrow table puts on a line of its own or leaves out.

    Example:
        >>> str(Estimate("1.06", "1.03", "1.07"))
        '1.06 [1.03, 1.07]'
    """

    value: str
    low: str
    high: str

    def __str__(self) -> str:
        return f"{self.value} [{self.low}, {self.high}]"


Cell = str | Estimate


@dataclass(frozen=True)
class Grid:
    """A table to look at.

    Attributes:
        title: one line above it.
        header: column names; the first column is left-aligned, the others right.
        rows: as many cells as the header has, in every row; the first one is a string.
        notes: sentences below it.
        marked: indices of rows to stand out.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    marked: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        _require_equal_lengths(self.header, self.rows)


def plain(header: Sequence[str] | None, rows: Iterable[Sequence[object]], *, indent: str = "") -> str:
    """Aligned columns: numbers to the right, words to the left.

    Floats have four significant digits and None is `-`; a caller that wants it otherwise passes strings.

    Args:
        header: column names; None for a table without a header line.
        rows: as many cells as the header has, in every row.
        indent: at the start of every line.

    Raises:
        ValueError: a row is longer or shorter than the header.

    Example:
        >>> print(plain(("name", "loss"), [("cosine", 0.5), ("constant", 12.0)]))
        name      loss
        cosine     0.5
        constant    12
    """
    table = [list(row) for row in rows]
    lines = [[_shown(cell) for cell in row] for row in table]
    if header is not None:
        lines.insert(0, list(header))
    if not lines:
        return ""
    _require_equal_lengths(lines[0], lines[1:])
    numeric = [all(isinstance(row[i], (int, float, NoneType)) for row in table) for i in range(len(lines[0]))]
    return "\n".join(indent + line for line in aligned(lines, numeric))


def _shown(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _require_equal_lengths(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    wrong = [row for row in rows if len(row) != len(header)]
    if wrong:
        raise ValueError(f"got a row of {len(wrong[0])} cells, expected {len(header)}: {list(header)}")


def aligned(lines: Sequence[Sequence[str]], to_the_right: Sequence[bool], width: float = math.inf) -> list[str]:
    """Cells padded to columns, a line of text for each line of cells.

    Args:
        lines: equally many cells in each.
        to_the_right: for each column.
        width: where a line would be wider, columns move closer.
    """
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    gap = "  " if sum(sizes) + 2 * (len(sizes) - 1) <= width else " "
    return [
        gap.join(
            cell.rjust(size) if right else cell.ljust(size)
            for cell, size, right in zip(line, sizes, to_the_right, strict=True)
        ).rstrip()
        for line in lines
    ]


def as_text(grid: Grid, width: int = WIDTH) -> str:
    """Plain text, no wider than `width` if that can be.

    Marked rows have a star. Where the grid is too wide, columns move closer, then intervals get lines of their own, and
    at last they are left out.

    Example:
        >>> from metalr.reports.text_table import Grid
        >>> print(as_text(Grid("Losses", ["name", "loss"], [["cosine", "0.5"]])))
        Losses
        name      loss
        --------  ----
          cosine   0.5
    """
    layouts = [grid]
    if any(isinstance(cell, Estimate) for row in grid.rows for cell in row):
        layouts += [_intervals_below(grid), _without_intervals(grid)]
    drawn = [_drawn(layout, width) for layout in layouts]
    return next((text for text in drawn if max(map(len, text.splitlines())) <= width), drawn[-1])


def _intervals_below(grid: Grid) -> Grid:
    rows: list[list[str]] = []
    marked: set[int] = set()
    for index, row in enumerate(grid.rows):
        marked |= {len(rows)} if index in grid.marked else set()
        rows.append([_value(cell) for cell in row])
        if any(isinstance(cell, Estimate) for cell in row):
            rows.append([f"{cell.low}–{cell.high}" if isinstance(cell, Estimate) else "" for cell in row])
    return replace(grid, rows=rows, marked=frozenset(marked))


def _without_intervals(grid: Grid) -> Grid:
    left_out = "Intervals are in the HTML report: they are too wide for this one."
    return replace(grid, rows=[[_value(cell) for cell in row] for row in grid.rows], notes=[*grid.notes, left_out])


def _value(cell: Cell) -> str:
    return cell.value if isinstance(cell, Estimate) else cell


def _drawn(grid: Grid, width: int) -> str:
    rows = [[f"{'* ' if i in grid.marked else '  '}{row[0]}", *map(str, row[1:])] for i, row in enumerate(grid.rows)]
    rule = ["-" * max(map(len, column)) for column in zip(grid.header, *rows, strict=True)]
    lines = aligned([grid.header, rule, *rows], [False, *[True] * (len(grid.header) - 1)], width)
    return "\n".join([grid.title, *lines, *(line for note in grid.notes for line in wrap(note, width))])


def wrap(note: str, width: int = WIDTH) -> list[str]:
    """A sentence as lines of at most `width` characters."""
    lines = [""]
    for word in note.split():
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def as_rich(grid: Grid) -> Any:
    """A `rich` renderable.

    Raises:
        ImportError: rich is missing.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=grid.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(grid.header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for index, row in enumerate(grid.rows):
        table.add_row(*(Text(str(cell)) for cell in row), style="bold cyan" if index in grid.marked else "")
    return Group(table, *(Text(note, style="dim") for note in grid.notes))


def as_html(grid: Grid) -> str:
    """A heading, a table and the notes. Everything is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in grid.header)
    body = "\n".join(
        f"<tr{' class=marked' if index in grid.marked else ''}>"
        + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(grid.rows)
    )
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in grid.notes)
    return (
        f"<h3>{html.escape(grid.title)}</h3>\n<div class=scroll><table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>\n{notes}"
    )
