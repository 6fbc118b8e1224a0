"""A comparison as a person reads it: tables for the terminal, one figure, one self-contained HTML file.

Reads records and never trains. Only the HTML and the figure need matplotlib; `show` uses rich where it is installed.
"""

import base64
import html as escape
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metalr.compare import selection
from metalr.compare.calibrated import NAME as CALIBRATED
from metalr.compare.comparison import Comparison
from metalr.compare.contenders import Kind
from metalr.compare.run_record import Phase
from metalr.compare.selection import Criterion
from metalr.files import write_whole
from metalr.reports import figures, tables, text_table
from metalr.reports.text_table import Grid


def all_grids(comparison: Comparison) -> list[Grid]:
    """Every table of a comparison, task by task, as far as it has got."""
    found = []
    for task in comparison.tasks:
        part = _part(comparison, task)
        if _reached(part, task, "report"):
            found += [tables.result_grid(part, task, criterion) for criterion in Criterion]
        if _reached(part, task, "wrong-base"):
            found += _wrong_base_grids(part, task)
        if _reached(part, task, "report"):
            found += [tables.price_grid(part, task), tables.time_grid(part, task)]
    return found + _average_grids(comparison)


def _part(comparison: Comparison, task: str) -> Comparison:
    """The comparison with the records of one task: tables look through all of them many times."""
    return replace(comparison, records=[record for record in comparison.records if record.task == task])


def _average_grids(comparison: Comparison) -> list[Grid]:
    """The averages over several tasks, once all of them are finished."""
    if len(comparison.tasks) < 2 or not all(_reached(comparison, task, "report") for task in comparison.tasks):
        return []
    return [tables.average_grid(comparison, criterion) for criterion in Criterion]


def _wrong_base_grids(comparison: Comparison, task: str) -> list[Grid]:
    shown = [tables.LOSS, tables.REGRET]
    if selection.untuned_runs(comparison.records, task, CALIBRATED):
        shown.append(tables.OVER_CALIBRATED)
    return [tables.wrong_base_grid(comparison, task, shown=column) for column in shown]


def _reached(comparison: Comparison, task: str, phase: Phase) -> bool:
    """Whether a comparison that may have been stopped has records of a phase, and the reference to read them by."""
    if not selection.contenders_of(comparison.records, task, phase):
        return False
    reported = {record.seed for record in selection.select(comparison.records, task=task, phase=phase)}
    references = [selection.tuned_best_runs(comparison.records, task, criterion) for criterion in Criterion]
    return all(reported <= {run.seed for run in runs} for runs in references)


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


def settings_line(comparison: Comparison) -> str:
    """One sentence about the budget."""
    s = comparison.settings
    more = f", {s.extension} more for everyone where a best LR lies on an edge" if s.extension else ""
    return (
        f"{s.trials} trials for each tuned contender over its LR (x{s.lr_range[0]:.3g} to x{s.lr_range[1]:.3g} of the "
        f"base LR) and its parameters{more}; {s.tuning_seeds} tuning seeds, {s.report_seeds} fresh seeds."
    )


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
        console.print("\n", text_table.as_rich(grid, width))


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


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #1b1b1b; }
h1 { font-size: 1.5em; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; } h3 { margin-bottom: .4em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: right; padding: 3px 10px; white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #555; }
tbody tr:nth-child(even) { background: #f6f6f6; } tr.marked { font-weight: 600; background: #e3f0fa !important; }
.note { color: #555; font-size: 13px; margin: .4em 0; } img { max-width: 100%; } pre { font-size: 12px; }
details { margin: 1em 0; }
"""


def html(comparison: Comparison, path: str | Path) -> Path:
    """Write one HTML file with every table, figure and setting; it needs no network and no other file.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    title = f"Comparison on {', '.join(comparison.tasks)}"
    parts = [f"<h1>{escape.escape(title)}</h1>", f"<p>{escape.escape(settings_line(comparison))}</p>"]
    for task in comparison.tasks:
        parts += [f"<h2>{escape.escape(task)}</h2>", *_task_parts(_part(comparison, task), task)]
    if all(_reached(comparison, task, "report") for task in comparison.tasks):
        parts += ["<h2>All tasks</h2>", *map(text_table.as_html, _average_grids(comparison))]
        parts += [_picture(figures.profile_figure(comparison, criterion)) for criterion in Criterion]
        parts.append(_picture(figures.time_profile_figure(comparison)))
    parts += ["<h2>Every setting</h2>", _json(comparison.config), "<h2>Every trial</h2>", *_trials(comparison)]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape.escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, page)
    return target


def _task_parts(comparison: Comparison, task: str) -> list[str]:
    if not _reached(comparison, task, "report"):
        return ["<p>Not finished.</p>"]
    parts = [text_table.as_html(tables.result_grid(comparison, task, criterion)) for criterion in Criterion]
    parts.append(_picture(figures.curves_figure(comparison, task)))
    if _reached(comparison, task, "wrong-base"):
        parts.append(_picture(figures.regret_figure(comparison, task)))
        parts += map(text_table.as_html, _wrong_base_grids(comparison, task))
        learned = selection.select(comparison.records, task=task, kind=Kind.LEARNED, phase="wrong-base")
        names = dict.fromkeys(record.contender for record in learned)
        parts += [_picture(figures.repair_figure(comparison, name, task)) for name in names]
    return [*parts, *map(text_table.as_html, (tables.price_grid(comparison, task), tables.time_grid(comparison, task)))]


def _picture(drawn: Any) -> str:
    # As an image rather than inline markup: the ids inside two SVGs would collide in one page.
    data = base64.b64encode(figures.to_svg(drawn).encode()).decode()
    return f'<p><img alt="figure" src="data:image/svg+xml;base64,{data}"></p>'


def _json(value: Any) -> str:
    return (
        f"<details open><summary>config.json</summary><pre>{escape.escape(json.dumps(value, indent=2))}</pre></details>"
    )


def _trials(comparison: Comparison) -> list[str]:
    """Score of every trial, folded away: the search is published with the result."""
    parts = []
    for task in comparison.tasks:
        part = _part(comparison, task)
        for name in selection.contenders_of(part.records, task, "tuning"):
            grid = tables.trials_grid(part, task, name)
            parts.append(f"<details><summary>{escape.escape(grid.title)}</summary>{text_table.as_html(grid)}</details>")
    return parts
