"""A decision interval as one CUDA graph: thousands of kernels, started by one call and without waiting for the host.

What goes in lies in buffers that stay where they are; the minibatches are drawn, the LRs applied, the step counters
advanced and the diverged runs frozen inside the graph, each run by its own numbers. What comes out is copied, so that
whoever holds an earlier state keeps it.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalr.engine.executors import EagerExecutor, Executor, _warn, compiled
from metalr.engine.interval import Advance, Interval, run_interval
from metalr.engine.step import RunState, TrainingStep
from metalr.signals.stats import RunStats
from metalr.tasks.data import Data

# Intervals that are made before one is captured: libraries set themselves up in the first, compilation happens there.
_WARM_UPS = 3

Work = Callable[[RunState, Interval], tuple[RunState, RunStats]]


def leaves(state: RunState) -> list[Tensor]:
    """The tensors of a state."""
    return [state.params, *state.optimizer, state.step, state.initial_loss, state.diverged]


def from_leaves(tensors: list[Tensor]) -> RunState:
    """The state of its tensors, in the order of `leaves`."""
    return RunState(tensors[0], tuple(tensors[1:-3]), *tensors[-3:])


class Buffers:
    """Tensors that stay in one place, for a state and an interval of fixed shapes.

    Args:
        state, interval: give shapes and the first contents.
    """

    def __init__(self, state: RunState, interval: Interval) -> None:
        self.state = from_leaves([tensor.clone() for tensor in leaves(state)])
        self.interval = Interval(*(tensor.contiguous().clone() for tensor in interval))

    def fill(self, state: RunState, interval: Interval) -> None:
        """Copy new contents in."""
        for buffer, tensor in zip(leaves(self.state), leaves(state), strict=True):
            buffer.copy_(tensor)
        for buffer, tensor in zip(self.interval, interval, strict=True):
            buffer.copy_(tensor)


class Captured(NamedTuple):
    """An interval that can be done again: fill the buffers, replay, copy the results out."""

    buffers: Buffers
    replay: Callable[[], None]
    state: RunState
    stats: RunStats

    def unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        """The interval of other contents."""
        self.buffers.fill(state, interval)
        self.replay()
        return from_leaves([t.clone() for t in leaves(self.state)]), RunStats(*(t.clone() for t in self.stats))


def capture(work: Work, state: RunState, interval: Interval, pool: Any = None) -> Captured:
    """Capture an interval as a CUDA graph.

    Args:
        work: what is done; it must not wait for the host.
        state, interval: of the shapes that the graph is for.
        pool: memory that graphs share which are never replayed at the same time.

    Raises:
        Exception: the work cannot be captured; the first error that was met, which is the one that says why.
    """
    device = state.params.device
    buffers = Buffers(state, interval)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.no_grad():
        here, side = torch.cuda.current_stream(), _side_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                work(buffers.state, buffers.interval)
        here.wait_stream(side)
        new_state, stats = _record(graph, lambda: work(buffers.state, buffers.interval), pool, side)
    return Captured(buffers, graph.replay, new_state, stats)


def _record(
    graph: torch.cuda.CUDAGraph,
    work: Callable[[], tuple[RunState, RunStats]],
    pool: Any,
    side: torch.cuda.Stream,
) -> tuple[RunState, RunStats]:
    """Do the work on a side stream while the graph records it."""
    here = torch.cuda.current_stream()
    cause: Exception | None = None
    try:
        with torch.cuda.graph(graph, pool=pool, stream=side):
            try:
                return work()
            except Exception as error:
                cause = error
                raise
    except Exception as error:
        # Ending a broken capture raises as well: its error hides the cause, and the stream stays switched.
        torch.cuda.set_stream(here)
        raise cause or error from None


@lru_cache
def _side_stream_of(index: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(index)


def _side_stream() -> torch.cuda.Stream:
    """One for each device and all its graphs: the matrix library holds a workspace for each stream that it has seen."""
    return _side_stream_of(torch.cuda.current_device())


class GraphExecutor(Executor):
    """Captures an interval when its length is seen first, and replays it from then on.

    If the compiled step cannot be captured, the plain one is; if that cannot be either, intervals are made step by
    step. One warning each says why.

    Args:
        step: the training step.
        data: resident on the device.
        compile: compile the step that is captured.
    """

    def __init__(self, step: TrainingStep, data: Data, compile: bool = True) -> None:
        super().__init__(step, data)
        self.advance: Advance = step
        if compile:
            try:
                self.advance = compiled(step)
            except Exception as error:
                _warn("torch.compile", "the plain step is captured", error)
        self._captured: dict[tuple[int, ...], Captured] = {}
        self._pool: Any = None
        self._eager: EagerExecutor | None = None

    def unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        key = tuple(interval.lr.shape)
        if self._eager is None and key not in self._captured:
            self._prepare(key, state, interval)
        if self._eager is not None:
            return self._eager.unroll(state, interval)
        return self._captured[key].unroll(state, interval)

    def work(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        """What is captured."""
        return run_interval(self.advance, self.step.layout, state, self._batches(state, interval), interval.lr)

    @property
    def how(self) -> str:  # type: ignore[override]
        if self._eager is not None:
            return self._eager.how
        return "one graph" if self.advance is self.step else "one graph, compiled"

    def _prepare(self, key: tuple[int, ...], state: RunState, interval: Interval) -> None:
        started = time.perf_counter()
        try:
            try:
                self._capture(key, state, interval)
            except Exception as error:
                if self.advance is self.step:
                    raise
                _warn("capturing the compiled step", "the plain step is captured", error)
                self.advance = self.step
                self._capture(key, state, interval)
        except Exception as error:
            _warn("capturing a CUDA graph", "training goes on step by step", error)
            self._eager = EagerExecutor(self.step, self.data)
            self._captured.clear()  # and the memory with them
        self._prepared(f"capturing an interval of {key[0]} inner steps", started)

    def _capture(self, key: tuple[int, ...], state: RunState, interval: Interval) -> None:
        pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        # A pool in which a capture broke off may not be captured into again: it is kept only after a success.
        self._pool = None
        self._captured[key] = capture(self.work, state, interval, pool)
        self._pool = pool
