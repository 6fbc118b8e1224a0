"""A decision interval as one CUDA graph: thousands of kernels, started by one call and without waiting for the host.

The inputs lie in buffers that stay where they are; the minibatches are drawn, the LRs applied, the step counters
advanced and the diverged runs frozen inside the graph, each run by its own numbers. The results are copied, so that
whoever holds an earlier state keeps it.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from metalr.engine.chunks import Unroll
from metalr.engine.compilation import compiled_or_none, warn_of_fallback
from metalr.engine.executors import EagerExecutor, Executor
from metalr.engine.interval import Advance, Interval, run_interval
from metalr.engine.step import RunState, TrainingStep
from metalr.signals.stats import RunStats
from metalr.tasks.data import Data
from metalr.trees import leaves, map_leaves

# Intervals that are made before one is captured: libraries set themselves up in the first, compilation happens there.
_WARM_UPS = 3
_PLAINLY = "the plain step is captured"


class Captured(NamedTuple):
    """An interval that can be repeated with other contents, read from and written to tensors that stay in one place."""

    inputs: tuple[RunState, Interval]
    replay: Callable[[], None]
    results: tuple[RunState, RunStats]

    def unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        """Copy the contents in, replay, and copy the results out."""
        for buffer, tensor in zip(leaves(self.inputs), leaves((state, interval)), strict=True):
            buffer.copy_(tensor)
        self.replay()
        return map_leaves(torch.clone, self.results)


def fixed_inputs(state: RunState, interval: Interval) -> tuple[RunState, Interval]:
    """Buffers of the shapes and with the contents of a state and an interval."""
    # Contiguous: an LR may be a view in which all steps share their memory.
    return map_leaves(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), (state, interval))


def capture(work: Unroll, state: RunState, interval: Interval, pool: Any = None) -> Captured:
    """Capture an interval as a CUDA graph.

    Args:
        work: carries the interval out; it must not wait for the host.
        state: of the shapes that the graph is for.
        interval: likewise.
        pool: memory shared by graphs that are never replayed at the same time.

    Raises:
        Exception: the work cannot be captured; the first error that was met, which is the one that says why.
    """
    inputs = fixed_inputs(state, interval)
    graph = torch.cuda.CUDAGraph()
    device = state.params.device
    with torch.cuda.device(device), torch.no_grad():
        here, side = torch.cuda.current_stream(), side_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                work(*inputs)
        here.wait_stream(side)
        results = _record(graph, lambda: work(*inputs), pool, side)
    return Captured(inputs, graph.replay, results)


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
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all graphs of a device: the matrix library holds a workspace for each stream that it has seen."""
    return torch.cuda.Stream(device)


class GraphExecutor(Executor):
    """Captures an interval of each length at its first use and replays it from then on.

    If the compiled step cannot be captured, the plain one is; if that cannot be either, intervals are made step by
    step. One warning each says why.

    Args:
        step: the training step.
        data: resident on the device.
        compile: compile the step that is captured.
        kernels_by_rule: of `metalr.engine.compilation.compiled`.

    Attributes:
        advance: the step that is captured, compiled or plain.
        captured: the graphs, by the shape of their LRs.
    """

    def __init__(self, step: TrainingStep, data: Data, compile: bool = True, kernels_by_rule: bool = True) -> None:
        super().__init__(step, data)
        self.advance: Advance = step
        if compile:
            self.advance = compiled_or_none(step, kernels_by_rule, _PLAINLY) or step
        self.captured: dict[tuple[int, ...], Captured] = {}
        self._pool: Any = None
        self._eager: EagerExecutor | None = None

    def unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        key = tuple(interval.lr.shape)
        if self._eager is None and key not in self.captured:
            self._prepare(key, state, interval)
        if self._eager is not None:
            return self._eager.unroll(state, interval)
        return self.captured[key].unroll(state, interval)

    def work(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        """Carry out an interval; this is captured."""
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
                warn_of_fallback("capturing the compiled step", _PLAINLY, error)
                self.advance = self.step
                self._capture(key, state, interval)
        except Exception as error:
            warn_of_fallback("capturing a CUDA graph", "training continues step by step", error)
            self._eager = EagerExecutor(self.step, self.data)
            self.captured.clear()  # and the memory with them
        self._prepared(f"capturing an interval of {key[0]} inner steps", started)

    def _capture(self, key: tuple[int, ...], state: RunState, interval: Interval) -> None:
        pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        # A pool in which a capture broke off may not be captured into again: it is kept only after a success.
        self._pool = None
        self.captured[key] = capture(self.work, state, interval, pool)
        self._pool = pool
