"""The start of every experiment: options from the command line, one torch thread, small numbers with `--smoke`."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
import tyro

from metalr.workers import Workers


@dataclass(frozen=True)
class Options(ABC):
    """Base of every experiment's `Args`, whose fields are the options of its command."""

    smoke: bool = False
    """A quick run with small numbers; its records and figures go to `runs/`."""

    @abstractmethod
    def small(self) -> Self:
        """These options with the numbers of a smoke run."""


@dataclass(frozen=True)
class Spread(Options):
    """Base of the `Args` of experiments whose runs can be spread over several workers."""

    workers: int = 1
    """Local processes that train; each takes one core."""
    cluster: str | None = None
    """Address of a Ray cluster that trains instead."""

    def start_workers(self) -> Workers:
        """The workers, for a `with` block."""
        return Workers(self.workers, self.cluster)


A = TypeVar("A", bound=Options)


def run(main: Callable[[A], None], options: type[A]) -> None:
    """Parse the command line and run an experiment; its help is the docstring of the experiment's file.

    Args:
        main: the experiment.
        options: its `Args`.
    """
    args = tyro.cli(options, description=sys.modules[main.__module__].__doc__)
    # Two threads on small kernels collapse as soon as anything else runs beside them.
    torch.set_num_threads(1)
    main(args.small() if args.smoke else args)
