"""A chart as data: lines with their bands, and axes. `figures` draws it with matplotlib, `svg` as inline SVG."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Dash = Literal["solid", "dashed", "dotted"]

# Okabe and Ito's palette without yellow: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A", "#7F7F7F")
# For lines that are no contenders: from purple over blue, green and yellow to red.
SCALE = ("#8A6FE8", "#4C9BE8", "#2FB3A0", "#D9A514", "#E4633B")
# The colour of text, on whatever background.
INK = "ink"


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        name: in the legend.
        x, y: `(num_points,)`.
        colour: `#rrggbb`, or `INK`.
        low, high: of the band around it, `(num_points,)`; None for no band.
        width: 1.5, or 2.6 for one to look at.
        dash: how it is drawn.
        marked: whether its points are.
    """

    name: str
    x: Array
    y: Array
    colour: str
    low: Array | None = None
    high: Array | None = None
    width: float = 1.5
    dash: Dash = "solid"
    marked: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines on common axes.

    Attributes:
        title: what it shows; it also stands in for the picture where that cannot be seen.
        lines: the first drawn first.
        x_label, y_label: of the axes.
        x_log, y_log: whether they are logarithmic.
        decades: at most so many powers of ten are shown, counted from the top, since a schedule that ends at 0 would
            squeeze everything else into a corner.
        y_limits: of the axis; None fits the lines.
        x_ticks: where the axis is labelled; None for round numbers.
    """

    title: str
    lines: tuple[Line, ...]
    x_label: str
    y_label: str
    x_log: bool = False
    y_log: bool = False
    decades: float = 6.0
    y_limits: tuple[float, float] | None = None
    x_ticks: tuple[float, ...] | None = None


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name; beyond the palette they go round the colour wheel, no two alike.

    Example:
        >>> colours(["ppo", "cosine"])
        {'ppo': '#0072B2', 'cosine': '#D55E00'}
    """
    found = {}
    for index, name in enumerate(dict.fromkeys(names)):
        if index < len(COLOURS):
            found[name] = COLOURS[index]
        else:
            channels = colorsys.hls_to_rgb(0.61803 * index % 1.0, 0.42 + 0.12 * (index % 2), 0.45)
            found[name] = "#" + "".join(f"{round(255 * channel):02X}" for channel in channels)
    return found
