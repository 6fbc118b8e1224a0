"""The shipped tasks by name.

`Task` itself is in `metalr.tasks.task`, distributions of tasks in `metalr.tasks.families`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from metalr import schedules
from metalr.optimizers.classic import AdamW, ExpectedSGD
from metalr.registry import look_up
from metalr.tasks import datasets, models
from metalr.tasks.data import TensorData
from metalr.tasks.imported import imported_task
from metalr.tasks.losses import accuracy, noisy_quadratic_loss, squared_distance, token_cross_entropy
from metalr.tasks.task import Task


def _quadratic(horizon: int = 400, **changes: Any) -> Task:
    """One parameter that starts at 5, loss (w + 1)², SGD with learning rate 0.2·0.95^t, as in the older literature."""
    # This only guards the division below: `Task` itself refuses a bad horizon.
    updates = max(horizon, 1) if isinstance(horizon, int) else 1
    defaults: dict[str, Any] = {
        "optimizer": "sgd",
        "base_lr": 0.2,
        "batch_size": 1,
        "initial_weights": {"values": torch.tensor([5.0], dtype=torch.float64)},
        "schedule": schedules.Exponential(rate=0.95, every=1.0 / updates),
        "name": "quadratic",
    }
    model = partial(models.Point, [5.0])
    return Task(model, datasets.empty(), squared_distance, horizon=horizon, **{**defaults, **changes})


def _noisy_quadratic(dimensions: int = 1000, **changes: Any) -> Task:
    """A quadratic with curvatures 1/i and gradient noise, computed in expectation and therefore deterministic.

    The params are Aᵢ = E[wᵢ²], which start at 1; see `metalr.optimizers.classic.ExpectedSGD`.
    """
    ones = torch.ones(dimensions, dtype=torch.float64)
    defaults: dict[str, Any] = {
        "optimizer": ExpectedSGD(noise=0.01),
        "base_lr": 1.0,
        "horizon": 1000,
        "batch_size": 1,
        "initial_weights": {"values": ones},
        "name": "noisy-quadratic",
    }
    return Task(partial(models.Point, ones), datasets.empty(), noisy_quadratic_loss, **{**defaults, **changes})


def _classifier(model: Callable[[], nn.Module], data: TensorData, changes: dict[str, Any], **defaults: Any) -> Task:
    return Task(model, data, functional.cross_entropy, **{"metric": accuracy, **defaults, **changes})


def _digits_mlp(width: int = 32, depth: int = 1, **changes: Any) -> Task:
    """Digits (8×8 images), a multilayer perceptron."""
    model = partial(models.MLP, [64, *([width] * depth), 10])
    return _classifier(model, datasets.digits(), changes, name="digits-mlp")


def _digits_cnn(width: int = 8, depth: int = 2, **changes: Any) -> Task:
    """Digits (8×8 images), a convolutional network with group normalisation."""
    model = partial(models.ConvNet, 2, 1, [width * 2**i for i in range(depth)], 10)
    return _classifier(model, datasets.digits(flat=False), changes, name="digits-cnn")


def _mnist1d_mlp(width: int = 32, depth: int = 2, num_variants: int = 1, **changes: Any) -> Task:
    """MNIST-1D, a multilayer perceptron."""
    model = partial(models.MLP, [40, *([width] * depth), 10])
    return _classifier(model, datasets.mnist1d(num_variants), changes, name="mnist1d-mlp")


def _mnist1d_cnn(width: int = 16, depth: int = 3, num_variants: int = 1, **changes: Any) -> Task:
    """MNIST-1D, a one-dimensional convolutional network with group normalisation."""
    model = partial(models.ConvNet, 1, 1, [width] * depth, 10)
    return _classifier(model, datasets.mnist1d(num_variants, flat=False), changes, name="mnist1d-cnn")


def _teacher_student(width: int = 32, depth: int = 1, num_variants: int = 16, **changes: Any) -> Task:
    """Regression on random tanh networks; each data variant has its own teacher."""
    model = partial(models.MLP, [20, *([width] * depth), 1], torch.tanh)
    defaults: dict[str, Any] = {"base_lr": 0.05, "name": "teacher-student"}
    return Task(model, datasets.teacher_student(num_variants), functional.mse_loss, **{**defaults, **changes})


def _cifar10_cnn(folder: str | None = None, width: int = 16, depth: int = 3, **changes: Any) -> Task:
    """CIFAR-10 from the published files in `folder`, a convolutional network with group normalisation."""
    if folder is None:
        raise ValueError(
            "got no folder, expected the folder of the published CIFAR-10 files (nothing is downloaded): "
            "unpack cifar-10-python.tar.gz and pass folder='.../cifar-10-batches-py'"
        )
    model = partial(models.ConvNet, 2, 3, [width * 2**i for i in range(depth)], 10)
    return _classifier(model, datasets.cifar10(folder), changes, horizon=2000, name="cifar10-cnn")


def _bytes_transformer(width: int = 64, depth: int = 2, length: int = 32, **changes: Any) -> Task:
    """Next-byte prediction on Python's own source text, a small transformer, AdamW; loss in nats per byte."""
    model = partial(models.ByteTransformer, width, depth, max_length=length)
    defaults: dict[str, Any] = {"optimizer": AdamW(), "base_lr": 3e-3, "batch_size": 16, "metric": accuracy}
    data = datasets.standard_library_bytes(length)
    return Task(model, data, token_cross_entropy, **{**defaults, "name": "bytes-transformer", **changes})


TASKS: dict[str, Callable[..., Task]] = {
    "quadratic": _quadratic,
    "noisy-quadratic": _noisy_quadratic,
    "digits-mlp": _digits_mlp,
    "digits-cnn": _digits_cnn,
    "mnist1d-mlp": _mnist1d_mlp,
    "mnist1d-cnn": _mnist1d_cnn,
    "teacher-student": _teacher_student,
    "cifar10-cnn": _cifar10_cnn,
    "bytes-transformer": _bytes_transformer,
}


def make_task(name: str, **changes: Any) -> Task:
    """Build a shipped task by name, or one of your own by module and function.

    Args:
        name: a key of `TASKS`, or "module:function" as for `metalr.tasks.imported.imported_task`.
        **changes: any argument of `Task`, or of a shipped task's builder (width, depth, …), to override.

    Raises:
        ValueError: the name is unknown (the message suggests the nearest), a number is out of range, or the function
            is not there or returns something else.
        TypeError: an argument is unknown.

    Example:
        >>> make_task("quadratic", horizon=50).base_lr
        0.2
    """
    if is_imported(name):
        return imported_task(name).with_(**changes)
    return look_up(TASKS, name, "task")(**changes)


def named_task(name: str, horizon: int | None, usual_horizon: int, **changes: Any) -> Task:
    """Build a task for a command, whose options are None where they were not given.

    Args:
        name: as for `make_task`.
        horizon: None leaves that of one's own task alone and gives a shipped one the usual one.
        usual_horizon: of the command.
        **changes: as for `make_task`; None changes nothing.

    Example:
        >>> named_task("quadratic", None, 400, optimizer=None).horizon
        400
    """
    if horizon is None and not is_imported(name):
        horizon = usual_horizon
    given = {key: value for key, value in {"horizon": horizon, **changes}.items() if value is not None}
    return make_task(name, **given)


def is_imported(name: str) -> bool:
    """Whether the name is "module:function" rather than that of a shipped task."""
    return ":" in name
