"""Schedules by name, and their conversion to and from plain dictionaries (JSON). Untrusted files are safe to read.

The format is {"name": "warmup", "length": 0.1, "schedule": {"name": "cosine", ...}, ...}.
"""

import dataclasses
from collections.abc import Mapping
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

# Every entry can be constructed without arguments. `Function` is absent: a file must not name code.
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

MAX_DEPTH = 8  # levels of nesting; a file must never reach Python's own recursion limit
MAX_SCHEDULES = 1000  # in one file, including nested ones
MAX_NUMBERS = 10_000  # in the lists of one file: each costs an operation per evaluation


def make(name: str, /, **parameters: Any) -> Schedule:
    """Construct a schedule by its registered name; omitted parameters take their defaults.

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
    """Convert a schedule to a dictionary of plain values, which `from_config` turns back into an equal schedule.

    Raises:
        ValueError: it contains a `Function` or another unregistered class, or is nested more than `MAX_DEPTH` deep.

    Example:
        >>> from metalr.schedules import Step
        >>> to_config(Step(every=0.5))
        {'name': 'step', 'every': 0.5, 'gamma': 0.1}
    """
    return _encode(schedule, MAX_DEPTH)


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Rebuild a schedule from the dictionary that `to_config` returned.

    Missing parameters take their defaults. Whatever the dictionary names, only the constructors of registered
    schedules run.

    Raises:
        ValueError: a name or parameter is unknown, a value is refused, or the nesting is too deep or too wide.

    Example:
        >>> from_config({"name": "step", "every": 0.5})
        Step(every=0.5, gamma=0.1)
    """
    return _decode(config, MAX_DEPTH, _Allowance(MAX_SCHEDULES, MAX_NUMBERS))


def _encode(value: Any, depth: int) -> Any:
    if isinstance(value, tuple):
        return [_encode(item, depth) for item in value]
    if not isinstance(value, Schedule):
        return value
    if isinstance(value, Function):
        raise ValueError(
            "got a Function to save, expected schedules made of numbers only, since code in a file "
            "is not safe to load; keep the function in your program, or build it from Sequence and Warmup"
        )
    if type(value) not in NAMES:
        raise ValueError(
            f"got a {type(value).__name__} to save, expected one of {', '.join(NAMES.values())}; use one of those"
        )
    if depth == 0:
        raise ValueError(_too_deep())
    fields = {field.name: _encode(getattr(value, field.name), depth - 1) for field in dataclasses.fields(value)}
    return {"name": NAMES[type(value)], **fields}


@dataclasses.dataclass
class _Allowance:
    """How much more one file may ask for."""

    schedules: int
    numbers: int

    def take(self, schedules: int = 0, numbers: int = 0) -> None:
        self.schedules -= schedules
        self.numbers -= numbers
        if self.schedules < 0 or self.numbers < 0:
            raise ValueError(
                f"got more than {MAX_SCHEDULES} schedules or {MAX_NUMBERS} numbers in their lists in one file, "
                "expected fewer; use a simpler schedule"
            )


def _decode(config: Any, depth: int, left: _Allowance) -> Schedule:
    """Decode one schedule, with an allowance, so that a few nested lists cannot ask for billions of them."""
    if not isinstance(config, Mapping):
        raise ValueError(f"got {shown(config)}, expected a dictionary; pass what to_config returned")
    if depth == 0:
        raise ValueError(_too_deep())
    left.take(schedules=1)
    name = config.get("name")
    if not isinstance(name, str) or len(name) > 100:
        raise ValueError(f"got {shown(config)}, expected a 'name' of a schedule; use one of {', '.join(SCHEDULES)}")
    accepted = [field.name for field in dataclasses.fields(look_up(SCHEDULES, name, "schedule"))]
    parameters = {key: value for key, value in config.items() if key != "name"}
    accept_only(list(parameters), accepted, f"schedule {name!r}")
    return make(name, **{key: _decode_value(value, depth - 1, left) for key, value in parameters.items()})


def _decode_value(value: Any, depth: int, left: _Allowance) -> Any:
    """Decode dictionaries into schedules, also within a list. The owner's check decides whether one fits there."""
    if isinstance(value, Mapping):
        return _decode(value, depth, left)
    if isinstance(value, list | tuple) and len(value) <= MAX_ITEMS:
        left.take(numbers=len(value))
        return [_decode(item, depth, left) if isinstance(item, Mapping) else item for item in value]
    return value


def _too_deep() -> str:
    return f"got schedules nested more than {MAX_DEPTH} deep, expected fewer; join the parts in one Sequence"
