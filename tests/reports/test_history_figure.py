"""The picture of a run shows LR, multiplier, loss and breaker as they were."""

import math

import pytest

from metalr.reports.history_figure import loss_ratio, plot_history
from metalr.schedulers.learned_lr import LearnedLR
from tests.support.policies import moderate_policy
from tests.support.schedulers_under_test import HORIZON, Training

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("group", [0, 1])
def test_the_lr_is_the_one_in_force(group):
    training = Training()
    scheduler = LearnedLR(training.optimizer, moderate_policy(), HORIZON, scope="param_group")
    used = training.run(scheduler)
    line = plot_history(scheduler, group).axes[0].get_lines()[0]
    assert list(line.get_xdata()) == list(range(HORIZON))
    assert list(line.get_ydata()) == pytest.approx([lrs[group] for lrs in used], rel=1e-9)


def test_the_loss_is_the_mean_of_each_interval():
    training = Training()
    scheduler = LearnedLR(training.optimizer, moderate_policy(), HORIZON)
    losses = []
    for update in range(HORIZON):
        losses.append(1.0 if update == 0 else 0.5 + 0.01 * update)
        training.loss()
        scheduler.observe(losses[-1])
        training.optimizer.step()
        scheduler.step()
    line = plot_history(scheduler).axes[2].get_lines()[0]
    assert list(line.get_xdata()) == [0, 5, 9, 14, 18]
    shown = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    first, second = (math.prod(losses[a:b]) ** (1.0 / (b - a)) for a, b in ((9, 14), (14, 18)))
    assert shown[18] / shown[14] == pytest.approx(second / first, rel=1e-6)


def test_the_breaker_is_marked():
    training = Training()
    scheduler = LearnedLR(training.optimizer, moderate_policy(), HORIZON)
    training.run(scheduler, 7)
    assert not plot_history(scheduler).legends
    scheduler.observe(float("inf"))
    with pytest.warns(UserWarning, match="exploded"):
        training.run(scheduler, 5)
    figure = plot_history(scheduler)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["the breaker cut the LR"]
    for axis in figure.axes:
        assert list(axis.get_lines()[-1].get_xdata()) == [9, 9]


def test_without_losses_there_is_no_line_of_them():
    training = Training()
    scheduler = LearnedLR(training.optimizer, moderate_policy(), HORIZON)
    for _ in range(6):
        training.loss()
        training.optimizer.step()
        scheduler.step()
    figure = plot_history(scheduler)
    figure.canvas.draw()
    assert len(figure.axes[2].get_lines()[0].get_xdata()) == 0


def test_before_any_decision_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="has not decided yet"):
        plot_history(LearnedLR(Training().optimizer, moderate_policy(), HORIZON))


def test_ratios():
    for ratio in (1e-3, 0.5, 1.0, 7.0):
        log = math.log(ratio)
        assert loss_ratio(log / (1.0 + abs(log))) == pytest.approx(ratio)
    assert math.isnan(loss_ratio(1.0))
