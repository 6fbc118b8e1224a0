"""The picture of schedules shows their values."""

import numpy as np
import pytest

from metalr import reports
from metalr.schedules import Cosine, Linear, Warmup

pytest.importorskip("matplotlib")


def test_values_and_labels():
    figure = reports.plot(Cosine(), mine=Warmup(Linear(), length=0.1))
    cosine, mine = figure.axes[0].get_lines()
    progress = cosine.get_xdata()
    assert (progress[0], progress[-1]) == (0.0, 1.0)
    assert np.allclose(cosine.get_ydata(), 0.5 + 0.5 * np.cos(np.pi * progress))
    assert mine.get_ydata()[100] == pytest.approx(Warmup(Linear(), length=0.1)(0.1))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Cosine(floor=0.0)", "mine"]


def test_units():
    axis = reports.plot(Linear(), base_lr=0.2, horizon=50).axes[0]
    (line,) = axis.get_lines()
    assert (line.get_xdata()[-1], line.get_ydata()[0], line.get_ydata()[-1]) == (50.0, 0.2, 0.0)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("optimizer updates", "learning rate")


def test_misuse():
    with pytest.raises(ValueError, match="got 0 schedules, expected 1 to 8"):
        reports.plot()
    with pytest.raises(ValueError, match="got 9 schedules"):
        reports.plot(*[Cosine()] * 9)
