"""Schedulers in loops unlike the README's: odd calls, other horizons, non-finite numbers."""

import copy
import math
import warnings

import pytest
import torch

from metalr.control.actions import ActionSpec
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.control.reference import ScheduleController
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.schedules import Constant, Cosine, Exponential, Linear
from metalr.signals.observations import NUM_FEATURES
from tests.support.policies import random_policy
from tests.support.schedulers_under_test import (
    CONTROLLERS_UNDER_TEST,
    HORIZON,
    LEARNED,
    NAMES,
    OPEN,
    Training,
    base_in_force,
    build,
)

every = pytest.mark.parametrize("name", NAMES)
learned = pytest.mark.parametrize("name", LEARNED)
open_loop = pytest.mark.parametrize("name", OPEN)
breaker_may_speak = pytest.mark.filterwarnings("ignore:LearnedLR. the loss exploded")
bound_may_speak = pytest.mark.filterwarnings("ignore:LearnedLR. the LR multiplier has been at")


# Counting


@open_loop
def test_a_schedule_counts_calls(name):
    twice, once = Training(), Training()
    rates = twice.run(build(name, twice.optimizer), 10, calls=2)
    assert rates == once.run(build(name, once.optimizer), 20)[::2]


@breaker_may_speak
@pytest.mark.parametrize("calls", [2, 5])
@learned
def test_a_learned_one_counts_updates(name, calls):
    often, once = Training(), Training()
    assert often.run(build(name, often.optimizer), calls=calls) == once.run(build(name, once.optimizer))


@breaker_may_speak
@learned
def test_missing_calls_change_nothing(name):
    rare, always = Training(), Training()
    scheduler = build(name, rare.optimizer)
    rates = [rare.update(scheduler, calls=int(t % 4 == 1)) for t in range(HORIZON)]
    assert rates == always.run(build(name, always.optimizer))


@breaker_may_speak
@every
def test_after_zero_grad_as_before(name):
    before, after = Training(), Training()
    assert before.run(build(name, before.optimizer), zero_before=True) == after.run(build(name, after.optimizer))


@breaker_may_speak
@learned
def test_once_per_epoch_is_explained_once_and_still_right(name):
    per_epoch, always = Training(), Training()
    scheduler = build(name, per_epoch.optimizer, 60)
    with pytest.warns(UserWarning, match="called once after 12 optimizer updates") as caught:
        rates = [per_epoch.update(scheduler, calls=int(t % 12 == 11)) for t in range(60)]
    assert len([w for w in caught if "called once" in str(w.message)]) == 1
    assert rates == always.run(build(name, always.optimizer, 60), 60)


@open_loop
def test_a_schedule_once_per_epoch_is_explained_once_and_counts_on(name):
    training = Training()
    scheduler = build(name, training.optimizer)
    with pytest.warns(UserWarning, match="unit='epochs'") as caught:
        rates = [training.update(scheduler, calls=int(t % 30 == 29)) for t in range(120)]
    assert len(caught) == 1
    once = Training()
    assert rates[::30] == once.run(build(name, once.optimizer), 4)


def test_a_schedule_in_epochs_is_not_questioned():
    training = Training()
    scheduler = ScheduleLR(training.optimizer, Linear(), horizon=4, unit="epochs")
    rates = [training.update(scheduler, calls=int(t % 40 == 39))[0] for t in range(160)]
    assert rates[::40] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])


def test_an_epoch_number_is_refused():
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
    with pytest.raises(TypeError, match=r"got step\(3\), a whole number"):
        scheduler.step(3)


def test_the_callers_tensors_are_not_kept_alive():
    """Inspecting the caller must not keep its local variables alive: they hold the activations of a step."""
    import weakref

    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)

    def one_update():
        loss = training.loss()
        large = torch.zeros(10)
        training.optimizer.step()
        scheduler.step()
        held = weakref.ref(large)
        del large, loss
        return held()

    assert one_update() is None


# Updates that fail


