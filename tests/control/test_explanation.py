"""The reasons of a decision: contributions that are exact where the answer is known, and words that say the same."""

import math

import pytest
import torch

from metalr.control.actions import ActionSpec
from metalr.control.explanation import MEANINGS, reasons_for, reasons_of_episode
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.control.recurrent import RecurrentPolicyController
from metalr.control.reference import ScheduleController
from metalr.control.rules import RULES
from metalr.engine.episodes import run_episode
from metalr.engine.runs import BatchedRuns
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Constant
from metalr.signals.observations import FEATURE_NAMES, NUM_FEATURES
from metalr.tasks.catalog import make_task
from tests.support.policies import random_policy

WIDE = ActionSpec(alpha=2.0, low=1e-3, high=1e3)


def linear_policy(**weights: float) -> PolicyController:
    """Action = sum of weight times feature, so a contribution is alpha times weight times feature."""
    row = torch.zeros(1, NUM_FEATURES)
    for name, weight in weights.items():
        row[0, FEATURE_NAMES.index(name)] = weight
    return PolicyController(PolicyNetwork([row], [torch.zeros(1)]), WIDE, Constant(), decisions=5)


def observation(**features: float) -> torch.Tensor:
    seen = torch.zeros(1, 1, NUM_FEATURES, dtype=torch.float64)
    for name, value in features.items():
        seen[..., FEATURE_NAMES.index(name)] = value
    return seen


def explained(controller, **features: float):
    seen = observation(**features)
    return reasons_for(controller, seen, controller.init(torch.ones(1, 1, dtype=torch.float64)))


def test_every_feature_has_a_meaning_in_words() -> None:
    assert set(MEANINGS) == {*FEATURE_NAMES, "memory"}


def test_contributions_of_a_linear_policy_are_its_terms() -> None:
    controller = linear_policy(update_ratio=-0.5, loss_slope=0.25, edge=0.1)
    found = explained(controller, update_ratio=0.6, loss_slope=0.4)
    numbers = found.numbers()
    assert numbers["update_ratio"] == [pytest.approx(2.0 * -0.5 * 0.6)]
    assert numbers["loss_slope"] == [pytest.approx(2.0 * 0.25 * 0.4)]
    assert all(value == [0.0] for name, value in numbers.items() if name not in ("update_ratio", "loss_slope"))
    assert "memory" not in numbers
    assert math.log(found.after.item()) == pytest.approx(sum(value[0] for value in numbers.values()))


def test_words_name_what_raised_and_what_lowered_with_factors() -> None:
    controller = linear_policy(update_ratio=-0.5, loss_slope=0.25, edge=0.01, has_loss=0.3)
    text = explained(controller, update_ratio=0.6, loss_slope=0.4, edge=0.1, has_loss=1.0).in_words(controller.bounds)
    assert text == (
        "Multiplier 1 -> 1.22: raised by how surely the loss falls (loss_slope +0.40: x1.2); lowered by the size of an "
        "update against the weights (update_ratio +0.60: x0.55)."
    )


def test_words_say_when_a_bound_or_the_breaker_decided() -> None:
    high = linear_policy(loss_slope=9.0)
    spec = ActionSpec(alpha=10.0, low=0.1, high=4.0)
    high = PolicyController(high.network, spec, Constant(), decisions=5)
    assert explained(high, loss_slope=1.0).in_words(high.bounds).endswith("That is its upper bound.")
    text = explained(high, loss_slope=1.0, loss_exploded=1.0, has_history=1.0).in_words(high.bounds)
    assert "lowered by the explosion of the loss" in text
    assert text.endswith("the breaker holds the multiplier down.")
    assert "no single feature" in explained(high).in_words(high.bounds)


def recurrent(memory_weight: float) -> RecurrentPolicyController:
    """One unit of memory that a feature fills; the action reads it."""
    weights = {
        "from_input.weight": torch.zeros(3, NUM_FEATURES),
        "from_input.bias": torch.zeros(3),
        "from_memory.weight": torch.zeros(3, 1),
        "from_memory.bias": torch.zeros(3),
        "head.weight": torch.full((1, 1), memory_weight),
        "head.bias": torch.zeros(1),
    }
    weights["from_input.weight"][2, FEATURE_NAMES.index("loss_slope")] = 1.0
    return RecurrentPolicyController(weights, WIDE, Constant(), decisions=5)


def test_what_an_earlier_decision_left_in_memory_is_a_reason_of_its_own() -> None:
    controller = recurrent(0.5)
    seen = torch.stack([observation(loss_slope=0.8), observation()])
    first, second = reasons_of_episode(controller, seen)
    assert first.contributions["memory"].item() == 0.0
    memory = 0.5 * math.tanh(0.8)  # the update gate is one half
    assert first.contributions["loss_slope"].item() == pytest.approx(2.0 * 0.5 * memory)
    assert second.contributions["memory"].item() == pytest.approx(2.0 * 0.5 * 0.5 * memory)
    assert second.contributions["loss_slope"].item() == 0.0
    assert "its memory of earlier decisions (x1.2)" in second.in_words(controller.bounds)


@pytest.mark.parametrize("name", ["policy", "schedule", *RULES])
def test_every_controller_can_be_explained_and_the_replay_is_what_was_decided(name: str) -> None:
    kinds = {"policy": lambda: random_policy(decisions=5), "schedule": lambda: ScheduleController(Constant(), 5)}
    controller = kinds[name]() if name in kinds else RULES[name]()
    runs = BatchedRuns(make_task("teacher-student", horizon=40, width=4), 1)
    episode = run_episode(controller, runs, torch.tensor([0]), torch.tensor([0.05]), splits=())
    for found, multiplier in zip(
        reasons_of_episode(controller, episode.observations), episode.multipliers, strict=True
    ):
        torch.testing.assert_close(found.after.clamp(*controller.bounds), multiplier, rtol=1e-5, atol=0.0)
        assert all(math.isfinite(value[0]) for value in found.numbers().values())
        assert found.in_words(controller.bounds).startswith("Multiplier")


def test_a_scheduler_explains_its_last_decision_in_words() -> None:
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([w], lr=0.1)
    scheduler = LearnedLR(optimizer, linear_policy(progress=1.0), horizon=10)
    assert (scheduler.explain()["contributions"], scheduler.explain()["why"]) == ({}, [])

    def update() -> None:
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        scheduler.step()

    for _ in range(5):
        update()
    found = scheduler.explain()
    assert found["contributions"]["progress"] == [pytest.approx(2.0 * 0.4)]
    assert found["why"] == ["Multiplier 1.49 -> 2.23: raised by how much of the run is done (progress +0.40: x2.2)."]
    loaded = LearnedLR(torch.optim.SGD([w], lr=0.1), linear_policy(progress=1.0), horizon=10)
    loaded.load_state_dict(scheduler.state_dict())
    assert loaded.explain()["why"] == []
    assert loaded.explain()["features"] == found["features"]
