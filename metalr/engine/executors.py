"""How a decision interval is carried out: step by step, with a compiled step, or as one CUDA graph.

Every executor is a function of the state: `(state, interval) -> (state, RunStats)`, and all call the same
`TrainingStep`. Knows nothing of seeds to come, resets or evaluation.
"""

import itertools
import logging
import time
import types
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from metalr.engine.interval import Advance, Interval, run_interval
from metalr.engine.step import RunState, TrainingStep, divergence_limit
from metalr.signals.stats import RunStats
from metalr.tasks.data import Batch, Data

log = logging.getLogger("metalr")
# On CUDA, have the compiler choose reduction kernels by rule. Chosen by the clock they may be faster, but they differ
# from process to process then, and the last bits of a run with them.
KERNELS_BY_RULE = True
_compilations = itertools.count()
# Bytes of one tensor of a chunk of runs, on a CPU: an operation's inputs and outputs then stay in its cache.
_CHUNK_BYTES = 1 << 19
# A compiled CPU step costs about so many seconds once, and saves this share of the eager one's time. The first is on
# the high side and the second on the low, so that compilation is not chosen where it hardly pays.
_COMPILE_SECONDS = 20.0
_COMPILE_SAVES = 0.5
# Time of an eager CPU step: the interpreter's, and a floating-point operation's.
_STEP_SECONDS = 3e-4
_FLOP_SECONDS = 1e-10 / 2


def compiling_pays(planned_steps: int | None, num_runs: int, num_params: int, batch_size: int) -> bool:
    """Whether a compiled CPU step earns back what compiling costs.

    Decided from counts and not from a clock, so that the same call gives the same bits every time.

    Args:
        planned_steps: inner steps that the batch of runs is going to make; None if nobody knows, which is a no.
        num_runs, num_params, batch_size: of the engine.

    Example:
        >>> compiling_pays(400, 32, 2700, 64), compiling_pays(400_000, 32, 2700, 64), compiling_pays(None, 1, 1, 1)
        (False, True, False)
    """
    operations = 6.0 * num_runs * num_params * batch_size
    seconds = (planned_steps or 0) * (_STEP_SECONDS + operations * _FLOP_SECONDS)
    return _COMPILE_SAVES * seconds > _COMPILE_SECONDS


class Executor(ABC):
    """Carries out decision intervals.

    Attributes:
        preparation_seconds: spent on compiling and capturing so far.
        how: "step by step", "compiled", "one graph" or "one graph, compiled": what is really done, after whatever
            had to be given up.
    """

    preparation_seconds = 0.0
    how = "step by step"

    def __init__(self, step: TrainingStep, data: Data) -> None:
        self.step = step
        self.data = data

    @abstractmethod
    def unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        """Apply the interval's inner steps; `state` itself stays as it is."""

    def _batches(self, state: RunState, interval: Interval) -> Iterable[Batch]:
        size = self.step.task.batch_size
        return self.data.batches(interval.seeds, interval.variants, state.step, len(interval.lr), size)

    def _prepared(self, what: str, since: float) -> None:
        seconds = time.perf_counter() - since
        self.preparation_seconds += seconds
        log.info("%s for task %s took %.1f s", what, self.step.task.name, seconds)


class EagerExecutor(Executor):
    """Step by step. On a CPU the runs are taken in chunks whose tensors stay in the cache, one chunk after the other.

    Args:
        step: the training step.
        data: where minibatches come from.
        chunk: runs in a chunk; None for all at once.
    """

    def __init__(self, step: TrainingStep, data: Data, chunk: int | None = None) -> None:
        super().__init__(step, data)
        self.chunk = chunk

    def unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        parts = [self._unroll(*part) for part in split_runs(state, interval, self.chunk)]
        if len(parts) == 1:
            return parts[0]
        return join_states([state for state, _ in parts]), RunStats(
            *map(torch.cat, zip(*(s for _, s in parts), strict=True))
        )

    def _unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        on_cpu = state.params.device.type == "cpu"
        advance = _Unmasked(self.step) if on_cpu and not bool(state.diverged.any()) else self.step
        return run_interval(advance, self.step.layout, state, self._batches(state, interval), interval.lr)