def failing(training: Training, at: int, after=lambda: None) -> None:
    """The optimizer's update number `at` fails once, as when memory runs out; made after the scheduler."""
    left = [1]

    def fail(*_):
        if training.updates == at and left:
            left.pop()
            after()
            raise MemoryError("this once")

    training.optimizer.register_step_pre_hook(fail)


def update_with_retry(training: Training, scheduler) -> list[float]:
    try:
        return training.update(scheduler)
    except MemoryError:
        return training.update(scheduler)


@breaker_may_speak
@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("at", range(12))
def test_an_update_that_fails_and_is_retried_changes_nothing(at, kind):
    calm, hard = Training(kind=kind), Training(kind=kind)
    expected = calm.run(LearnedLR(calm.optimizer, random_policy(), HORIZON))
    scheduler = LearnedLR(hard.optimizer, random_policy(), HORIZON)
    failing(hard, at)
    assert [update_with_retry(hard, scheduler) for _ in range(HORIZON)] == expected


def with_other_gradients(training: Training, at: int) -> None:
    """From now on, the gradients of update number `at` are others."""
    original = training.loss

    def loss():
        value = original()
        if training.updates == at:
            for p in training.model.parameters():
                p.grad = p.grad.flip(0) * 0.5
        return value

    training.loss = loss


@breaker_may_speak
@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("at", [0, 3, 4])
def test_after_a_retry_with_other_gradients_those_count(at, kind):
    """Decisions fall at updates 0, 5, 9, …; the gradients of update 4 are compared with those of update 3."""
    hard, calm, same = (Training(kind=kind) for _ in range(3))
    made = []
    for training in (hard, calm, same):
        scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
        if training is hard:
            failing(training, at, after=lambda: with_other_gradients(hard, at))
        elif training is calm:
            with_other_gradients(training, at)
        rates = [update_with_retry(training, scheduler) for _ in range(6)]
        assert scheduler.history[-1]["updates"] == 5
        made.append((rates, scheduler.history))
    if at > 0:
        assert made[0] == made[1] != made[2]
    else:  # the first decision came before the failure, and stands
        assert made[0][1][0] == made[2][1][0]


@breaker_may_speak
@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["policy", "recurrent"])
def test_accumulated_gradients_without_hooks_are_those_with_them(name, kind):
    """Several calls of `observe` for one update: the gradients of the last one are those of the update."""

    def accumulate(hooks: bool) -> tuple[list[list[float]], list[dict]]:
        training = Training(kind=kind)
        controller = CONTROLLERS_UNDER_TEST[name]
        scheduler = LearnedLR(training.optimizer, controller, HORIZON, decisions=5, hooks=hooks)
        rates = []
        for _ in range(HORIZON):
            training.optimizer.zero_grad()
            for part in range(3):
                inputs = torch.randn(
                    4, 4, generator=torch.Generator().manual_seed(10 * training.updates + part), dtype=torch.float64
                )
                loss = (training.model(inputs) - inputs.sum(-1, keepdim=True).sin()).square().mean()
                (loss / 3.0).backward()
                scheduler.observe(loss)
            rates.append([float(group["lr"]) for group in training.optimizer.param_groups])
            training.optimizer.step()
            training.updates += 1
            scheduler.step()
        return rates, scheduler.history

    with_hooks, without = accumulate(True), accumulate(False)
    assert without[1] == with_hooks[1]
    assert without[0][1:] == with_hooks[0][1:]  # the first LR is set by the hook, after it was read here


# Horizons


@every
def test_a_horizon_that_is_none_of_the_kind_is_refused(name):
    for horizon in (0, -3, 2.5, True, "90"):
        with pytest.raises(ValueError, match="expected a whole number of optimizer updates"):
            build(name, Training().optimizer, 30).__class__(Training().optimizer, _first_argument(name), horizon)


def _first_argument(name: str):
    scheduler = build(name, Training().optimizer, 30)
    return scheduler.schedule if isinstance(scheduler, ScheduleLR) else scheduler.controller


