"""The picture of a run shows the decisions that were taken."""

import pytest

from metalr.control.actions import ActionSpec
from metalr.control.reference import ScheduleController
from metalr.reports import decision_figure
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Constant, Cosine
from tests.support.policies import moderate_policy, random_policy
from tests.support.schedulers_under_test import HORIZON, Training

pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a scheduler's decisions; the two axes and the legend."""
    kept = []

    def panels(count):
        figure, axes = original(count)
        kept.append((figure, axes))
        return figure, axes

    original = decision_figure.panels
    monkeypatch.setattr(decision_figure, "panels", panels)

    def draw(scheduler, **options):
        path = decision_figure.draw_decisions(scheduler, tmp_path / "figure.png", **options)
        assert path.read_bytes().startswith(b"\x89PNG")
        figure, (left, right) = kept[-1]
        return left, right, [text.get_text() for text in figure.legends[0].get_texts()]

    return draw


def trained(controller=None, updates=HORIZON, **options) -> LearnedLR:
    training = Training()
    scheduler = LearnedLR(training.optimizer, controller or moderate_policy(), HORIZON, **options)
    training.run(scheduler, updates)
    return scheduler


@pytest.mark.parametrize("group", [0, 1])
def test_what_it_did(drawn, group):
    scheduler = trained(scope="param_group")
    left, _, _ = drawn(scheduler, group=group)
    multipliers = [entry["lr_multiplier"][group] for entry in scheduler.history]
    line = left.get_lines()[0]
    assert list(line.get_xdata()) == [0, 5, 9, 14, 18, HORIZON]
    assert list(line.get_ydata()) == [*multipliers, multipliers[-1]]
    assert [line.get_ydata()[0] for line in left.get_lines()[1:]] == [1.0]
    low, high = left.get_ylim()
    assert 0.05 < low < min(multipliers)
    assert max(multipliers) < high < 20.0


def test_bounds_that_are_near_are_shown(drawn):
    near = random_policy(ActionSpec(alpha=0.1, low=0.5, high=2.0), scales=(0.3, 0.2))
    left, _, _ = drawn(trained(near))
    assert [line.get_ydata()[0] for line in left.get_lines()[1:]] == [1.0, 0.5, 2.0]
    low, high = left.get_ylim()
    assert low < 0.5
    assert high > 2.0


def test_what_it_saw(drawn):
    scheduler = trained()
    _, right, legend = drawn(scheduler, features=("loss_total", "progress"))
    assert legend == ["loss_total", "progress"]
    for name, line in zip(legend, right.get_lines(), strict=True):
        assert list(line.get_ydata()) == [entry["features"][name][0] for entry in scheduler.history]
    assert [round(float(x), 3) for x in right.get_lines()[1].get_ydata()] == [0.0, 0.217, 0.391, 0.609, 0.783]


def test_the_features_shown_first_exist(drawn):
    assert tuple(drawn(trained())[2]) == decision_figure.SHOWN


def test_a_schedule_has_no_bounds(drawn):
    left, _, _ = drawn(trained(ScheduleController(Cosine(floor=0.1), 5)))
    assert [line.get_ydata()[0] for line in left.get_lines()] == [1.0, 1.0]


def test_an_unknown_horizon_ends_at_the_last_decision(drawn):
    training = Training()
    policy = moderate_policy().with_schedule(Constant())
    scheduler = LearnedLR(training.optimizer, policy, None, steps_per_action=4)
    training.run(scheduler, 12)
    left, _, _ = drawn(scheduler)
    assert list(left.get_lines()[0].get_xdata()) == [0, 4, 8, 12, 12]
