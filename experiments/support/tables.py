"""Tables of the experiments on the terminal."""

from collections.abc import Callable, Sequence
from typing import Any

from metalr.reports.text_table import plain

Row = dict[str, Any]


def print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Aligned columns; a loss with eight digits after the point, any other float with four digits."""
    print(plain(columns, [[_shown(row.get(column, ""), column) for column in columns] for row in rows]))


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


def _shown(value: Any, column: str) -> Any:
    return f"{value:.8f}" if column == "loss" and isinstance(value, float) else value
