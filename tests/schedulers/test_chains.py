"""A schedule beside torch's own schedulers on one optimizer: the LR is the product of the factors."""

import pytest
import torch
from torch.optim import lr_scheduler

from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.schedules import Constant, Linear, Schedule
from tests.support.schedulers_under_test import HORIZON, SCHEDULES

OTHERS = {
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=7),
    "step": lambda o: lr_scheduler.StepLR(o, 5, 0.1),
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.25, total_iters=6),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [4, 9], 0.3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, HORIZON),
}
BASE = 0.05


def optimizer_of(kind: str) -> torch.optim.Optimizer:
    lr = torch.tensor(BASE, dtype=torch.float64) if kind == "tensor" else BASE
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(2, dtype=torch.float64))], lr=lr)


def train(optimizer: torch.optim.Optimizer, step, updates: int) -> list[float]:
    """The LR of each update; `step` is called after it."""
    used = []
    for _ in range(updates):
        used.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        step()
    return used


def alone(other, updates: int = HORIZON) -> list[float]:
    """The factors of one of torch's schedulers."""
    optimizer = optimizer_of("float")
    return [lr / BASE for lr in train(optimizer, other(optimizer).step, updates)]


def factors(schedule: Schedule, updates: int = HORIZON) -> list[float]:
    return [schedule(t / HORIZON) for t in range(updates)]


@pytest.mark.parametrize("kind", ["float", "tensor"])
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_chain_multiplies(name, other, order, kind):
    optimizer, schedule = optimizer_of(kind), SCHEDULES[name]
    makers = [lambda o: ScheduleLR(o, schedule, HORIZON), OTHERS[other]]
    chain = lr_scheduler.ChainedScheduler([make(optimizer) for make in makers[:: 1 if order == "first" else -1]])
    if min(factors(schedule)) <= 0.0:
        optimizer.step()
        with pytest.raises(RuntimeError, match="its factor is 0 at update"):
            chain.step()
        return
    expected = [BASE * a * b for a, b in zip(factors(schedule), alone(OTHERS[other]), strict=True)]
    assert train(optimizer, chain.step, HORIZON) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("other", OTHERS)
def test_two_that_are_stepped_by_hand_multiply(other):
    optimizer = optimizer_of("float")
    pair = [OTHERS[other](optimizer), ScheduleLR(optimizer, Linear(end=0.1), HORIZON)]
    expected = [BASE * a * b for a, b in zip(factors(Linear(end=0.1)), alone(OTHERS[other]), strict=True)]
    assert train(optimizer, lambda: [s.step() for s in pair], HORIZON) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("at", [3, 6, 11])
def test_a_chain_resumes(other, at):
    def chain_of(optimizer):
        return lr_scheduler.ChainedScheduler(
            [OTHERS[other](optimizer), ScheduleLR(optimizer, Linear(end=0.1), HORIZON)]
        )

    whole = optimizer_of("float")
    expected = train(whole, chain_of(whole).step, HORIZON)
    first, second = optimizer_of("float"), optimizer_of("float")
    chain, other_chain = chain_of(first), chain_of(second)
    used = train(first, chain.step, at)
    second.load_state_dict(first.state_dict())
    other_chain.load_state_dict(chain.state_dict())
    assert used + train(second, other_chain.step, HORIZON - at) == pytest.approx(expected, rel=1e-12)


def test_a_factor_of_zero_from_outside_ends_when_it_does():
    """Torch's cosine rises again from zero: what is divided by must not be that zero."""
    optimizer = optimizer_of("float")
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 5)
    chain = lr_scheduler.ChainedScheduler([cosine, ScheduleLR(optimizer, Constant(), HORIZON)])
    expected = [BASE * a for a in alone(lambda o: lr_scheduler.CosineAnnealingLR(o, 5))]
    assert train(optimizer, chain.step, HORIZON) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_new_schedule_for_an_optimizer_that_has_trained_starts_from_its_base():
    """The LR that an earlier schedule ended at is no factor."""
    optimizer = optimizer_of("float")
    train(optimizer, ScheduleLR(optimizer, Linear(end=1e-6), HORIZON).step, HORIZON)
    again = train(optimizer, ScheduleLR(optimizer, Linear(end=0.5), HORIZON).step, HORIZON)
    assert again[1:] == pytest.approx([BASE * f for f in factors(Linear(end=0.5))][1:])


def test_an_lr_set_by_hand_is_scaled_from_there_on():
    optimizer = optimizer_of("float")
    scheduler = ScheduleLR(optimizer, Linear(end=0.5), HORIZON)
    train(optimizer, scheduler.step, 4)
    optimizer.param_groups[0]["lr"] /= 10.0
    used = train(optimizer, scheduler.step, HORIZON - 4)
    assert used == pytest.approx([0.1 * BASE * f for f in factors(Linear(end=0.5))][4:])
