"""Charts as inline SVG, with the numbers behind them for a page's script to show under the pointer.

Colours of text and axes are those of the page, so a chart follows its light or dark dress.
"""

import html
import json
import math
from collections.abc import Sequence

import numpy as np

from metalr.reports.chart import INK, Array, Chart, Line

_WIDTH, _HEIGHT = 640.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 66.0, 10.0, 10.0, 44.0
_DASHES = {"solid": "", "dashed": "8 4", "dotted": "2 4"}
# Points of a line that the page holds; a screen shows no more.
_MOST_POINTS = 160


class _Axis:
    """A linear or logarithmic map of values to pixels.

    Args:
        low, high: values at the ends.
        start, stop: pixels there.
        log: whether it is logarithmic.
    """

    def __init__(self, low: float, high: float, start: float, stop: float, log: bool) -> None:
        self.low, self.high, self.start, self.stop, self.log = low, high, start, stop, log

    def at(self, value: float) -> float:
        """The pixel of a value; values beyond the ends are put there."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, self._inside(value)))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def _inside(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def ticks(self) -> list[float]:
        """A few round values."""
        if not self.log:
            step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4.0))
            step *= next(factor for factor in (1.0, 2.0, 5.0, 10.0) if (self.high - self.low) / (step * factor) <= 6.0)
            first = math.ceil(self.low / step - 1e-9)
            return [step * index for index in range(first, math.floor(self.high / step + 1e-9) + 1)]
        decades = math.log10(self.high / self.low)
        steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1.0 else (1.0, 2.0, 5.0) if decades < 2.0 else (1.0,)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        every = max(round(decades / 5.0), 1)
        found = [step * 10.0**power for power in powers if power % every == 0 for step in steps]
        return [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]


def as_svg(chart: Chart, key: str) -> str:
    """One chart as an `<svg>` element inside a `<figure>` with its legend.

    Args:
        chart: what to draw.
        key: names it in the page; must differ from those of other charts.
    """
    lines = [_thinned(line) for line in chart.lines]
    drawn = [line for line in lines if len(line.x)]
    if not drawn:
        return f"<p class=note>{html.escape(chart.title)}: nothing to draw, since no curves were recorded.</p>"
    x, y = _axes(chart, drawn)
    data = json.dumps(
        {
            "xLabel": chart.x_label,
            "lines": [
                {
                    "name": line.name,
                    "x": [_short(value) for value in line.x],
                    "y": [_short(value) for value in line.y],
                    "px": [round(x.at(value), 1) for value in line.x],
                    "py": [round(y.at(value), 1) for value in line.y],
                }
                for line in drawn
            ],
        }
    ).replace("<", "\\u003c")
    body = [*_frame(chart, x, y), *(part for line in drawn for part in _line(line, x, y))]
    alt = html.escape(_described(chart, drawn))
    return (
        f'<figure class=chart id="{key}"><figcaption>{html.escape(chart.title)}</figcaption>\n'
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{alt}">\n{"".join(body)}\n'
        f'<line class=pointer y1="{_TOP:g}" y2="{_HEIGHT - _BOTTOM:g}" hidden></line></svg>\n'
        f"{_legend(drawn)}<div class=readout hidden></div>\n"
        f'<script type="application/json">{data}</script></figure>'
    )


def _thinned(line: Line) -> Line:
    keep = np.isfinite(line.x) & np.isfinite(line.y)
    index = np.flatnonzero(keep)
    if len(index) > _MOST_POINTS:
        index = index[np.unique(np.linspace(0, len(index) - 1, _MOST_POINTS).round().astype(int))]

    def part(values: Array | None) -> Array | None:
        return None if values is None else np.asarray(values, dtype=np.float64)[index]

    band = (part(line.low), part(line.high))
    return Line(line.name, line.x[index], line.y[index], line.colour, *band, line.width, line.dash, line.marked)


def _axes(chart: Chart, lines: Sequence[Line]) -> tuple[_Axis, _Axis]:
    every_x = np.concatenate([line.x for line in lines])
    values = [line.y for line in lines]
    if not chart.y_log:  # the band of one bad contender spans so many decades that it would flatten every line
        values += [v for line in lines for v in (line.low, line.high) if v is not None]
    every_y = np.concatenate(values)
    every_y = every_y[np.isfinite(every_y)]
    x_low, x_high = float(every_x.min()), float(every_x.max())
    if not chart.x_log:
        x_low = min(x_low, 0.0)
    if chart.y_limits is not None:
        y_low, y_high = chart.y_limits
    elif chart.y_log:
        positive = every_y[every_y > 0.0]
        y_high = float(positive.max()) * 1.1 if len(positive) else 1.0
        y_low = max(float(positive.min()) / 1.1 if len(positive) else 0.1, y_high / 10.0**chart.decades)
    else:
        spread = max(float(np.ptp(every_y)), 1e-3)
        y_low, y_high = float(every_y.min()) - 0.04 * spread, float(every_y.max()) + 0.04 * spread
    if x_high <= x_low:
        x_low, x_high = (x_low / 2.0, 2.0 * x_high) if chart.x_log else (x_low - 1.0, x_high + 1.0)
    return (
        _Axis(x_low, x_high, _LEFT, _WIDTH - _RIGHT, chart.x_log),
        _Axis(y_low, y_high, _HEIGHT - _BOTTOM, _TOP, chart.y_log),
    )


def _frame(chart: Chart, x: _Axis, y: _Axis) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in chart.x_ticks or x.ticks():
        at = x.at(value)
        parts.append(f'<line class=grid x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP:g}" y2="{bottom:g}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 17:g}" text-anchor="middle">{_short(value)}</text>')
    for value in y.ticks():
        at = y.at(value)
        parts.append(f'<line class=grid x1="{_LEFT:g}" x2="{right:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7:g}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle:g}" y="{_HEIGHT - 8:g}" text-anchor="middle">{html.escape(chart.x_label)}</text>')
    height = (_TOP + bottom) / 2
    label = html.escape(chart.y_label)
    parts.append(f'<text transform="translate(13 {height:g}) rotate(-90)" text-anchor="middle">{label}</text>')
    parts.append(f'<path class=axis d="M{_LEFT:g} {_TOP:g}V{bottom:g}H{right:g}"/>')
    return parts


def _line(line: Line, x: _Axis, y: _Axis) -> list[str]:
    colour = _css(line.colour)
    px = [x.at(value) for value in line.x]
    points = " ".join(f"{a:.1f},{y.at(b):.1f}" for a, b in zip(px, line.y, strict=True))
    parts = []
    if line.low is not None and line.high is not None:
        low, high = np.nan_to_num(line.low, nan=y.low), np.nan_to_num(line.high, nan=y.high)
        there = [f"{a:.1f},{y.at(b):.1f}" for a, b in zip(px, high, strict=True)]
        back = [f"{a:.1f},{y.at(b):.1f}" for a, b in zip(px, low, strict=True)]
        parts.append(f'<polygon points="{" ".join(there + back[::-1])}" style="fill:{colour};opacity:.13"/>')
    dash = f";stroke-dasharray:{_DASHES[line.dash]}" if _DASHES[line.dash] else ""
    parts.append(f'<polyline points="{points}" style="stroke:{colour};stroke-width:{line.width:g}{dash}"/>')
    if line.marked:
        dots = (f'<circle cx="{a:.1f}" cy="{y.at(b):.1f}" r="3"/>' for a, b in zip(px, line.y, strict=True))
        parts.append(f'<g style="fill:{colour}">{"".join(dots)}</g>')
    return parts


def _css(colour: str) -> str:
    return "currentColor" if colour == INK else colour


def _legend(lines: Sequence[Line]) -> str:
    entries = "".join(
        f'<span><i style="border-top:{max(line.width, 2.0):g}px {line.dash} {_css(line.colour)}"></i>'
        f"{html.escape(line.name)}</span>"
        for line in lines
    )
    return f"<p class=legend>{entries}</p>\n"


def _described(chart: Chart, lines: Sequence[Line]) -> str:
    ends = ", ".join(f"{line.name} {_short(line.y[0])} to {_short(line.y[-1])}" for line in lines)
    return f"{chart.title}. {chart.y_label} against {chart.x_label}, first to last value: {ends}."


def _short(value: float) -> str:
    return f"{float(value):.4g}"
