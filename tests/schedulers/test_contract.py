"""The contract of a torch scheduler, for every scheduler of the package.

Written from torch's documentation and its own tests (`test/optim/test_lrscheduler.py`).
"""

import copy
import gc
import io
import math
import pickle
import warnings
import weakref

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from metalr.control.catalog import CONTROLLERS
from metalr.schedulers.learned_lr import LearnedLR
from tests.support.schedulers_under_test import (
    CONTROLLERS_UNDER_TEST,
    HORIZON,
    LEARNED,
    NAMES,
    OPEN,
    SCHEDULES,
    Training,
    base_in_force,
    build,
)

every = pytest.mark.parametrize("name", NAMES)
# A shipped controller may overshoot on a task that it never saw; its breaker then says so, rightly.
pytestmark = pytest.mark.filterwarnings("ignore:LearnedLR. the loss exploded")
learned = pytest.mark.parametrize("name", LEARNED)
open_loop = pytest.mark.parametrize("name", OPEN)


def uninterrupted(name: str, updates: int = HORIZON, **options) -> list[list[float]]:
    training = Training()
    return training.run(build(name, training.optimizer), updates, **options)


def test_every_kind_is_here():
    kinds = {name.removeprefix("learned:") for name in LEARNED}
    assert kinds >= set(CONTROLLERS)
    assert len(OPEN) == len(SCHEDULES) >= 20


@every
def test_it_is_torchs(name):
    training = Training()
    scheduler = build(name, training.optimizer)
    assert isinstance(scheduler, LRScheduler)
    assert not hasattr(scheduler, "total_steps")
    assert [group["initial_lr"] for group in training.optimizer.param_groups] == [0.05, 0.025]


@every
def test_the_last_lr_is_the_one_in_force(name):
    training = Training()
    scheduler = build(name, training.optimizer)
    for _ in range(HORIZON + 3):
        in_force = [group["lr"] for group in training.optimizer.param_groups]
        last = scheduler.get_last_lr()
        if training.updates:  # before the first update a learned one has not decided yet
            assert training.update(scheduler) == last
        else:
            training.update(scheduler)
        assert [float(lr) for lr in in_force[:1]] == [float(lr) for lr in last[:1]]
        assert [isinstance(lr, torch.Tensor) for lr in last] == [False, True]
        assert scheduler.get_last_lr() == [group["lr"] for group in training.optimizer.param_groups]


@every
def test_a_tensor_lr_stays_the_same_tensor_and_nothing_aliases_it(name):
    training = Training()
    group = training.optimizer.param_groups[1]
    scheduler = build(name, training.optimizer)
    for _ in range(HORIZON):
        training.update(scheduler)
        assert group["lr"] is training.tensor_lr
        pointers = {lr.data_ptr() for lr in (group["lr"], group["initial_lr"], scheduler.get_last_lr()[1])}
        assert len(pointers) == 3
        assert scheduler.base_lrs[1].data_ptr() not in pointers
    assert group["initial_lr"].item() == 0.025
    scheduler.get_last_lr()[1].fill_(7.0)
    assert group["lr"].item() != 7.0


@every
def test_no_reference_cycles(name):
    def dead_after_run() -> weakref.ref:
        training = Training()
        scheduler = build(name, training.optimizer)
        training.run(scheduler, 7)
        return weakref.ref(scheduler)

    Training()  # a process's first optimizer imports torch's compiler, which keeps the frames that asked for it
    gc.disable()
    try:
        assert dead_after_run()() is None
    finally:
        gc.enable()


@every
def test_the_optimizer_outlives_its_scheduler(name):
    training = Training()
    scheduler = build(name, training.optimizer)
    training.run(scheduler, 7)
    lrs = [float(group["lr"]) for group in training.optimizer.param_groups]
    gone = weakref.ref(scheduler)
    del scheduler
    assert gone() is None
    assert training.run(None, 8)[-1] == lrs


@every
def test_no_warning_in_the_right_order_and_torchs_in_the_wrong_one(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uninterrupted(name)
    training = Training()
    scheduler = build(name, training.optimizer)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()


def saved(*things) -> list[dict]:
    """State dicts after a round trip through a file that cannot hold code."""
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in things], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(name: str, at: int, order: str, **twin) -> list[list[float]]:
    """The LRs of a run that was stopped after `at` updates and resumed in new objects."""
    first = Training()
    scheduler = build(name, first.optimizer)
    rates = first.run(scheduler, at)
    model, optimizer, state = saved(first.model, first.optimizer, scheduler)
    second = Training(**twin)
    second.model.load_state_dict(model)
    second.updates = at
    if order == "load, build, load":
        second.optimizer.load_state_dict(optimizer)
        scheduler = build(name, second.optimizer)
        scheduler.load_state_dict(state)
    else:
        scheduler = build(name, second.optimizer)
        todo = [(second.optimizer, optimizer), (scheduler, state)]
        for thing, content in todo if order == "build, load, load" else todo[::-1]:
            thing.load_state_dict(content)
    assert [float(lr) for lr in scheduler.get_last_lr()] == [float(g["lr"]) for g in second.optimizer.param_groups]
    return rates + second.run(scheduler, HORIZON - at)


