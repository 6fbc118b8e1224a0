"""The decision clock: every count derived from updates, skips, stops and the horizon."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metalr.control.controller import decision_steps
from metalr.schedulers.clock import DecisionClock


def run(clock: DecisionClock, updates: int) -> list[int]:
    """Make updates and return the counts at which decisions were taken."""
    taken = []
    for _ in range(updates):
        clock.updates += 1
        if clock.due:
            taken.append(clock.next_decision)
            clock.decided()
    return taken


@given(st.integers(1, 30), st.integers(0, 400), st.sampled_from(["even", "doubling"]))
def test_decisions_fall_where_the_engine_has_them(decisions, extra, spacing):
    horizon = 2 * decisions + extra
    clock = DecisionClock(horizon, decisions, spacing=spacing)
    assert run(clock, 2 * horizon) == decision_steps(horizon, decisions, spacing)[1:]
    assert clock.next_decision is clock.updates_left is None
    assert clock.over
    assert not clock.due


def test_an_unknown_horizon_has_decisions_at_equal_intervals():
    clock = DecisionClock(None, 5, steps_per_action=4)
    assert run(clock, 17) == [4, 8, 12, 16]
    assert clock.progress == 0.0
    assert not clock.over


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (2, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (3, [2, 4, 7, 10, 13, 16, 19]),
        (8, [2, 4, 8, 16]),
        (10, [2, 4, 8, 16]),
        (16, [2, 4, 8, 16]),
    ],
)
def test_early_decisions_of_an_unknown_horizon(gap, expected):
    clock = DecisionClock(None, 5, steps_per_action=gap, spacing="doubling")
    assert run(clock, 20) == expected


@given(st.integers(2, 300))
def test_intervals_of_an_unknown_horizon_double_until_the_given_length(gap):
    taken = run(DecisionClock(None, 5, steps_per_action=gap, spacing="doubling"), 2000)
    gaps = [b - a for a, b in zip([0, *taken], taken, strict=False)]
    assert gaps[0] == 2
    assert all(later == min(gap, at) for at, later in zip(taken, gaps[1:], strict=False))
    assert gaps[-1] == gap


@pytest.mark.parametrize("at", range(0, 60, 7))
@pytest.mark.parametrize("horizon", [60, None])
def test_early_decisions_go_on_in_a_loaded_clock(horizon, at):
    options = {"steps_per_action": 9, "spacing": "doubling"}
    whole, clock, other = (DecisionClock(horizon, 6, **options) for _ in range(3))
    expected = run(whole, 60)
    taken = run(clock, at)
    other.load_state(clock.state())
    assert taken + run(other, 60 - at) == expected
    assert len(expected) > 6


def test_a_run_that_is_lengthened_early_doubles_on():
    clock = DecisionClock(20, 5, spacing="doubling")
    assert decision_steps(20, 5, "doubling") == [0, 2, 4, 8, 12, 16]
    assert run(clock, 5) == [2, 4]
    clock.set_horizon(100)
    assert decision_steps(100, 5, "doubling") == [0, 2, 4, 8, 16, 32, 55, 77]  # 68 are left after 32: 22.7 each
    assert run(clock, 60) == [8, 16, 32, 55]


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_skipped_updates_are_taken_back(flags):
    clock = DecisionClock(400, 10)
    clock.started = True
    for flag in flags:
        clock.may_be_skipped(torch.tensor(float(flag)))
        clock.updates += 1
    assert clock.settle() == [index for index, flag in enumerate(flags) if flag]
    assert clock.updates == len(flags) - sum(flags)
    assert clock.settle() == []


def test_the_count_is_settled_before_the_first_update_and_around_a_decision_only():
    clock = DecisionClock(20, 2)
    clock.may_be_skipped(torch.tensor(0.0))
    assert clock.must_settle  # the first decision comes before the first update
    clock.started = True
    at = []
    for update in range(10):
        clock.updates = update
        if clock.must_settle:
            at.append(update)
    assert at == [8, 9]


def test_a_shortened_run_keeps_what_was_decided_and_aims_anew():
    clock = DecisionClock(40, 4)
    assert run(clock, 12) == [10]
    clock.set_horizon(20)
    assert clock.next_decision == 15
    assert clock.progress == 12 / 20
    clock.set_horizon(40)
    assert clock.next_decision == 20


def test_a_state_continues_under_the_clocks_own_horizon():
    clock = DecisionClock(40, 4)
    run(clock, 12)
    other = DecisionClock(80, 4)
    other.load_state(clock.state())
    assert (other.updates, other.last_decision, other.next_decision) == (12, 10, 20)


def test_a_restart_forgets_everything_but_the_plan():
    clock = DecisionClock(40, 4)
    run(clock, 33)
    clock.started = True
    clock.may_be_skipped(torch.tensor(1.0))
    clock.restart()
    assert clock.state() == DecisionClock(40, 4).state()
    assert clock.settle() == []
    assert clock.next_decision == 10


@pytest.mark.parametrize("horizon", [0, -1, 2.0, True, "7"])
def test_a_horizon_is_a_whole_number(horizon):
    with pytest.raises(ValueError, match="expected a whole number of optimizer updates"):
        DecisionClock(horizon, 1)


def test_a_horizon_too_short_for_its_decisions():
    with pytest.raises(ValueError, match="at least two inner steps for each decision"):
        DecisionClock(9, 5)
