"""Sources of minibatches, tensors on the device or a user's loader, with train, valid and test splits.

A minibatch is a pure function of run seed and step. *train* feeds the inner loss and *valid* the reward and the
meta-loss; *test* is only ever reported.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from metalr import seeding

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
Batch = tuple[Tensor, Tensor]
# Bytes of minibatch inputs to gather at once, by device type: about the size of its cache.
_GATHERED_BYTES = {"cpu": 1 << 18, "cuda": 1 << 24}


class Data(ABC):
    """Source of a task's minibatches. Inputs and targets have the leading axes (num_runs, batch_size).

    Attributes:
        num_variants: how many variants of the data there are; a run sees one of them.
    """

    num_variants: int = 1

    @abstractmethod
    def batches(
        self, seeds: Tensor, variants: Tensor, first_step: Tensor, num_steps: int, batch_size: int
    ) -> Iterator[Batch]:
        """Yield the minibatches of inner steps first_step, first_step + 1, … of each run.

        Args:
            seeds: run seeds, `(num_runs,)` int64.
            variants: the data variant of each run, `(num_runs,)` int64.
            first_step: inner steps already made, `(num_runs,)` int64.
            num_steps: number of minibatches to yield.
            batch_size: examples in each.

        Yields:
            Inputs `(num_runs, batch_size, …)` and targets `(num_runs, batch_size, …)`.
        """

    @abstractmethod
    def chunks(self, split: Split, variants: Tensor, max_examples: int, chunk_size: int) -> Iterator[Batch]:
        """Yield the first `max_examples` examples of a split, at most `chunk_size` at a time, for every run.

        Args:
            split: "train", "valid" or "test".
            variants: the data variant of each run, `(num_runs,)` int64.
            max_examples: examples to yield in all, or fewer if the split is smaller.
            chunk_size: examples in a chunk.

        Yields:
            Inputs `(num_runs, chunk, …)` and targets `(num_runs, chunk, …)`.
        """

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Data":
        """Return the same data on a device, with floating-point tensors in `dtype`."""
        return self

    def restart(self) -> None:  # noqa: B027 -- only a stream has anything to restart
        """Return to step 0; called when all runs start anew."""

    def alone(self) -> "Data":
        """The same data for a run of its own: a stream has a position, which runs cannot share."""
        return self


@dataclass(frozen=True, eq=False)
class TensorData(Data):
    """Resident tensors, one copy for all runs.

    A minibatch is drawn with replacement: index = hash(seed, step, position) modulo the number of training
    examples. It therefore depends only on the run's own seed and step.

    Attributes:
        train, valid, test: inputs `(num_variants, num_examples, …)` and targets `(num_variants, num_examples, …)`.
            A run sees one variant only. `TensorData.of` makes these from plain `(num_examples, …)` tensors.
    """

    train: Batch
    valid: Batch
    test: Batch

    @classmethod
    def of(cls, train: Batch, valid: Batch | None = None, test: Batch | None = None) -> "TensorData":
        """Build from plain tensors `(num_examples, …)`; valid defaults to train, and test to valid.

        Raises:
            ValueError: a split is no pair of tensors, its inputs and targets differ in length, or it is empty.

        Example:
            >>> TensorData.of((torch.zeros(100, 3), torch.zeros(100))).train[0].shape
            torch.Size([1, 100, 3])
        """
        valid = valid if valid is not None else train
        test = test if test is not None else valid
        for name, split in zip(SPLITS, (train, valid, test), strict=True):
            if len(split) != 2 or not all(isinstance(part, Tensor) for part in split):
                raise ValueError(
                    f"got a {name} split of {[type(part).__name__ for part in split]}, expected two tensors "
                    "(inputs, targets): convert arrays with torch.as_tensor"
                )
            inputs, targets = split
            if len(inputs) != len(targets) or len(inputs) == 0:
                raise ValueError(
                    f"got a {name} split of {len(inputs)} inputs and {len(targets)} targets, expected the same number "
                    "of both and at least one: pass (inputs, targets) with the examples along the first axis"
                )
        return cls(*((inputs[None], targets[None]) for inputs, targets in (train, valid, test)))

    @property
    def num_variants(self) -> int:  # type: ignore[override]
        return self.train[0].shape[0]

    def batches(
        self, seeds: Tensor, variants: Tensor, first_step: Tensor, num_steps: int, batch_size: int
    ) -> Iterator[Batch]:
        inputs, targets = self.train
        device = seeds.device
        if inputs.numel() == 0 and targets.numel() == 0:  # a loss that needs no data: nothing to draw
            nothing = [part.new_empty((len(seeds), batch_size, *part.shape[2:])) for part in self.train]
            yield from [(nothing[0], nothing[1])] * num_steps
            return
        stream = seeding.stream(seeds, "data")[:, None]
        position = torch.arange(batch_size, device=device)
        # All indices of an interval in one call: hashing step by step would cost as much as a small training step.
        steps = first_step[None, :, None] + torch.arange(num_steps, device=device)[:, None, None]
        indices = seeding.integers(inputs.shape[1], stream, steps, position)  # (num_steps, num_runs, batch_size)
        indices = indices + variants[:, None] * inputs.shape[1]
        flat_inputs, flat_targets = inputs.flatten(0, 1), targets.flatten(0, 1)
        # One call gathers several minibatches, as many as fit in the cache.
        size = inputs[0, 0].numel() * inputs.element_size() * indices[0].numel()
        block = max(_GATHERED_BYTES.get(device.type, 0) // max(size, 1), 1)
        for part in indices.split(block):
            rows = part.flatten()
            shape = part.shape
            block_inputs = flat_inputs.index_select(0, rows).view(shape + inputs.shape[2:])
            block_targets = flat_targets.index_select(0, rows).view(shape + targets.shape[2:])
            yield from zip(block_inputs.unbind(), block_targets.unbind(), strict=True)

    def chunks(self, split: Split, variants: Tensor, max_examples: int, chunk_size: int) -> Iterator[Batch]:
        inputs, targets = getattr(self, split)
        end = min(max_examples, inputs.shape[1])
        for start in range(0, end, chunk_size):
            stop = min(start + chunk_size, end)
            if self.num_variants == 1:
                shape = (len(variants), stop - start)
                yield (
                    inputs[0, start:stop].expand(*shape, *inputs.shape[2:]),
                    targets[0, start:stop].expand(*shape, *targets.shape[2:]),
                )
            else:
                yield inputs[variants, start:stop], targets[variants, start:stop]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "TensorData":
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

        return TensorData(*((move(x), move(y)) for x, y in (self.train, self.valid, self.test)))


class LoaderData(Data):
    """A user's own `DataLoader` (or any iterable of `(inputs, targets)`), for one run at a time.

    The loader decides the order and the batch size; it is restarted when it ends.

    Args:
        train: yields the minibatches, inputs `(batch_size, …)` and targets `(batch_size, …)`.
        valid: an iterable of the same kind; None takes `train`.
        test: an iterable of the same kind; None takes `valid`.

    Raises:
        ValueError: when minibatches are drawn, if there is more than one run or the loader yields nothing.
    """

    def __init__(self, train: Iterable, valid: Iterable | None = None, test: Iterable | None = None) -> None:
        self.train = train
        self.valid = valid if valid is not None else train
        self.test = test if test is not None else self.valid
        self._iterator: Iterator = iter(())
        self._last_step = -1
        self._last_batch: Batch
        self._device: torch.device | str = "cpu"
        self._dtype = torch.float32

    def batches(
        self, seeds: Tensor, variants: Tensor, first_step: Tensor, num_steps: int, batch_size: int
    ) -> Iterator[Batch]:
        self._require_one_run(len(seeds))
        start = int(first_step)
        for step in range(start, start + num_steps):
            # A probe reads the next minibatch before the update that uses it: the same step must give the same batch.
            if step != self._last_step:
                self._last_step, self._last_batch = step, self._next()
            yield self._move(self._last_batch)

    def chunks(self, split: Split, variants: Tensor, max_examples: int, chunk_size: int) -> Iterator[Batch]:
        self._require_one_run(len(variants))
        left = max_examples
        for inputs, targets in getattr(self, split):
            if left <= 0:
                return
            yield self._move((inputs[:left], targets[:left]))
            left -= len(inputs)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "LoaderData":
        moved = LoaderData(self.train, self.valid, self.test)
        moved._device, moved._dtype = device, dtype
        return moved

    def restart(self) -> None:
        """Iterate over the loader from its beginning; a shuffling loader chooses its own order."""
        self._iterator = iter(())
        self._last_step = -1

    def alone(self) -> "LoaderData":
        return self.to(self._device, self._dtype)

    def _next(self) -> Batch:
        for _ in range(2):
            for batch in self._iterator:
                return batch
            self._iterator = iter(self.train)
        raise ValueError("got a data loader that yields nothing, expected (inputs, targets) pairs: check its dataset")

    def _move(self, batch: Batch) -> Batch:
        return _for_one_run(batch, self._device, self._dtype)

    @staticmethod
    def _require_one_run(num_runs: int) -> None:
        if num_runs != 1:
            raise ValueError(
                f"got {num_runs} runs on a data loader, expected 1, since a loader has a single order: "
                "use TensorData for batched runs, num_runs=1, or Task(plain=True), whose runs iterate one by one"
            )


class DatasetData(Data):
    """A `torch.utils.data.Dataset` of `(input, target)` pairs, for one run at a time on the plain path.

    Examples are drawn with replacement, the same ones as from resident tensors, and loaded in the process itself. For
    worker processes or another order, make a `DataLoader` of the dataset.

    Args:
        train: has a length, and `train[i]` is an input and a target.
        valid: of the same kind; None takes `train`.
        test: of the same kind; None takes `valid`.

    Example:
        >>> pairs = torch.utils.data.TensorDataset(torch.arange(10.0), torch.arange(10))
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> inputs, targets = next(DatasetData(pairs).batches(zero, zero, zero, num_steps=1, batch_size=3))
        >>> inputs.shape, bool((inputs == targets).all())
        (torch.Size([1, 3]), True)
    """

    def __init__(self, train: Dataset, valid: Dataset | None = None, test: Dataset | None = None) -> None:
        self.train: Any = train
        self.valid: Any = valid if valid is not None else train
        self.test: Any = test if test is not None else self.valid
        self._device: torch.device | str = "cpu"
        self._dtype = torch.float32

    def batches(
        self, seeds: Tensor, variants: Tensor, first_step: Tensor, num_steps: int, batch_size: int
    ) -> Iterator[Batch]:
        start = int(first_step)
        for step in range(start, start + num_steps):
            position = torch.arange(batch_size, device=seeds.device)
            indices = seeding.integers(len(self.train), seeding.stream(seeds, "data"), step, position)
            yield self._collate(self.train, indices.tolist())

    def chunks(self, split: Split, variants: Tensor, max_examples: int, chunk_size: int) -> Iterator[Batch]:
        examples = getattr(self, split)
        end = min(max_examples, len(examples))
        for start in range(0, end, chunk_size):
            yield self._collate(examples, range(start, min(start + chunk_size, end)))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "DatasetData":
        moved = DatasetData(self.train, self.valid, self.test)
        moved._device, moved._dtype = device, dtype
        return moved

    def _collate(self, examples: Any, indices: Iterable[int]) -> Batch:
        return _for_one_run(default_collate([examples[index] for index in indices]), self._device, self._dtype)


def _for_one_run(batch: Iterable[Tensor], device: torch.device | str, dtype: torch.dtype) -> Batch:
    """Inputs and targets `(1, batch, …)` on a device, floating-point numbers in `dtype`."""
    inputs, targets = (part.to(device, dtype if part.is_floating_point() else part.dtype)[None] for part in batch)
    return inputs, targets
