"""A comparison as one HTML page, with headline, contents, tables, charts and settings, that fetches nothing."""

import html as escape
import json
from collections.abc import Mapping
from typing import Any

from metalr.compare import selection
from metalr.compare.comparison import Comparison
from metalr.compare.contenders import Kind
from metalr.compare.selection import Criterion
from metalr.reports import comparison_charts, tables
from metalr.reports.chart import Chart
from metalr.reports.comparison_charts import MAX_LINES
from metalr.reports.page_assets import SCRIPT, STYLE
from metalr.reports.sections import (
    average_grids,
    few_seeds,
    headline,
    learner_grids,
    part_of,
    reached,
    settings_line,
    unfinished,
    wrong_base_grids,
)
from metalr.reports.svg import as_svg
from metalr.reports.text_table import Grid, as_html


def page(comparison: Comparison) -> str:
    """The whole page."""
    return _Page(comparison).text()


class _Page:
    """A page in the making."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.colours = comparison_charts.colours_of(comparison)
        self.charts = 0
        self.sections: list[tuple[str, str, list[str]]] = []

    def text(self) -> str:
        for task in self.comparison.tasks:
            self._add(task, self._task(part_of(self.comparison, task), task))
        self._add("All tasks", self._all_tasks())
        if learners := self._learners():
            self._add("Learners", learners)
        self._add("Every setting", [_folded("config.json", _json(self.comparison.config))])
        self._add("Every trial", self._trials())
        title = f"Comparison on {', '.join(self.comparison.tasks)}"
        links = "".join(f'<li><a href="#{key}">{escape.escape(name)}</a></li>' for key, name, _ in self.sections)
        parts = [
            f"<h1>{escape.escape(title)}</h1>",
            f"<p class=headline>{escape.escape(headline(self.comparison))}</p>",
            f"<p>{escape.escape(settings_line(self.comparison))}</p>",
            f'<nav aria-label="Contents"><ul>{links}</ul></nav>',
            "<p class=note>A click on a column's name sorts its table; a wide one scrolls. Charts show their numbers "
            "under the pointer. A contender has the same colour throughout; learned controllers are in bold type.</p>",
        ]
        for key, name, body in self.sections:
            parts += [f'<h2 id="{key}">{escape.escape(name)}</h2>', *body]
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape.escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
            + "\n".join(parts)
            + f"\n<script>{SCRIPT}</script>\n</body></html>\n"
        )

    def _add(self, name: str, parts: list[str]) -> None:
        self.sections.append((f"section-{len(self.sections)}", name, parts))

    def _task(self, part: Comparison, task: str) -> list[str]:
        if not reached(part, task, "report"):
            return ["<p>Not finished: the same command continues. Its trials so far are at the end of the page.</p>"]
        parts = [self._table(tables.result_grid(part, task, criterion)) for criterion in Criterion]
        shown = comparison_charts.shown_contenders(part, task)
        parts += self._row(comparison_charts.curve_charts(part, task, palette=self.colours))
        parts.append(_left_out(shown, selection.contenders_of(part.records, task)))
        if reached(part, task, "wrong-base"):
            parts += self._row([comparison_charts.regret_chart(part, task, palette=self.colours)])
            drawn = selection.contenders_of(part.records, task, "wrong-base")
            if len(drawn) > MAX_LINES:
                parts.append(_note(f"Drawn are {MAX_LINES} of {len(drawn)} contenders, controllers first."))
            parts += map(self._table, wrong_base_grids(part, task))
            learned = selection.select(part.records, task=task, kind=Kind.LEARNED, phase="wrong-base")
            for name in dict.fromkeys(record.contender for record in learned):
                parts += self._row(comparison_charts.repair_charts(part, name, task))
        elif not self.comparison.settings.factors:
            parts.append(_note("Wrong base LRs are left out: the comparison was made with no factors."))
        else:
            parts.append(_note("Wrong base LRs are left out: their runs are not finished; the same command continues."))
        return [*parts, *map(self._table, (tables.price_grid(part, task), tables.time_grid(part, task)))]

    def _all_tasks(self) -> list[str]:
        waiting = unfinished(self.comparison, "report")
        if len(self.comparison.tasks) < 2:
            return [_note("Averages and profiles over tasks are left out: there is one task.")]
        if waiting:
            return [_note(f"Averages and profiles are left out until these are finished: {', '.join(waiting)}.")]
        charts = [comparison_charts.profile_chart(self.comparison, c, palette=self.colours) for c in Criterion]
        charts.append(comparison_charts.time_profile_chart(self.comparison, self.colours))
        return [*map(self._table, average_grids(self.comparison)), *self._row(charts)]

    def _learners(self) -> list[str]:
        return [*map(self._table, learner_grids(self.comparison)), *map(_note, few_seeds(self.comparison))]

    def _table(self, grid: Grid) -> str:
        return as_html(grid, self.colours)

    def _row(self, charts: list[Chart]) -> list[str]:
        drawn = []
        for chart in charts:
            self.charts += 1
            drawn.append(as_svg(chart, f"chart-{self.charts}"))
        return ["<div class=charts>", *drawn, "</div>"]

    def _trials(self) -> list[str]:
        """Score of every trial, folded away: the search is published with the result."""
        parts = []
        for task in self.comparison.tasks:
            part = part_of(self.comparison, task)
            for name in selection.contenders_of(part.records, task, "tuning"):
                grid = tables.trials_grid(part, task, name)
                parts.append(_folded(grid.title, self._table(grid)))
        return parts


def _left_out(shown: list[str], everyone: list[str]) -> str:
    missing = [name for name in everyone if name not in shown]
    if not missing:
        return ""
    return _note(
        f"Drawn are {len(shown)} of {len(everyone)} contenders: controllers, the tuned best, cosine, constant, then "
        f"others. In the tables only: {', '.join(missing)}."
    )


def _note(sentence: str) -> str:
    return f"<p class=note>{escape.escape(sentence)}</p>"


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape.escape(title)}</summary>{body}</details>"


def _json(value: Mapping[str, Any]) -> str:
    return f"<pre>{escape.escape(json.dumps(value, indent=2))}</pre>"
