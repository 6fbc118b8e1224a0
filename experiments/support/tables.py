"""Tables of the experiments on the terminal."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Aligned columns; a loss with eight digits after the point, any other float with four digits."""
    print(aligned(columns, [[_shown(row.get(column, ""), column) for column in columns] for row in rows]))


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]], right: Iterable[str] = (), gap: str = "  ") -> str:
    """Cells below their header, as text.

    Args:
        header: a name for each column.
        lines: as many cells in each.
        right: names of the columns whose cells stand to the right.
        gap: between two columns.
    """
    to_right = [name in set(right) for name in header]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, to_right, strict=True))
        return gap.join(padded).rstrip()

    return "\n".join(line(cells) for cells in (header, *lines))


def by_factor(rows: Sequence[Row], show: Callable[[Row], str], factors: Sequence[float] = ()) -> list[Row]:
    """A line for each task and contender, a column `x0.1`, `x1`, … for each factor that the base LR was wrong by.

    Args:
        rows: with task, contender and factor.
        show: the cell of a row.
        factors: columns of a row whose factor is None, which holds for all of them.
    """
    lines: dict[tuple[str, str], Row] = {}
    for row in rows:
        line = lines.setdefault((row["task"], row["contender"]), {"task": row["task"], "contender": row["contender"]})
        columns = factors if row["factor"] is None else (row["factor"],)
        line.update({f"x{factor:g}": show(row) for factor in columns})
    return list(lines.values())


def _shown(value: Any, column: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.8f}" if column == "loss" else f"{value:.4g}"
    return str(value)
