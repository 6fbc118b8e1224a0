"""The task of the experiments on plain SGD: MNIST-1D, an MLP 40-50-10 with tanh, batch 50."""

from functools import partial

import torch
from torch.nn import functional

from metalr.optimizers.classic import InnerOptimizer
from metalr.tasks import datasets, models
from metalr.tasks.losses import accuracy
from metalr.tasks.task import Task


def make_task(optimizer: InnerOptimizer, horizon: int) -> Task:
    """The task with an inner optimizer and a number of inner steps."""
    return Task(
        partial(models.MLP, [40, 50, 10], torch.tanh),
        datasets.mnist1d(),
        functional.cross_entropy,
        optimizer=optimizer,
        name="mnist1d-tanh",
        base_lr=0.1,
        horizon=horizon,
        batch_size=50,
        metric=accuracy,
    )
