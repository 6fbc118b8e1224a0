"""Tables as text.

`plain` aligns a header and rows, and is all that a script needs. A `Grid` also has a title, notes and marked rows, and
is drawn as plain text, with rich, or as HTML.
"""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

WIDTH = 100


@dataclass(frozen=True)
class Grid:
    """A table to look at.

    Attributes:
        title: one line above it.
        header: column names; the first column is left-aligned, the others right.
        rows: as many cells as the header has, in every row.
        notes: sentences below it.
        marked: indices of rows to stand out.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
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
    return "\n".join(indent + line for line in _aligned(lines, numeric))


def _shown(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _require_equal_lengths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    wrong = [row for row in rows if len(row) != len(header)]
    if wrong:
        raise ValueError(f"got a row of {len(wrong[0])} cells, expected {len(header)}: {list(header)}")


def _aligned(lines: Sequence[Sequence[str]], to_the_right: Sequence[bool], width: float = math.inf) -> list[str]:
    """Cells padded to columns, which move closer where a line would be wider than `width`."""
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
    """Plain text. Marked rows have a star. Columns move closer where the grid would be wider than `width`.

    Example:
        >>> print(as_text(Grid("Losses", ["name", "loss"], [["cosine", "0.5"]])))
        Losses
        name      loss
        --------  ----
          cosine   0.5
    """
    rows = [[f"{'* ' if i in grid.marked else '  '}{row[0]}", *row[1:]] for i, row in enumerate(grid.rows)]
    rule = ["-" * max(map(len, column)) for column in zip(grid.header, *rows, strict=True)]
    lines = _aligned([grid.header, rule, *rows], [False, *[True] * (len(grid.header) - 1)], width)
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
        table.add_row(*map(Text, row), style="bold cyan" if index in grid.marked else "")
    return Group(table, *(Text(note, style="dim") for note in grid.notes))


def as_html(grid: Grid) -> str:
    """A heading, a table and the notes. Everything is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in grid.header)
    body = "\n".join(
        f"<tr{' class=marked' if index in grid.marked else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(grid.rows)
    )
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in grid.notes)
    return (
        f"<h3>{html.escape(grid.title)}</h3>\n<div class=scroll><table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>\n{notes}"
    )
