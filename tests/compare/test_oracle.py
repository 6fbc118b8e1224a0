"""Oracle curves: interpolation against numpy, the curve of a quadratic in closed form, divergence, floors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalr.compare.oracle import LOSS_FLOOR, Grid, OracleCurve, oracle_curve, regret_at
from metalr.control.loop import EVERYTHING, Known
from metalr.schedules import Constant
from metalr.signals.observations import feature
from metalr.tasks.catalog import make_task

GRID = Grid(num_lrs=9, decades=2.0, seeds=(0, 1))


def curve_of(values: list[list[float]]) -> OracleCurve:
    log_loss = torch.tensor(values, dtype=torch.float64)
    log_lrs = torch.linspace(-3.0, 0.0, len(log_loss), dtype=torch.float64)
    return OracleCurve(log_lrs, log_loss, torch.zeros_like(log_loss, dtype=torch.bool))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.0, 4.0), min_size=2, max_size=9), st.floats(-8.0, 8.0), st.floats(0.1, 2.0))
def test_the_regret_between_two_lrs_is_numpys_interpolation(values: list[float], place: float, spacing: float) -> None:
    start, curve = -1.5, torch.tensor([values], dtype=torch.float64)
    at = start + place * spacing
    grid = start + spacing * np.arange(len(values))
    beyond = max(grid[0] - at, at - grid[-1], 0.0)
    got = regret_at(curve, torch.tensor([[start]]), torch.tensor([[spacing]]), torch.tensor([[at]])).item()
    assert got == pytest.approx(np.interp(at, grid, values) + 0.7 * beyond, abs=1e-4)


def test_the_regret_falls_towards_the_best_lr_from_everywhere() -> None:
    log_lr = torch.linspace(-2.0, 6.0, 33)[None].requires_grad_()
    curve, zero, one = torch.tensor([[3.0, 1.0, 0.0, 2.0, 4.0]]), torch.zeros(1, 1), torch.ones(1, 1)
    regret_at(curve, zero, one, log_lr).sum().backward()
    assert log_lr.grad is not None
    away = log_lr.detach() - 2.0
    assert ((log_lr.grad * away > 0.0) | (away == 0.0)).all()


def test_regrets_mix_a_seeds_own_curve_with_the_mean() -> None:
    regrets = curve_of([[2.0, 4.0], [1.0, 1.0], [9.0, 0.0]]).regrets(own=0.5)
    # Means 3, 1, 4.5: seed 0 has 2.5, 1, 6.75 and seed 1 has 3.5, 1, 2.25.
    assert regrets.tolist() == [[1.5, 0.0, 4.0], [2.5, 0.0, 1.25]]


def test_the_curve_of_a_quadratic_is_that_of_its_closed_form() -> None:
    task = make_task("quadratic", horizon=20)
    curve, episode = oracle_curve(task, GRID, Constant(), known=EVERYTHING)
    # Gradient descent on (w + 1)² from w = 5: w + 1 is multiplied by 1 - 2 lr at every update.
    for log_lr, losses in zip(curve.log_lrs.tolist(), curve.log_loss.tolist(), strict=True):
        factor = abs(1.0 - 2.0 * math.exp(log_lr))
        expected = math.log(max(36.0 * factor**40, LOSS_FLOOR * 36.0)) if factor < 1.0 else math.log(36.0)
        assert losses == pytest.approx([expected] * 2, abs=1e-4)
    assert curve.best_log_lr == curve.log_lrs[curve.best_index].item()
    assert (episode.multipliers == 1.0).all()


def test_a_diverged_run_counts_as_untrained() -> None:
    curve, _ = oracle_curve(make_task("quadratic", horizon=40), GRID, Constant(), known=EVERYTHING)
    assert curve.diverged.any()
    assert curve.log_loss[curve.diverged].tolist() == pytest.approx([math.log(36.0)] * int(curve.diverged.sum()))


def test_hidden_losses_are_hidden_and_change_no_curve() -> None:
    task = make_task("quadratic", horizon=20)
    shown, episode = oracle_curve(task, GRID, Constant(), known=EVERYTHING)
    hidden, blind = oracle_curve(task, GRID, Constant(), known=Known(loss=0.0))
    assert torch.equal(shown.log_loss, hidden.log_loss)
    assert (feature(episode.observations, "has_loss") == 1.0).all()
    assert (feature(blind.observations, "has_loss") == 0.0).all()
