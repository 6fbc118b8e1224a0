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
from metalr.signals.stats import RunStats
from metalr.trees import leaves
from tests.support.schedulers_under_test import random_policy, recurrent_policy

LIKE = torch.ones(3, 2, dtype=torch.float64)


def stats(log_loss, dtype=torch.float64) -> RunStats:
    run = torch.as_tensor(log_loss, dtype=dtype).expand(3).clone()
    group = torch.ones(3, 2, dtype=dtype)
    return RunStats(run, run * 0.0 - 0.1, run * 0.0 + 0.2, run * 0.0 + 9.0, run * 0.0, group * 3.0, group * 0.5, group)


@pytest.mark.parametrize("controller", [random_policy(), recurrent_policy()], ids=["policy", "recurrent"])
def test_a_decision_is_its_two_halves(controller):
    state = loop.init(controller.init(LIKE), LIKE)
    whole = loop.decide(controller, state, stats(1.0), 0.3)
    halves = loop.act(controller, loop.observe(state, stats(1.0), 0.3))
    assert all(torch.equal(a, b) for a, b in zip(leaves(whole), leaves(halves), strict=True))
    assert torch.equal(feature(whole.observation, "progress"), 0.3 * LIKE)
    assert not torch.equal(whole.multiplier, LIKE)


def test_an_action_from_outside_is_a_decision_like_any_other():
    policy = random_policy()
    state = loop.observe(loop.init(policy.init(LIKE), LIKE), stats(1.0), 0.5)
    chosen = policy.act(state.observation)
    outside = loop.act(lambda seen, memory: actions.act(policy.action, chosen, seen, memory), state)
    assert torch.equal(outside.multiplier, loop.act(policy, state).multiplier)


@pytest.mark.parametrize("controller", [random_policy(), recurrent_policy()], ids=["policy", "recurrent"])
def test_a_reset_changes_the_chosen_runs_and_no_bit_of_the_others(controller):
    fresh = loop.start(controller, loop.init(controller.init(LIKE), LIKE), 1e-3 * LIKE)
    old = loop.decide(controller, fresh, stats([1.0, 2.0, 3.0]), 0.5)
    mixed = loop.reset(old, fresh, torch.tensor([False, True, False]))
    for leaf, before, new in zip(leaves(mixed), leaves(old), leaves(fresh), strict=True):
        assert torch.equal(leaf[1].nan_to_num(nan=7.0), new[1].nan_to_num(nan=7.0))
        assert torch.equal(leaf[[0, 2]], before[[0, 2]])
    assert any(not torch.equal(leaf[1], before[1]) for leaf, before in zip(leaves(mixed), leaves(old), strict=True))


def test_what_is_not_known_is_masked_for_each_run():
    known = Known(loss=torch.tensor([[1.0], [0.0], [1.0]]), horizon=torch.tensor([[1.0], [1.0], [0.0]]))
    state = loop.observe(loop.init((), LIKE), stats(0.7), torch.tensor([[0.2], [0.4], [0.6]]), known)
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
    state = loop.observe(loop.init((), LIKE), seen, 0.1)
    state = loop.observe(state, seen._replace(log_loss=2.0 * seen.log_loss), 0.2)
    gradients = torch.autograd.grad(state.observation.sum(), (level, norm))
    assert all(bool(g.isfinite()) for g in gradients)
    assert gradients[0] != 0.0
    for name in ("loss_change", "gradient_change"):
        first = loop.observe(loop.init((), LIKE), seen, 0.1).observation[..., FEATURE_NAMES.index(name)]
        assert not first.any()


def test_a_saved_state_decides_on_as_before():
    controller = recurrent_policy()
    one = LIKE[:1]
    state = loop.start(controller, loop.init(controller.init(one), one), 1e-3 * one)
    again = loop.from_saved(loop.to_saved(state), loop.init(controller.init(one), one))
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(again), strict=True) if not a.isnan().any())
    with pytest.raises(ValueError, match="for 1 groups: load it into a scheduler with the same controller"):
        loop.from_saved(loop.to_saved(state), loop.init(controller.init(one[:, :1]), one[:, :1]))
    with pytest.raises(ValueError, match="got the state of a controller with shapes"):
        loop.from_saved(loop.to_saved(state), loop.init(random_policy().init(one), one))


def test_the_lr_in_force_is_the_product():
    assert lr_in_force(0.1, 0.5, 4.0) == 0.1 * 0.5 * 4.0
    lr = interval_lr(Linear(), torch.tensor([0.1]).double(), torch.tensor([[4.0]]), torch.tensor([5]), 1, 10)
    assert lr.item() == pytest.approx(0.1 * 0.5 * 4.0, rel=1e-7)


@pytest.mark.parametrize("mode", ["anchored", "recursive"])
def test_the_breaker_reads_the_observation(mode):
    spec = ActionSpec(mode=mode)
    state = loop.init(actions.initial_state(spec, LIKE), LIKE)
    state = loop.observe(state, stats(0.0), 0.1)
    state = loop.observe(state, stats(math.log(5.0)), 0.2)  # more than four times the first interval's loss
    exploded = loop.act(lambda seen, memory: actions.act(spec, LIKE, seen, memory), state)
    assert exploded.multiplier.tolist() == [[pytest.approx(0.3)] * 2] * 3
