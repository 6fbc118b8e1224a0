"""Where work runs: in this process, on local cores, or on a Ray cluster.

A unit is a call of a pure function of its arguments and seeds. Units are cut by a plan and never by the number of
workers, so a unit gives the same bits wherever it runs. The caller alone writes results.

    with Workers(2) as workers:
        for index, result in workers.each(train, [Unit((batch,), shared=task) for batch in batches]):
            write(result)

Both engines give a future for each unit: Ray its tasks, and for local cores loky, the part of joblib that starts
processes from any script and sends them any function. joblib's own `Parallel` would leave out the queue below, but
under its Ray backend results come only when all are there, so that nothing could be written meanwhile, and with either
backend one lost worker fails the whole call. Ray alone would leave out twenty lines, and make everyone who has two
cores install and start a cluster.
"""

import itertools
import logging
import os
import pickle
import queue
import signal
import socket
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch

log = logging.getLogger("metalr")

R = TypeVar("R")

TRIES = 3
# Shared values that a worker keeps: units of a task follow each other.
_KEPT = 4
# Units on the way to a cluster for each of its workers, so that none waits for its next one.
_AHEAD = 2
# Seconds between two looks at the size of a cluster, to which nodes may be added.
_LOOK = 5.0

_names = itertools.count()


class Unit(NamedTuple):
    """A piece of work: `function(*arguments)`, or `function(shared, *arguments)` where something is shared.

    Attributes:
        arguments: small; sent with the unit.
        shared: large, such as a task; fetched and built once by each worker for all units that hold the same object.
    """

    arguments: tuple[Any, ...]
    shared: Any = None


class UnitError(RuntimeError):
    """Units that failed three times; the message has the cause of the first."""


@dataclass
class Costs:
    """Where the time of the workers went.

    Attributes:
        workers: the most there were.
        units: finished.
        lost: times that a unit was lost with its worker or node.
        failed: times that a unit raised an error.
        work: seconds in the functions, summed over workers.
        build: seconds to fetch and build what units share and to read the arguments, summed over workers.
        wall: seconds between the first unit and the last.
    """

    workers: int = 1
    units: int = 0
    lost: int = 0
    failed: int = 0
    work: float = 0.0
    build: float = 0.0
    wall: float = 0.0

    @property
    def overhead(self) -> float:
        """The share of the workers' time outside the functions: start, transport, building, waiting."""
        return max(1.0 - self.work / (self.wall * self.workers), 0.0) if self.wall else 0.0

    def __str__(self) -> str:
        again = f" ({self.lost} lost and {self.failed} failed on the way)" if self.lost or self.failed else ""
        return (
            f"{self.units} units{again}: {self.work:.1f} s of work in {self.wall:.1f} s on {self.workers} worker"
            f"{'s' * (self.workers != 1)}; {self.overhead:.0%} of their time was overhead"
        )


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
        self._engine: _Engine | None = None
        if cluster is not None:
            self._engine = _Cluster(cluster, gpus)
        elif count > 1:
            self._engine = _Processes(count)
        self.costs = Costs()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        work = _Work(self._engine, function, units, self.costs)
        try:
            for index, outcome in _in_order(work.outcomes()) if ordered else work.outcomes():
                if outcome.failure is None:
                    yield index, outcome.result
        finally:
            work.close()
        work.check()

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


class _Outcome(NamedTuple):
    """How a unit ended: its result, or the text of its error; and the seconds of both of its parts."""

    result: Any
    failure: str | None = None
    build: float = 0.0
    work: float = 0.0


def _in_order(outcomes: Iterator[tuple[int, _Outcome]]) -> Iterator[tuple[int, _Outcome]]:
    early: dict[int, _Outcome] = {}
    following = 0
    for index, outcome in outcomes:
        early[index] = outcome
        while following in early:
            yield following, early.pop(following)
            following += 1


# ---- in a worker

_shared: OrderedDict[str, Any] = OrderedDict()


def _do(name: str | None, fetch: Callable[[], Any] | None, call: bytes) -> bytes:
    """Do a unit.

    Args:
        name: of what it shares, None for nothing.
        fetch: gets that, if this worker has not kept it.
        call: function and arguments.

    Returns:
        An `_Outcome`, as bytes: what engines make of errors and of tensors differs.
    """
    torch.set_num_threads(1)  # two on small kernels collapse as soon as anything else runs beside them
    started = built = time.perf_counter()
    try:
        function, arguments = pickle.loads(call)
        if name is not None and fetch is not None:
            arguments = (_kept(name, fetch), *arguments)
        built = time.perf_counter()
        result = function(*arguments)
        return pickle.dumps(_Outcome(result, None, built - started, time.perf_counter() - built))
    except Exception:
        return pickle.dumps(_Outcome(None, traceback.format_exc(), built - started, time.perf_counter() - built))


