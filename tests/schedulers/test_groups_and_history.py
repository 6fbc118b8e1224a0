"""Several LRs at once, losses as a dict, and the record of decisions."""

import pytest
import torch

from metalr.reports.decision_figure import draw_decisions
from metalr.schedulers.learned_lr import LearnedLR
from metalr.signals.observations import FEATURE_NAMES
from tests.support.policies import random_policy
from tests.support.schedulers_under_test import HORIZON, LEARNED, Training, build

breaker_may_speak = pytest.mark.filterwarnings("ignore:LearnedLR. the loss exploded")


@breaker_may_speak
@pytest.mark.parametrize("name", LEARNED)
def test_each_group_is_controlled_as_if_it_were_alone(name):
    """The decisions of a group depend on its own gradients and the common loss, not on the gradients of others."""
    both = Training()
    scheduler = build(name, both.optimizer, scope="param_group")
    alone = [
        build(name, torch.optim.SGD(group["params"], lr=float(group["lr"]))) for group in both.optimizer.param_groups
    ]
    for _ in range(HORIZON):
        loss = both.loss()
        for s in (scheduler, *alone):
            s.observe(loss)
        momentum = [both.optimizer.state[p].get("momentum_buffer") for p in both.model.parameters()]
        assert all(m is None for m in momentum) == (both.updates == 0)
        both.optimizer.step()
        both.updates += 1
        scheduler.step()
    features = scheduler.explain()["features"]
    assert len(features["gradient_total"]) == len(scheduler.explain()["lr_multiplier"]) == 2
    assert features["gradient_total"][0] != features["gradient_total"][1]
    assert features["loss_total"][0] == features["loss_total"][1]


@breaker_may_speak
def test_a_group_without_gradients_keeps_a_finite_lr():
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON, scope="param_group")
    for p in training.optimizer.param_groups[1]["params"]:
        p.requires_grad_(False)
    rates = training.run(scheduler)
    assert all(0.0 < lr < 1.0 for row in rates for lr in row)
    assert scheduler.explain()["features"]["gradient_cosine"][1] == 0.0


def test_an_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="expected 'global' or 'param_group'"):
        LearnedLR(Training().optimizer, random_policy(), HORIZON, scope="per-layer")


class Tasks(Training):
    """A training whose scheduler observes the loss in another form."""

    form = staticmethod(lambda loss: loss)

    def update(self, scheduler, **_):
        loss = self.loss()
        scheduler.observe(self.form(loss))
        self.optimizer.step()
        self.updates += 1
        scheduler.step()
        return [float(lr) for lr in scheduler.get_last_lr()]


@pytest.mark.parametrize(
    "form",
    [
        lambda loss: {"segmentation": 0.25 * loss, "depth": 0.75 * loss},
        lambda loss: {"all": loss, "none": 0.0},
        lambda loss: loss.item(),
        lambda loss: loss[None],
        lambda loss: loss.float().double(),
    ],
    ids=["two tasks", "tensor and float", "float", "one element", "rounded"],
)
def test_the_forms_of_a_loss(form):
    expected, given = Tasks(), Tasks()
    given.form = form
    reference = expected.run(LearnedLR(expected.optimizer, random_policy(), HORIZON))
    assert given.run(LearnedLR(given.optimizer, random_policy(), HORIZON)) == [
        pytest.approx(row, rel=1e-5) for row in reference
    ]


def test_explain_names_what_was_seen():
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
    before = scheduler.explain()
    assert before["updates"] == 0
    assert before["lr_multiplier"] == [1.0]
    training.run(scheduler, 12)
    found = scheduler.explain()
    assert tuple(found["features"]) == FEATURE_NAMES
    assert found["updates"] == 9
    assert found["features"]["progress"] == [pytest.approx(9 / HORIZON)]
    assert found["lr"] == [float(group["lr"]) for group in training.optimizer.param_groups]
    assert scheduler.history[-1] == {key: found[key] for key in ("updates", "features", "lr_multiplier")}


def test_the_history_is_saved():
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
    training.run(scheduler, 12)
    other = LearnedLR(Training().optimizer, random_policy(), HORIZON)
    other.load_state_dict(scheduler.state_dict())
    assert other.history == scheduler.history


def test_the_history_does_not_grow_for_ever():
    training = Training()
    policy = random_policy(schedule=__import__("metalr.schedules", fromlist=["Constant"]).Constant())
    scheduler = LearnedLR(training.optimizer, policy, None, steps_per_action=2)
    for _ in range(2000):
        scheduler.run.history.add(0, scheduler.run.state)
    assert len(scheduler.history) == 1000


def test_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
    with pytest.raises(ValueError, match="has not decided yet"):
        draw_decisions(scheduler, tmp_path / "f.png")
    training.run(scheduler)
    assert draw_decisions(scheduler, tmp_path / "f.png").stat().st_size > 5000
    with pytest.raises(ValueError, match=r"got features \['colour'\]"):
        draw_decisions(scheduler, tmp_path / "g.png", features=("colour",))


def test_without_measuring_nothing_is_held():
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON, measure=False)
    for _ in range(HORIZON):
        training.update(scheduler)
        assert scheduler.run.meter.held is None
    features = scheduler.explain()["features"]
    for name in ("update_ratio", "polyak", "overshoot", "edge", "gradient_cosine", "signal_to_noise", "has_gradient"):
        assert features[name] == [0.0], name
    assert features["loss_total"] != [0.0]


@pytest.mark.parametrize(("kind", "copies"), [("sgd", 1), ("adam", 2)])
def test_measuring_holds_copies_only_between_the_last_two_updates(kind, copies):
    """Of the gradients, and of the weights unless the optimizer holds its update, as SGD with momentum does."""
    training = Training(kind=kind)
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
    size = sum(p.numel() for p in training.model.parameters())
    counted = []
    for _ in range(HORIZON):
        training.update(scheduler)
        held = scheduler.run.meter.held
        lists = [] if held is None else held.gradients + held.weights
        counted.append(sum(tensor.numel() for group in lists for tensor in group))
    # Decisions fall at updates 5, 9, 14 and 18; their last update but one leaves copies behind.
    assert [t for t, count in enumerate(counted) if count] == [3, 7, 12, 16]
    assert set(counted) == {0, copies * size}
