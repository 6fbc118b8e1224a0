"""Open-loop schedules: pure functions from progress (0 at the first update, 1 at the horizon) to an LR multiplier.

They act in the inner loop, through `ScheduleLR` in a user's training loop and through the batched engine, and see
no optimizer, loss or step count.

    schedule = Warmup(Cosine(floor=0.01), length=0.05)
    schedule(0.5)                                        # a float
    schedule(torch.rand(4096, dtype=torch.float64))      # 4096 runs at once
    make("cosine", floor=0.01)                           # by name
    to_config(schedule)                                  # as a dictionary for JSON
"""

from metalr.schedules.base import Schedule
from metalr.schedules.budgeted import REX, WSD, KDecay, Tanh
from metalr.schedules.compose import Function, Sequence, Warmup
from metalr.schedules.config import SCHEDULES, from_config, make, to_config
from metalr.schedules.cosine import Cosine, CosineRestarts, LinearCosine, NoisyLinearCosine
from metalr.schedules.cyclic import Cyclic, OneCycle
from metalr.schedules.decay import Exponential, InverseSquareRoot, InverseTime, Linear, NaturalExponential, Polynomial
from metalr.schedules.knots import Knots
from metalr.schedules.steps import Constant, MultiStep, PiecewiseConstant, Step
from metalr.schedules.tensorflow_names import StepFunction, tensorflow

__all__ = [
    "REX",
    "SCHEDULES",
    "WSD",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Cyclic",
    "Exponential",
    "Function",
    "InverseSquareRoot",
    "InverseTime",
    "KDecay",
    "Knots",
    "Linear",
    "LinearCosine",
    "MultiStep",
    "NaturalExponential",
    "NoisyLinearCosine",
    "OneCycle",
    "PiecewiseConstant",
    "Polynomial",
    "Schedule",
    "Sequence",
    "Step",
    "StepFunction",
    "Tanh",
    "Warmup",
    "from_config",
    "make",
    "tensorflow",
    "to_config",
]
