"""Loops that work without metalr work with it: odd parameters, odd optimizers, odd numbers."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from metalr.schedulers.clock import DecisionClock
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.schedules import Cosine, Linear
from tests.support.policies import random_policy
from tests.support.schedulers_under_test import HORIZON, Training

pytestmark = pytest.mark.filterwarnings("ignore:LearnedLR. the loss exploded")

SCOPES = ["global", "param_group"]


def driven(optimizer, gradients, group=-1, losses=None, make=None, **options) -> list[float]:
    """LRs of a loop over given gradients, saved and loaded at every update on the way."""
    scheduler = (make or (lambda o: LearnedLR(o, random_policy(), HORIZON, **options)))(optimizer)
    rates = []
    for t in range(HORIZON):
        gradients(t)
        if isinstance(scheduler, LearnedLR):
            scheduler.observe(1.0 / (t + 1) if losses is None else losses(t))
        optimizer.step()
        scheduler.step()
        rates.append(float(optimizer.param_groups[group]["lr"]))
        scheduler.load_state_dict(scheduler.state_dict())
    return rates


def numbers_at(t: int, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(t))


def one_weight(size: int = 6) -> tuple[nn.Parameter, object]:
    weight = nn.Parameter(torch.ones(size))

    def gradients(t: int) -> None:
        weight.grad = weight.detach() + 0.3 * numbers_at(t, size)

    return weight, gradients


# Parameters


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("scope", SCOPES)
def test_an_empty_group_changes_nothing(scope, place):
    weight, gradients = one_weight()
    expected = driven(torch.optim.SGD([weight], lr=0.05, momentum=0.9), gradients)
    weight, gradients = one_weight()
    groups: list[dict] = [{"params": [weight]}]
    groups.insert(place, {"params": []})
    found = driven(torch.optim.SGD(groups, lr=0.05, momentum=0.9), gradients, 1 - place, scope=scope)
    assert found == pytest.approx(expected, rel=1e-12)  # two rows of a policy at once round otherwise than one


def test_an_empty_group_under_a_schedule():
    def make(optimizer):
        return ScheduleLR(optimizer, Cosine(), HORIZON)

    weight, gradients = one_weight()
    expected = driven(torch.optim.SGD([weight], lr=0.05), gradients, make=make)
    weight, gradients = one_weight()
    assert driven(torch.optim.SGD([{"params": []}, {"params": [weight]}], lr=0.05), gradients, make=make) == expected


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {}),
        (torch.optim.RMSprop, {}),
    ],
)
def test_complex_weights_are_pairs_of_real_ones(kind, options):
    options = {"lr": 0.05, **options}
    real, gradients = one_weight(6)
    expected = driven(kind([real], **options), gradients)
    weight = nn.Parameter(torch.view_as_complex(torch.ones(3, 2)))

    def complex_gradients(t: int) -> None:
        now = torch.view_as_real(weight.detach()).flatten() + 0.3 * numbers_at(t, 6)
        weight.grad = torch.view_as_complex(now.view(3, 2))

    assert driven(kind([weight], **options), complex_gradients) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("scope", SCOPES)
def test_sparse_gradients(scope, momentum):
    embedding, head = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 1)
    groups = [{"params": embedding.parameters()}, {"params": head.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=momentum)

    def gradients(t: int) -> None:
        optimizer.zero_grad()
        head(embedding(torch.arange(t, t + 6) % 10)).square().mean().backward()

    assert all(0.0 < lr < 1.0 for lr in driven(optimizer, gradients, scope=scope))


# Optimizers


class Wrapper(torch.optim.Optimizer):
    """As many libraries wrap optimizers: an Optimizer by type that has never been initialised as one."""

    def __init__(self, inner) -> None:
        self.optimizer = inner

    param_groups = property(lambda self: self.optimizer.param_groups)  # type: ignore[assignment]
    state = property(lambda self: self.optimizer.state)  # type: ignore[assignment]
    defaults = property(lambda self: self.optimizer.defaults)  # type: ignore[assignment]

    def step(self, closure=None):
        return self.optimizer.step(closure)


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_wrapper_that_was_never_initialised(depth, hooks):
    weight, gradients = one_weight()
    plain = torch.optim.Adagrad([weight], lr=0.05, initial_accumulator_value=1.0)
    expected = driven(plain, gradients, hooks=hooks)
    weight, gradients = one_weight()
    wrapped = torch.optim.Adagrad([weight], lr=0.05, initial_accumulator_value=1.0)
    for _ in range(depth):
        wrapped = Wrapper(wrapped)
    found = driven(wrapped, gradients, hooks=hooks)
    # The first update of an unknown optimizer cannot be predicted, so decisions differ, but all are made.
    assert len(set(found)) > HORIZON // 2
    assert len(found) == len(expected)


def test_a_wrapper_around_nothing_is_explained():
    class Hidden(Wrapper):
        def __init__(self, inner) -> None:
            self.inside = [inner]

        optimizer = property(lambda self: self.inside[0])

    weight, _ = one_weight()
    with pytest.raises(TypeError, match="pass the optimizer inside it, or hooks=False"):
        LearnedLR(Hidden(torch.optim.SGD([weight], lr=0.1)), random_policy(), HORIZON)


# Numbers


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_whole_numbers_of_numpy(kind):
    expected, found = Training(), Training()
    rates = expected.run(LearnedLR(expected.optimizer, random_policy(), HORIZON, decisions=5))
    scheduler = LearnedLR(found.optimizer, random_policy(), kind(HORIZON), decisions=kind(5))
    assert found.run(scheduler) == rates
    assert type(scheduler.state_dict()["updates"]) is type(scheduler.state_dict()["interval_start"]) is int
    assert ScheduleLR(found.optimizer, Linear(), kind(HORIZON)).horizon == HORIZON
    scheduler.set_horizon(kind(40))
    assert type(scheduler.horizon) is int


@pytest.mark.parametrize(
    "form",
    [np.array, np.float32, np.float64, lambda x: np.array([x]), lambda x: {"a": np.array(x)}, torch.tensor],
    ids=["0-d array", "float32", "float64", "1 element", "dict", "tensor"],
)
def test_losses_of_numpy(form):
    weight, gradients = one_weight()
    expected = driven(torch.optim.SGD([weight], lr=0.05), gradients)
    weight, gradients = one_weight()
    found = driven(torch.optim.SGD([weight], lr=0.05), gradients, losses=lambda t: form(1.0 / (t + 1)))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize("late", [False, True], ids=["observe", "step"])
@pytest.mark.parametrize(
    ("loss", "error"),
    [
        ("0.5", TypeError),
        ([0.5], TypeError),
        ((0.5, 1), TypeError),
        (1j, TypeError),
        (torch.tensor(1j), TypeError),
        (np.array("x"), TypeError),
        (np.array(1j), TypeError),
        ({"a": None}, TypeError),
        ({"a": 0.5, "b": "c"}, TypeError),
        (object(), TypeError),
        (np.ones(3), ValueError),
        (torch.ones(0), ValueError),
        ({"a": torch.ones(2)}, ValueError),
    ],
)
def test_what_is_no_loss_is_refused_where_it_is_passed(loss, error, late, hooks):
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON, hooks=hooks)
    with pytest.raises(error, match=r"got a loss of (type|shape) .*expected .*: pass"):
        (scheduler.step if late else scheduler.observe)(loss)
    training.run(scheduler, HORIZON + 3)
    with pytest.raises(error, match="got a loss"):  # also where no decision would need it
        (scheduler.step if late else scheduler.observe)(loss)


@pytest.mark.parametrize("loss", [None, True])
def test_none_and_true_are_no_losses(loss):
    scheduler = LearnedLR(Training().optimizer, random_policy(), HORIZON)
    with pytest.raises(TypeError, match=f"got a loss of type {type(loss).__name__}"):
        scheduler.observe(loss)


@pytest.mark.parametrize("epoch", [3, np.int64(3), True])
def test_epoch_numbers_of_any_kind_are_refused(epoch):
    scheduler = LearnedLR(Training().optimizer, random_policy(), HORIZON)
    with pytest.raises(TypeError, match="a whole number, expected no argument or the loss"):
        scheduler.step(epoch)


# Leaks


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_past_the_last_decision_no_loss_is_kept():
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
    training.run(scheduler, HORIZON)
    before = len(str(scheduler.state_dict()["losses"]))
    for _ in range(500):
        scheduler.observe(0.5)
        training.optimizer.step()
        scheduler.step(0.5)
    assert len(str(scheduler.state_dict()["losses"])) <= before
    scheduler.set_horizon(2 * scheduler.updates)  # decisions lie ahead again
    scheduler.observe(0.5)
    assert len(scheduler.state_dict()["losses"]) >= 1


def test_while_it_waits_for_its_turn_no_loss_is_kept():
    training = Training()
    learned = LearnedLR(training.optimizer, random_policy(), HORIZON)
    first = torch.optim.lr_scheduler.LinearLR(training.optimizer, 0.1)
    scheduler = torch.optim.lr_scheduler.SequentialLR(training.optimizer, [first, learned], [300])
    for _ in range(299):
        learned.observe(training.loss())
        training.optimizer.step()
        scheduler.step()
    assert learned.state_dict()["losses"] == []


def test_a_detached_scheduler_keeps_no_loss():
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
    scheduler.detach()
    for _ in range(100):
        scheduler.observe(0.5)
    assert scheduler.state_dict()["losses"] == []


def test_flags_of_skipped_updates_do_not_pile_up():
    clock = DecisionClock(10, decisions=2)
    clock.started = True
    clock.updates = 5
    clock.decided()
    assert clock.next_decision is None
    skipped, most = 0, 0
    for t in range(2000):
        if clock.must_settle:
            skipped += len(clock.settle())
        clock.may_be_skipped(torch.tensor(float(t % 4 == 0)))
        clock.updates += 1
        most = max(most, len(clock._skips))
    skipped += len(clock.settle())
    assert most <= 256
    assert skipped == 500
    assert clock.updates == 5 + 1500


@pytest.mark.parametrize("moment", [0, 7])
def test_a_dropped_scheduler_leaves_no_hooks(moment):
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
    training.run(scheduler, moment)
    assert len(training.optimizer._optimizer_step_pre_hooks) == 1
    gone = weakref.ref(scheduler)
    del scheduler
    gc.collect()
    assert gone() is None
    assert len(training.optimizer._optimizer_step_pre_hooks) == 0
    assert len(training.optimizer._optimizer_step_post_hooks) == 0
