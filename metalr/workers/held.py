"""Objects that stay in their process from one call to the next, such as groups of training runs.

Units stand alone, so one that is lost is done again elsewhere. What is held has a past: it goes with its process, and
the work ends with an error. Each object stays in one process and sees its own calls alone, so that its results do not
depend on the number of processes.
"""

import itertools
import logging
import os
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future
from typing import Any, TypeVar

from metalr.workers.costs import Costs
from metalr.workers.in_worker import Outcome, do
from metalr.workers.local_processes import new_process
from metalr.workers.sending import dumps, last_line
from metalr.workers.units import UnitError

log = logging.getLogger("metalr")

R = TypeVar("R")

_names = itertools.count()
_objects: dict[str, Any] = {}  # in a worker


class Held:
    """Objects in local processes, dealt out in turn.

    Args:
        count: processes at most.
        costs: where each call counts as a unit, and the time from the first to the last as wall time.
    """

    def __init__(self, count: int, costs: Costs) -> None:
        self._count, self._costs = count, costs
        self._processes: list[Any] = []
        self._last: list[Future[bytes]] = []
        self._begun = self._ended = time.perf_counter()

    def make(self, makers: Sequence[Callable[[], Any]]) -> None:
        """Make the objects; each maker is called in the process of its object.

        Raises:
            UnitError: see `each`.
        """
        self._processes = [new_process() for _ in range(min(self._count, len(makers)))]
        self._names = [f"{os.getpid()}-{next(_names)}" for _ in makers]
        self._costs.workers = max(self._costs.workers, len(self._processes))
        self._finish([self._start(place, _make, maker) for place, maker in enumerate(makers)])

    def each(self, function: Callable[..., R], arguments: Sequence[tuple[Any, ...]]) -> list[R]:
        """Call `function(object, *arguments)` for every object, in all processes at once.

        Raises:
            UnitError: a call raised an error, or a process died.
        """
        return self._finish([self._start(place, _call, function, *given) for place, given in enumerate(arguments)])

    def close(self) -> None:
        """Let the processes go, with what they hold."""
        busy = any(not future.done() for future in self._last)
        for process in self._processes:
            process.shutdown(wait=True, kill_workers=busy)  # an idle one ends in order, with what a compiler began
        self._costs.wall += self._ended - self._begun

    def _start(self, place: int, function: Callable[..., Any], *arguments: Any) -> "Future[bytes]":
        process = self._processes[place % len(self._processes)]
        return process.submit(do, None, None, dumps((function, (self._names[place], *arguments))))

    def _finish(self, futures: "list[Future[bytes]]") -> list[Any]:
        self._last = futures
        results = [self._result(future) for future in futures]
        self._ended = time.perf_counter()
        return results

    def _result(self, future: "Future[bytes]") -> Any:
        try:
            outcome: Outcome = pickle.loads(future.result())
        except BrokenExecutor as error:
            raise UnitError(
                f"a worker died ({type(error).__name__}), and with it the runs that it held: give the same command "
                "again, which continues from what was written"
            ) from error
        if outcome.failure is not None:
            log.error("work failed:\n%s", outcome.failure)
            raise UnitError(last_line(outcome.failure))
        self._costs.work += outcome.work
        self._costs.build += outcome.build
        self._costs.units += 1
        return outcome.result


def _make(name: str, maker: Callable[[], Any]) -> None:
    _objects[name] = maker()


def _call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(_objects[name], *arguments)
