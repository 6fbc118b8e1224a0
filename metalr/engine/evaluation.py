"""Loss and metric of every run on a split."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from metalr.engine.batched_losses import over_runs
from metalr.engine.chunks import chunk_size
from metalr.engine.gradients import RunLosses
from metalr.tasks.data import Batch, Data, Split
from metalr.trees import concatenate

# Examples of each run that go through the network at once: few enough to stay in a CPU's cache.
EVALUATION_CHUNK = 256


class Evaluation(NamedTuple):
    """Loss and metric on a split, `(num_runs,)` float64 each; the metric is NaN for a task that has none."""

    loss: Tensor
    metric: Tensor

    def failed_where(self, diverged: Tensor) -> "Evaluation":
        """With an infinite loss for runs that have diverged, `(num_runs,)` bool, or have no loss."""
        return Evaluation(torch.where(diverged | self.loss.isnan(), torch.inf, self.loss), self.metric)


def mean_over(
    chunks: Iterable[Batch], of_batch: Callable[[Tensor, Tensor], Evaluation], num_runs: int, device: torch.device
) -> Evaluation:
    """Means over the examples of a split.

    Args:
        chunks: inputs and targets `(num_runs, chunk, …)`.
        of_batch: their loss and metric, `(num_runs,)` each.
        num_runs: evaluated.
        device: of the runs.
    """
    loss, metric = (torch.zeros(num_runs, dtype=torch.float64, device=device) for _ in range(2))
    seen = 0
    for inputs, targets in chunks:
        chunk = of_batch(inputs, targets)
        loss = loss + chunk.loss.double() * inputs.shape[1]
        metric = metric + chunk.metric.double() * inputs.shape[1]
        seen += inputs.shape[1]
    return Evaluation(loss / seen, metric / seen)


def runs_at_once(num_runs: int, batch_size: int, tensor_bytes: int, device: torch.device) -> int:
    """How many runs an evaluation puts through the network together.

    Args:
        num_runs: of the engine, not of one evaluation: the bits of a run must not depend on how many others are asked
            for with it.
        batch_size: of an inner step.
        tensor_bytes: of the largest tensor that an operation of one run works on in an inner step.
        device: of the runs.
    """
    if num_runs == 1:
        return 1
    if device.type != "cpu":  # at most four times the examples of an inner step: so much memory is there
        return max(4 * num_runs * batch_size // EVALUATION_CHUNK, 64)
    examples = max(EVALUATION_CHUNK // batch_size, 1)
    return chunk_size(num_runs, tensor_bytes * examples, equal=False)


class Evaluator:
    """Means over a split, of runs of one task.

    Args:
        losses: of the task.
        data: the source of the splits.
        at_once: runs that go through the network together; 1 calls it as for a run alone.
    """

    def __init__(self, losses: RunLosses, data: Data, at_once: int) -> None:
        self.losses = losses
        self.data = data
        self.at_once = at_once
        metric = losses.task.metric
        self._loss_over_runs = over_runs(losses.task.loss)
        self._metric_over_runs = over_runs(metric) if metric else None

    def __call__(self, split: Split, max_examples: int, params: Tensor, variants: Tensor) -> Evaluation:
        """Mean loss and metric over a split, or its first `max_examples` examples.

        Args:
            split: "train", "valid" or "test".
            max_examples: limit for each run.
            params: `(num_runs, num_params)`.
            variants: `(num_runs,)` int64.
        """
        starts = range(0, max(len(params), 1), self.at_once)
        rows = [slice(start, start + self.at_once) for start in starts]
        return concatenate([self._means(split, max_examples, params[part], variants[part]) for part in rows])

    def of_batch(self, params: Tensor, inputs: Tensor, targets: Tensor) -> Evaluation:
        """Loss and metric of each run on examples `(num_runs, batch, …)`, in the dtype of the loss."""
        if self.at_once == 1:
            runs = [self._of_one(*run) for run in zip(params, inputs, targets, strict=True)]
            return Evaluation(*map(torch.stack, zip(*runs, strict=True)))
        if not self.losses.takes_runs:
            return Evaluation(*vmap(self._of_one)(params, inputs, targets))
        outputs = self.losses.call(self.losses.layout.unflatten(params), inputs)
        loss = self._loss_over_runs(outputs, targets)
        unknown = torch.full_like(loss, torch.nan)
        return Evaluation(loss, self._metric_over_runs(outputs, targets) if self._metric_over_runs else unknown)

    def _means(self, split: Split, max_examples: int, params: Tensor, variants: Tensor) -> Evaluation:
        chunks = self.data.chunks(split, variants, max_examples, EVALUATION_CHUNK)
        return mean_over(chunks, lambda x, y: self.of_batch(params, x, y), len(params), params.device)

    def _of_one(self, row: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and metric of one run with weights `(num_params,)`."""
        task = self.losses.task
        outputs = self.losses.call(self.losses.layout.unflatten(row), inputs)
        metric = task.metric(outputs, targets) if task.metric else row.new_full((), torch.nan)
        return task.loss(outputs, targets), metric
