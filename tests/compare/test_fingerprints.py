"""Descriptions of tasks tell one task's data from another's."""

from functools import partial

from torch.nn import functional

from metalr.compare.fingerprints import describe_task
from metalr.tasks.models import MLP
from metalr.tasks.synthetic import Synthetic
from metalr.tasks.task import Task


def digest(seed: int) -> str:
    data = Synthetic("clusters", seed, num_examples=60, size=4, outputs=2)
    return describe_task(Task(partial(MLP, [4, 2]), data, functional.cross_entropy))["data"]


def test_generated_data_are_described_by_their_examples():
    assert digest(0) == digest(0) != digest(1)
    assert len(digest(0)) == 64