def _kept(name: str, fetch: Callable[[], Any]) -> Any:
    if name not in _shared:
        _shared[name] = fetch()
        while len(_shared) > _KEPT:
            _shared.popitem(last=False)
    _shared.move_to_end(name)
    return _shared[name]


def _from_file(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def _from_ray(reference: Any) -> Any:
    import ray

    return pickle.loads(ray.get(reference))


def _follow(caller: int) -> None:
    """Leave Ctrl-C to the caller, and end with it: a local worker would wait forever for one that was killed."""

    def watch() -> None:
        while os.getppid() == caller:
            time.sleep(1.0)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


# ---- in the caller


class _Engine(ABC):
    """Starts units elsewhere. A future that ends with an exception has lost its unit."""

    @abstractmethod
    def size(self) -> int:
        """Workers."""

    @abstractmethod
    def room(self) -> int:
        """How many units may be under way at once."""

    @abstractmethod
    def share(self, content: bytes) -> Callable[[], Any]:
        """Make a pickled value available; a worker gets it by the call returned."""

    def forget(self, fetch: Callable[[], Any]) -> None:  # noqa: B027 -- a cluster forgets what nobody refers to
        """Take back what was shared."""

    @abstractmethod
    def start(self, name: str | None, fetch: Callable[[], Any] | None, call: bytes) -> "Future[bytes]":
        """Begin a unit; see `_do`."""

    @abstractmethod
    def stop(self, futures: Sequence["Future[bytes]"]) -> None:
        """Give up units that are under way."""

    @abstractmethod
    def close(self) -> None:
        """Let the workers go."""


class _Work:
    """One call of `Workers.each` on an engine."""

    def __init__(self, engine: _Engine, function: Callable, units: Sequence[Unit], costs: Costs) -> None:
        self.engine, self.function, self.units, self.costs = engine, function, units, costs
        self.waiting = deque(range(len(units)))
        self.running: dict[int, Future[bytes]] = {}
        self.finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.tries: Counter[int] = Counter()
        self.failed: list[tuple[int, str]] = []
        # What units share, by identity: kept for as long as a unit still needs it.
        self.users = Counter(id(unit.shared) for unit in units if unit.shared is not None)
        self.shared: dict[int, tuple[str, Callable[[], Any]]] = {}

    def outcomes(self) -> Iterator[tuple[int, _Outcome]]:
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
                f"{len(self.failed)} of {len(self.units)} units failed {TRIES} times each ({_last_line(failure)}), "
                f"the first of them unit {index}; all others are done, and the same command tries these again"
            )

    def _start(self, index: int) -> None:
        arguments, shared = self.units[index]
        name, fetch = self._name_of(shared) if shared is not None else (None, None)
        future = self.engine.start(name, fetch, _dumps((self.function, arguments)))
        self.tries[index] += 1
        self.running[index] = future
        future.add_done_callback(lambda _: self.finished.put(index))

    def _outcome(self, index: int, future: "Future[bytes]") -> _Outcome:
        costs = self.costs
        costs.workers = max(costs.workers, self.engine.size())
        lost = future.exception()
        if lost is not None:
            costs.lost += 1
            log.info("unit %d was lost (%s)", index, type(lost).__name__)
            return _Outcome(None, f"{type(lost).__name__}: {lost}")
        outcome: _Outcome = pickle.loads(future.result())
        costs.build += outcome.build
        costs.work += outcome.work
        if outcome.failure is None:
            costs.units += 1
        else:
            costs.failed += 1
        return outcome

    def _name_of(self, value: Any) -> tuple[str, Callable[[], Any]]:
        if id(value) not in self.shared:
            self.shared[id(value)] = f"{os.getpid()}-{next(_names)}", self.engine.share(_dumps(value))
        return self.shared[id(value)]

    def _forget(self, value: Any) -> None:
        self.users[id(value)] -= 1
        if not self.users[id(value)] and id(value) in self.shared:
            self.engine.forget(self.shared.pop(id(value))[1])