@pytest.mark.parametrize("order", ["load, build, load", "build, load, load", "build, load scheduler, load optimizer"])
@every
def test_both_orders_of_loading_continue_exactly(name, order):
    expected = uninterrupted(name)
    for at in (0, 4, 13):
        assert resumed(name, at, order) == expected


@every
def test_a_differently_configured_twin_continues_exactly(name):
    expected = uninterrupted(name)
    for twin in ({"lr": 0.7}, {"lr": 0.001, "seed": 5}, {"second": torch.tensor(3.0, dtype=torch.float64)}):
        for at in (3, 12):
            assert resumed(name, at, "build, load, load", **twin) == expected


@every
def test_the_state_alone_restores_the_lr(name):
    first = Training()
    scheduler = build(name, first.optimizer)
    first.run(scheduler, 9)
    second = Training()
    twin = build(name, second.optimizer)
    twin.load_state_dict(saved(scheduler)[0])
    assert [float(g["lr"]) for g in second.optimizer.param_groups] == [float(lr) for lr in scheduler.get_last_lr()]
    assert second.optimizer.param_groups[1]["lr"] is second.tensor_lr


@every
def test_a_foreign_state_is_refused(name):
    training = Training()
    scheduler = build(name, training.optimizer)
    with pytest.raises(ValueError, match="expected one of the same kind of scheduler"):
        scheduler.load_state_dict(torch.optim.lr_scheduler.StepLR(Training().optimizer, 3).state_dict())
    state = scheduler.state_dict()
    with pytest.raises(ValueError, match="expected 2: build the optimizer with the same groups"):
        scheduler.load_state_dict({**state, "base_lrs": state["base_lrs"] * 2})


@every
def test_a_state_holds_plain_things_that_later_updates_leave_alone(name):
    def leaves(value):
        if isinstance(value, dict):
            return [leaf for part in value.values() for leaf in leaves(part)]
        if isinstance(value, list | tuple):
            return [leaf for part in value for leaf in leaves(part)]
        return [value]

    training = Training()
    scheduler = build(name, training.optimizer)
    training.run(scheduler, 8)
    state = scheduler.state_dict()
    assert {type(leaf) for leaf in leaves(state)} <= {int, float, bool, str, type(None), torch.Tensor}
    before = copy.deepcopy(leaves(state))
    training.run(scheduler, 9)
    for old, new in zip(before, leaves(state), strict=True):
        if isinstance(old, torch.Tensor):  # NaN stands for what is not known yet
            torch.testing.assert_close(new, old, rtol=0.0, atol=0.0, equal_nan=True)
        else:
            assert old == new


