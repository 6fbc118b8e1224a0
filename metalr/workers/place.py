"""`Workers`: this process, local processes or a cluster."""

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from metalr.workers.costs import Costs
from metalr.workers.engine import Engine
from metalr.workers.held import Held
from metalr.workers.local_processes import LocalProcesses
from metalr.workers.ray_cluster import RayCluster
from metalr.workers.units import Unit
from metalr.workers.work import Work, in_order

R = TypeVar("R")


class Workers:
    """One place to send work to; a context, at whose end the workers go.

    Args:
        count: local processes; 1 stays in this process.
        cluster: address of a Ray cluster instead, or "auto" for the one that this machine belongs to. A process that is
            connected to a cluster stays with that one.
        gpus: each unit takes a whole GPU of the cluster.

    Attributes:
        costs: of all units so far.

    Raises:
        ImportError: joblib or Ray is missing; the message names the extra.
        ValueError: count is not positive, or both places are named.
        ConnectionError: there is no cluster at the address.
    """

    def __init__(self, count: int = 1, cluster: str | None = None, *, gpus: bool = False) -> None:
        if count < 1 or (cluster is not None and count > 1):
            raise ValueError(
                f"got {count} workers and cluster {cluster!r}, expected at least 1 worker, or a cluster, which has as "
                "many as its cores: name one of the two"
            )
        self._engine: Engine | None = None
        if cluster is not None:
            self._engine = RayCluster(cluster, gpus)
        elif count > 1:
            self._engine = LocalProcesses(count)
        self._held: list[Held] = []
        self.costs = Costs()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for held in self._held:
            held.close()
        if self._engine is not None:
            self._engine.close()

    @property
    def here(self) -> bool:
        """Whether the work stays in this process."""
        return self._engine is None

    def each(
        self, function: Callable[..., R], units: Sequence[Unit], *, ordered: bool = False
    ) -> Iterator[tuple[int, R]]:
        """Do all units; yield the index and the result of each as soon as it is finished.

        A unit that was lost with its worker, or that raised an error, is tried again: three times in all. In this
        process there is nothing to lose, and an error ends the work at once.

        Args:
            function: of the module it is imported from; a cluster needs the same code on every node.
            units: what to call it with.
            ordered: keep a result back until those of all earlier units are there.

        Raises:
            UnitError: a unit failed for good; raised when all others are finished.
        """
        if self._engine is None:
            yield from self._each_here(function, units)
            return
        work = Work(self._engine, function, units, self.costs)
        try:
            for index, outcome in in_order(work.outcomes()) if ordered else work.outcomes():
                if outcome.failure is None:
                    yield index, outcome.result
        finally:
            work.close()
        work.check()

    def hold(self, makers: Sequence[Callable[[], Any]]) -> Held:
        """Make objects that stay in local processes of their own until the workers go; see `held`.

        Args:
            makers: of the objects.

        Raises:
            ValueError: the work is done in this process or on a cluster, or there is one object alone.
            UnitError: an object could not be made.
        """
        if not isinstance(self._engine, LocalProcesses):
            raise ValueError(
                f"got {'one process' if self.here else 'a cluster'} for training runs that keep their state from one "
                "decision to the next, expected several local workers, since a node that is lost would take its runs "
                "with it: use --workers, or choose the agent clone, whose pieces stand alone"
            )
        if len(makers) < 2:
            raise ValueError(
                f"got {self._engine.size()} workers for one task, whose training runs advance together in one process, "
                "expected several tasks: train on a family of them, or leave the workers out"
            )
        held = Held(self._engine.size(), self.costs)
        self._held.append(held)
        held.make(makers)
        return held

    def _each_here(self, function: Callable[..., R], units: Sequence[Unit]) -> Iterator[tuple[int, R]]:
        begun = time.perf_counter()
        try:
            for index, (arguments, shared) in enumerate(units):
                started = time.perf_counter()
                result = function(*arguments) if shared is None else function(shared, *arguments)
                self.costs.work += time.perf_counter() - started
                self.costs.units += 1
                yield index, result
        finally:
            self.costs.wall += time.perf_counter() - begun
