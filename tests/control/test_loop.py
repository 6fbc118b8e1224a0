"""Observe, decide, remember: the one loop of the engine, environment, meta-gradients and schedulers."""

import math

import pytest
import torch

from metalr.control import actions, loop
from metalr.control.actions import ActionSpec
from metalr.control.loop import Known
from metalr.control.lr import interval_lr, lr_in_force
from metalr.schedules import Linear
from metalr.signals.observations import FEATURE_NAMES, feature
from metalr.signals.stats import Prospect, RunStats
from metalr.trees import leaves
from tests.support.schedulers_under_test import random_policy, recurrent_policy

LIKE = torch.ones(3, 2, dtype=torch.float64)


def stats(log_loss, dtype=torch.float64, runs=3) -> RunStats:
    run = torch.as_tensor(log_loss, dtype=dtype).expand(runs).clone()
    group = torch.ones(runs, 2, dtype=dtype)
    of_loss = run, run * 0.0 - 0.1, run * 0.0 + 0.2, run * 0.0 + 9.0, run * 0.0
    return RunStats(*of_loss, group * 3.0, group * 0.5, group, group * -4.0, group * 0.1, group * 1.5)


def prospect(like=LIKE, log_loss=1.0) -> Prospect:
    return Prospect(1e-3 * like, -4.0 * like, log_loss * like[:, 0])


@pytest.mark.parametrize("controller", [random_policy(), recurrent_policy()], ids=["policy", "recurrent"])
def test_a_decision_is_its_two_halves(controller):
    state = loop.init(controller.init(LIKE), LIKE)
    first, first_halves = (
        loop.start(controller, state, prospect(), 40),
        loop.act(controller, loop.observe_start(state, prospect(), 40)),
    )
    whole = loop.decide(controller, first, stats(1.0), 10, 40)
    halves = loop.act(controller, loop.observe(first_halves, stats(1.0), 10, 40))
    for one, other in ((first, first_halves), (whole, halves)):
        assert same(one, other)
        assert not torch.equal(one.multiplier, LIKE)
    assert torch.equal(feature(whole.observation, "progress"), 0.25 * LIKE)
    assert torch.equal(feature(first.observation, "progress"), 0.0 * LIKE)


def same(state, other) -> bool:
    pairs = zip(leaves(state), leaves(other), strict=True)
    return all(torch.equal(a.nan_to_num(nan=7.5), b.nan_to_num(nan=7.5)) for a, b in pairs)


def test_an_action_from_outside_is_a_decision_like_any_other():
    policy = random_policy()
    state = loop.observe(loop.init(policy.init(LIKE), LIKE), stats(1.0), 5, 10)
    chosen = policy.act(state.observation)
    outside = loop.act(lambda seen, memory: actions.act(policy.action, chosen, seen, memory), state)
    assert torch.equal(outside.multiplier, loop.act(policy, state).multiplier)


@pytest.mark.parametrize("controller", [random_policy(), recurrent_policy()], ids=["policy", "recurrent"])
def test_a_reset_changes_the_chosen_runs_and_no_bit_of_the_others(controller):
    fresh = loop.start(controller, loop.init(controller.init(LIKE), LIKE), prospect(), 10)
    old = loop.decide(controller, fresh, stats([1.0, 2.0, 3.0]), 5, 10)
    mixed = loop.reset(old, fresh, torch.tensor([False, True, False]))
    for leaf, before, new in zip(leaves(mixed), leaves(old), leaves(fresh), strict=True):
        assert torch.equal(leaf[1].nan_to_num(nan=7.0), new[1].nan_to_num(nan=7.0))
        assert torch.equal(leaf[[0, 2]].nan_to_num(nan=7.0), before[[0, 2]].nan_to_num(nan=7.0))
    assert any(not torch.equal(leaf[1], before[1]) for leaf, before in zip(leaves(mixed), leaves(old), strict=True))


