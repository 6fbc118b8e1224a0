"""Decisions as flat dicts: each is sent once, with the LR that it set."""

import pytest

from metalr.control.actions import ActionSpec
from metalr.control.reference import ScheduleController
from metalr.schedulers.decision_log import DecisionLog, flat_entry, tensorboard
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Cosine
from tests.support.policies import moderate_policy, random_policy
from tests.support.schedulers_under_test import HORIZON, Training


def made(training, **options) -> LearnedLR:
    return LearnedLR(training.optimizer, moderate_policy(), HORIZON, **options)


class Tracker:
    def __init__(self):
        self.rows = []

    def __call__(self, values, step):
        self.rows.append((step, values))


@pytest.mark.parametrize("every", [1, 7, HORIZON])
def test_every_decision_is_sent_once_in_order(every):
    training, tracker = Training(), Tracker()
    scheduler = made(training)
    log = DecisionLog(scheduler, tracker)
    for done in range(0, HORIZON, every):
        training.run(scheduler, min(every, HORIZON - done))
        log()
        log()
    assert [step for step, _ in tracker.rows] == [entry["updates"] for entry in scheduler.history]
    assert [values for _, values in tracker.rows] == [flat_entry(scheduler, entry) for entry in scheduler.history]


def test_a_resumed_run_does_not_send_the_past_again():
    first, tracker = Training(), Tracker()
    before = made(first)
    first.run(before, 12)
    second = Training()
    scheduler = made(second)
    scheduler.load_state_dict(before.state_dict())
    log = DecisionLog(scheduler, tracker)
    log()
    assert tracker.rows == []
    second.run(scheduler, HORIZON - 12)
    log()
    assert [step for step, _ in tracker.rows] == [14, 18]


def test_a_run_that_begins_again_is_sent_from_its_start():
    training, tracker = Training(), Tracker()
    scheduler = made(training)
    log = DecisionLog(scheduler, tracker)
    training.run(scheduler, HORIZON)
    log()
    scheduler._update_lr(0)  # as a SequentialLR does
    training.run(scheduler, 1)
    log()
    assert [step for step, _ in tracker.rows] == [0, 5, 9, 14, 18, 0]


@pytest.mark.parametrize("action", [ActionSpec(alpha=1.0), ActionSpec("absolute", alpha=1.0, reference=0.02)])
@pytest.mark.parametrize("scope", ["global", "param_group"])
def test_the_numbers(scope, action):
    training = Training()
    scheduler = LearnedLR(training.optimizer, random_policy(action, scales=(0.3, 0.2)), HORIZON, scope=scope)
    used = training.run(scheduler)
    ends = [""] if scope == "global" else ["/0", "/1"]
    for entry in scheduler.history:
        values = flat_entry(scheduler, entry)
        for group, end in enumerate(ends):
            assert values[f"scheduler/lr{end}"] == pytest.approx(used[entry["updates"]][group], rel=1e-12)
            assert values[f"scheduler/lr_multiplier{end}"] == entry["lr_multiplier"][group]
            assert values[f"scheduler/features/polyak{end}"] == entry["features"]["polyak"][group]
            assert values[f"scheduler/breaker{end}"] == 0.0
        assert len(values) == (3 + len(entry["features"])) * len(ends)


def test_the_breaker_shows():
    training = Training()
    scheduler = made(training)
    training.run(scheduler, 7)
    scheduler.observe(float("inf"))
    with pytest.warns(UserWarning, match="exploded"):
        training.run(scheduler, 5)
    events = [flat_entry(scheduler, entry, prefix="")["breaker"] for entry in scheduler.history]
    assert events == [0.0, 0.0, 1.0]


def test_a_schedule_changes_the_lr_alone():
    training = Training()
    scheduler = LearnedLR(training.optimizer, ScheduleController(Cosine(), 4), HORIZON)
    training.run(scheduler, HORIZON)
    entry = scheduler.history[2]
    lr = float(scheduler.base_lrs[0]) * Cosine()(entry["updates"] / HORIZON)
    assert flat_entry(scheduler, entry, "")["lr"] == pytest.approx(lr)
    assert flat_entry(scheduler, entry, "")["lr_multiplier"] == 1.0


def test_a_writer_of_tensorboard_takes_one_number_at_a_time():
    class Writer:
        rows: list = []  # noqa: RUF012

        def add_scalar(self, tag, scalar_value, global_step):
            self.rows.append((tag, scalar_value, global_step))

    tensorboard(Writer())({"a": 1.0, "b": 2.0}, 7)
    assert Writer.rows == [("a", 1.0, 7), ("b", 2.0, 7)]
