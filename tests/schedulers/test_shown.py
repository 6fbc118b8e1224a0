"""The `repr` of a scheduler and of a controller says where it is, and never changes a run."""

import re

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from metalr import ScheduleLR
from metalr.control.actions import ActionSpec
from metalr.control.reference import ReplayController
from metalr.schedulers.adapters import TimmScheduler
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Constant, Cosine, Linear, Warmup
from tests.support.policies import random_policy, recurrent_policy
from tests.support.schedulers_under_test import HORIZON, LEARNED, Training, build, controllers


def optimizer(*lrs: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in lrs], lr=0.1)


def test_a_learned_scheduler_says_how_far_it_is_and_what_is_in_force():
    made = optimizer(0.1, 0.02)
    scheduler = LearnedLR(made, ReplayController((2.0, 0.5), Constant()), horizon=10)
    assert repr(scheduler).startswith("LearnedLR(after 0 of 10 updates, lr 0.1, 0.02, lr_multiplier 1, ReplayContro")
    for _ in range(3):
        for group in made.param_groups:
            group["params"][0].grad = torch.ones(1)
        made.step()
        scheduler.step()
    assert repr(scheduler).startswith("LearnedLR(after 3 of 10 updates, lr 0.2, 0.04, lr_multiplier 2, ReplayContro")
    assert repr(scheduler).endswith(f"{scheduler.controller})")
    assert repr(TimmScheduler(scheduler)) == f"TimmScheduler({scheduler})"


def test_a_scheduler_without_a_horizon_or_before_its_turn_says_so():
    open_ended = LearnedLR(optimizer(0.1), random_policy(schedule=Constant()), None, steps_per_action=5)
    assert repr(open_ended).startswith("LearnedLR(after 0 updates, lr 0.1, ")
    made = optimizer(0.1)
    first, learned = LinearLR(made, 0.1), LearnedLR(made, random_policy(), 20)
    SequentialLR(made, [first, learned], milestones=[5])
    assert repr(learned).startswith("LearnedLR(not begun, lr ")


def test_a_schedule_scheduler_counts_calls():
    made = optimizer(0.1)
    scheduler = ScheduleLR(made, Linear(), horizon=10)
    for _ in range(5):
        made.step()
        scheduler.step()
    assert repr(scheduler) == f"ScheduleLR(after 5 of 10 calls of step, lr 0.05, {Linear()})"


@pytest.mark.filterwarnings("ignore:LearnedLR. the loss exploded")
@pytest.mark.parametrize("name", LEARNED)
def test_looking_changes_nothing(name):
    plain, watched = Training(), Training()
    expected = plain.run(build(name, plain.optimizer))
    scheduler = build(name, watched.optimizer)
    seen = [(repr(scheduler), watched.update(scheduler)) for _ in range(HORIZON)]
    assert [rates for _, rates in seen] == expected
    assert len({shown for shown, _ in seen}) == HORIZON


@pytest.mark.parametrize("name", controllers())
def test_a_controller_shows_its_settings_in_a_line_without_weights(name):
    controller = controllers()[name]
    shown = repr(controller)
    assert shown.startswith(type(controller).__name__ + "(")
    assert repr(controller.schedule) in shown
    assert not re.search(r"\n|tensor|object at", shown)


def test_a_policy_shows_its_action_and_what_it_sees():
    policy = random_policy(ActionSpec(alpha=1.0), decisions=7, visible=("progress",))
    assert repr(policy) == (
        f"PolicyController(action={policy.action}, schedule={policy.schedule}, decisions=7, spacing='even', "
        "visible=('progress',))"
    )
    assert repr(recurrent_policy()).startswith("RecurrentPolicyController(action=ActionSpec(mode='anchored'")


def test_a_schedule_shows_how_to_make_it_again():
    schedule = Warmup(Cosine(floor=0.01), length=0.05)
    assert eval(repr(schedule)) == schedule