@breaker_may_speak
@every
def test_a_longer_run_goes_on(name):
    training = Training()
    scheduler = build(name, training.optimizer)
    rates = training.run(scheduler, 3 * HORIZON)
    assert all(math.isfinite(lr) and lr >= 0.0 for row in rates for lr in row)
    if name in LEARNED:  # the multiplier of the last decision stays, the schedule continues
        assert scheduler.history[-1]["updates"] < HORIZON
        ratio = scheduler.controller.schedule((3 * HORIZON - 1) / HORIZON) * scheduler.explain()["lr_multiplier"][0]
        assert rates[-1][0] == pytest.approx(base_in_force(scheduler, 0.05) * ratio)


@breaker_may_speak
@learned
def test_a_shorter_run_was_on_the_way(name):
    short, long = Training(), Training()
    assert short.run(build(name, short.optimizer), 9) == long.run(build(name, long.optimizer))[:9]


@pytest.mark.parametrize("new_horizon", [40, 80, 15])
def test_a_horizon_changed_in_mid_run(new_horizon):
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
    rates = training.run(scheduler, 10)
    scheduler.set_horizon(new_horizon)
    rates += training.run(scheduler, new_horizon - 10)
    whole = Training()
    assert rates[:10] == whole.run(LearnedLR(whole.optimizer, random_policy(), HORIZON), 10)
    # Decisions taken stay; the coming ones lie where the new horizon puts them.
    old, new = ([round(d * horizon / 5) for d in range(5)] for horizon in (HORIZON, new_horizon))
    taken = [update for update in old if update <= 10]
    coming = [update for update in new if update > 10]
    assert [entry["updates"] for entry in scheduler.history] == taken + coming
    schedule = Cosine(floor=0.1)(11 / new_horizon)
    multiplier = [e["lr_multiplier"][0] for e in scheduler.history if e["updates"] <= 11][-1]
    assert rates[11][0] == pytest.approx(0.05 * schedule * multiplier)


@pytest.mark.parametrize("new_horizon", [40, 15])
@pytest.mark.parametrize("name", ["learned:policy", "learned:greedy"])
def test_resumed_with_another_horizon_is_changed_in_mid_run(name, new_horizon):
    first = Training()
    scheduler = build(name, first.optimizer)
    first.run(scheduler, 10)
    state = scheduler.state_dict()
    scheduler.set_horizon(new_horizon)

    second = Training()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))  # torch shares its buffers
    second.updates = 10
    other = LearnedLR(second.optimizer, scheduler.controller, new_horizon, decisions=5)
    other.load_state_dict(state)
    assert second.run(other, new_horizon) == first.run(scheduler, new_horizon)


@open_loop
def test_a_schedule_resumed_with_another_horizon_follows_it(name):
    training = Training()
    scheduler = build(name, training.optimizer)
    training.run(scheduler, 10)
    other = build(name, training.optimizer, 50)
    other.load_state_dict(scheduler.state_dict())
    training.update(other)
    assert training.update(other)[0] == pytest.approx(0.05 * other.schedule(11 / 50), abs=1e-18)


def test_no_horizon_needs_steps_and_a_constant_base():
    policy = random_policy(schedule=Constant())
    optimizer = Training().optimizer
    with pytest.raises(ValueError, match="at least 2 updates between decisions"):
        LearnedLR(optimizer, policy, None)
    with pytest.raises(ValueError, match="a schedule of progress needs a horizon"):
        LearnedLR(optimizer, random_policy(), None, steps_per_action=4)
    training = Training()
    scheduler = LearnedLR(training.optimizer, policy, None, steps_per_action=4)
    training.run(scheduler, 30)
    assert [entry["updates"] for entry in scheduler.history] == list(range(0, 29, 4))
    last = scheduler.explain()["features"]
    assert last["has_horizon"] == last["progress"] == [0.0]


