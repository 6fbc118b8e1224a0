"""The training step by `torch.compile`: how, when it pays, and the warning where it fails."""

import itertools
import types
import warnings
from typing import Any

import torch
from torch import Tensor

from metalr.engine.interval import Advance
from metalr.engine.step import RunState, TrainingStep
from metalr.tasks.data import Batch

_compilations = itertools.count()
# A compiled CPU step costs about so many seconds once, and saves this share of the eager one's time. The first is on
# the high side and the second on the low, so that compilation is not chosen where it hardly pays.
_COMPILE_SECONDS = 20.0
_COMPILE_SAVES = 0.5
# Time of an eager CPU step: the interpreter's, and a floating-point operation's.
_STEP_SECONDS = 3e-4
_FLOP_SECONDS = 1e-10 / 2


def compiling_pays(planned_steps: int | None, num_runs: int, num_params: int, batch_size: int) -> bool:
    """Whether a compiled CPU step earns back the cost of compiling.

    Decided from counts and not from a clock, so that the same call gives the same bits every time.

    Args:
        planned_steps: inner steps that the batch of runs is going to make; None if nobody knows, which is a no.
        num_runs: of the engine.
        num_params: of a run.
        batch_size: examples in a minibatch.

    Example:
        >>> compiling_pays(400, 32, 2700, 64), compiling_pays(400_000, 32, 2700, 64), compiling_pays(None, 1, 1, 1)
        (False, True, False)
    """
    operations = 6.0 * num_runs * num_params * batch_size
    seconds = (planned_steps or 0) * (_STEP_SECONDS + operations * _FLOP_SECONDS)
    return _COMPILE_SAVES * seconds > _COMPILE_SECONDS


def compiled(step: TrainingStep, kernels_by_rule: bool = True) -> Advance:
    """The step by `torch.compile`, for one executor and one number of runs; the first call compiles.

    torch counts compilations by code object and gives up silently after eight: the ninth network of a process would
    train eagerly. By the code's name it remembers numbers of runs, of which the second becomes a variable, with slower
    kernels. Code and a name for each executor keep executors out of each other's way.

    Args:
        step: the training step.
        kernels_by_rule: on CUDA, choose reduction kernels by rule. Chosen by the clock they may be faster, but they
            differ from process to process, and the last bits of a run with them.
    """

    def advance(state: RunState, batch: Batch, lr: Tensor) -> tuple[RunState, Tensor, Tensor]:
        return step(state, batch, lr)

    own_code = advance.__code__.replace(co_name=f"advance_{next(_compilations)}")
    own = types.FunctionType(own_code, advance.__globals__, own_code.co_name, None, advance.__closure__)
    settings: dict[str, Any] = {}
    if kernels_by_rule and step.device.type == "cuda":
        from torch._inductor import config  # slow to import, and only needed here

        settings = {"options": {"deterministic": True}} if hasattr(config, "deterministic") else {}
    return torch.compile(own, **settings)


def compiled_or_none(step: TrainingStep, kernels_by_rule: bool, instead: str) -> Advance | None:
    """`compiled`, or None and a warning that says what happens instead."""
    try:
        return compiled(step, kernels_by_rule)
    except Exception as error:
        warn_of_fallback("torch.compile", instead, error)
        return None


def warn_of_fallback(what: str, instead: str, error: Exception) -> None:
    """Warn that a fast way failed, why, and what is done instead."""
    reason = f"{type(error).__name__}: {error}".strip()
    warnings.warn(f"{what} failed, {instead}: {reason}", RuntimeWarning, stacklevel=6)
