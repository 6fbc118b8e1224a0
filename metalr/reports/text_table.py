"""Tables as text.

`plain` aligns a header and rows, and is all that a script needs. A `Grid` also has a title, notes and marked rows, and
is drawn as plain text, with rich, or as HTML.
"""

import html
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        drop_first: names of columns to leave out, in this order, where the grid is too wide for its place; then those
            at the right go. The first column always stays.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    marked: frozenset[int] = field(default_factory=frozenset)
    drop_first: Sequence[str] = ()

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


def listing(rows: Iterable[Sequence[str]], width: int = WIDTH, *, indent: str = "") -> str:
    """Aligned columns of words, the last of them wrapped where it is too long.

    Args:
        rows: equally many cells in each, at least two.
        width: of the longest line, where words are short enough.
        indent: at the start of every line.

    Example:
        >>> print(listing([("a", "one two three four five"), ("long", "six")], width=26))
        a     one two three four
              five
        long  six
    """
    table = [list(row) for row in rows]
    sizes = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)] if table else []
    before = len(indent) + sum(sizes) + 2 * len(sizes)
    lines = []
    for *cells, words in table:
        head = indent + "".join(f"{cell.ljust(size)}  " for cell, size in zip(cells, sizes, strict=True))
        first, *more = wrap(words, max(width - before, 20))
        lines += [(head + first).rstrip(), *(" " * before + line for line in more)]
    return "\n".join(lines)


def as_text(grid: Grid, width: int = WIDTH) -> str:
    """Plain text, no wider than `width` if that can be.

    Marked rows have a star. Where the grid is too wide, columns move closer, intervals get lines of their own, then
    these go, and at last columns do; a number is never cut.

    Example:
        >>> from metalr.reports.text_table import Grid
        >>> print(as_text(Grid("Losses", ["name", "loss"], [["cosine", "0.5"]])))
        Losses
        name      loss
        --------  ----
          cosine   0.5
    """
    return "\n".join(line for line, _ in _fitted(grid, width))


def _fitted(grid: Grid, width: int) -> list[tuple[str, str]]:
    """The lines of the first layout that fits, each with what it is: title, header, row, marked or note."""
    for layout in _layouts(grid):
        lines = _drawn(layout, width)
        if max(len(line) for line, _ in lines) <= width:
            break
    return lines


def _layouts(grid: Grid) -> Iterator[Grid]:
    """The grid, narrower and narrower."""
    yield grid
    if any(isinstance(cell, Estimate) for row in grid.rows for cell in row):
        yield _intervals_below(grid)
        grid = _without_intervals(grid)
        yield grid
    order = [name for name in grid.drop_first if name in grid.header[1:]]
    order += [name for name in reversed(grid.header[1:]) if name not in order]
    for count in range(1, len(order)):
        yield _without_columns(grid, order[:count])


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


def _without_columns(grid: Grid, names: Sequence[str]) -> Grid:
    kept = [index for index, name in enumerate(grid.header) if index == 0 or name not in names]
    left_out = f"Left out for want of room, and in the HTML report: {', '.join(n for n in grid.header if n in names)}."
    return replace(
        grid,
        header=[grid.header[index] for index in kept],
        rows=[[row[index] for index in kept] for row in grid.rows],
        notes=[*grid.notes, left_out],
    )


def _drawn(grid: Grid, width: int) -> list[tuple[str, str]]:
    rows = [[f"{'* ' if i in grid.marked else '  '}{row[0]}", *map(str, row[1:])] for i, row in enumerate(grid.rows)]
    rule = ["-" * max(map(len, column)) for column in zip(grid.header, *rows, strict=True)]
    lines = aligned([grid.header, rule, *rows], [False, *[True] * (len(grid.header) - 1)], width)
    kinds = ["header", "header", *("marked" if i in grid.marked else "row" for i in range(len(rows)))]
    notes = [(line, "note") for note in grid.notes for line in wrap(note, width)]
    return [*((line, "title") for line in wrap(grid.title, width)), *zip(lines, kinds, strict=True), *notes]


def wrap(note: str, width: int = WIDTH) -> list[str]:
    """A sentence as lines of at most `width` characters."""
    lines = [""]
    for word in note.split():
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


_RICH_STYLES = {"title": "italic", "header": "bold", "row": "", "marked": "bold cyan", "note": "dim"}


def as_rich(grid: Grid, width: int = WIDTH) -> Any:
    """The lines of `as_text` as a `rich` renderable.

    Raises:
        ImportError: rich is missing.
    """
    from rich.console import Group
    from rich.text import Text

    lines = _fitted(grid, width)
    return Group(*(Text(line, style=_RICH_STYLES[kind], no_wrap=True, overflow="ignore") for line, kind in lines))


def as_html(grid: Grid, colours: Mapping[str, str] | None = None) -> str:
    """A heading, a table and the notes. Everything is escaped.

    Args:
        grid: to show.
        colours: first cell of a row -> colour of the dot before it.
    """
    head = "".join(f"<th scope=col><button>{html.escape(name)}</button></th>" for name in grid.header)
    rows = []
    for index, row in enumerate(grid.rows):
        colour = (colours or {}).get(str(row[0]).removesuffix(", untuned"))
        dot = f'<i class=dot style="background:{colour}"></i>' if colour else ""
        cells = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row[1:])
        marked = " class=marked" if index in grid.marked else ""
        rows.append(f"<tr{marked}><td>{dot}{html.escape(str(row[0]))}</td>{cells}</tr>")
    body = "\n".join(rows)
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in grid.notes)
    return (
        f"<h3>{html.escape(grid.title)}</h3>\n<div class=scroll><table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>\n{notes}"
    )