def test_an_unknown_horizon_becomes_known():
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(schedule=Constant()), None, steps_per_action=4)
    training.run(scheduler, 10)
    scheduler.set_horizon(30)
    training.run(scheduler, 20)
    assert [entry["updates"] for entry in scheduler.history] == [0, 4, 8, 12, 18, 24]
    assert scheduler.explain()["features"]["has_horizon"] == [1.0]


# Numbers


BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "zero": 0.0, "negative": -3.0, "huge": 1e300}


def bounds(name: str) -> tuple[float, float]:
    controller = CONTROLLERS_UNDER_TEST[name.removeprefix("learned:")]
    limits = getattr(controller, "action", controller)
    return getattr(limits, "low", 0.1), getattr(limits, "high", 2.0)


def assert_in_bounds(name: str, scheduler: LearnedLR, rates: list[list[float]]) -> None:
    low, high = bounds(name)
    for t, row in enumerate(rates):
        for lr, base in zip(row, (0.05, 0.025), strict=True):
            ratio = lr / base_in_force(scheduler, base) / scheduler.controller.schedule(t / HORIZON)
            assert low * (1.0 - 1e-9) <= ratio <= high * (1.0 + 1e-9), (t, ratio)


@pytest.mark.parametrize("kind", BAD)
@learned
def test_bad_losses_at_any_update(name, kind):
    for at in range(0, HORIZON, 3):
        training = Training()
        scheduler = build(name, training.optimizer)
        rates = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for t in range(HORIZON):
                if t >= at and t - at < 6:
                    scheduler.observe(BAD[kind])
                rates.append(training.update(scheduler))
        assert_in_bounds(name, scheduler, rates)
        spoken = [w for w in caught if "the loss exploded" in str(w.message)]
        assert len(spoken) <= 1
        if kind in ("nan", "inf", "-inf") and at < HORIZON - 6:
            assert len(spoken) == 1


@breaker_may_speak
@bound_may_speak
@pytest.mark.parametrize("kind", BAD)
@learned
def test_bad_gradients_at_any_update(name, kind):
    for at in range(0, HORIZON, 4):
        training = Training()
        scheduler = build(name, training.optimizer)

        def spoil(optimizer, *_, at=at, training=training):
            if training.updates == at:
                for p in training.model.parameters():
                    p.grad.fill_(BAD[kind])

        training.optimizer.register_step_pre_hook(spoil)  # after the scheduler's own: spoilt for the update alone
        training.optimizer._optimizer_step_pre_hooks.move_to_end(
            next(iter(training.optimizer._optimizer_step_pre_hooks))
        )  # and now before it: seen by the scheduler too
        rates = training.run(scheduler)
        assert_in_bounds(name, scheduler, rates)
        assert math.isfinite(float(training.optimizer.param_groups[1]["lr"]))


def still(action: float = 0.0, **options) -> PolicyController:
    """A policy that always takes the same action."""
    network = PolicyNetwork([torch.zeros(1, NUM_FEATURES)], [torch.tensor([action])])
    return PolicyController(network, ActionSpec(alpha=1.0), Constant(), 5, **options)


def test_the_breaker_cuts_below_what_was_good_and_lifts_slowly():
    training = Training()
    scheduler = LearnedLR(training.optimizer, still(0.5), 50, decisions=10)

    def run():
        for t in range(50):
            if t == 7:
                scheduler.observe(math.nan)
            training.update(scheduler)

    with pytest.warns(UserWarning, match="the loss exploded or was not finite before update 10") as caught:
        run()
    multipliers = [entry["lr_multiplier"][0] for entry in scheduler.history]
    good = math.exp(0.5)
    assert multipliers[:3] == pytest.approx([good, good, 0.3 * good])
    assert multipliers[3:] == pytest.approx([good * min(0.3 * 1.3**k, 1.0) for k in range(1, 8)])
    assert len([w for w in caught if "exploded" in str(w.message)]) == 1


