"""The shipped tasks by name, and families that draw tasks which differ in what fixes shapes.

`Task` itself is in `metalr.task`. Knows nothing of controllers or environments.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from metalr import datasets, models, schedules, seeding
from metalr.data import TensorData
from metalr.losses import accuracy, noisy_quadratic_loss, squared_distance, token_cross_entropy
from metalr.optimizers import AdamW, ExpectedSGD
from metalr.registry import look_up
from metalr.task import Task


def _quadratic(horizon: int = 400, **changes: Any) -> Task:
    """One parameter from 5, loss (w + 1)², SGD with the learning rate 0.2·0.95^t: the older literature's run."""
    # At any horizon that makes sense; Task itself refuses the others.
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
    """A quadratic with curvatures 1/i and gradient noise, followed in expectation and so without any noise.

    The params are Aᵢ = E[wᵢ²], from 1; see `metalr.optimizers.ExpectedSGD`.
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
    """Digits, 8×8 images, a multilayer perceptron."""
    model = partial(models.MLP, [64, *([width] * depth), 10])
    return _classifier(model, datasets.digits(), changes, name="digits-mlp")


def _digits_cnn(width: int = 8, depth: int = 2, **changes: Any) -> Task:
    """Digits, 8×8 images, a convolutional network with group normalisation."""
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
    """Regression on random tanh networks; every data variant is another teacher."""
    model = partial(models.MLP, [20, *([width] * depth), 1], torch.tanh)
    defaults: dict[str, Any] = {"base_lr": 0.05, "name": "teacher-student"}
    return Task(model, datasets.teacher_student(num_variants), functional.mse_loss, **{**defaults, **changes})


def _cifar10_cnn(folder: str | None = None, width: int = 16, depth: int = 3, **changes: Any) -> Task:
    """CIFAR-10 from the published files in `folder`, a convolutional network with group normalisation."""
    if folder is None:
        raise ValueError(
            "got no folder, expected one with the published CIFAR-10 files (nothing is downloaded): "
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
    """A shipped task by name, with any argument of `Task` (or of its builder: width, depth, …) changed.

    Raises:
        ValueError: the name is unknown (the nearest is named), or a number is out of range.
        TypeError: an argument is unknown.

    Example:
        >>> make_task("quadratic", horizon=50).base_lr
        0.2
    """
    return look_up(TASKS, name, "task")(**changes)


@dataclass(frozen=True)
class TaskFamily:
    """A distribution of tasks: the axes that fix shapes are drawn here, the rest anew at every reset of a run.

    Attributes:
        name: shown in cards and records.
        tasks: shipped task name -> the axes of variation, argument -> possible values. An axis named
            "optimizer" may name an optimizer; its default base LR is `base_lr`'s value for that name, if given.
        base_lr: optimizer name -> default base LR, for tasks whose optimizer is drawn.
        base_lr_range: at each reset the base LR is log-uniform between these factors of the task's default.

    Example:
        >>> family = TaskFamily("small", {"quadratic": {"horizon": (40, 80)}})
        >>> family.sample(seed=0, num_groups=2)[0].horizon in (40, 80)
        True
    """

    name: str
    tasks: Mapping[str, Mapping[str, tuple]]
    base_lr: Mapping[str, float] = field(default_factory=dict)
    base_lr_range: tuple[float, float] = (0.1, 10.0)

    def sample(self, seed: int, num_groups: int) -> list[Task]:
        """Draw tasks, one for each run group; the task names take turns."""
        names = list(self.tasks)
        return [self._draw(names[i % len(names)], seeding.hash_integers(seed, i)) for i in range(num_groups)]

    def _draw(self, name: str, key: Tensor) -> Task:
        axes = self.tasks[name]
        drawn = {
            axis: values[int(seeding.integers(len(values), key, index))]
            for index, (axis, values) in enumerate(axes.items())
        }
        if drawn.get("optimizer") in self.base_lr:
            drawn["base_lr"] = self.base_lr[drawn["optimizer"]]
        return make_task(name, **drawn)


def draw_base_lr(task: Task, seeds: Tensor, base_lr_range: tuple[float, float]) -> Tensor:
    """Log-uniform base LRs around a task's default, `(num_runs,)` float64, a function of each run's seed."""
    low, high = base_lr_range
    if not 0.0 < low <= high < float("inf"):
        raise ValueError(f"got base_lr_range {base_lr_range}, expected 0 < low <= high: pass factors such as (0.1, 10)")
    position = seeding.uniform(seeding.stream(seeds, "base_lr"))
    return task.base_lr * low * (high / low) ** position


_OPTIMIZER_LR = {"sgd": 0.3, "momentum": 0.1, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 3e-3}

FAMILIES: dict[str, TaskFamily] = {
    "mnist1d": TaskFamily(
        "mnist1d",
        {
            "mnist1d-mlp": {
                "width": (16, 32, 64),
                "depth": (1, 2, 3),
                "batch_size": (32, 64, 128),
                "horizon": (200, 400),
                "optimizer": ("sgd", "momentum", "adam"),
                "num_variants": (8,),
            }
        },
        _OPTIMIZER_LR,
    ),
    "small": TaskFamily(
        "small",
        {
            "mnist1d-mlp": {
                "width": (16, 32, 64),
                "depth": (1, 2),
                "batch_size": (32, 64),
                "horizon": (200, 400),
                "optimizer": ("sgd", "momentum", "adam"),
                "num_variants": (8,),
            },
            "teacher-student": {
                "width": (16, 32, 64),
                "depth": (1, 2),
                "batch_size": (32, 64),
                "horizon": (200, 400),
                "optimizer": ("sgd", "momentum", "adam"),
            },
            "mnist1d-cnn": {
                "width": (8, 16),
                "batch_size": (32, 64),
                "horizon": (200, 400),
                "optimizer": ("momentum", "adam"),
            },
        },
        _OPTIMIZER_LR,
    ),
}
