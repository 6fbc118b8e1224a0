"""A residual network with batch normalisation and dropout on real images, under a controller: `pytest -s` prints."""

from functools import partial

import pytest
import torch
from torch.nn import functional

import metalr
from metalr.control.reference import ScheduleController
from metalr.engine.episodes import run_episode
from metalr.schedulers.plain_runs import PlainRuns
from metalr.schedules import Cosine
from metalr.tasks import datasets
from metalr.tasks.losses import accuracy
from metalr.tasks.task import Task
from tests.support.residual_net import residual_net

FACTORS = (0.1, 1.0, 10.0)
SEEDS = torch.arange(3)


def digits_task(**changes) -> Task:
    model, data = partial(residual_net, 6), datasets.digits(flat=False)
    settings = {"base_lr": 0.1, "horizon": 200, "batch_size": 32, "metric": accuracy, "plain": True, **changes}
    return Task(model, data, functional.cross_entropy, partial(torch.optim.SGD, momentum=0.9), **settings)


def final(controller, task: Task, factor: float) -> tuple[float, float]:
    """Mean train loss and test accuracy of three runs."""
    base_lr = torch.full((len(SEEDS),), factor * task.base_lr)
    found = run_episode(controller, PlainRuns(task, len(SEEDS)), SEEDS, base_lr, splits=("train", "test")).final
    return found["train"][0].mean().item(), found["test"][1].mean().item()


def in_own_loop(task: Task, factor: float, seed: int) -> float:
    """`metalr.load_scheduler` in a user's loop, without anything else of metalr's; final train loss."""
    images, labels = task.data.train
    torch.manual_seed(seed)
    net = residual_net(6)
    optimizer = torch.optim.SGD(net.parameters(), lr=factor * task.base_lr, momentum=0.9)
    scheduler = metalr.load_scheduler("general", optimizer, horizon=task.horizon)
    for _ in range(task.horizon):
        rows = torch.randint(images.shape[1], (task.batch_size,))
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(images[0, rows].float()), labels[0, rows])
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        scheduler.step()
    net.eval()
    with torch.no_grad():
        return functional.cross_entropy(net(images[0].float()), labels[0]).item()


@pytest.mark.slow
def test_the_shipped_controller_mends_a_wrong_lr():
    pytest.importorskip("sklearn")
    task, general = digits_task(), metalr.load_controller("general")
    cosine = ScheduleController(Cosine(), decisions=general.decisions)
    losses = {}
    with torch.random.fork_rng():
        for factor in FACTORS:
            for name, controller in (("general", general), ("cosine", cosine)):
                losses[name, factor], test_accuracy = final(controller, task, factor)
                print(
                    f"{name}, base LR x{factor:g}: train {losses[name, factor]:.4f}, test accuracy {test_accuracy:.3f}"
                )
            own = [in_own_loop(task, factor, seed) for seed in SEEDS.tolist()]
            losses["own loop", factor] = sum(own) / len(own)
            print(f"load_scheduler in a loop, base LR x{factor:g}: train {losses['own loop', factor]:.4f}")
    best = min(losses.values())
    assert losses["cosine", 0.1] > 3.0 * best  # the wrong LR does harm
    assert all(losses[name, factor] < 3.0 * best for name in ("general", "own loop") for factor in FACTORS)