def test_losses_and_gradients_of_zero_are_no_explosion():
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(), HORIZON)
    for p in training.model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(HORIZON):
        scheduler.observe(0.0)
        training.optimizer.step()
        scheduler.step()
    assert scheduler.explain()["features"]["loss_exploded"] == [0.0]
    assert all(math.isfinite(value[0]) for value in scheduler.explain()["features"].values())


def test_a_loss_that_is_not_one_number_is_refused():
    scheduler = LearnedLR(Training().optimizer, random_policy(), HORIZON)
    with pytest.raises(ValueError, match=r"shape \(3,\), expected one number"):
        scheduler.observe(torch.ones(3))
    with pytest.raises(ValueError, match="empty dict of losses"):
        scheduler.observe({})


def test_a_loss_that_changes_after_it_was_observed_counts_as_it_was():
    """A captured graph writes every loss to one tensor; a loop may divide its loss in place."""
    plain, static = Training(), Training()
    expected = plain.run(LearnedLR(plain.optimizer, random_policy(), HORIZON))
    scheduler = LearnedLR(static.optimizer, random_policy(), HORIZON)
    place = torch.zeros((), dtype=torch.float64)
    rates = []
    for _ in range(HORIZON):
        place.copy_(static.loss().detach())
        scheduler.observe(place)
        place.fill_(9.0)
        static.optimizer.step()
        static.updates += 1
        rates.append([float(lr) for lr in scheduler.get_last_lr()])
        scheduler.step()
    assert [float(x) for x in rates[-1]] == pytest.approx([float(x) for x in expected[-1]])


# An LR too small to do anything


def decays(dtype: torch.dtype, schedule, updates: int, horizon: int) -> list[str]:
    weight = torch.nn.Parameter(torch.ones(10, dtype=dtype))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scheduler = ScheduleLR(optimizer, schedule, horizon)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(updates):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            scheduler.step()
    return [str(w.message) for w in caught]


def test_an_lr_below_what_changes_the_weights_is_reported_once():
    (message,) = decays(torch.float32, Exponential(rate=1e-12, every=1.0), 200, 200)
    assert "an update no longer changes any weight in its dtype" in message
    (in_half,) = decays(torch.bfloat16, Exponential(rate=1e-12, every=1.0), 200, 200)

    def step(text):
        return int(text.split("by step ")[1].split()[0])

    assert step(in_half) < step(message) < 160  # 1e-9 / 0.1 of the base is reached at step 117 or so


@pytest.mark.parametrize(
    ("dtype", "schedule"),
    [
        (torch.float64, Exponential(rate=1e-12, every=1.0)),
        (torch.float32, Cosine()),
        (torch.float32, Linear()),
        (torch.float32, Constant()),
    ],
)
def test_an_lr_that_works_is_not_reported(dtype, schedule):
    assert decays(dtype, schedule, 200, 200) == []


def test_the_report_reads_the_device_rarely():
    reads = []
    original = torch.equal
    try:
        torch.equal = lambda *args: reads.append(args) or original(*args)
        decays(torch.float64, Exponential(rate=1e-9, every=1.0), 2000, 2000)
    finally:
        torch.equal = original
    assert 1 <= len(reads) <= 30  # of 2,000 steps: 20 halvings lie between 1e-3 and 1e-9


def test_the_schedule_controller_equals_the_schedule():
    learned_one, plain = Training(), Training()
    rates = learned_one.run(LearnedLR(learned_one.optimizer, ScheduleController(Cosine(floor=0.1), 5), HORIZON))
    assert rates == plain.run(ScheduleLR(plain.optimizer, Cosine(floor=0.1), HORIZON))


def test_losses_of_updates_that_turn_out_to_be_skipped_are_counted_anew():
    from metalr.schedulers.loss_log import LossLog

    log = LossLog()
    for update, loss in ((0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0), (4, 5.0)):
        log.add(loss, update)
    log.shift([1, 3])  # attempts 1 and 3 were skipped: attempts 0, 2, 4 are updates 0, 1, 2
    assert log.state() == [[0, 1.0], [1, 2.0], [1, 3.0], [2, 4.0], [2, 5.0]]
