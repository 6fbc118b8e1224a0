"""Ways to carry out a decision interval: step by step, or with a compiled step.

Every executor is a function of the state, `(state, interval) -> (state, RunStats)`, and all call the same
`TrainingStep`. `metalr.engine.cuda_graphs` has a third one.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor

from metalr.engine.chunks import unroll_in_chunks
from metalr.engine.compilation import compiled_or_none, warn_of_fallback
from metalr.engine.interval import Interval, run_interval
from metalr.engine.step import RunState, TrainingStep, UnmaskedStep
from metalr.signals.stats import RunStats
from metalr.tasks.data import Batch, Data

log = logging.getLogger("metalr")

_EAGERLY = "training continues eagerly"


class Executor(ABC):
    """Carries out decision intervals.

    Attributes:
        preparation_seconds: spent on compiling and capturing so far.
        how: the way in use after any fallback: "step by step", "compiled", "one graph" or "one graph, compiled".
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
        data: the source of minibatches.
        chunk: runs in a chunk; None for all at once.
    """

    def __init__(self, step: TrainingStep, data: Data, chunk: int | None = None) -> None:
        super().__init__(step, data)
        self.chunk = chunk

    def unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        return unroll_in_chunks(self._unroll, state, interval, self.chunk)

    def _unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        on_cpu = state.params.device.type == "cpu"
        advance = UnmaskedStep(self.step) if on_cpu and not bool(state.diverged.any()) else self.step
        return run_interval(advance, self.step.layout, state, self._batches(state, interval), interval.lr)


class CompiledExecutor(Executor):
    """As `EagerExecutor`, with the step compiled. If that fails, one warning says why and training continues eagerly.

    The first step compiles. torch keeps compiled code on disk, so that another process with the same task and number
    of runs is faster at it.

    Args:
        step, data, chunk: of `EagerExecutor`.
        kernels_by_rule: of `metalr.engine.compilation.compiled`.
    """

    def __init__(self, step: TrainingStep, data: Data, chunk: int | None = None, kernels_by_rule: bool = True) -> None:
        super().__init__(step, data)
        self.chunk = chunk
        self._eager = EagerExecutor(step, data, chunk)
        self._compiled = compiled_or_none(step, kernels_by_rule, _EAGERLY)
        self._has_run = False

    @property
    def how(self) -> str:  # type: ignore[override]
        return self._eager.how if self._compiled is None else "compiled"

    def unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        if self._compiled is None:
            return self._eager.unroll(state, interval)
        return unroll_in_chunks(self._unroll, state, interval, self.chunk)

    def _unroll(self, state: RunState, interval: Interval) -> tuple[RunState, RunStats]:
        return run_interval(self._advance, self.step.layout, state, self._batches(state, interval), interval.lr)

    def _advance(self, state: RunState, batch: Batch, lr: Tensor) -> tuple[RunState, Tensor, Tensor]:
        """The compiled step, or the eager one from its failure on."""
        if self._compiled is None:
            return self.step(state, batch, lr)
        started = time.perf_counter()
        try:
            result = self._compiled(state, batch, lr)
        except Exception as error:
            self._compiled = None
            warn_of_fallback("torch.compile", _EAGERLY, error)
            return self.step(state, batch, lr)
        if not self._has_run:
            self._has_run = True
            self._prepared("compiling the training step", started)
        return result
