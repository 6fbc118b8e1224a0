"""Schedules by name, to and from plain dictionaries (JSON). Reading is safe on a stranger's file.

The form is {"name": "warmup", "length": 0.1, "schedule": {"name": "cosine", ...}, ...}.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from metalr.registry import look_up
from metalr.schedules.base import Schedule
from metalr.schedules.budgeted import REX, WSD, KDecay, Tanh
from metalr.schedules.compose import Function, Sequence, Warmup
from metalr.schedules.cosine import Cosine, CosineRestarts, LinearCosine, NoisyLinearCosine
from metalr.schedules.cyclic import Cyclic, OneCycle
from metalr.schedules.decay import Exponential, InverseSquareRoot, InverseTime, Linear, NaturalExponential, Polynomial
from metalr.schedules.knots import Knots
from metalr.schedules.parameters import MAX_ITEMS, accept_only, shown
from metalr.schedules.steps import Constant, MultiStep, PiecewiseConstant, Step

# Every entry can be made without arguments. `Function` is not here: code has no name that a file could hold.
SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": Step,
    "multi-step": MultiStep,
    "piecewise-constant": PiecewiseConstant,
    "exponential": Exponential,
    "natural-exponential": NaturalExponential,
    "inverse-time": InverseTime,
    "inverse-square-root": InverseSquareRoot,
    "linear": Linear,
    "polynomial": Polynomial,
    "cosine": Cosine,
    "cosine-restarts": CosineRestarts,
    "linear-cosine": LinearCosine,
    "noisy-linear-cosine": NoisyLinearCosine,
    "k-decay": KDecay,
    "tanh": Tanh,
    "rex": REX,
    "wsd": WSD,
    "one-cycle": OneCycle,
    "cyclic": Cyclic,
    "knots": Knots,
    "warmup": Warmup,
    "sequence": Sequence,
}
NAMES: dict[type[Schedule], str] = {schedule: name for name, schedule in SCHEDULES.items()}

MAX_DEPTH = 8  # schedules within schedules; Python's own limit on recursion must never be what stops a file
MAX_SCHEDULES = 1000  # in one file, nested ones included


def make(name: str, /, **parameters: Any) -> Schedule:
    """A schedule by its registered name; parameters that are not given have their defaults.

    Raises:
        ValueError: the name or a parameter is unknown, or a value is refused.

    Example:
        >>> make("step", every=0.5)
        Step(every=0.5, gamma=0.1)
    """
    schedule = look_up(SCHEDULES, name, "schedule")
    accepted = [field.name for field in dataclasses.fields(schedule)]
    accept_only(list(parameters), accepted, f"schedule {name!r}")
    return schedule(**parameters)


def to_config(schedule: Schedule) -> dict[str, Any]:
    """The schedule as a dictionary of plain values, which `from_config` turns back into an equal schedule.

    Raises:
        ValueError: it holds a `Function`, or is nested deeper than a file may be.

    Example:
        >>> from metalr.schedules import Step
        >>> to_config(Step(every=0.5))
        {'name': 'step', 'every': 0.5, 'gamma': 0.1}
    """
    return _encode(schedule, MAX_DEPTH)


def from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_config` described.

    Parameters that are missing have their defaults. Nothing is run that the file names, except the
    constructors of the registered schedules.

    Raises:
        ValueError: a name or parameter is unknown, a value is refused, or the nesting is too deep or too
        wide.

    Example:
        >>> from_config({"name": "step", "every": 0.5})
        Step(every=0.5, gamma=0.1)
    """
    return _decode(config, MAX_DEPTH, iter(range(MAX_SCHEDULES)))


def _encode(value: Any, depth: int) -> Any:
    if isinstance(value, tuple):
        return [_encode(item, depth) for item in value]
    if not isinstance(value, Schedule):
        return value
    if isinstance(value, Function):
        raise ValueError(
            "got a Function to save, expected schedules that are made of numbers only, since code in a file "
            "is not safe to load; keep the function in your program, or build it from Sequence and Warmup"
        )
    if type(value) not in NAMES:
        raise ValueError(
            f"got a {type(value).__name__} to save, expected one of {', '.join(NAMES.values())}; use these"
        )
    if depth == 0:
        raise ValueError(_too_deep())
    fields = {field.name: _encode(getattr(value, field.name), depth - 1) for field in dataclasses.fields(value)}
    return {"name": NAMES[type(value)], **fields}


def _decode(config: Any, depth: int, tickets: Iterator[int]) -> Schedule:
    """Read one schedule. Each takes a ticket, so that a few nested lists cannot ask for billions."""
    if not isinstance(config, Mapping):
        raise ValueError(f"got {shown(config)}, expected a dictionary; pass what to_config returned")
    if depth == 0:
        raise ValueError(_too_deep())
    if next(tickets, None) is None:
        raise ValueError(f"got more than {MAX_SCHEDULES} schedules in one, expected fewer; use a simpler one")
    name = config.get("name")
    if not isinstance(name, str) or len(name) > 100:
        raise ValueError(f"got {shown(config)}, expected a 'name', a short string; use one of {', '.join(SCHEDULES)}")
    accepted = [field.name for field in dataclasses.fields(look_up(SCHEDULES, name, "schedule"))]
    parameters = {key: value for key, value in config.items() if key != "name"}
    accept_only(list(parameters), accepted, f"schedule {name!r}")
    return make(name, **{key: _decode_value(value, depth - 1, tickets) for key, value in parameters.items()})


def _decode_value(value: Any, depth: int, tickets: Iterator[int]) -> Any:
    """Turn dictionaries into schedules, also in a list. Whether one fits there, its owner's check decides."""
    if isinstance(value, Mapping):
        return _decode(value, depth, tickets)
    if isinstance(value, list | tuple) and len(value) <= MAX_ITEMS:
        return [_decode(item, depth, tickets) if isinstance(item, Mapping) else item for item in value]
    return value


def _too_deep() -> str:
    return f"got schedules nested more than {MAX_DEPTH} deep, expected fewer; join the parts in one Sequence"
