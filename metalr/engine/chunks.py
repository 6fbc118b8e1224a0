"""Chunks of runs that go through a CPU's cache one after the other."""

from collections.abc import Callable, Iterator

from metalr.engine.interval import Interval
from metalr.engine.step import RunState
from metalr.signals.stats import RunStats
from metalr.trees import concatenate, map_leaves

Unroll = Callable[[RunState, Interval], tuple[RunState, RunStats]]

# Bytes of one tensor of a chunk: an operation's inputs and outputs then stay in the cache.
_CHUNK_BYTES = 1 << 19


def chunk_size(num_runs: int, tensor_bytes: int, equal: bool) -> int:
    """How many runs make a chunk.

    One run alone has simpler kernels of its own, which save more than two or three runs in one call do: where fewer
    than four fit, runs go one by one.

    Args:
        num_runs: in all.
        tensor_bytes: of the largest tensor that an operation of one run works on.
        equal: the chunks must be equal, since a compiled step is made for one number of runs.

    Example:
        >>> [chunk_size(32, size, equal=False) for size in (1 << 10, 1 << 16, 1 << 20)]
        [32, 8, 1]
    """
    fitting = max(_CHUNK_BYTES // max(tensor_bytes, 1), 1)
    if fitting >= num_runs:
        return num_runs
    if fitting < 4:
        fitting = 1
    if not equal:
        return fitting
    return max(size for size in range(1, fitting + 1) if num_runs % size == 0)


def unroll_in_chunks(
    unroll: Unroll, state: RunState, interval: Interval, chunk: int | None
) -> tuple[RunState, RunStats]:
    """Carry out an interval, `chunk` runs at a time; None takes all at once."""
    if chunk is None or chunk >= len(state.params):
        return unroll(state, interval)
    return concatenate([unroll(*part) for part in _split(state, interval, chunk)])


def _split(state: RunState, interval: Interval, chunk: int) -> Iterator[tuple[RunState, Interval]]:
    """The runs in chunks, as views."""
    for start in range(0, len(state.params), chunk):
        rows = slice(start, start + chunk)
        part = map_leaves(lambda leaf, rows=rows: leaf[rows], state)
        yield part, Interval(interval.seeds[rows], interval.variants[rows], interval.lr[:, rows])
