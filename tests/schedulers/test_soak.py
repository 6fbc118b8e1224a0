"""A scheduler that is left on long after its horizon: neither memory nor checkpoints grow."""

import gc
import io
import os
from pathlib import Path

import pytest
import torch

from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Constant
from tests.support.policies import random_policy

pytestmark = pytest.mark.filterwarnings("ignore:LearnedLR. the loss exploded")
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes that this process holds now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def soak(updates: int, horizon: int | None, **options) -> tuple[list[int], list[int]]:
    """Memory and size of a checkpoint at five moments of a long run, each after a decision if any are left.

    Between two decisions the losses of the interval are a part of the checkpoint.
    """
    weight = torch.nn.Parameter(torch.ones(20))
    optimizer = torch.optim.SGD([weight], lr=0.01, momentum=0.9)
    scheduler = LearnedLR(optimizer, random_policy(schedule=Constant()), horizon, **options)
    memory, sizes = [], []
    for t in range(1, updates + 1):
        weight.grad = 0.1 * weight.detach()
        scheduler.observe(1.0 + 0.1 * (t % 7))
        optimizer.step()
        scheduler.step()
        if t % (updates // 5) == 0:
            file = io.BytesIO()
            torch.save(scheduler.state_dict(), file)
            memory.append(resident())
            sizes.append(file.tell())
    return memory, sizes


def assert_flat(memory: list[int], sizes: list[int]) -> None:
    assert max(sizes[1:]) <= sizes[1] + 1024
    assert max(memory[2:]) <= memory[2] + 4 * 2**20


@pytest.mark.parametrize(("horizon", "options"), [(100, {}), (10_000, {})])
def test_a_run_past_its_horizon(horizon, options):
    assert_flat(*soak(10_000, horizon, **options))


@pytest.mark.slow
@pytest.mark.parametrize(("horizon", "options"), [(1000, {}), (None, {"steps_per_action": 20})])
def test_two_hundred_thousand_updates(horizon, options):
    memory, sizes = soak(200_000, horizon, **options)
    print([f"{size / 2**20:.1f} MiB" for size in memory], sizes)
    assert_flat(memory, sizes)
