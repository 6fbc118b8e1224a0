"""The LR range test and the Bayesian search find what is known: the stable LR of a quadratic, a good LR of a net."""

import sys
from pathlib import Path

import numpy as np
import pytest

from metalr.compare.bayesian import search
from metalr.compare.catalog import get_contender
from metalr.reports.lr_range_test import find_lr, save_figure
from metalr.tasks.catalog import make_task


def test_the_quadratics_limit_of_stability_bounds_the_suggestion() -> None:
    # The loss (w + 1)² is stable below lr 1 and falls fastest at 0.5.
    curve = find_lr(make_task("quadratic"), num_seeds=2)
    assert 0.05 < curve.steepest <= curve.suggestion <= curve.lowest < 1.0
    assert np.all(np.diff(curve.lr) > 0.0)


def test_the_suggestion_trains_a_network_about_as_well_as_the_best_lr() -> None:
    task = make_task("teacher-student", width=8, horizon=60)
    curve = find_lr(task)
    assert task.base_lr / 10.0 < curve.suggestion < task.base_lr * 10.0
    middle = np.isfinite(curve.loss)
    assert np.all(curve.low[middle] <= curve.loss[middle])
    assert np.all(curve.loss[middle] <= curve.high[middle])
    assert np.isnan(curve.loss[-1])  # at 1000 times the base LR nothing is left


def test_the_suggestion_lies_halfway_between_the_steepest_fall_and_the_lowest_loss() -> None:
    for curve in (find_lr(make_task("quadratic"), num_seeds=2), find_lr(make_task("teacher-student", width=8))):
        assert curve.steepest < curve.suggestion < curve.lowest
        assert curve.suggestion == pytest.approx((curve.steepest * curve.lowest) ** 0.5)
        assert curve.lowest == curve.lr[np.nanargmin(curve.loss)]
        fall = np.diff(np.log(curve.loss))[: int(np.nanargmin(curve.loss))]
        assert abs(int(np.argmin(fall)) - int(np.searchsorted(curve.lr, curve.steepest))) <= 1


def test_the_curve_is_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = save_figure(find_lr(make_task("quadratic"), num_seeds=2), tmp_path / "deep" / "lr.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_bad_ranges_are_explained() -> None:
    task = make_task("quadratic")
    with pytest.raises(ValueError, match="0 < low < high"):
        find_lr(task, lr_range=(1.0, 0.1))
    with pytest.raises(ValueError, match="lowers the loss"):
        find_lr(task, lr_range=(1e-9, 1e-8))
    with pytest.raises(ValueError, match="got 0 trials"):
        search(task, get_contender("cosine"), num_trials=0)


def test_a_search_finds_a_good_lr_and_is_repeatable() -> None:
    pytest.importorskip("optuna")
    task = make_task("quadratic", horizon=2)
    seen: list[int] = []
    found = search(task, get_contender("constant"), num_trials=8, progress=lambda done, total, name: seen.append(done))
    # lr 0.5 solves the quadratic in one step; the base LR is 0.2. No loss counts below 1e-3 of the untrained 36.
    assert found.best.score == pytest.approx(0.036)
    assert 0.3 < found.best.base_lr < 0.7
    assert seen == list(range(1, 9))
    assert found == search(task, get_contender("constant"), num_trials=8)


def test_a_search_survives_divergence_and_stays_in_the_space() -> None:
    pytest.importorskip("optuna")
    found = search(make_task("quadratic", horizon=20), get_contender("step"), num_trials=6, lr_range=(1.0, 1000.0))
    space = get_contender("step").space
    for trial in found.trials:
        assert all(space[name].low <= value <= space[name].high for name, value in trial.parameters.items())
    assert any(trial.score == pytest.approx(36.0) for trial in found.trials)  # the untrained loss: all runs diverged
    assert found.best.score < 36.0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'metalr\[hpo\]'"):
        search(make_task("quadratic"), get_contender("cosine"), num_trials=1)
