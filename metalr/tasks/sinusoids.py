"""Few-shot regression on sinusoids: the classic test of MAML and Meta-SGD, as a task of the batched engine.

Every data variant is one sinusoid with its own few training points, so a batch of runs is a batch of few-shot
tasks, and the meta-loss "final-valid" after `horizon` inner steps is the few-shot objective.

Sources: Finn, Abbeel and Levine 2017, arXiv 1703.03400, section 5.1 (MAML); Li et al. 2017, arXiv 1707.09835
(Meta-SGD).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from metalr import seeding
from metalr.tasks import models
from metalr.tasks.data import SPLITS, Batch, Data
from metalr.tasks.task import Task


@dataclass(frozen=True)
class Sinusoids(Data):
    """Points of y = amplitude · sin(frequency · x + phase), x uniform in [-5, 5], drawn from the variant's number.

    Inputs and targets are `(num_runs, points, 1)`.

    Attributes:
        shots: training points of a sinusoid; every minibatch holds all of them.
        queries: points in each of the valid and test splits, distinct from each other and from the training points.
        amplitude, phase, frequency: ranges of the uniform draws; phase in radians.
        dtype: dtype of the points.
        num_variants: number of different sinusoids.
    """

    shots: int
    queries: int = 10
    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, torch.pi)
    frequency: tuple[float, float] = (1.0, 1.0)
    dtype: torch.dtype = torch.float64
    num_variants: int = 1 << 40

    def batches(
        self, seeds: Tensor, variants: Tensor, first_step: Tensor, num_steps: int, batch_size: int
    ) -> Iterator[Batch]:
        batch = self._points(variants, "train", self.shots)
        for _ in range(num_steps):
            yield batch

    def chunks(self, split: str, variants: Tensor, max_examples: int, chunk_size: int) -> Iterator[Batch]:
        yield self._points(variants, split, self.shots if split == "train" else self.queries)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Sinusoids":
        return Sinusoids(self.shots, self.queries, self.amplitude, self.phase, self.frequency, dtype)

    def _points(self, variants: Tensor, split: str, count: int) -> Batch:
        """Inputs and targets `(num_runs, count, 1)`."""

        def draw(bounds: tuple[float, float], key: int) -> Tensor:
            return bounds[0] + (bounds[1] - bounds[0]) * seeding.uniform(variants, key)[:, None]

        amplitude, phase, frequency = draw(self.amplitude, 0), draw(self.phase, 1), draw(self.frequency, 2)
        position = torch.arange(count, device=variants.device)
        key = 3 + SPLITS.index(split)  # type: ignore[arg-type]
        x = 10.0 * seeding.uniform(variants[:, None], key, position) - 5.0
        y = amplitude * (frequency * x + phase).sin()
        return x[..., None].to(self.dtype), y[..., None].to(self.dtype)


def sinusoid_task(shots: int, *, inner_steps: int = 1, queries: int = 10, **ranges: tuple[float, float]) -> Task:
    """Few-shot regression with the 1-40-40-1 network of both papers; with base LR 1, a learned multiplier is the LR.

    Args:
        shots: training points of a sinusoid.
        inner_steps: the horizon.
        queries: points in each of the valid and test splits.
        **ranges: amplitude, phase or frequency, as in `Sinusoids`.

    Example:
        >>> sinusoid_task(5).num_params
        1761
    """
    model = partial(models.MLP, [1, 40, 40, 1])
    data = Sinusoids(shots, queries, **ranges)  # type: ignore[arg-type]
    settings = {"base_lr": 1.0, "horizon": inner_steps, "batch_size": shots, "name": "sinusoids"}
    return Task(model, data, functional.mse_loss, optimizer="sgd", **settings)  # type: ignore[arg-type]
