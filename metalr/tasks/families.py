"""Task families: distributions of tasks that differ in the settings that fix shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from metalr import seeding
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task


@dataclass(frozen=True)
class TaskFamily:
    """A distribution of tasks: settings that fix shapes are drawn here, the rest at every reset of a run.

    Attributes:
        name: shown in cards and records.
        tasks: shipped task name -> axes of variation, each an argument of the task -> its possible values.
        base_lr: optimizer name -> default base LR, for tasks that draw their optimizer (the axis "optimizer").
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
        """Draw one task for each run group, taking the task names in turn."""
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
    """Draw log-uniform base LRs around a task's default, each a function of its run's seed.

    Args:
        task: gives the default base LR.
        seeds: run seeds, `(num_runs,)` int64.
        base_lr_range: lowest and highest factor of the default.

    Returns:
        `(num_runs,)` float64.

    Raises:
        ValueError: the range is not 0 < low <= high < infinity.
    """
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
