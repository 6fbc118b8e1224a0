"""Observations: formulas with numbers, declared bounds under extreme input, scale-freeness, masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalr.signals import observations
from metalr.signals.observations import (
    FEATURE_NAMES,
    FEATURES,
    NUM_FEATURES,
    Context,
    ObservationState,
    feature,
    observe,
    observe_start,
)
from metalr.signals.stats import Prospect, RunStats, UpdateSums, loss_stats, update_stats

NAN, INF = float("nan"), float("inf")
LOSS_FEATURES = [name for name in FEATURE_NAMES if name.startswith(("loss_", "polyak"))]
GRADIENT_FEATURES = [
    "update_ratio",
    *("polyak", "polyak_left", "overshoot", "overshoot_mean", "edge", "edge_mean"),
    *("gradient_cosine", "signal_to_noise", "gradient_total", "gradient_change", "has_gradient"),
]


def cell(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def context(step=50.0, horizon=100.0, multiplier=1.0, has_loss=1.0, has_horizon=1.0) -> Context:
    return Context(cell(step), cell(horizon), cell(multiplier), cell(has_loss), cell(has_horizon))


def stats_of(losses, norm=1.0, cosine=0.5, ratio=1e-3, descent=1e-2, overshoot=0.0, edge=1.0) -> RunStats:
    column = torch.tensor(losses, dtype=torch.float64)[:, None]
    rest = (norm, cosine, ratio, math.log(descent), overshoot, edge)
    return RunStats(*loss_stats(column), *map(cell, rest))


def prospect_of(ratio=0.1, descent=1e-2, loss=1.0) -> Prospect:
    return Prospect(cell(ratio), cell(math.log(descent)), torch.tensor([loss], dtype=torch.float64).log())


def fresh() -> ObservationState:
    return observations.initial_state(cell(0.0))


def named(observation: torch.Tensor) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, observation[0, 0].tolist(), strict=True))


def start_of(prospect: Prospect, **known) -> tuple[dict[str, float], ObservationState]:
    observation, state = observe_start(prospect, fresh(), context(step=0.0, **known))
    return named(observation), state


def features_of(*intervals: RunStats, state=None, steps=None, multipliers=None, **known) -> dict[str, float]:
    """The features after the last of some intervals, which end at the given steps and ran at the given multipliers."""
    state = state or fresh()
    for index, interval in enumerate(intervals):
        if steps is not None:
            known["step"] = steps[index]
        if multipliers is not None:
            known["multiplier"] = multipliers[index]
        observation, state = observe(interval, state, context(**known))
    return named(observation)


def approx(expected):
    return pytest.approx(expected, abs=1e-9)


# Formulas


def test_first_interval():
    losses = stats_of([4.0, 2.0, 1.0], descent=2e-3, overshoot=0.3, edge=3.0)  # L is their geometric mean, 2
    got = features_of(losses, step=25.0, horizon=100.0, multiplier=math.e)
    many = math.log10(1000.0 / 75.0)
    left = 75.0 * math.log(2.0)
    expected = {
        "progress": 0.25,
        "log_progress": 1.0 + math.log10(0.25) / 4.0,
        "lr_multiplier": 1.0 / 7.0,
        "update_ratio": 0.0,  # (log10(1e-3) + 3) / 3
        "polyak": 1.0 / 3.0,  # 10³ updates like this one: soft(3 - 2, 2)
        "polyak_left": many / (1.0 + many),
        "overshoot": 0.3,
        "overshoot_mean": 0.3,
        "edge": 2.0 / 3.0,
        "edge_mean": 2.0 / 3.0,
        "gradient_cosine": 0.5,
        "signal_to_noise": 0.5,  # half of the squared norm is signal: (log10(1) + 1) / 2
        "gradient_total": 0.0,
        "gradient_change": 0.0,
        "loss_total": 0.0,
        "loss_change": 0.0,
        "loss_trend": 0.0,
        "loss_over_best": 0.0,
        "loss_slope_left": -left / (1.0 + left),
        "loss_noise": -1.0,
        "loss_exploded": 0.0,
        "over_lowest_overshot": 0.0,  # this one
        "over_steepest": 0.0,
        "has_history": 1.0,
        "has_loss": 1.0,
        "has_horizon": 1.0,
        "has_gradient": 1.0,
    }
    assert set(expected) == set(FEATURE_NAMES) - {"loss_slope"}
    assert {name: got[name] for name in expected} == approx(expected)
    assert got["loss_slope"] < -0.99  # a line without noise


def test_later_intervals_are_compared_with_the_first_the_last_and_the_best():
    e = math.e
    got = features_of(
        stats_of([e**2] * 3, norm=1.0, cosine=1.0, overshoot=1.0, edge=2.0),
        stats_of([1.0] * 3, norm=e**2, cosine=0.0, overshoot=0.0, edge=1.0),
        stats_of([e**0.5] * 3, norm=e, cosine=-1.0, ratio=1e-2, overshoot=-1.0, edge=-2.0),
    )
    expected = {
        "loss_total": -1.5 / 2.5,
        "loss_change": 0.5 / 0.6,
        "loss_trend": -1.1 / 1.4,  # 0.5 against 0.8 · 2 + 0.2 · 0
        "loss_over_best": 0.5 / 0.6,
        "gradient_total": 1.0 / 2.0,
        "gradient_change": -1.0 / 1.3,
        "gradient_cosine": -1.0,
        "signal_to_noise": (math.log10(0.19 / 0.81) + 1.0) / 2.0,  # 0.7 · (0.7 · 1 + 0.3 · 0) - 0.3 = 0.19
        "overshoot_mean": 0.7 * 0.7 - 0.3,
        "edge": -3.0 / 4.0,
        "edge_mean": 0.7 * 0.7 * 0.5 - 0.3 * 0.75,
        "update_ratio": 1.0 / 3.0,
    }
    assert {name: got[name] for name in expected} == approx(expected)


@pytest.mark.parametrize(
    ("cosine", "expected"), [(-0.5, -0.99978274), (1e-4, -0.99978274), (1.0, 1.0), (0.01, -0.49781760)]
)
def test_signal_to_noise_is_clipped(cosine, expected):
    # log10(0.001 / 0.999) = -2.99956549 and log10(0.01 / 0.99) = -1.99563519, each plus 1, over 2.
    assert features_of(stats_of([1.0, 1.0], cosine=cosine))["signal_to_noise"] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("edge_ratio", "expected"),
    [(0.0, -0.5), (0.5, -1.0 / 3.0), (1.0, 0.0), (1.5, 1.0 / 3.0), (2.0, 0.5), (INF, 1.0), (-INF, -1.0)],
)
def test_the_edge_is_positive_beyond_the_minimum_along_the_update(edge_ratio, expected):
    got = features_of(stats_of([1.0, 1.0], edge=edge_ratio))
    assert (got["edge"], got["edge_mean"]) == pytest.approx((expected, expected), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "descent", "left", "updates"),
    [(1.0, 1e-2, 50.0, 2.0), (0.5, 5e-6, 10.0, 5.0), (7.0, 70.0, 1000.0, -1.0), (1e-9, 1e-12, 1.0, 3.0)],
)
def test_polyak_counts_the_updates_that_would_use_up_the_loss(loss, descent, left, updates):
    got = features_of(stats_of([loss] * 2, descent=descent), step=2000.0 - left, horizon=2000.0)
    first, second = updates - 2.0, updates - math.log10(left)
    assert got["polyak"] == approx(first / (2.0 + abs(first)))
    assert got["polyak_left"] == approx(second / (1.0 + abs(second)))


@pytest.mark.parametrize("step", [100.0, 101.0, 1e9])
def test_at_least_one_update_is_left(step):
    got = features_of(stats_of([math.e, 1.0], descent=math.exp(0.5) / 10.0), step=step)
    assert got["polyak_left"] == approx(1.0 / 2.0)  # L is e^½, ten times the descent
    assert got["loss_slope_left"] == approx(-1.0 / 2.0)


@pytest.mark.parametrize(
    ("progress", "expected"), [(1.0, 1.0), (0.1, 0.75), (1e-3, 0.25), (1e-4, 0.0), (1e-9, 0.0), (0.0, 0.0)]
)
def test_progress_on_a_logarithmic_scale(progress, expected):
    got = features_of(stats_of([1.0, 1.0]), step=1e6 * progress, horizon=1e6)
    assert (got["progress"], got["log_progress"]) == approx((progress, expected))


@pytest.mark.parametrize(("multiplier", "expected"), [(1.0, 0.0), (math.exp(-3.5), -0.5), (1e9, 1.0), (1e-9, -1.0)])
def test_the_multiplier_on_a_logarithmic_scale(multiplier, expected):
    assert features_of(stats_of([1.0, 1.0]), multiplier=multiplier)["lr_multiplier"] == approx(expected)


def test_slope_is_in_units_of_its_standard_error():
    # Log losses 0, 1, 0, 1: slope 0.2, noise √0.4, Σ(t - 1.5)² = 5, so 0.2 / (√0.4 / √5) = 1/√2.
    ratio = 0.5**0.5
    got = features_of(stats_of([1.0, math.e, 1.0, math.e]), step=90.0)
    assert got["loss_slope"] == pytest.approx(ratio / (3.0 + ratio), rel=1e-9)
    assert got["loss_noise"] == pytest.approx((math.log10(0.4**0.5) + 1.0) / 2.0, rel=1e-9)
    assert got["loss_slope_left"] == pytest.approx(0.2 * 10.0 / 3.0, rel=1e-9)


@pytest.mark.parametrize("losses", [[1.0, math.e], [math.e, 1.0], [1.0, NAN, math.e], [2.0]])
def test_two_losses_have_a_slope_but_no_noise(losses):
    got = features_of(stats_of(losses), step=98.0)
    assert (got["loss_slope"], got["loss_noise"]) == (0.0, 0.0)
    slope = 0.0 if len(losses) == 1 else math.log(losses[-1] / losses[0]) / (len(losses) - 1)
    assert got["loss_slope_left"] == approx(2.0 * slope / (1.0 + abs(2.0 * slope)))


@pytest.mark.parametrize(
    ("losses", "exploded"),
    [([1.0, 1.0], 0.0), ([3.9, 3.9], 0.0), ([4.1, 4.1], 1.0), ([1.0, NAN], 1.0), ([INF, 1.0], 1.0)],
)
def test_an_explosion_is_a_loss_that_is_not_finite_or_four_times_the_first(losses, exploded):
    assert features_of(stats_of([1.0, 1.0]), stats_of(losses))["loss_exploded"] == exploded
    start = start_of(prospect_of(loss=1.0))[1]
    assert features_of(stats_of(losses), state=start)["loss_exploded"] == exploded


def test_an_unknown_interval_does_not_erase_the_memory():
    unknown = stats_of([NAN] * 2, norm=NAN, cosine=NAN, ratio=NAN, descent=NAN, overshoot=NAN, edge=NAN)
    shown = stats_of([math.e] * 2, overshoot=0.1, edge=2.0), unknown, stats_of([1.0] * 2, overshoot=NAN, edge=NAN)
    got = features_of(*shown)
    assert got["loss_total"] == pytest.approx(-0.5)
    assert got["loss_change"] == pytest.approx(-1.0 / 1.1)
    assert got["loss_trend"] == pytest.approx(-1.0 / 1.3)
    assert got["signal_to_noise"] == pytest.approx(0.5)
    assert (got["overshoot"], got["overshoot_mean"]) == approx((0.0, 0.1))
    assert (got["edge"], got["edge_mean"]) == approx((0.0, 0.5))


def test_a_first_interval_that_exploded_is_replaced_as_the_reference():
    got = features_of(stats_of([NAN] * 2), stats_of([2.0] * 2), stats_of([2.0 * math.e] * 2))
    assert got["loss_total"] == pytest.approx(0.5)


# Memories of multipliers


QUIET = stats_of([1.0] * 3)
ROSE = stats_of([1.21] * 3)
TURNED = stats_of([1.0] * 3, overshoot=0.21)
BROKE = stats_of([1.0, NAN, 1.0])


def test_nothing_has_overshot_at_first():
    got = features_of(QUIET, stats_of([1.19] * 3), stats_of([1.0] * 3, overshoot=0.19), multipliers=(2.0, 3.0, 4.0))
    assert got["over_lowest_overshot"] == -1.0


@pytest.mark.parametrize("interval", [ROSE, TURNED, BROKE], ids=["rose", "turned", "broke"])
def test_the_lowest_multiplier_that_overshot(interval):
    got = features_of(QUIET, interval, multipliers=(1.0, 4.0))
    assert got["over_lowest_overshot"] == approx(0.0)
    below = features_of(QUIET, interval, QUIET, multipliers=(1.0, 4.0, 4.0 / math.e))
    assert below["over_lowest_overshot"] == approx(-0.5)
    after = features_of(QUIET, interval, QUIET, interval, QUIET, multipliers=(1.0, 4.0, 4.0, 8.0, 4.0 * math.e**3))
    assert after["over_lowest_overshot"] == approx(0.75)  # the higher one is not remembered
    lower = features_of(QUIET, interval, QUIET, interval, QUIET, multipliers=(1.0, 4.0, 1.0, 2.0, 2.0 * math.e**3))
    assert lower["over_lowest_overshot"] == approx(0.75)


def test_the_rise_of_the_first_interval_is_from_the_start():
    start = start_of(prospect_of(loss=1.0))[1]
    assert features_of(ROSE, state=start, multiplier=3.0)["over_lowest_overshot"] == approx(0.0)
    assert features_of(ROSE, multiplier=3.0)["over_lowest_overshot"] == -1.0


def test_the_multiplier_of_the_steepest_fall():
    falls = [stats_of([math.exp(-fall)] * 3) for fall in (0.0, 0.1, 0.5, 0.8)]
    got = features_of(*falls, steps=(10.0, 20.0, 40.0, 80.0), multipliers=(1.0, 2.0, 4.0, 2.0))
    assert got["over_steepest"] == approx(-math.log(2.0) / (1.0 + math.log(2.0)))


def test_a_fall_is_steep_for_its_place_in_the_run():
    # Falls by 0.4 over a doubling and by 0.5 over a quadrupling of the steps: the first was the steeper one.
    falls = [stats_of([math.exp(-fall)] * 3) for fall in (0.0, 0.4, 0.9)]
    got = features_of(*falls, steps=(10.0, 20.0, 80.0), multipliers=(1.0, 2.0, 2.0 * math.e))
    assert got["over_steepest"] == approx(0.5)
    # By 1.4 over an eightfold is steeper again, 0.67 per e-fold against 0.58, though less for each multiple.
    falls = [stats_of([math.exp(-fall)] * 3) for fall in (0.0, 0.4, 1.8)]
    got = features_of(*falls, steps=(10.0, 20.0, 160.0), multipliers=(1.0, 2.0, 2.0 * math.e))
    assert got["over_steepest"] == approx(0.0)
    falls = [stats_of([math.exp(-fall)] * 3) for fall in (0.0, 0.4, 0.9)]
    got = features_of(*falls, steps=(10.0, 20.0, 25.0), multipliers=(1.0, 2.0, 2.0 * math.e))
    assert got["over_steepest"] == approx(0.0)


def test_the_fall_of_the_first_interval_is_from_the_start():
    # 0.6 from the start to step 4, over log 4 = 1.39, is less than 0.4 from there to step 8, over log 2 = 0.69.
    start = start_of(prospect_of(loss=1.0))[1]
    falls = [stats_of([math.exp(-fall)] * 3) for fall in (0.6, 1.0, 1.1)]
    options = {"state": start, "steps": (4.0, 8.0, 16.0), "multipliers": (1.0, 2.0, 2.0 * math.e)}
    assert features_of(*falls, **options)["over_steepest"] == approx(0.5)
    first = features_of(falls[0], falls[0], state=start, steps=(4.0, 8.0), multipliers=(1.0, math.e))
    assert first["over_steepest"] == approx(0.5)


def test_nothing_is_steep_before_the_loss_has_fallen():
    assert features_of(QUIET, ROSE, ROSE, multipliers=(1.0, 2.0, 4.0))["over_steepest"] == 0.0


# The start


def test_the_start_shows_the_prospective_update_alone():
    got, _ = start_of(prospect_of(ratio=0.1, descent=2e-3, loss=2.0), horizon=100.0)
    known = {
        "update_ratio": 2.0 / 3.0,
        "polyak": 1.0 / 3.0,  # 10³ updates: soft(3 - 2, 2)
        "polyak_left": 1.0 / 2.0,  # ten times as many as there are
        **dict.fromkeys(("has_loss", "has_horizon", "has_gradient"), 1.0),
    }
    assert got == approx(dict.fromkeys(FEATURE_NAMES, 0.0) | known)


def test_the_start_is_the_reference_of_the_loss():
    _, state = start_of(prospect_of(loss=2.0))
    got = features_of(stats_of([2.0 * math.e] * 2, norm=3.0), state=state)
    expected = {"loss_total": 0.5, "loss_change": 1.0 / 1.1, "loss_over_best": 1.0 / 1.1, "loss_trend": 0.0}
    assert {name: got[name] for name in expected} == approx(expected)
    assert (got["gradient_total"], got["gradient_change"]) == (0.0, 0.0)


@pytest.mark.parametrize("loss", [NAN, INF, 0.0, -1.0])
def test_a_loss_at_the_start_that_has_no_logarithm_is_no_reference(loss):
    got, state = start_of(prospect_of(loss=loss))
    assert (got["polyak"], got["polyak_left"], got["update_ratio"]) == approx((0.0, 0.0, 2.0 / 3.0))
    assert features_of(stats_of([5.0] * 2), stats_of([5.0 * math.e] * 2), state=state)["loss_total"] == approx(0.5)


def test_an_update_that_cannot_be_predicted():
    got, state = start_of(Prospect(cell(NAN), cell(NAN), torch.zeros(1, dtype=torch.float64)))
    assert got == dict.fromkeys(FEATURE_NAMES, 0.0) | {"has_loss": 1.0, "has_horizon": 1.0}
    assert features_of(stats_of([math.e] * 2), state=state)["loss_total"] == approx(0.5)


def test_what_is_hidden_at_the_start():
    got, state = start_of(prospect_of(), has_loss=0.0)
    assert (got["polyak"], got["polyak_left"], got["has_loss"]) == (0.0, 0.0, 0.0)
    assert got["update_ratio"] == approx(2.0 / 3.0)
    assert all(bool(value.isnan().all()) for value in state)
    got, _ = start_of(prospect_of(descent=1e-3), has_horizon=0.0, horizon=INF)
    assert got["polyak"] == approx(1.0 / 3.0)
    assert (got["polyak_left"], got["has_horizon"]) == (0.0, 0.0)


def test_soft_is_odd_bounded_and_exact():
    assert observations.soft(torch.tensor([0.0, 1.0, -1.0, INF, -INF]), 1.0).tolist() == pytest.approx(
        [0.0, 0.5, -0.5, 1.0, -1.0], abs=1e-5
    )


# Bounds

NUMBER = st.sampled_from([NAN, INF, -INF, 0.0, 1e30, -1e30, 1e-30]) | st.floats(-10.0, 10.0)
POSITIVE = st.sampled_from([NAN, INF, 0.0, 1e30, 1e-30]) | st.floats(0.0, 10.0)
COSINE = st.sampled_from([NAN, -1.0, 0.0, 1.0]) | st.floats(-1.0, 1.0)
FLAG = st.sampled_from([0.0, 1.0])


@st.composite
def any_stats(draw, dtype):
    loss = [NUMBER, NUMBER, POSITIVE, st.integers(0, 50).map(float), FLAG]
    rest = [POSITIVE, COSINE, POSITIVE, NUMBER, COSINE, NUMBER]
    values = [torch.tensor([draw(kind)], dtype=dtype) for kind in loss]
    return RunStats(*values, *(torch.tensor([[draw(kind)]], dtype=dtype) for kind in rest))


@st.composite
def any_context(draw, dtype):
    kinds = (POSITIVE, POSITIVE, POSITIVE, FLAG, FLAG)
    return Context(*(torch.tensor([[draw(kind)]], dtype=dtype) for kind in kinds))


def assert_within_bounds(observation: torch.Tensor) -> None:
    for value, declared in zip(observation.flatten().tolist(), FEATURES, strict=True):
        assert declared.low <= value <= declared.high, declared.name  # NaN fails too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_feature_stays_inside_its_bounds(dtype, data):
    state = observations.initial_state(torch.zeros(1, 1, dtype=dtype))
    for _ in range(data.draw(st.integers(1, 4))):
        known = data.draw(any_context(dtype))
        observation, state = observe(data.draw(any_stats(dtype)), state, known)
        assert_within_bounds(observation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_feature_of_the_start_and_of_what_follows_stays_inside_its_bounds(dtype, data):
    ratio, descent = (torch.tensor([[data.draw(kind)]], dtype=dtype) for kind in (POSITIVE, NUMBER))
    prospect = Prospect(ratio, descent, torch.tensor([data.draw(NUMBER)], dtype=dtype))
    state = observations.initial_state(torch.zeros(1, 1, dtype=dtype))
    observation, state = observe_start(prospect, state, data.draw(any_context(dtype)))
    assert_within_bounds(observation)
    observation, state = observe(data.draw(any_stats(dtype)), state, data.draw(any_context(dtype)))
    assert_within_bounds(observation)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(NUMBER, min_size=2, max_size=6), min_size=1, max_size=4))
def test_every_feature_stays_inside_its_bounds_for_any_losses(intervals):
    state = fresh()
    for losses in intervals:
        observation, state = observe(stats_of(losses), state, context())
        assert_within_bounds(observation)


def test_names_are_unique_and_bounds_are_ordered():
    assert len(set(FEATURE_NAMES)) == NUM_FEATURES == len(FEATURES)
    assert all(f.low < f.high and f.formula for f in FEATURES)


# Scale-free


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=6), min_size=1, max_size=4),
    st.sampled_from([1e-9, 0.01, 30.0, 1e9]),
    st.sampled_from([1e-9, 0.01, 30.0, 1e9]),
)
def test_the_unit_of_loss_and_of_gradient_does_not_matter(intervals, loss_unit, gradient_unit):
    plain, scaled = fresh(), fresh()
    for index, losses in enumerate(intervals):
        norm = 1.0 + index
        first, plain = observe(stats_of(losses, norm=norm, descent=0.02), plain, context())
        # The descent that an update promises has the unit of the loss, whatever that of the weights.
        units = stats_of([loss_unit * loss for loss in losses], norm=gradient_unit * norm, descent=loss_unit * 0.02)
        second, scaled = observe(units, scaled, context())
        # A line that fits to rounding has a slope that is certain, and noise that is rounding.
        exact = units.log_loss_noise.item() < 1e-6
        skipped = [FEATURE_NAMES.index(name) for name in ("loss_slope", "loss_noise")] if exact else []
        first[..., skipped] = second[..., skipped] = 0.0
        torch.testing.assert_close(first, second, rtol=0.0, atol=1e-6)


# Masks


def test_without_losses_every_loss_feature_is_masked():
    got = features_of(stats_of([1.0, 2.0]), stats_of([9.0, NAN]), has_loss=0.0, multiplier=2.0)
    assert {got[name] for name in LOSS_FEATURES} == {0.0}
    assert (got["has_loss"], got["over_lowest_overshot"], got["over_steepest"]) == (0.0, -1.0, 0.0)
    assert (got["gradient_cosine"], got["has_gradient"]) == (0.5, 1.0)


def test_without_losses_a_turned_gradient_still_shows_an_overshoot():
    shown = stats_of([NAN], overshoot=0.5), stats_of([NAN], overshoot=-0.5)
    got = features_of(*shown, has_loss=0.0, multipliers=(2.0, 2.0 * math.e))
    assert got["over_lowest_overshot"] == approx(0.5)


def test_unknown_losses_and_a_masked_loss_look_the_same():
    hidden = features_of(stats_of([1.0, 2.0]), stats_of([3.0, 0.1]), has_loss=0.0)
    absent = features_of(*[stats_of([NAN])._replace(exploded=torch.zeros(1))] * 2, has_loss=0.0)
    assert hidden == absent


def test_without_a_horizon_what_depends_on_it_is_masked():
    shown = stats_of([1.0, 2.0], descent=1e-3)
    got = features_of(shown, step=70.0, has_horizon=0.0)
    names = ("progress", "log_progress", "polyak_left", "loss_slope_left", "has_horizon")
    assert [got[name] for name in names] == [0.0] * 5
    assert got["polyak"] == features_of(shown, step=70.0)["polyak"] != 0.0


def test_an_unknown_horizon_and_a_masked_one_look_the_same():
    shown = stats_of([1.0, 2.0, 1.5]), stats_of([3.0, 0.1, 0.2])
    hidden = features_of(*shown, steps=(8.0, 16.0), has_horizon=0.0)
    assert hidden == features_of(*shown, steps=(8.0, 16.0), has_horizon=0.0, horizon=INF)


@pytest.mark.parametrize("step", [150.0, INF])
def test_progress_past_the_horizon_stays_at_one(step):
    got = features_of(stats_of([1.0, 2.0]), step=step, horizon=100.0)
    assert (got["progress"], got["log_progress"]) == (1.0, 1.0)


def test_unknown_gradients_are_zero():
    unknown = stats_of([1.0, 2.0], norm=NAN, cosine=NAN, ratio=NAN, descent=NAN, overshoot=NAN, edge=NAN)
    got = features_of(unknown, unknown)
    assert [got[name] for name in GRADIENT_FEATURES] == [0.0] * len(GRADIENT_FEATURES)
    assert got["loss_slope_left"] != 0.0


# Derivatives

VECTORS = ("before", "after", "update", "params")


@pytest.mark.parametrize("known", [{}, {"has_loss": 0.0}, {"has_horizon": 0.0, "horizon": INF}], ids=str)
@pytest.mark.parametrize("zero", [(), *((name,) for name in VECTORS), VECTORS], ids="-".join)
@pytest.mark.parametrize("losses", [[2.0, 1.0], [2.0, 2.0], [4.0, 2.0, 1.0], [2.0, NAN], [NAN, 0.0], [3.0, 1.0, 2.0]])
def test_derivatives_are_finite(losses, zero, known):
    """A meta-gradient passes through the observations; what is unknown or vanishes in one must not poison it."""
    generator = torch.Generator().manual_seed(0)
    leaves = {name: torch.randn(3, generator=generator, dtype=torch.float64) for name in VECTORS}
    leaves |= {name: torch.zeros(3, dtype=torch.float64) for name in zero}
    leaves["losses"] = torch.tensor(losses, dtype=torch.float64)
    leaves["multiplier"] = cell(2.0)
    for value in leaves.values():
        value.requires_grad_()
    before, after, update, params = (leaves[name] for name in VECTORS)
    products = (before @ before, after @ after, before @ after, before @ update, after @ update)
    sums = UpdateSums(*(value.view(1, 1) for value in (*products, update @ update, params @ params)))
    interval = RunStats(*loss_stats(leaves["losses"][:, None]), *update_stats(sums))
    prospect = Prospect(interval.update_ratio, interval.log_descent, leaves["losses"][:1].detach().log())
    observation, state = observe_start(prospect, fresh(), context(step=0.0, **known))
    shown = [observation]
    for step in (2.0, 4.0):
        now = context(step=step, **known)._replace(lr_multiplier=leaves["multiplier"] * step)
        observation, state = observe(interval, state, now)
        shown.append(observation)
    total = torch.stack(shown).sum()
    assert total.isfinite()
    derivatives = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    for name, derivative in zip(leaves, derivatives, strict=True):
        assert derivative is None or bool(derivative.isfinite().all()), name
    assert not zero or derivatives[-1] != 0.0


def test_derivatives_are_those_of_finite_differences():
    point = torch.tensor([0.3, -0.5, -2.0, 0.4, 1.7, 0.2, -3.0], dtype=torch.float64, requires_grad=True)

    def total(values: torch.Tensor) -> torch.Tensor:
        first = stats_of([2.0, 1.5, 1.7], overshoot=0.5)
        norm, cosine, ratio, descent, overshoot, edge = (value.view(1, 1) for value in values[:6])
        second = RunStats(*first[:5], norm.exp(), cosine, (ratio - 3.0).exp(), descent, 0.4 * overshoot, edge)
        second = second._replace(log_loss=first.log_loss + values[6] / 10.0)
        _, state = observe(first, fresh(), context(step=10.0))
        return observe(second, state, context(step=20.0, multiplier=2.0))[0].sum()

    assert torch.autograd.gradcheck(total, point)


# Batches, groups and visibility


def test_runs_and_groups_are_observed_alone():
    losses = torch.tensor([[1.0, 5.0], [2.0, NAN], [0.5, 3.0]], dtype=torch.float64)
    per_group = torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = RunStats(*loss_stats(losses), *per_group)
    like = torch.zeros(1, dtype=torch.float64)
    known = Context(*(torch.full((2, 3), value, dtype=torch.float64) for value in (50.0, 100.0, 2.0, 1.0, 1.0)))
    together, _ = observe(batch, observations.initial_state(like.new_zeros(2, 3)), known)
    assert together.shape == (2, 3, NUM_FEATURES)
    for run in range(2):
        for group in range(3):
            alone = RunStats(*(v[run : run + 1] for v in batch[:5]), *(v[run, group].view(1, 1) for v in batch[5:]))
            single, _ = observe(alone, fresh(), context(50.0, 100.0, 2.0))
            torch.testing.assert_close(together[run, group], single[0, 0], rtol=0.0, atol=1e-12)


def test_observe_is_pure():
    interval, state, known = stats_of([1.0, 2.0]), fresh(), context()
    _, state = observe(interval, state, known)
    before = [value.clone() for value in (*interval, *state, *known)]
    first, _ = observe(interval, state, known)
    second, _ = observe(interval, state, known)
    assert torch.equal(first, second)
    for old, new in zip(before, (*interval, *state, *known), strict=True):
        torch.testing.assert_close(new, old, rtol=0.0, atol=0.0, equal_nan=True)


def test_feature_by_name():
    observation = torch.arange(float(NUM_FEATURES))
    assert feature(observation, "progress") == 0.0
    assert feature(observation, FEATURE_NAMES[-1]) == NUM_FEATURES - 1.0


def test_visibility_hides_what_is_not_named():
    like = torch.zeros(1, dtype=torch.float64)
    assert observations.visibility(None, like).tolist() == [1.0] * NUM_FEATURES
    assert observations.visibility((), like).tolist() == [0.0] * NUM_FEATURES
    shown = observations.visibility(("progress", "has_loss"), like)
    assert [n for n, s in zip(FEATURE_NAMES, shown.tolist(), strict=True) if s] == ["progress", "has_loss"]


def test_visibility_of_an_unknown_feature():
    with pytest.raises(ValueError, match=r"got visible features \['progres'\], expected names among .*progress"):
        observations.visibility(("progres", "has_loss"), torch.zeros(1))