def _knock(address: str) -> None:
    """Raise ConnectionError at once where nobody answers; Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if address.startswith("ray://") or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise ConnectionError(
            f"got cluster {address!r}, where nobody answers ({error}), expected host:port of a running one: start it "
            "with `ray start --head`, which prints the address"
        ) from error


def _dumps(value: Any) -> bytes:
    """The bytes of a value; functions that are in no importable module are sent whole."""
    import cloudpickle

    try:
        return cloudpickle.dumps(value)
    except Exception as error:
        raise ValueError(
            f"got work that cannot be sent to another process ({type(error).__name__}: {error}), expected data and "
            "functions without open files, generators or locks: run it in this process, with one worker"
        ) from error


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


class _Slot:
    """A local process, and the last unit that it was given. One that died is replaced.

    An executor for each process rather than one for all: a process that dies takes a whole executor with it.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.executor = make()
        self.future: Future[bytes] | None = None

    @property
    def free(self) -> bool:
        return self.future is None or self.future.done()

    def start(self, *arguments: Any) -> "Future[bytes]":
        if self.future is not None and self.future.exception() is not None:
            self.renew()
        future: Future[bytes] = self.executor.submit(_do, *arguments)
        self.future = future
        return future

    def renew(self) -> None:
        self.close()
        self.executor, self.future = self.make(), None

    def close(self) -> None:
        self.executor.shutdown(wait=True, kill_workers=True)


class _Processes(_Engine):
    """Local processes."""

    def __init__(self, count: int) -> None:
        try:
            from joblib.externals.loky import ProcessPoolExecutor
        except ImportError as error:
            raise ImportError("several workers need the package 'joblib': pip install 'metalr[cluster]'") from error
        start: dict[str, Any] = {"initializer": _follow, "initargs": (os.getpid(),), "env": {"OMP_NUM_THREADS": "1"}}
        self._slots = [_Slot(partial(ProcessPoolExecutor, max_workers=1, **start)) for _ in range(count)]
        self._folder = TemporaryDirectory(prefix="metalr-")

    def size(self) -> int:
        return len(self._slots)

    def room(self) -> int:
        return len(self._slots)

    def share(self, content: bytes) -> Callable[[], Any]:
        path = Path(self._folder.name) / str(next(_names))
        path.write_bytes(content)
        return partial(_from_file, path)

    def forget(self, fetch: Callable[[], Any]) -> None:
        fetch.args[0].unlink()  # type: ignore[attr-defined]

    def start(self, name: str | None, fetch: Callable[[], Any] | None, call: bytes) -> "Future[bytes]":
        return next(slot for slot in self._slots if slot.free).start(name, fetch, call)

    def stop(self, futures: Sequence["Future[bytes]"]) -> None:
        for slot in self._slots:
            if slot.future in futures:
                slot.renew()

    def close(self) -> None:
        for slot in self._slots:
            slot.close()
        self._folder.cleanup()


class _Cluster(_Engine):
    """The cores, or GPUs, of a Ray cluster."""

    def __init__(self, address: str, gpus: bool) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError("a cluster needs the package 'ray': pip install 'metalr[cluster]'") from error
        self._ray = ray
        self._connected = not ray.is_initialized()
        if self._connected:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        # A lost unit is tried again by `_Work`, for both engines alike.
        self._task = ray.remote(num_cpus=1, num_gpus=int(gpus), max_retries=0)(_do)
        self._resource = "GPU" if gpus else "CPU"
        self._size, self._looked = 0, -_LOOK

    def size(self) -> int:
        if time.monotonic() - self._looked > _LOOK:
            self._size = int(self._ray.cluster_resources().get(self._resource, 0))
            self._looked = time.monotonic()
        return self._size

    def room(self) -> int:
        return _AHEAD * max(self.size(), 1)

    def share(self, content: bytes) -> Callable[[], Any]:
        return partial(_from_ray, self._ray.put(content))

    def start(self, name: str | None, fetch: Callable[[], Any] | None, call: bytes) -> "Future[bytes]":
        return self._task.remote(name, fetch, call).future()

    def stop(self, futures: Sequence["Future[bytes]"]) -> None:
        for future in futures:
            self._ray.cancel(future.object_ref, force=True)  # type: ignore[attr-defined]

    def close(self) -> None:
        if self._connected:
            self._ray.shutdown()
