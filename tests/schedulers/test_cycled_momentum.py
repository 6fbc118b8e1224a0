"""A momentum that moves against the LR is the one of torch's `OneCycleLR` and `CyclicLR`, weights and all."""

import copy

import pytest
import torch
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.schedules import Cosine, Cyclic, OneCycle

HORIZON = 40
OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "adam": lambda groups: torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.99)),
}


def parts(name: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    return model, OPTIMIZERS[name](groups)


def momenta(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["betas"][0] if "betas" in group else group["momentum"] for group in optimizer.param_groups]


def train(model, optimizer, scheduler, updates: int) -> list[list[float]]:
    seen = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        inputs = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        seen.append([*momenta(optimizer), *(group["lr"] for group in optimizer.param_groups)])
        optimizer.zero_grad()
        (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    return seen


def theirs(kind: str, optimizer):
    if kind == "one-cycle":
        return OneCycleLR(optimizer, max_lr=0.1, total_steps=HORIZON, base_momentum=0.7, max_momentum=0.98)
    return CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=5, base_momentum=0.7, max_momentum=0.98)


def ours(kind: str, optimizer) -> ScheduleLR:
    momentum = {"base_momentum": 0.7, "max_momentum": 0.98}
    schedule = OneCycle(steps=HORIZON, **momentum) if kind == "one-cycle" else Cyclic(up=5 / HORIZON, **momentum)
    return ScheduleLR(optimizer, schedule, HORIZON, cycle_momentum=True)


@pytest.mark.parametrize("kind", ["one-cycle", "cyclic"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_torchs(name, kind):
    model, optimizer = parts(name)
    twin, its_optimizer = parts(name)
    seen = train(model, optimizer, ours(kind, optimizer), HORIZON - 1)
    expected = train(twin, its_optimizer, theirs(kind, its_optimizer), HORIZON - 1)
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected), rtol=1e-9, atol=1e-12)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert len({row[0] for row in seen}) > 5
    if name == "adam":
        assert {group["betas"][1] for group in optimizer.param_groups} == {0.99}


def test_without_it_the_momentum_stays():
    model, optimizer = parts("sgd")
    train(model, optimizer, ScheduleLR(optimizer, OneCycle(), HORIZON), 10)
    assert momenta(optimizer) == [0.9, 0.9]


def test_a_resumed_run_continues_exactly():
    model, optimizer = parts("adam")
    scheduler = ours("one-cycle", optimizer)
    train(model, optimizer, scheduler, 15)
    state = copy.deepcopy(scheduler.state_dict())
    other, its_optimizer = parts("adam")
    resumed = ours("one-cycle", its_optimizer)
    resumed.load_state_dict(state)
    assert momenta(its_optimizer) == momenta(optimizer) != momenta(parts("adam")[1])
    assert train(other, its_optimizer, resumed, 5) == train(model, optimizer, scheduler, 5)


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [
        (Cosine(), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)),
        (OneCycle(), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)),
        (OneCycle(), torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))], lr=0.1)),
    ],
)
def test_what_has_no_momentum_is_refused(schedule, optimizer):
    with pytest.raises(ValueError, match="expected a schedule with a momentum"):
        ScheduleLR(optimizer, schedule, HORIZON, cycle_momentum=True)
