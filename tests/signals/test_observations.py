"""Observations: formulas with numbers, declared bounds under extreme input, scale-freeness, masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalr.signals import observations
from metalr.signals.observations import FEATURE_NAMES, FEATURES, NUM_FEATURES, Context, feature, observe, observe_start
from metalr.signals.stats import RunStats, loss_stats

NAN, INF = float("nan"), float("inf")
LOSS_FEATURES = [name for name in FEATURE_NAMES if name.startswith("loss_")]


def cell(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def context(progress=0.5, multiplier=1.0, has_loss=1.0, has_horizon=1.0) -> Context:
    return Context(cell(progress), cell(multiplier), cell(has_loss), cell(has_horizon))


def stats_of(losses, norm=1.0, cosine=0.5, ratio=1e-3) -> RunStats:
    column = torch.tensor(losses, dtype=torch.float64)[:, None]
    return RunStats(*loss_stats(column), cell(norm), cell(cosine), cell(ratio))


def fresh():
    return observations.initial_state(cell(0.0))


def features_of(*intervals: RunStats, **known) -> dict[str, float]:
    state = fresh()
    for interval in intervals:
        observation, state = observe(interval, state, context(**known))
    return dict(zip(FEATURE_NAMES, observation[0, 0].tolist(), strict=True))


# Formulas


def test_first_interval():
    got = features_of(stats_of([4.0, 2.0, 1.0]), progress=0.25, multiplier=math.e)
    expected = {
        "progress": 0.25,
        "lr_multiplier": 1.0 / 3.0,
        "update_ratio": 0.0,  # (log10(1e-3) + 3) / 3
        "loss_total": 0.0,
        "loss_change": 0.0,
        "loss_over_best": 0.0,
        "loss_noise": -1.0,
        "loss_exploded": 0.0,
        "gradient_total": 0.0,
        "gradient_change": 0.0,
        "gradient_cosine": 0.5,
        "gradient_cosine_mean": 0.5,
        "has_history": 1.0,
        "has_loss": 1.0,
        "has_horizon": 1.0,
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert got["loss_slope"] < -0.99  # a line without noise


def test_later_intervals_are_compared_with_the_first_the_last_and_the_best():
    e = math.e
    got = features_of(
        stats_of([e**2] * 3, norm=1.0, cosine=1.0),
        stats_of([1.0] * 3, norm=e**2, cosine=0.0),
        stats_of([e**0.5] * 3, norm=e, cosine=-1.0, ratio=1e-2),
    )
    expected = {
        "loss_total": -1.5 / 2.5,
        "loss_change": 0.5 / 0.6,
        "loss_over_best": 0.5 / 0.6,
        "gradient_total": 1.0 / 2.0,
        "gradient_change": -1.0 / 1.3,
        "gradient_cosine": -1.0,
        "gradient_cosine_mean": 0.7 * 0.7 - 0.3,
        "update_ratio": 1.0 / 3.0,
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_slope_is_in_units_of_its_standard_error():
    # Log losses 0, 1, 0, 1: slope 0.2, noise √0.4, Σ(t - 1.5)² = 5, so 0.2 / (√0.4 / √5) = 1/√2.
    ratio = 0.5**0.5
    got = features_of(stats_of([1.0, math.e, 1.0, math.e]))
    assert got["loss_slope"] == pytest.approx(ratio / (3.0 + ratio), rel=1e-9)
    assert got["loss_noise"] == pytest.approx((math.log10(0.4**0.5) + 1.0) / 2.0, rel=1e-9)


@pytest.mark.parametrize(
    ("losses", "exploded"),
    [([1.0, 1.0], 0.0), ([3.9, 3.9], 0.0), ([4.1, 4.1], 1.0), ([1.0, NAN], 1.0), ([INF, 1.0], 1.0)],
)
def test_an_explosion_is_a_loss_that_is_not_finite_or_four_times_the_first(losses, exploded):
    assert features_of(stats_of([1.0, 1.0]), stats_of(losses))["loss_exploded"] == exploded


def test_an_unknown_interval_does_not_erase_the_memory():
    got = features_of(stats_of([math.e] * 2), stats_of([NAN] * 2, norm=NAN, cosine=NAN), stats_of([1.0] * 2))
    assert got["loss_total"] == pytest.approx(-0.5)
    assert got["loss_change"] == pytest.approx(-1.0 / 1.1)
    assert got["gradient_cosine_mean"] == pytest.approx(0.5)


def test_a_first_interval_that_exploded_is_replaced_as_the_reference():
    got = features_of(stats_of([NAN] * 2), stats_of([2.0] * 2), stats_of([2.0 * math.e] * 2))
    assert got["loss_total"] == pytest.approx(0.5)


def test_the_start_shows_the_prospective_update_alone():
    observation = observe_start(cell(0.1), context(progress=0.0))
    got = dict(zip(FEATURE_NAMES, observation[0, 0].tolist(), strict=True))
    known = {"update_ratio": 2.0 / 3.0, "has_loss": 1.0, "has_horizon": 1.0}
    assert got == pytest.approx(dict.fromkeys(FEATURE_NAMES, 0.0) | known)


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
    rest = [POSITIVE, COSINE, POSITIVE]
    values = [torch.tensor([draw(kind)], dtype=dtype) for kind in loss]
    return RunStats(*values, *(torch.tensor([[draw(kind)]], dtype=dtype) for kind in rest))


def assert_within_bounds(observation: torch.Tensor) -> None:
    for value, declared in zip(observation.flatten().tolist(), FEATURES, strict=True):
        assert declared.low <= value <= declared.high, declared.name  # NaN fails too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_feature_stays_inside_its_bounds(dtype, data):
    state = observations.initial_state(torch.zeros(1, 1, dtype=dtype))
    for _ in range(data.draw(st.integers(1, 4))):
        known = Context(*(torch.tensor([[data.draw(kind)]], dtype=dtype) for kind in (POSITIVE, POSITIVE, FLAG, FLAG)))
        observation, state = observe(data.draw(any_stats(dtype)), state, known)
        assert_within_bounds(observation)


@settings(max_examples=100, deadline=None)
@given(POSITIVE, st.tuples(POSITIVE, POSITIVE, FLAG, FLAG))
def test_every_feature_of_the_start_stays_inside_its_bounds(ratio, known):
    assert_within_bounds(observe_start(cell(ratio), context(*known)))


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
        first, plain = observe(stats_of(losses, norm=norm), plain, context())
        units = stats_of([loss_unit * loss for loss in losses], norm=gradient_unit * norm)
        second, scaled = observe(units, scaled, context())
        # A line that fits to rounding has a slope that is certain, and noise that is rounding.
        exact = units.log_loss_noise.item() < 1e-6
        skipped = [FEATURE_NAMES.index(name) for name in ("loss_slope", "loss_noise")] if exact else []
        first[..., skipped] = second[..., skipped] = 0.0
        torch.testing.assert_close(first, second, rtol=0.0, atol=1e-6)


# Masks


def test_without_losses_every_loss_feature_is_masked():
    got = features_of(stats_of([1.0, 2.0]), stats_of([9.0, NAN]), has_loss=0.0)
    assert {got[name] for name in LOSS_FEATURES} == {0.0}
    assert got["has_loss"] == 0.0
    assert got["gradient_cosine"] == 0.5


def test_unknown_losses_and_a_masked_loss_look_the_same():
    hidden = features_of(stats_of([1.0, 2.0]), stats_of([3.0, 0.1]), has_loss=0.0)
    absent = features_of(*[stats_of([NAN])._replace(exploded=torch.zeros(1))] * 2, has_loss=0.0)
    assert hidden == absent


def test_without_a_horizon_progress_is_masked():
    got = features_of(stats_of([1.0, 2.0]), progress=0.7, has_horizon=0.0)
    assert (got["progress"], got["has_horizon"]) == (0.0, 0.0)


@pytest.mark.parametrize("progress", [1.5, INF])
def test_progress_past_the_horizon_stays_at_one(progress):
    assert features_of(stats_of([1.0, 2.0]), progress=progress)["progress"] == 1.0


def test_unknown_gradients_are_zero():
    got = features_of(stats_of([1.0, 2.0], norm=NAN, cosine=NAN, ratio=NAN))
    names = ["update_ratio", "gradient_total", "gradient_change", "gradient_cosine", "gradient_cosine_mean"]
    assert [got[name] for name in names] == [0.0] * 5


# Batches, groups and visibility


def test_runs_and_groups_are_observed_alone():
    losses = torch.tensor([[1.0, 5.0], [2.0, NAN], [0.5, 3.0]], dtype=torch.float64)
    per_group = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = RunStats(*loss_stats(losses), *per_group)
    like = torch.zeros(1, dtype=torch.float64)
    known = Context(*(torch.full((2, 3), value, dtype=torch.float64) for value in (0.5, 2.0, 1.0, 1.0)))
    together, _ = observe(batch, observations.initial_state(like.new_zeros(2, 3)), known)
    assert together.shape == (2, 3, NUM_FEATURES)
    for run in range(2):
        for group in range(3):
            alone = RunStats(*(v[run : run + 1] for v in batch[:5]), *(v[run, group].view(1, 1) for v in batch[5:]))
            single, _ = observe(alone, fresh(), context(0.5, 2.0))
            torch.testing.assert_close(together[run, group], single[0, 0], rtol=0.0, atol=1e-12)


def test_observe_is_pure():
    interval, state, known = stats_of([1.0, 2.0]), fresh(), context()
    _, state = observe(interval, state, known)
    before = [value.clone() for value in (*interval, *state, *known)]
    first, _ = observe(interval, state, known)
    second, _ = observe(interval, state, known)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(before, (*interval, *state, *known), strict=True))


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