class _Unmasked:
    """The training step without its masks, until the first run diverges. For one interval."""

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.healthy = True
        self.limit: Tensor | None = None

    def __call__(self, state: RunState, batch: Batch, lr: Tensor) -> tuple[RunState, Tensor, Tensor]:
        done = self.step.without_masks(state, batch, lr, self.limit) if self.healthy else None
        if done is None:
            self.healthy = False
            return self.step(state, batch, lr)
        if self.limit is None:
            self.limit = divergence_limit(done[0].initial_loss)
        return done


class CompiledExecutor(EagerExecutor):
    """As the eager one, with the step compiled by `torch.compile`. Where that fails, one warning says why and the
    eager step goes on.

    The first step compiles. torch keeps what it compiled on disk, so that another process with the same task and
    number of runs is faster at it.
    """

    def __init__(self, step: TrainingStep, data: Data, chunk: int | None = None) -> None:
        super().__init__(step, data, chunk)
        self._compiled: Advance | None = None
        self._tried = False
        try:
            self._compiled = compiled(step)
        except Exception as error:
            _warn("torch.compile", "training goes on eagerly", error)

    @property
    def how(self) -> str:  # type: ignore[override]
        return "step by step" if self._compiled is None else "compiled"

    def _unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        if self._compiled is None:
            return super()._unroll(state, interval)
        return run_interval(self._guarded, self.step.layout, state, self._batches(state, interval), interval.lr)

    def _guarded(self, state: RunState, batch: Batch, lr: Tensor) -> tuple[RunState, Tensor, Tensor]:
        if self._compiled is None:
            return self.step(state, batch, lr)
        started = time.perf_counter()
        try:
            result = self._compiled(state, batch, lr)
        except Exception as error:
            self._compiled = None
            _warn("torch.compile", "training goes on eagerly", error)
            return self.step(state, batch, lr)
        if not self._tried:
            self._tried = True
            self._prepared("compiling the training step", started)
        return result


def compiled(step: TrainingStep) -> Advance:
    """The step by `torch.compile`, for one executor and one number of runs.

    torch counts compilations by code object and gives up silently after eight: the ninth network of a process would
    train eagerly. By the code's name it remembers numbers of runs, of which the second becomes a variable, with slower
    kernels. Code and a name for each executor keep executors out of each other's way.
    """

    def advance(state: RunState, batch: Batch, lr: Tensor) -> tuple[RunState, Tensor, Tensor]:
        return step(state, batch, lr)

    own_code = advance.__code__.replace(co_name=f"advance_{next(_compilations)}")
    own = types.FunctionType(own_code, advance.__globals__, own_code.co_name, None, advance.__closure__)
    settings: dict[str, Any] = {}
    if KERNELS_BY_RULE and step.device.type == "cuda":
        from torch._inductor import config  # slow to import, and only needed here

        settings = {"options": {"deterministic": True}} if hasattr(config, "deterministic") else {}
    return torch.compile(own, **settings)


def _warn(what: str, instead: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}".strip()
    warnings.warn(f"{what} failed, {instead}: {reason}", RuntimeWarning, stacklevel=6)


def chunk_size(num_runs: int, tensor_bytes: int, equal: bool) -> int:
    """How many runs go through a CPU's cache together.

    Below four the saving of one call for several runs is smaller than what a run alone gains from its own, simpler
    kernels, so that such runs go one by one.

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


def split_runs(state: RunState, interval: Interval, chunk: int | None) -> list[tuple[RunState, Interval]]:
    """The runs in chunks, as views."""
    num_runs = len(state.params)
    if chunk is None or chunk >= num_runs:
        return [(state, interval)]
    parts = []
    for start in range(0, num_runs, chunk):
        rows = slice(start, start + chunk)
        part = RunState(
            state.params[rows],
            tuple(buffer[rows] for buffer in state.optimizer),
            state.step[rows],
            state.initial_loss[rows],
            state.diverged[rows],
        )
        parts.append((part, Interval(interval.seeds[rows], interval.variants[rows], interval.lr[:, rows])))
    return parts


def join_states(parts: list[RunState]) -> RunState:
    """The runs of several states as one."""
    return RunState(
        torch.cat([part.params for part in parts]),
        tuple(map(torch.cat, zip(*(part.optimizer for part in parts), strict=True))),
        torch.cat([part.step for part in parts]),
        torch.cat([part.initial_loss for part in parts]),
        torch.cat([part.diverged for part in parts]),
    )