def test_what_is_not_known_is_masked_for_each_run():
    known = Known(loss=torch.tensor([[1.0], [0.0], [1.0]]), horizon=torch.tensor([[1.0], [1.0], [0.0]]))
    started = loop.observe_start(loop.init((), LIKE), prospect(), 10, known)
    assert feature(started.observation, "has_loss")[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert feature(started.observation, "polyak").ne(0.0)[:, 0].tolist() == [True, False, True]
    assert feature(started.observation, "polyak_left").ne(0.0)[:, 0].tolist() == [True, False, False]
    state = loop.observe(loop.init((), LIKE), stats(0.7), torch.tensor([[2], [4], [6]]), 10, known)
    assert feature(state.observation, "has_loss")[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert feature(state.observation, "progress")[:, 0].tolist() == pytest.approx([0.2, 0.4, 0.0])
    noise = feature(state.observation, "loss_noise")[:, 0]
    assert noise[0] == noise[2] != 0.0
    assert noise[1] == 0.0


def test_gradients_pass_the_first_intervals_without_nan():
    """The memory before the first interval is NaN; a change from it must not reach a gradient."""
    level = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    norm = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    seen = stats(0.0)
    seen = seen._replace(log_loss=seen.log_loss + level, gradient_norm=seen.gradient_norm * norm)
    state = loop.observe(loop.init((), LIKE), seen, 1, 10)
    state = loop.observe(state, seen._replace(log_loss=2.0 * seen.log_loss), 2, 10)
    gradients = torch.autograd.grad(state.observation.sum(), (level, norm))
    assert all(bool(g.isfinite()) for g in gradients)
    assert gradients[0] != 0.0
    for name in ("loss_change", "gradient_change"):
        first = loop.observe(loop.init((), LIKE), seen, 1, 10).observation[..., FEATURE_NAMES.index(name)]
        assert not first.any()


def test_a_saved_state_decides_on_as_before():
    controller = recurrent_policy()
    one = LIKE[:1]
    state = loop.start(controller, loop.init(controller.init(one), one), prospect(one), 10)
    state = loop.decide(controller, state, stats(0.5, runs=1), 2, 10)
    again = loop.from_saved(loop.to_saved(state), loop.init(controller.init(one), one))
    assert same(state, again)
    onward = [loop.decide(controller, start, stats(0.2, runs=1), 4, 10) for start in (state, again)]
    assert same(*onward)
    with pytest.raises(ValueError, match="for 1 groups: load it into a scheduler with the same controller"):
        loop.from_saved(loop.to_saved(state), loop.init(controller.init(one[:, :1]), one[:, :1]))
    with pytest.raises(ValueError, match="got the state of a controller with shapes"):
        loop.from_saved(loop.to_saved(state), loop.init(random_policy().init(one), one))


def test_the_lr_in_force_is_the_product():
    assert lr_in_force(0.1, 0.5, 4.0) == 0.1 * 0.5 * 4.0
    lr = interval_lr(Linear(), torch.tensor([0.1]).double(), torch.tensor([[4.0]]), torch.tensor([5]), 1, 10)
    assert lr.item() == pytest.approx(0.1 * 0.5 * 4.0, rel=1e-7)


@pytest.mark.parametrize("mode", ["anchored", "recursive", "absolute"])
def test_the_breaker_reads_the_observation(mode):
    spec = ActionSpec(mode=mode, reference=0.1 if mode == "absolute" else None)
    state = loop.init(actions.initial_state(spec, LIKE), LIKE)
    state = loop.observe(state, stats(0.0), 1, 10)
    state = loop.observe(state, stats(math.log(8.0)), 2, 10)  # four times the first loss, and noise
    exploded = loop.act(lambda seen, memory: actions.act(spec, LIKE, seen, memory), state)
    assert exploded.multiplier.tolist() == [[pytest.approx(0.3)] * 2] * 3


def test_the_prospect_is_taken_into_the_dtype_of_the_loop():
    single = loop.observe_start(loop.init((), LIKE.float()), prospect(), 10)
    assert {leaf.dtype for leaf in leaves(single)} == {torch.float32}
    double = loop.observe_start(loop.init((), LIKE), Prospect(*(value.float() for value in prospect())), 10)
    assert {leaf.dtype for leaf in leaves(double)} == {torch.float64}


def test_an_unknown_horizon_is_infinite():
    known = Known(horizon=0.0)
    state = loop.observe_start(loop.init((), LIKE), prospect(), math.inf, known)
    later = loop.observe(state, stats(0.7), 6, math.inf, known)
    for shown in (state, later):
        for name in ("progress", "log_progress", "polyak_left", "loss_slope_left", "has_horizon"):
            assert not feature(shown.observation, name).any()
        assert feature(shown.observation, "polyak").all()
        assert shown.observation.isfinite().all()
