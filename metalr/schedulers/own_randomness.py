"""The random numbers of a run that draws from global generators, as dropout and shuffling loaders do."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from metalr import seeding
from metalr.tasks.data import SPLITS, Data


class OwnRandomness:
    """The states that the global generators have within one run: those of torch, NumPy and Python.

    Outside `in_force` the generators are as if the run did not exist.

    Args:
        seed: of the run.
        device: where it draws, beside the CPU.
        more: generators of torch that the run draws from too.

    Example:
        >>> run = OwnRandomness(0, torch.device("cpu"))
        >>> with run.in_force():
        ...     first = torch.rand(2)
        >>> other = torch.rand(2)
        >>> with run.in_force():
        ...     second = torch.rand(2)
        >>> with OwnRandomness(0, torch.device("cpu")).in_force():
        ...     torch.equal(torch.rand(4), torch.cat([first, second]))
        True
    """

    def __init__(self, seed: int, device: torch.device, more: Iterable[torch.Generator] = ()) -> None:
        self._generators = [torch.default_generator, *more]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])
        outside = self._read()
        start = int(seeding.integers(1 << 31, seeding.stream(seed, "own_loop")))
        for generator in self._generators:
            generator.manual_seed(start)
        random.seed(start)
        np.random.seed(start)  # noqa: NPY002 -- the global generator, which augmentations draw from
        self._states = self._read()
        self._write(outside)

    @contextmanager
    def in_force(self, keep: bool = True) -> Iterator[None]:
        """Draw as this run.

        Args:
            keep: the next time continues where this one ends; otherwise it draws the same numbers again.
        """
        outside = self._read()
        self._write(self._states)
        try:
            yield
            if keep:
                self._states = self._read()
        finally:
            self._write(outside)

    def _read(self) -> tuple[Any, ...]:
        of_torch = (generator.get_state() for generator in self._generators)
        return random.getstate(), np.random.get_state(), *of_torch  # noqa: NPY002

    def _write(self, states: tuple[Any, ...]) -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for generator, state in zip(self._generators, states[2:], strict=True):
            generator.set_state(state)


def generators_of(data: Data) -> list[torch.Generator]:
    """The generators that a task's own loaders and their samplers were given."""
    loaders = [getattr(data, split, None) for split in SPLITS]
    owners = [*loaders, *(getattr(loader, "sampler", None) for loader in loaders)]
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
