"""A run under a controller without torch.optim; the meter is a stub that records when it was called."""

import pytest
import torch

from metalr.control.reference import ReplayController
from metalr.schedulers.clock import DecisionClock
from metalr.schedulers.controlled_run import ControlledRun
from metalr.schedulers.ranks import Ranks
from tests.support.schedulers_under_test import random_policy


class Stub:
    """A meter with constant measurements that records each call with the update count."""

    def __init__(self, num_groups: int = 1) -> None:
        self.num_groups = num_groups
        self.clock: DecisionClock
        self.calls: list[tuple[str, int]] = []

    def __getattr__(self, name: str):
        if name not in ("before_second_last", "before_last", "after_last"):
            raise AttributeError(name)
        return lambda: self.calls.append((name, self.clock.updates))

    def clear(self) -> None:
        pass

    def prospect(self, lrs: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
        ratio = torch.full((1, self.num_groups), lrs[0], dtype=torch.float64)
        return ratio, (0.1 * ratio).log()

    def on_device(self) -> torch.Tensor:
        return torch.ones(1, 7, dtype=torch.float64)

    def statistics(self, measurement: torch.Tensor) -> tuple[torch.Tensor, ...]:
        one = torch.ones(1, self.num_groups, dtype=torch.float64)
        return one * measurement[0, 0], one * 0.5, one * 1e-3, one * -4.0, one * 0.1, one * 1.5

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None:
        pass


def run_of(controller, horizon: int | None = 12, decisions: int = 3, num_groups: int = 1, **options) -> ControlledRun:
    clock, stub = DecisionClock(horizon, decisions, **options), Stub(num_groups)
    stub.clock = clock
    return ControlledRun(controller, clock, stub, Ranks(distributed=False))


def make(run: ControlledRun, updates: int, flag=None) -> list[list[float]]:
    """Make updates as a loop does, and return the multipliers in force at each."""
    used = []
    for _ in range(updates):
        run.losses.add(1.0 / (1 + run.clock.updates), run.clock.updates)
        if not run.skips(flag):
            if not run.clock.started:
                run.start([0.1])
            run.before_update()
        used.append(run.multipliers(run.meter.num_groups)[:])
        run.after_update()
        run.decide_if_due()
    return used


def test_multipliers_hold_from_one_decision_to_the_next():
    run = run_of(ReplayController((1.0, 2.0, 0.5)))
    assert [row[0] for row in make(run, 15)] == [1.0] * 4 + [2.0] * 4 + [0.5] * 7
    assert [entry["updates"] for entry in run.history.entries()] == [0, 4, 8]


def test_the_last_two_updates_of_an_interval_are_measured_and_no_others():
    run = run_of(random_policy())
    make(run, 12)
    assert run.meter.calls == [
        *(("before_second_last", 2), ("before_last", 3), ("after_last", 3)),
        *(("before_second_last", 6), ("before_last", 7), ("after_last", 7)),
    ]


def test_a_skipped_update_is_neither_measured_nor_counted():
    run = run_of(random_policy())
    make(run, 3)
    make(run, 5, flag=torch.tensor(1.0))
    assert run.clock.updates == 3
    assert run.meter.calls == [("before_second_last", 2)]
    make(run, 1, flag=torch.tensor(0.0))
    assert run.clock.updates == 4


def test_groups_added_later_keep_their_own_lr_where_groups_are_controlled_alone():
    alone, together = run_of(ReplayController((3.0,)), num_groups=2), run_of(ReplayController((3.0,)))
    make(alone, 1), make(together, 1)
    assert alone.multipliers(3) == [3.0, 3.0, 1.0]
    assert together.multipliers(3) == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("at", [0, 1, 3, 4, 7, 11])
def test_a_saved_run_continues_exactly(at):
    whole = run_of(random_policy())
    expected = make(whole, 12)
    first, second = run_of(random_policy()), run_of(random_policy())
    used = make(first, at)
    second.load_saved(first.to_saved())
    assert used + make(second, 12 - at) == expected
    assert second.history.entries() == whole.history.entries()


def test_a_restart_is_a_new_run():
    run = run_of(random_policy())
    expected = make(run, 12)
    run.restart()
    assert make(run, 12) == expected


def test_a_run_without_losses_says_so():
    run = run_of(random_policy())
    for _ in range(4):
        run.skips(None)
        if not run.clock.started:
            run.start([0.1])
        run.before_update()
        run.after_update()
    assert run.decide_if_due()
    features = run.history.entries()[-1]["features"]
    assert features["has_loss"] == features["loss_noise"] == [0.0]
    assert features["gradient_cosine"] == [0.5]
    assert not run.exploded
