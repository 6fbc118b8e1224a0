"""TensorFlow's learning-rate decays under TensorFlow's own names and arguments.

Definitions: `tf.compat.v1.train` and `tf.keras.optimizers.schedules`. Each call is translated into a
schedule, a base LR and a horizon, so that settings copied from TensorFlow work in a `ScheduleLR`.

The file is not named `tensorflow`: the package exports a function of that name, which the module would hide.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from metalr.registry import look_up
from metalr.schedules.base import Schedule
from metalr.schedules.compose import Warmup
from metalr.schedules.cosine import Cosine, CosineRestarts, LinearCosine, NoisyLinearCosine
from metalr.schedules.decay import Exponential, InverseTime, NaturalExponential, Polynomial
from metalr.schedules.parameters import accept_only, shown
from metalr.schedules.steps import PiecewiseConstant


@dataclass(frozen=True)
class StepFunction:
    """The LR as a function of the step: lr = base_lr * schedule(step / horizon).

    The step counts the updates already made. An int or float gives a float; a tensor gives a tensor of the same
    shape, in its own dtype or in float64 if that is an integer type.

    Example:
        >>> from metalr.schedules import Polynomial
        >>> lr = StepFunction(Polynomial(), base_lr=0.1, horizon=50.0)
        >>> lr(25)
        0.05
    """

    schedule: Schedule
    base_lr: float
    horizon: float

    @overload
    def __call__(self, step: Tensor) -> Tensor: ...

    @overload
    def __call__(self, step: float) -> float: ...

    def __call__(self, step: Tensor | float) -> Tensor | float:
        """Return the LR at a step or at each step of a tensor."""
        if isinstance(step, Tensor):
            steps = step if step.is_floating_point() else step.to(torch.float64)
            return self.base_lr * self.schedule(steps / self.horizon)
        return self.base_lr * self.schedule(step / self.horizon)


def tensorflow(decay: str, /, **arguments: Any) -> StepFunction:
    """Translate one of TensorFlow's decays into a function of the step.

    Unlike in TensorFlow, the LR that the decay starts from must be positive, and t_mul at least 1.

    Args:
        decay: TensorFlow's name, such as "polynomial_decay", or Keras's class, such as "PolynomialDecay".
        **arguments: TensorFlow's arguments, with its names and defaults. `learning_rate` (version 1) is a synonym of
            `initial_learning_rate` (version 2); `name` is accepted and ignored.

    Raises:
        ValueError: the name or an argument is unknown, an argument is missing, or a value is refused.

    Example:
        >>> lr = tensorflow("polynomial_decay", initial_learning_rate=0.1, decay_steps=50,
        ...                 end_learning_rate=0.01, cycle=True)
        >>> round(lr(0), 12), round(lr(25), 12), round(lr(75), 12)
        (0.1, 0.055, 0.0325)
    """
    build = look_up({**DECAYS, **KERAS_CLASSES}, decay, "TensorFlow decay")
    given = _version_2_names(decay, arguments)
    expected = inspect.signature(build).parameters
    accept_only(list(given), list(expected), f"TensorFlow decay {decay!r}")
    missing = [name for name, known in expected.items() if known.default is known.empty and name not in given]
    if missing:
        raise ValueError(
            f"got TensorFlow decay {decay!r} without {', '.join(missing)}, expected every argument that has "
            f"no default; pass {', '.join(f'{name}=...' for name in missing)}"
        )
    return build(**given)


def _version_2_names(decay: str, arguments: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in arguments.items() if name != "name"}
    if "learning_rate" not in given:
        return given
    if "initial_learning_rate" in given:
        raise ValueError(
            f"got both learning_rate and initial_learning_rate for {decay!r}, expected one of them; drop one"
        )
    return {"initial_learning_rate": given.pop("learning_rate"), **given}


def _number(name: str, value: Any, *, above: float = -math.inf) -> float:
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number > above):
        wanted = "a finite number" if above == -math.inf else f"a finite number > {above:g}"
        raise ValueError(f"got {name}={shown(value)}, expected {wanted}; pass 0.1 or 1000, for example")
    return number


def _positive(name: str, value: Any) -> float:
    return _number(name, value, above=0.0)


def _over(schedule: Schedule, initial_learning_rate: float, decay_steps: float) -> StepFunction:
    base_lr = _positive("initial_learning_rate", initial_learning_rate)
    return StepFunction(schedule, base_lr, _positive("decay_steps", decay_steps))


def exponential_decay(
    initial_learning_rate: float, decay_steps: float, decay_rate: float, staircase: bool = False
) -> StepFunction:
    """Exponential decay: lr = initial_learning_rate * decay_rate ** (step / decay_steps).

    A staircase rounds step / decay_steps down.
    """
    schedule = Exponential(rate=decay_rate, every=1.0, staircase=staircase)
    return _over(schedule, initial_learning_rate, decay_steps)


def natural_exp_decay(
    initial_learning_rate: float, decay_steps: float, decay_rate: float, staircase: bool = False
) -> StepFunction:
    """Natural exponential decay: lr = initial_learning_rate * exp(-decay_rate * step / decay_steps).

    A staircase rounds step / decay_steps down.
    """
    schedule = NaturalExponential(rate=decay_rate, every=1.0, staircase=staircase)
    return _over(schedule, initial_learning_rate, decay_steps)


def inverse_time_decay(
    initial_learning_rate: float, decay_steps: float, decay_rate: float, staircase: bool = False
) -> StepFunction:
    """Inverse-time decay: lr = initial_learning_rate / (1 + decay_rate * step / decay_steps).

    A staircase rounds step / decay_steps down.
    """
    schedule = InverseTime(rate=decay_rate, every=1.0, staircase=staircase)
    return _over(schedule, initial_learning_rate, decay_steps)


def polynomial_decay(
    initial_learning_rate: float,
    decay_steps: float,
    end_learning_rate: float = 0.0001,
    power: float = 1.0,
    cycle: bool = False,
) -> StepFunction:
    """Polynomial decay from the initial to the end LR: lr = (initial - end) * (1 - step / decay_steps) ** power + end.

    After decay_steps the LR stays at the end; with cycle, decay_steps grows to the next multiple that is >= step.
    """
    base_lr = _positive("initial_learning_rate", initial_learning_rate)
    end = _number("end_learning_rate", end_learning_rate) / base_lr
    return _over(Polynomial(power=power, end=end, cycle=cycle), initial_learning_rate, decay_steps)


def cosine_decay(
    initial_learning_rate: float,
    decay_steps: float,
    alpha: float = 0.0,
    warmup_target: float | None = None,
    warmup_steps: float = 0,
) -> StepFunction:
    """Cosine decay to alpha times the LR: lr = base * (alpha + (1 - alpha) * (1 + cos(pi * step / decay_steps)) / 2).

    The base is `initial_learning_rate`. With a warmup target, a linear warmup rises from `initial_learning_rate` to
    the target in warmup_steps, and decay_steps follow with the target as base.
    """
    if warmup_target is None:  # then TensorFlow does not look at warmup_steps
        return _over(Cosine(floor=alpha), initial_learning_rate, decay_steps)
    peak = _positive("warmup_target", warmup_target)
    if warmup_steps == 0:
        return _over(Cosine(floor=alpha), peak, decay_steps)
    horizon = _positive("decay_steps", decay_steps) + _positive("warmup_steps", warmup_steps)
    start = _number("initial_learning_rate", initial_learning_rate) / peak
    schedule = Warmup(Cosine(floor=alpha), length=warmup_steps / horizon, start=start)
    return StepFunction(schedule, peak, horizon)


def cosine_decay_restarts(
    initial_learning_rate: float,
    first_decay_steps: float,
    t_mul: float = 2.0,
    m_mul: float = 1.0,
    alpha: float = 0.0,
) -> StepFunction:
    """Cosine decays with restarts, the first over first_decay_steps.

    Each is t_mul times as long and m_mul times as high as the one before, and falls to alpha times the initial LR.
    """
    schedule = CosineRestarts(period=1.0, t_mul=t_mul, m_mul=m_mul, floor=alpha)
    return _over(schedule, initial_learning_rate, _positive("first_decay_steps", first_decay_steps))


def linear_cosine_decay(
    initial_learning_rate: float,
    decay_steps: float,
    num_periods: float = 0.5,
    alpha: float = 0.0,
    beta: float = 0.001,
) -> StepFunction:
    """Linear decay times a cosine: lr = initial * ((alpha + 1 - x) * (1 + cos(2 * pi * num_periods * x)) / 2 + beta).

    Here x is step / decay_steps, at most 1.
    """
    schedule = LinearCosine(num_periods=num_periods, alpha=alpha, beta=beta)
    return _over(schedule, initial_learning_rate, decay_steps)


def noisy_linear_cosine_decay(
    initial_learning_rate: float,
    decay_steps: float,
    initial_variance: float = 1.0,
    variance_decay: float = 0.55,
    num_periods: float = 0.5,
    alpha: float = 0.0,
    beta: float = 0.001,
    seed: int | None = None,
) -> StepFunction:
    """`linear_cosine_decay` with Gaussian noise added to the line.

    The noise has variance initial_variance / (1 + step) ** variance_decay: TensorFlow's distribution, but not its
    numbers. As in TensorFlow, the LR may fall below 0.
    """
    schedule = NoisyLinearCosine(
        initial_variance=initial_variance,
        variance_decay=variance_decay,
        num_periods=num_periods,
        alpha=alpha,
        beta=beta,
        draws=math.ceil(_positive("decay_steps", decay_steps)),
        seed=0 if seed is None else seed,
        signed=True,
    )
    return _over(schedule, initial_learning_rate, decay_steps)


def piecewise_constant(boundaries: Sequence[float], values: Sequence[float]) -> StepFunction:
    """Piecewise-constant LR: values[i] up to and including the step boundaries[i].

    A schedule of metalr changes at the boundary itself, so each boundary moves to the next whole step.
    """
    if not isinstance(boundaries, list | tuple) or not isinstance(values, list | tuple):
        raise ValueError(
            f"got boundaries={shown(boundaries)} and values={shown(values)}, expected two lists; "
            "pass boundaries=[1000], values=[0.1, 0.01], for example"
        )
    firsts = tuple(math.floor(_number("boundary", boundary)) + 1.0 for boundary in boundaries)
    return StepFunction(PiecewiseConstant(boundaries=firsts, values=tuple(values)), base_lr=1.0, horizon=1.0)


DECAYS: dict[str, Callable[..., StepFunction]] = {
    "exponential_decay": exponential_decay,
    "natural_exp_decay": natural_exp_decay,
    "inverse_time_decay": inverse_time_decay,
    "polynomial_decay": polynomial_decay,
    "cosine_decay": cosine_decay,
    "cosine_decay_restarts": cosine_decay_restarts,
    "linear_cosine_decay": linear_cosine_decay,
    "noisy_linear_cosine_decay": noisy_linear_cosine_decay,
    "piecewise_constant": piecewise_constant,
}

# Of `keras.optimizers.schedules`, with the arguments of version 2.
KERAS_CLASSES: dict[str, Callable[..., StepFunction]] = {
    "ExponentialDecay": exponential_decay,
    "InverseTimeDecay": inverse_time_decay,
    "PolynomialDecay": polynomial_decay,
    "CosineDecay": cosine_decay,
    "CosineDecayRestarts": cosine_decay_restarts,
    "PiecewiseConstantDecay": piecewise_constant,
}
