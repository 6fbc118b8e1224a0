"""A grid of cells with a title and notes, drawn as plain text, with rich, or as HTML. Knows nothing of records."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
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
        wrong = [row for row in self.rows if len(row) != len(self.header)]
        if wrong:
            raise ValueError(f"got a row of {len(wrong[0])} cells, expected {len(self.header)}: {list(self.header)}")


def as_text(grid: Grid, width: int = WIDTH) -> str:
    """Plain text. Marked rows have a star. Columns move closer where the grid would be wider than `width`.

    Example:
        >>> from metalr.reports.text_table import Grid
        >>> print(as_text(Grid("Losses", ["name", "loss"], [["cosine", "0.5"]])))
        Losses
        name      loss
        --------  ----
          cosine   0.5
    """
    names = [f"{'* ' if index in grid.marked else '  '}{row[0]}" for index, row in enumerate(grid.rows)]
    columns = [[grid.header[0], *names]]
    columns += [[grid.header[i], *(row[i] for row in grid.rows)] for i in range(1, len(grid.header))]
    sizes = [max(map(len, column)) for column in columns]
    gap = "  " if sum(sizes) + 2 * (len(sizes) - 1) <= width else " "
    lines = []
    for cells in zip(*columns, strict=True):
        padded = [cells[0].ljust(sizes[0]), *(c.rjust(s) for c, s in zip(cells[1:], sizes[1:], strict=True))]
        lines.append(gap.join(padded).rstrip())
    lines.insert(1, gap.join("-" * size for size in sizes))
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
