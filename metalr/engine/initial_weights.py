"""Initial weights of a run from its seed, for networks whose layers have no seeded initialiser of ours."""

import torch
from torch import Tensor, nn

from metalr import seeding
from metalr.tasks.task import Task

# Such weights come from a bank of this many constructed modules.
BANK_SIZE = 64


def bank_index(seeds: Tensor) -> Tensor:
    """The place in the bank of each run, from its seed."""
    return seeding.integers(BANK_SIZE, seeding.stream(seeds, "init"))


def banked_module(task: Task, index: int) -> nn.Module:
    """Construct one module of the bank, without changing torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(index)
        return task.model()
