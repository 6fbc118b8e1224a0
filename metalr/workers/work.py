"""Units under way: sent to an engine, tried again when they are lost, and reported when they fail for good."""

import itertools
import logging
import os
import pickle
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from metalr.workers.costs import Costs
from metalr.workers.engine import Engine
from metalr.workers.in_worker import Outcome
from metalr.workers.sending import dumps, last_line
from metalr.workers.units import TRIES, Unit, UnitError

log = logging.getLogger("metalr")

_names = itertools.count()


class Work:
    """One call of `Workers.each` on an engine."""

    def __init__(self, engine: Engine, function: Callable, units: Sequence[Unit], costs: Costs) -> None:
        self.engine, self.function, self.units, self.costs = engine, function, units, costs
        self.waiting = deque(range(len(units)))
        self.running: dict[int, Future[bytes]] = {}
        self.finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.tries: Counter[int] = Counter()
        self.failed: list[tuple[int, str]] = []
        # What units share, by identity: kept for as long as a unit still needs it.
        self.users = Counter(id(unit.shared) for unit in units if unit.shared is not None)
        self.shared: dict[int, tuple[str, Callable[[], Any]]] = {}

    def outcomes(self) -> Iterator[tuple[int, Outcome]]:
        """The last outcome of each unit."""
        begun = time.perf_counter()
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < self.engine.room():
                    self._start(self.waiting.popleft())
                index = self.finished.get()
                outcome = self._outcome(index, self.running.pop(index))
                if outcome.failure is not None and self.tries[index] < TRIES:
                    self.waiting.appendleft(index)
                    continue
                self._forget(self.units[index].shared)
                if outcome.failure is not None:
                    log.error("unit %d failed %d times:\n%s", index, TRIES, outcome.failure)
                    self.failed.append((index, outcome.failure))
                yield index, outcome
        finally:
            self.costs.wall += time.perf_counter() - begun

    def close(self) -> None:
        """Give up what is under way."""
        self.engine.stop(list(self.running.values()))
        self.running.clear()
        for _, fetch in self.shared.values():
            self.engine.forget(fetch)
        self.shared.clear()

    def check(self) -> None:
        """Raise UnitError if units have failed for good."""
        if self.failed:
            index, failure = self.failed[0]
            raise UnitError(
                f"{len(self.failed)} of {len(self.units)} units failed {TRIES} times each ({last_line(failure)}), "
                f"the first of them unit {index}; all others are done, and the same command tries these again"
            )

    def _start(self, index: int) -> None:
        arguments, shared = self.units[index]
        name, fetch = self._name_of(shared) if shared is not None else (None, None)
        future = self.engine.start(name, fetch, dumps((self.function, arguments)))
        self.tries[index] += 1
        self.running[index] = future
        future.add_done_callback(lambda _: self.finished.put(index))

    def _outcome(self, index: int, future: "Future[bytes]") -> Outcome:
        costs = self.costs
        costs.workers = max(costs.workers, self.engine.size())
        lost = future.exception()
        if lost is not None:
            costs.lost += 1
            log.info("unit %d was lost (%s)", index, type(lost).__name__)
            return Outcome(None, f"{type(lost).__name__}: {lost}")
        outcome: Outcome = pickle.loads(future.result())
        costs.build += outcome.build
        costs.work += outcome.work
        if outcome.failure is None:
            costs.units += 1
        else:
            costs.failed += 1
        return outcome

    def _name_of(self, value: Any) -> tuple[str, Callable[[], Any]]:
        if id(value) not in self.shared:
            self.shared[id(value)] = f"{os.getpid()}-{next(_names)}", self.engine.share(dumps(value))
        return self.shared[id(value)]

    def _forget(self, value: Any) -> None:
        self.users[id(value)] -= 1
        if not self.users[id(value)] and id(value) in self.shared:
            self.engine.forget(self.shared.pop(id(value))[1])


def in_order(outcomes: Iterator[tuple[int, Outcome]]) -> Iterator[tuple[int, Outcome]]:
    """The same, each kept back until all earlier ones are there."""
    early: dict[int, Outcome] = {}
    following = 0
    for index, outcome in outcomes:
        early[index] = outcome
        while following in early:
            yield following, early.pop(following)
            following += 1