@every
def test_a_parameter_group_added_later_has_its_own_lr(name):
    training = Training()
    scheduler = build(name, training.optimizer)
    training.run(scheduler, 6)
    extra = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    training.optimizer.add_param_group({"params": [extra], "lr": torch.tensor(0.5, dtype=torch.float64)})
    extra.grad = torch.ones_like(extra)
    for _ in range(HORIZON - 6):
        training.update(scheduler)
        group, last = training.optimizer.param_groups[2], scheduler.get_last_lr()
        assert len(last) == len(scheduler.base_lrs) == 3
        assert group["initial_lr"].item() == 0.5
        assert len({t.data_ptr() for t in (group["lr"], group["initial_lr"], last[2], scheduler.base_lrs[2])}) == 4
        assert math.isfinite(float(group["lr"]))
    bases = [base_in_force(scheduler, float(base)) for base in scheduler.base_lrs]
    ratios = [float(lr) / base for lr, base in zip(last, bases, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 3)


@learned
def test_a_group_added_later_keeps_its_own_lr_where_groups_are_controlled_alone(name):
    training = Training()
    scheduler = build(name, training.optimizer, scope="param_group")
    training.run(scheduler, 6)
    extra = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    training.optimizer.add_param_group({"params": [extra], "lr": 0.5})
    training.run(scheduler, HORIZON)
    schedule = scheduler.controller.schedule(training.updates / HORIZON)
    assert training.optimizer.param_groups[2]["lr"] == pytest.approx(0.5 * schedule)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@every
def test_copies_go_on_by_themselves(name, copied):
    expected = uninterrupted(name)
    for at in (0, 4, 9):
        training = Training()
        scheduler = build(name, training.optimizer)
        rates = training.run(scheduler, at)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about the step of a copied optimizer
            training.tensor_lr = None
            other, twin = copied((training, scheduler))
            assert twin.optimizer is other.optimizer
            assert rates + other.run(twin, HORIZON - at) == expected
            assert rates + training.run(scheduler, HORIZON - at) == expected


@every
def test_first_in_a_sequence(name):
    training = Training()
    own = build(name, training.optimizer)
    then = torch.optim.lr_scheduler.ConstantLR(training.optimizer, factor=0.25, total_iters=1000)
    sequence = torch.optim.lr_scheduler.SequentialLR(training.optimizer, [own, then], milestones=[HORIZON])
    rates = [training.update(_Observing(sequence, own)) for _ in range(HORIZON + 9)]
    assert rates[:HORIZON] == uninterrupted(name)
    assert rates[HORIZON:] == [pytest.approx([0.0125, 0.00625])] * 9


@every
def test_second_in_a_sequence(name):
    training = Training()
    first = torch.optim.lr_scheduler.ConstantLR(training.optimizer, factor=0.25, total_iters=1000)
    own = build(name, training.optimizer)
    sequence = torch.optim.lr_scheduler.SequentialLR(training.optimizer, [first, own], milestones=[6])
    rates = [training.update(_Observing(sequence, own)) for _ in range(6 + HORIZON)]
    assert rates[:6] == [pytest.approx([0.0125, 0.00625])] * 6
    if name in OPEN:
        torch.testing.assert_close(rates[6:], uninterrupted(name))
    # The same network, trained alone from where the first part left it.
    alone = Training()
    alone.run(torch.optim.lr_scheduler.ConstantLR(alone.optimizer, factor=0.25, total_iters=1000), 6)
    for group, lr in zip(alone.optimizer.param_groups, (0.05, 0.025), strict=True):
        torch.optim.lr_scheduler._update_param_group_val(group, "lr", lr)
    assert rates[6:] == alone.run(build(name, alone.optimizer))


@every
def test_a_sequence_resumes(name):
    def sequence_of(training):
        first = torch.optim.lr_scheduler.LinearLR(training.optimizer, 0.5, total_iters=6)
        own = build(name, training.optimizer)
        return own, torch.optim.lr_scheduler.SequentialLR(training.optimizer, [first, own], milestones=[6])

    training = Training()
    own, sequence = sequence_of(training)
    expected = [training.update(_Observing(sequence, own)) for _ in range(6 + HORIZON)]
    for at in (3, 6, 7, 15):
        first, second = Training(), Training(lr=0.3)
        own, sequence = sequence_of(first)
        rates = [first.update(_Observing(sequence, own)) for _ in range(at)]
        states = saved(first.model, first.optimizer, sequence)
        second.updates = at
        own, sequence = sequence_of(second)
        for thing, state in zip((second.model, second.optimizer, sequence), states, strict=True):
            thing.load_state_dict(state)
        assert rates + [second.update(_Observing(sequence, own)) for _ in range(6 + HORIZON - at)] == expected


class _Observing(LearnedLR):
    """A `SequentialLR` whose learned part observes the losses too."""

    def __init__(self, sequence: LRScheduler, own: LRScheduler) -> None:
        self.sequence, self.own = sequence, own

    def observe(self, loss) -> None:
        if isinstance(self.own, LearnedLR) and self.own.last_epoch >= 0:
            self.own.observe(loss)

    def step(self) -> None:
        self.sequence.step()


@open_loop
def test_chained_with_another(name):
    training = Training()
    chain = torch.optim.lr_scheduler.ChainedScheduler(
        [build(name, training.optimizer), torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.9)]
    )
    rates = training.run(chain)
    expected = [[lr * 0.9**t for lr in row] for t, row in enumerate(uninterrupted(name))]
    if all(lr > 0.0 for row in expected for lr in row):
        torch.testing.assert_close(rates, expected)
    assert training.optimizer.param_groups[1]["lr"] is training.tensor_lr


@learned
def test_a_learned_one_refuses_a_chain_and_names_the_way(name):
    training = Training()
    chain = torch.optim.lr_scheduler.ChainedScheduler(
        [build(name, training.optimizer), torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.9)]
    )
    training.loss()
    training.optimizer.step()
    with pytest.raises(RuntimeError, match=r"load_scheduler\(\.\.\., base=schedule\)"):
        chain.step()


@pytest.mark.parametrize("hooks", [True, False])
@learned
def test_a_learned_one_that_gets_into_a_chain_later_refuses_at_its_next_decision(name, hooks):
    training = Training()
    controller = CONTROLLERS_UNDER_TEST[name.removeprefix("learned:")]
    scheduler = LearnedLR(training.optimizer, controller, HORIZON, decisions=5, hooks=hooks)
    training.run(scheduler, 2)
    chain = torch.optim.lr_scheduler.ChainedScheduler([scheduler])
    with pytest.raises(RuntimeError, match="inside a ChainedScheduler"):
        training.run(chain, HORIZON // 2)


@learned
def test_the_way_is_another_base_schedule(name):
    from metalr.schedules import Exponential

    controller = CONTROLLERS_UNDER_TEST[name.removeprefix("learned:")].with_schedule(Exponential(rate=0.5, every=1.0))
    training = Training()
    scheduler = LearnedLR(training.optimizer, controller, HORIZON, decisions=5)
    for t, row in enumerate(training.run(scheduler)):
        multipliers = [entry["lr_multiplier"][0] for entry in scheduler.history if entry["updates"] <= t]
        assert row[0] == pytest.approx(base_in_force(scheduler, 0.05) * 0.5 ** (t / HORIZON) * multipliers[-1])
