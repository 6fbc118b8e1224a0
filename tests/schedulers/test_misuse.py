"""Misuse that would set wrong LRs in silence: each kind causes one warning, and proper use none."""

import warnings

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, SequentialLR

from metalr.artefacts.controller_file import load_scheduler, save_controller
from metalr.control.actions import ActionSpec
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.control.rules import GreedyLR
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Constant
from metalr.signals.observations import NUM_FEATURES
from tests.support.policies import random_policy
from tests.support.schedulers_under_test import Training

LONG = 60


def always(action: float, spec: ActionSpec | None = None) -> PolicyController:
    """A policy that always takes the same action."""
    network = PolicyNetwork([torch.zeros(1, NUM_FEATURES)], [torch.tensor([action])])
    return PolicyController(network, spec or ActionSpec(), Constant(), 20)


def warned(run) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught]


def without_losses(training: Training, scheduler, updates: int = LONG) -> None:
    for _ in range(updates):
        training.loss()
        training.optimizer.step()
        training.updates += 1
        scheduler.step()


# Losses


def test_a_controller_that_needs_losses_and_gets_none(tmp_path):
    path = save_controller(tmp_path / "c.safetensors", random_policy(), {"env": {"hide_loss": 0.0}})
    training = Training()
    scheduler = load_scheduler(path, training.optimizer, LONG)
    (message,) = warned(lambda: without_losses(training, scheduler))
    assert "no loss was observed by the second decision" in message


@pytest.mark.parametrize("about", [{"env": {"hide_loss": 0.5}}, {}, {"env": None}, {"env": {"hide_loss": "no"}}])
def test_a_card_that_does_not_ask_for_losses(about, tmp_path):
    path = save_controller(tmp_path / "c.safetensors", random_policy(), about)
    training = Training()
    scheduler = load_scheduler(path, training.optimizer, LONG)
    assert warned(lambda: without_losses(training, scheduler)) == []


def test_a_state_blind_controller_needs_no_losses(tmp_path):
    blind = random_policy(visible=("progress",))
    path = save_controller(tmp_path / "c.safetensors", blind, {"env": {"hide_loss": 0.0}})
    training = Training()
    scheduler = load_scheduler(path, training.optimizer, LONG)
    assert warned(lambda: without_losses(training, scheduler)) == []


def test_losses_passed_to_step_are_losses():
    training = Training()
    scheduler = load_scheduler("general", training.optimizer, LONG)

    def run() -> None:
        for _ in range(LONG):
            loss = training.loss()
            training.optimizer.step()
            training.updates += 1
            scheduler.step(loss)

    assert warned(run) == []


# Bounds


@pytest.mark.parametrize(
    ("action", "spec", "words"),
    [
        (1.0, ActionSpec(), "the base LR of 1e-06 is too low by 20 times or more"),
        (1.0, ActionSpec(alpha=1.0), "the base LR of 1e-06 is too low by 2.72 times or more"),
        (0.5, ActionSpec("recursive"), "the base LR of 1e-06 is too low by 20 times or more"),
        (-1.0, ActionSpec(), "the base LR of 1e-06 is too high by 20 times or more"),
    ],
)
def test_a_multiplier_that_stays_at_its_bound(action, spec, words):
    training = Training(lr=1e-6)
    scheduler = LearnedLR(training.optimizer, always(action, spec), LONG)
    (message,) = warned(lambda: training.run(scheduler, LONG))
    assert words in message
    assert "take a controller with wider bounds" in message


def test_a_multiplier_inside_its_bounds_or_at_one_near_the_end_is_no_news():
    training = Training(lr=1e-3)
    scheduler = LearnedLR(training.optimizer, always(0.9), LONG)
    assert warned(lambda: training.run(scheduler, LONG)) == []
    drifts = always(-0.15, ActionSpec("recursive", alpha=1.0))  # at 0.05 after 20 of 20 decisions
    assert warned(lambda: training.run(LearnedLR(training.optimizer, drifts, LONG), LONG)) == []


def test_a_rule_at_its_bound():
    training = Training(lr=1e-7)
    scheduler = LearnedLR(training.optimizer, GreedyLR(decisions=20, factor=0.2, high=2.0), LONG)

    def run() -> None:
        for t in range(LONG):
            training.loss()
            scheduler.observe(1.0 / (t + 1))
            training.optimizer.step()
            scheduler.step()

    (message,) = warned(run)
    assert "upper bound of 2" in message


# Company


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("tensor", [True, False])
def test_another_scheduler_on_the_same_optimizer(before, tensor):
    training = Training(second=torch.tensor(0.05) if tensor else 0.05)
    scheduler = LearnedLR(training.optimizer, random_policy(), LONG)
    other = ExponentialLR(training.optimizer, 0.9)

    def run() -> None:
        for _ in range(LONG):
            scheduler.observe(training.loss())
            training.optimizer.step()
            training.updates += 1
            for one in (other, scheduler) if before else (scheduler, other):
                one.step()

    (message,) = warned(run)
    assert "something else has changed the LR" in message


def test_an_assigned_lr():
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), LONG)

    def run() -> None:
        for t in range(LONG):
            training.update(scheduler)
            if t % 7 == 0:
                training.optimizer.param_groups[0]["lr"] *= 0.5

    (message,) = warned(run)
    assert "something else has changed the LR" in message


@pytest.mark.parametrize("other", [random_policy(seed=1), random_policy()], ids=["different", "the same"])
def test_a_second_learned_scheduler(other):
    training = Training()
    both = [LearnedLR(training.optimizer, c, LONG) for c in (random_policy(), other)]

    def run() -> None:
        for _ in range(LONG):
            loss = training.loss()
            for one in both:
                one.observe(loss)
            training.optimizer.step()
            training.updates += 1
            for one in both:
                one.step()

    assert any("two LearnedLR step the same optimizer" in message for message in warned(run))


def test_schedulers_that_follow_each_other_are_proper_use():
    training = Training()
    first = LinearLR(training.optimizer, 0.1, total_iters=5)
    second = LearnedLR(training.optimizer, random_policy(), 15)
    third = LearnedLR(training.optimizer, random_policy(seed=1), 30)
    scheduler = SequentialLR(training.optimizer, [first, second, third], [5, 20])

    def run() -> None:
        for _ in range(50):
            loss = training.loss()
            for one in (second, third):
                one.observe(loss)
            training.optimizer.step()
            training.updates += 1
            scheduler.step()

    assert warned(run) == []


def test_a_scheduler_in_place_of_a_finished_one_is_proper_use():
    training = Training()
    first = LearnedLR(training.optimizer, random_policy(), 20)
    training.run(first, 20)
    first.detach()
    second = LearnedLR(training.optimizer, random_policy(), 20)
    assert warned(lambda: training.run(second, 20)) == []


@pytest.mark.parametrize(("stored", "applied"), [(1e30, 20.0), (-3.0, 0.05), (float("nan"), 1.0)])
def test_a_checkpoint_cannot_leave_the_bounds_of_the_card(stored, applied):
    training = Training()
    controller = random_policy(ActionSpec(low=0.05, high=20.0), schedule=Constant())
    scheduler = LearnedLR(training.optimizer, controller, LONG)
    for _ in range(3):
        training.run(scheduler, 1)
    state = scheduler.state_dict()
    state["loop"]["multiplier"].fill_(stored)
    scheduler.load_state_dict(state)
    scheduler.step()
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(applied * scheduler.base_lrs[0])
