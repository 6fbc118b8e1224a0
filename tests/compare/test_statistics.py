"""Closed forms, invariances, and agreement with scipy and rliable where they are installed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalr.compare import statistics
from metalr.compare.statistics import Interval

losses = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30)


def test_interquartile_mean_by_hand() -> None:
    assert statistics.interquartile_mean([5.0]) == 5.0
    assert statistics.interquartile_mean([0.0, 1.0, 2.0, 1e9]) == 1.5
    assert statistics.interquartile_mean(range(10)) == 4.5  # two cut off at each end
    assert statistics.interquartile_mean([1.0, 1.0, 1.0, math.inf]) == 1.0
    assert statistics.interquartile_mean([1.0, math.inf, math.inf, math.inf]) == math.inf


def test_worst_decile_by_hand() -> None:
    assert statistics.worst_decile(range(1, 11)) == 10.0
    assert statistics.worst_decile(range(1, 12)) == 10.5
    assert statistics.worst_decile(range(1, 11), lower_is_better=False) == 1.0
    assert statistics.worst_decile([0.0, math.inf]) == math.inf


@settings(deadline=None)
@given(losses)
def test_statistics_lie_between_the_extremes_and_ignore_the_order(values: list[float]) -> None:
    for statistic in (statistics.median, statistics.interquartile_mean, statistics.worst_decile):
        found = float(statistic(values))
        assert min(values) * (1 - 1e-12) <= found <= max(values) * (1 + 1e-12)
        assert float(statistic(values[::-1])) == pytest.approx(found)


@settings(deadline=None)
@given(losses)
def test_interquartile_mean_is_scipys_trimmed_mean(values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert float(statistics.interquartile_mean(values)) == pytest.approx(stats.trim_mean(values, 0.25))


@settings(deadline=None)
@given(losses, st.integers(0, 100))
def test_bootstrap_is_seeded_and_ordered(values: list[float], seed: int) -> None:
    first = statistics.bootstrap(values, repetitions=50, seed=seed)
    assert first == statistics.bootstrap(values, repetitions=50, seed=seed)
    assert min(values) * (1 - 1e-12) <= first.low <= first.high <= max(values) * (1 + 1e-12)


def test_bootstrap_of_the_mean_has_the_normal_width() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = statistics.bootstrap(values, lambda table: table.mean(-1), repetitions=4000)
    expected = 2 * 1.96 * values.std() / math.sqrt(400)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.06)


def test_bootstrap_keeps_tasks_apart() -> None:
    # Each task is constant, so a stratified bootstrap has nothing to vary; one over all scores would.
    table = np.array([[1.0, 100.0]] * 6)
    assert statistics.bootstrap(table, lambda t: t.mean(-1)) == Interval(50.5, 50.5, 50.5)


def test_bootstrap_draws_the_runs_of_each_task_for_themselves() -> None:
    # In every row the two tasks add up to the same, so drawing whole rows would have nothing to vary.
    table = np.array([[1.0, 9.0], [3.0, 7.0], [5.0, 5.0], [8.0, 2.0], [9.0, 1.0]])
    interval = statistics.bootstrap(table, lambda t: t.mean(-1), repetitions=4000)
    variance = (table.var(0).sum() / len(table)) / 4
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.1)


def hierarchy(trained: float, task: float, evaluated: float, shape: tuple = (12, 9, 15)) -> np.ndarray:
    """Scores with a normal effect of these sizes at each level; evaluation seeds are common to all trainings."""
    generator = np.random.default_rng(3)
    by_training = trained * generator.normal(size=(shape[0], 1, 1))
    by_task = task * generator.normal(size=(1, shape[1], 1))
    by_run = evaluated * generator.normal(size=(1, *shape[1:]))
    return by_training + by_task + by_run


@pytest.mark.parametrize("level", ["trained", "task", "evaluated"])
def test_hierarchical_bootstrap_has_the_normal_width_of_the_level_that_varies(level: str) -> None:
    sizes = {"trained": 0.0, "task": 0.0, "evaluated": 0.0, level: 1.0}
    table = hierarchy(**sizes)
    interval = statistics.hierarchical_bootstrap(table, draw_tasks=level == "task", repetitions=3000)
    independent = {"trained": table[:, 0, 0], "task": table[0, :, 0], "evaluated": table[0]}[level]
    if level == "evaluated":  # stratified: the mean of nine tasks, each with its own variance
        width = 2 * 1.96 * math.sqrt((independent.var(1) / 15).sum()) / 9
    else:
        width = 2 * 1.96 * independent.std() / math.sqrt(independent.size)
    assert interval.high - interval.low == pytest.approx(width, rel=0.1)
    assert interval.value == pytest.approx(table.mean())


def test_hierarchical_bootstrap_sees_the_training_seeds_and_one_over_evaluation_seeds_does_not() -> None:
    table = hierarchy(1.0, 0.0, 0.1, shape=(5, 1, 10))
    whole = statistics.hierarchical_bootstrap(table, draw_tasks=False)
    one = statistics.bootstrap(table[0, 0], lambda values: values.mean(-1))
    assert whole.high - whole.low > 3 * (one.high - one.low)
    assert whole == statistics.hierarchical_bootstrap(table, draw_tasks=False)
    assert whole != statistics.hierarchical_bootstrap(table, draw_tasks=False, seed=1)


def test_hierarchical_bootstrap_wants_five_training_seeds() -> None:
    with pytest.raises(ValueError, match=r"got scores of shape \(4, 2, 3\).*at least 5 training seeds"):
        statistics.hierarchical_bootstrap(np.ones((4, 2, 3)))
    with pytest.raises(ValueError, match="training seeds, tasks, evaluation seeds"):
        statistics.hierarchical_bootstrap(np.ones((5, 3)))


def test_a_failure_gives_infinite_bounds_and_never_nan() -> None:
    interval = statistics.bootstrap([1.0, 1.1, 1.2, math.inf], statistics.median)
    assert interval.value == pytest.approx(1.15)
    assert interval.high == math.inf
    assert not any(map(math.isnan, interval))
    assert statistics.bootstrap([math.inf] * 3) == Interval(math.inf, math.inf, math.inf)


def test_paired_statistics() -> None:
    assert statistics.paired_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == pytest.approx((2.0, 2.0, 2.0))
    assert statistics.paired_difference([3.0, 5.0], [1.0, 3.0]) == Interval(2.0, 2.0, 2.0)
    assert statistics.paired_ratio([math.inf] * 2, [math.inf] * 2).value == 1.0
    assert statistics.paired_ratio([math.inf] * 2, [1.0] * 2).value == math.inf
    assert statistics.paired_difference([math.inf] * 2, [math.inf] * 2).value == 0.0
    with pytest.raises(ValueError, match="compare the same seeds"):
        statistics.paired_ratio([1.0], [1.0, 2.0])


def test_regret_is_floored_and_counts_failures() -> None:
    found = statistics.regret([math.e, 0.5, math.inf], [1.0, 1.0, 1.0])
    assert found.tolist() == pytest.approx([1.0, 0.0, math.inf])
    assert statistics.regret([0.0], [0.0]).tolist() == [0.0]
    with pytest.raises(ValueError, match="negative losses"):
        statistics.regret([-1.0], [1.0])


def test_probability_of_improvement_by_hand() -> None:
    found = statistics.probability_of_improvement([1.0, 3.0], [2.0, 3.0])
    assert found.value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert statistics.probability_of_improvement([1.0], [2.0], lower_is_better=False).value == 0.0


@settings(deadline=None)
@given(losses, losses)
def test_probabilities_of_both_directions_add_up_to_one(first: list[float], second: list[float]) -> None:
    a = statistics.probability_of_improvement(first, second, repetitions=1).value
    b = statistics.probability_of_improvement(second, first, repetitions=1).value
    assert a + b == pytest.approx(1.0)


def test_time_to_target() -> None:
    curves = [[3.0, 1.0, 2.0], [math.nan, math.nan, math.nan], [3.0, 3.0, 1.5]]
    assert statistics.time_to_target([10, 20, 30], curves, 1.5).tolist() == [20.0, math.inf, 30.0]
    with pytest.raises(ValueError, match="equally many"):
        statistics.time_to_target([10, 20], curves, 1.5)


def test_performance_profile_by_hand() -> None:
    costs = [[1.0, 6.0, math.inf], [2.0, 2.0, math.inf]]
    assert statistics.performance_profile(costs, [1.0, 2.0, 3.0]).tolist() == [
        pytest.approx([1 / 3, 1 / 3, 2 / 3]),
        pytest.approx([1 / 3, 2 / 3, 2 / 3]),
    ]
    with pytest.raises(ValueError, match="positive numbers"):
        statistics.performance_profile([[0.0]], [1.0])


def test_score_profile() -> None:
    assert statistics.score_profile([1.0, 2.0, math.inf], [0.5, 1.0, 5.0]).tolist() == pytest.approx([0, 1 / 3, 2 / 3])


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match="run at least one seed"):
        statistics.median([])
    with pytest.raises(ValueError, match="count a failed run as infinite"):
        statistics.interquartile_mean([math.nan])
    with pytest.raises(ValueError, match="repetitions"):
        statistics.bootstrap([1.0], repetitions=0)


def test_rliable_agrees() -> None:
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    scores, other = (np.random.default_rng(seed).lognormal(size=(12, 3)) for seed in (1, 2))
    ours = statistics.bootstrap(scores, repetitions=4000)
    assert ours.value == pytest.approx(metrics.aggregate_iqm(scores), rel=1e-12)
    ours_better = statistics.probability_of_improvement(scores, other, lower_is_better=False).value
    assert ours_better == pytest.approx(metrics.probability_of_improvement(scores, other))
    try:
        _, intervals = library.get_interval_estimates(
            {"ours": scores}, lambda table: np.array([metrics.aggregate_iqm(table)]), reps=4000
        )
    except TypeError as error:  # rliable 1.2 with arch 6 or newer
        pytest.skip(f"rliable cannot call the bootstrap library that is installed: {error}")
    # Its bootstrap has a seed of its own, hence the loose bound.
    assert (ours.low, ours.high) == pytest.approx(tuple(intervals["ours"].ravel()), rel=0.05)
