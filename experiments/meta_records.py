"""What the meta-learning experiments share: records as JSON lines, and tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalr.records import versions

FOLDER = Path(__file__).parent


def write_records(name: str, rows: Sequence[dict[str, Any]], smoke: bool) -> Path:
    """Replace `records/<name>.jsonl` (a smoke run writes `<name>-smoke.jsonl`) with one line for each row."""
    path = FOLDER / "records" / f"{name}{'-smoke' if smoke else ''}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    common = {**versions("higher"), "device": "cpu"}
    path.write_text("".join(json.dumps({**row, **common}) + "\n" for row in rows))
    return path


def figure_path(name: str, smoke: bool) -> Path:
    """Where a figure goes; its folder is made."""
    path = FOLDER / "figures" / f"{name}{'-smoke' if smoke else ''}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Aligned columns; floats to eight digits where they are losses, else to four."""
    cells = [[_shown(row.get(column, ""), column) for column in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) if cells else len(c) for i, c in enumerate(columns)]
    print("  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)))
    for line in cells:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)))


def _shown(value: Any, column: str) -> str:
    if isinstance(value, float):
        return f"{value:.8f}" if column == "loss" else f"{value:.4g}"
    return str(value)
