"""Actions: the formula with numbers, the bounds, and a breaker that never returns to a base that exploded."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalr.control import actions
from metalr.control.actions import ActionSpec

ANCHORED, RECURSIVE = ActionSpec(), ActionSpec(mode="recursive", alpha=0.5)


def cell(value: float) -> torch.Tensor:
    return torch.tensor([[float(value)]], dtype=torch.float64)


def play(spec: ActionSpec, *decisions: tuple[float, float]) -> list[float]:
    """The multipliers after decisions (action, exploded), the first of which has no history."""
    state = actions.initial_state(spec, cell(0))
    result = []
    for index, (action, exploded) in enumerate(decisions):
        multiplier, state = actions.apply(spec, cell(action), cell(exploded), cell(index > 0), state)
        result.append(multiplier.item())
    return result


# The formula


def test_anchored_is_set_anew_at_every_decision():
    # exp(3 · 0.5) = 4.48 and exp(3 · -0.2) = 0.549, whatever came before.
    got = play(ANCHORED, (0.5, 0), (0.5, 0), (-0.2, 0), (0.0, 0))
    assert got == pytest.approx([4.4816890703, 4.4816890703, 0.5488116361, 1.0], rel=1e-9)


def test_recursive_multiplies_what_is_in_force():
    got = play(RECURSIVE, (1.0, 0), (1.0, 0), (0.0, 0), (-0.5, 0))
    assert got == pytest.approx([math.exp(x) for x in (0.5, 1.0, 1.0, 0.75)], rel=1e-12)


def test_absolute_is_anchored_to_its_reference():
    spec = ActionSpec("absolute", reference=0.1)
    played = [(0.5, 0), (-0.2, 0), (0.3, 1)]
    assert play(spec, *played) == play(ANCHORED, *played)
    assert spec.base(7.0) == 0.1
    assert spec.base(cell(7.0)).tolist() == [[0.1]]
    assert (ANCHORED.base(7.0), RECURSIVE.base(7.0)) == (7.0, 7.0)


@pytest.mark.parametrize(("action", "clipped"), [(2.0, 1.0), (-9.0, -1.0), (float("inf"), 1.0), (float("nan"), 0.0)])
def test_an_action_outside_its_range_is_clipped_and_nan_counts_as_zero(action, clipped):
    spec = ActionSpec(alpha=1.0)
    assert play(spec, (action, 0)) == pytest.approx([math.exp(clipped)], rel=1e-12)


def test_the_default_undoes_a_base_lr_that_is_wrong_by_ten():
    assert play(ANCHORED, (1.0, 0)) == [20.0]
    assert play(ANCHORED, (-1.0, 0)) == [0.05]


def test_levels_are_equally_spaced():
    spec = ActionSpec(levels=5)
    assert spec.level_action(torch.arange(5)).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("levels", [2, 3, 7, 1000])
def test_levels_reach_both_ends(levels):
    ends = ActionSpec(levels=levels).level_action(torch.tensor([0, levels - 1])).tolist()
    assert ends == pytest.approx([-1.0, 1.0], abs=1e-12)


# Bounds

DECISIONS = st.lists(
    st.tuples(st.floats(-1, 1) | st.sampled_from([math.nan, math.inf, -math.inf, 1e30]), st.sampled_from([0.0, 1.0])),
    min_size=1,
    max_size=30,
)
SPECS = st.builds(
    ActionSpec,
    mode=st.sampled_from(["anchored", "recursive"]),
    alpha=st.floats(0.01, 20.0),
    low=st.floats(1e-6, 1.0),
    high=st.floats(1.0, 1e6),
)


@settings(max_examples=200, deadline=None)
@given(SPECS, DECISIONS)
def test_a_multiplier_stays_inside_its_bounds(spec, decisions):
    assert all(spec.low <= multiplier <= spec.high for multiplier in play(spec, *decisions))


@settings(max_examples=200, deadline=None)
@given(SPECS, DECISIONS)
def test_after_an_explosion_the_multiplier_is_cut_or_at_its_lower_bound(spec, decisions):
    got, good = play(spec, *decisions), 1.0
    for index in range(1, len(got)):
        if decisions[index][1]:
            limit = 0.3 * min(got[index - 1], good)
            assert got[index] <= max(limit, spec.low) * (1.0 + 1e-12)
        else:
            good = got[index - 1]


@settings(max_examples=200, deadline=None)
@given(SPECS, DECISIONS)
def test_without_an_explosion_the_breaker_is_not_felt(spec, decisions):
    quiet = [(action, 0.0) for action, _ in decisions]
    wanted, expected = 1.0, []
    for action, _ in quiet:
        clipped = 0.0 if math.isnan(action) else min(max(action, -1.0), 1.0)
        anchor = wanted if spec.mode == "recursive" else 1.0
        wanted = min(max(anchor * math.exp(spec.alpha * clipped), spec.low), spec.high)
        expected.append(wanted)
    assert play(spec, *quiet) == pytest.approx(expected, rel=1e-9)


# The breaker


def test_the_breaker_never_goes_back_to_a_base_that_exploded():
    # The policy insists on the base. It exploded there: 0.3, and at 0.3 again: 0.09, then the bound.
    got = play(ANCHORED, (0.0, 0), (0.0, 1), (0.0, 1), (0.0, 1), (0.0, 1))
    assert got == pytest.approx([1.0, 0.3, 0.09, 0.05, 0.05], rel=1e-9)


def test_the_breaker_lifts_by_1_3_in_every_quiet_interval():
    got = play(ANCHORED, (0.0, 0), (0.0, 1), *[(0.0, 0)] * 6)
    assert got == pytest.approx([1.0, 0.3, 0.39, 0.507, 0.6591, 0.85683, 1.0, 1.0], rel=1e-9)


def test_the_breaker_goes_below_the_last_good_multiplier():
    # Good at exp(-1.5) = 0.2231, exploded at 4.48: 0.3 · 0.2231.
    got = play(ANCHORED, (-0.5, 0), (0.5, 0), (1.0, 1))
    assert got[-1] == pytest.approx(0.3 * math.exp(-1.5), rel=1e-9)


def test_the_breaker_stays_above_the_base_where_more_was_good():
    # Good at exp(1.5) = 4.48, exploded at 20: a base that is far too small is no measure of what is safe.
    got = play(ANCHORED, (0.5, 0), (1.0, 0), (1.0, 1), (1.0, 0))
    assert got == pytest.approx([4.4816890703, 20.0, 1.3445067211, 1.7478587374], rel=1e-9)


def test_before_any_good_interval_the_base_counts_as_good():
    assert play(ANCHORED, (1.0, 0), (1.0, 1), (1.0, 0)) == pytest.approx([20.0, 0.3, 0.39], rel=1e-9)


def test_a_policy_may_stay_below_the_breaker():
    assert play(ANCHORED, (0.0, 0), (-0.9, 1))[-1] == pytest.approx(math.exp(-2.7), rel=1e-9)


def test_the_breaker_works_in_recursive_mode():
    got = play(RECURSIVE, (1.0, 0), (1.0, 1), (1.0, 0), (1.0, 0))
    assert got == pytest.approx([math.exp(0.5), 0.3, 0.39, 0.507], rel=1e-9)


def test_runs_and_groups_break_alone():
    spec = ANCHORED
    state = actions.initial_state(spec, cell(0).expand(2, 2))
    action, seen = torch.full((2, 2), 0.2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    _, state = actions.apply(spec, action, 0 * seen, 0 * seen, state)
    exploded = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    multiplier, _ = actions.apply(spec, action, exploded, seen, state)
    wanted = math.exp(0.6)
    assert multiplier.flatten().tolist() == pytest.approx([wanted, 0.3, 0.3, wanted], rel=1e-9)


def test_apply_is_pure():
    state = actions.initial_state(RECURSIVE, cell(0))
    before = [value.clone() for value in state]
    results = [actions.apply(RECURSIVE, cell(0.5), cell(1), cell(1), state)[0] for _ in range(2)]
    assert torch.equal(*results)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


# The specification


CHANGED = {"mode": "recursive", "alpha": 0.5, "low": 0.5, "high": 1.5, "levels": 3, "reference": 0.1}


def test_every_argument_is_changed_below():
    assert {field.name for field in fields(ActionSpec)} == set(CHANGED)


@pytest.mark.parametrize("name", sorted(set(CHANGED) - {"levels", "reference"}))
def test_every_argument_changes_the_multiplier(name):
    played = [(0.4, 0), (0.7, 0), (-0.9, 0)]
    assert play(ANCHORED, *played) != play(replace(ANCHORED, **{name: CHANGED[name]}), *played)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "relative"},
        {"mode": "absolute"},
        {"mode": "absolute", "reference": 0.0},
        {"mode": "absolute", "reference": math.inf},
        {"reference": 0.1},
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": 25.0},
        {"alpha": math.nan},
        {"levels": 1},
        {"levels": -3},
        {"levels": 5000},
        {"levels": 2.5},
        {"low": 0.0},
        {"low": 1.5},
        {"low": math.nan},
        {"high": 0.5},
        {"high": math.inf},
        {"high": math.nan},
    ],
)
def test_a_specification_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"got .*, expected"):
        ActionSpec(**wrong)
