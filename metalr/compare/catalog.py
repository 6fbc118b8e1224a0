"""The registered contenders: every classic schedule, rule, search and LR-adapting optimizer, with its search space."""

from collections.abc import Callable
from functools import partial

from metalr import schedules
from metalr.compare.contenders import (
    Contender,
    ExternalContender,
    Parameters,
    RuleContender,
    ScheduleContender,
    StagedContender,
    TargetContender,
    WrapperContender,
)
from metalr.compare.external_optimizers import EXTERNAL_OPTIMIZERS
from metalr.compare.search import Choice, Dimension, Range
from metalr.control.rules import RULES
from metalr.optimizers.classic import OPTIMIZERS
from metalr.optimizers.wrappers import Hypergradient, Lookahead
from metalr.registry import look_up
from metalr.schedules import Schedule


def _schedule(
    name: str, about: str, schedule: str, fixed: Parameters | None = None, **space: Dimension
) -> ScheduleContender:
    """A registered schedule with some parameters fixed."""
    factory = partial(schedules.make, schedule, **(fixed or {}))
    return ScheduleContender(name=name, about=about, space=space, factory=factory)


def _warmed(name: str, about: str, factory: Callable[..., Schedule], **space: Dimension) -> ScheduleContender:
    length = Range(0.1, 0.01, 0.3, log=True)
    return ScheduleContender(name=name, about=about, space={"length": length, **space}, factory=factory)


def _warmup_constant(length: float) -> Schedule:
    return schedules.Warmup(schedules.Constant(), length=length)


def _warmup_cosine(length: float, floor: float, shape: str = "linear") -> Schedule:
    return schedules.Warmup(schedules.Cosine(floor=floor), length=length, shape=shape)


def _warmup_linear(length: float, end: float) -> Schedule:
    return schedules.Warmup(schedules.Linear(end=end), length=length)


def _rule(name: str, about: str, **space: Dimension) -> RuleContender:
    return RuleContender(name=name, about=about, space=space, factory=RULES[name])


def _hold_then_fall(milestone: float, end: float) -> Schedule:
    return schedules.Sequence((schedules.Constant(), schedules.Linear(end=end)), milestones=(milestone,))


def _two_drops(gamma: float, first: float) -> Schedule:
    return schedules.MultiStep(milestones=(first, (1.0 + first) / 2.0), gamma=gamma)


def _three_values(middle: float, last: float) -> Schedule:
    return schedules.PiecewiseConstant(boundaries=(0.5, 0.75), values=(1.0, middle, last))


# Its trials are the curves of final loss against LR that `metalr.compare.calibrated` reads.
LR_ONLY = "wsd-linear-lr"

_FLOOR = Range(0.0, 1e-3, 0.3, log=True)
_DROP = Range(0.1, 0.05, 0.7, log=True)
_PERIODS = Choice(0.5, (0.5, 1.5, 2.5))

_SCHEDULES = [
    _schedule("constant", "the LR as it is", "constant"),
    _schedule("step", "a drop at equal intervals", "step", every=Range(0.3, 0.1, 0.9), gamma=_DROP),
    ScheduleContender(
        name="multi-step",
        about="two drops, at 1/2 and 3/4 of the run unless the first is tuned; the second halves the rest",
        space={"gamma": _DROP, "first": Range(0.5, 0.1, 0.9)},
        factory=_two_drops,
    ),
    ScheduleContender(
        name="piecewise-constant",
        about="own values in the last quarters",
        space={"middle": Range(0.3, 0.05, 1.0, log=True), "last": Range(0.03, 0.001, 0.3, log=True)},
        factory=_three_values,
    ),
    _schedule(
        "exponential",
        "falls by one factor over the run",
        "exponential",
        {"every": 1.0},
        rate=Range(0.01, 1e-4, 0.5, log=True),
    ),
    _schedule(
        "exponential-staircase",
        "the same in steps",
        "exponential",
        {"staircase": True, "every": 0.1},
        rate=Range(0.6, 0.4, 0.95),
    ),
    _schedule(
        "natural-exponential",
        "exponential decay with a rate in the exponent",
        "natural-exponential",
        {"every": 1.0},
        rate=Range(4.0, 0.7, 9.0, log=True),
    ),
    _schedule(
        "natural-exponential-staircase",
        "the same in steps",
        "natural-exponential",
        {"staircase": True, "every": 0.1},
        rate=Range(0.4, 0.05, 1.0, log=True),
    ),
    _schedule(
        "inverse-time",
        "decay as 1 / time",
        "inverse-time",
        {"every": 1.0},
        rate=Range(9.0, 0.5, 200.0, log=True),
    ),
    _schedule(
        "inverse-time-staircase",
        "the same in steps",
        "inverse-time",
        {"staircase": True, "every": 0.1},
        rate=Range(1.0, 0.05, 20.0, log=True),
    ),
    _schedule(
        "inverse-square-root",
        "linear warmup, then decay as 1 / sqrt(time)",
        "inverse-square-root",
        warmup=Range(0.1, 0.003, 0.5, log=True),
    ),
    _schedule("linear", "a line to zero or to a floor", "linear", end=_FLOOR),
    _schedule(
        "polynomial",
        "a power of the rest of the run",
        "polynomial",
        power=Range(2.0, 0.3, 5.0, log=True),
        end=_FLOOR,
    ),
    _schedule(
        "polynomial-cycle",
        "TensorFlow's cycle=True: as polynomial within the horizon, it jumps up after it",
        "polynomial",
        {"cycle": True},
        power=Range(1.0, 0.3, 5.0, log=True),
        end=Range(0.01, 1e-3, 0.3, log=True),
    ),
    _schedule("cosine", "half a cosine wave to zero or to a floor", "cosine", floor=_FLOOR),
    _schedule(
        "cosine-restarts",
        "cosine waves, each longer by t_mul and lower by m_mul",
        "cosine-restarts",
        {"period": 1 / 3},
        t_mul=Choice(2.0, (1.0, 2.0)),
        m_mul=Range(1.0, 0.3, 1.0),
    ),
    _schedule(
        "linear-cosine",
        "a falling line times a cosine",
        "linear-cosine",
        num_periods=_PERIODS,
        beta=Range(0.001, 1e-4, 0.1, log=True),
    ),
    _schedule(
        "noisy-linear-cosine",
        "the same with shrinking noise from its own seed",
        "noisy-linear-cosine",
        initial_variance=Range(0.1, 0.003, 1.0, log=True),
        num_periods=_PERIODS,
    ),
    _schedule(
        "k-decay", "polynomial decay in progress ** k", "k-decay", k=Range(1.5, 0.5, 8.0, log=True), floor=_FLOOR
    ),
    _schedule(
        "tanh",
        "flat, a smooth fall, flat",
        "tanh",
        lower=Range(-6.0, -9.0, -1.0),
        upper=Range(3.0, 1.0, 5.0),
    ),
    _schedule("rex", "above the line all the way, steep at the end", "rex", floor=_FLOOR),
    *(
        _schedule(
            name,
            f"warmup, plateau, {fall} fall",
            "wsd",
            {"shape": shape},
            warmup=Range(0.05, 0.0, 0.2),
            decay=Range(0.2, 0.05, 0.8),
            floor=_FLOOR,
        )
        for name, fall, shape in (
            ("wsd", "1 - sqrt", "1-sqrt"),
            ("wsd-linear", "linear", "linear"),
            ("wsd-cosine", "cosine", "cosine"),
        )
    ),
    ScheduleContender(
        name=LR_ONLY,
        about="wsd-linear at its default shape, the LR alone is tuned; the calibrated setting is fitted on its trials",
        factory=partial(schedules.make, "wsd", shape="linear"),
    ),
    _schedule(
        "one-cycle",
        "one rise to the full LR and a long fall below the start",
        "one-cycle",
        pct_start=Range(0.3, 0.03, 0.6),
        div_factor=Range(25.0, 2.0, 100.0, log=True),
    ),
    *(
        _schedule(
            name,
            f"triangles between a low and the full LR{more}",
            "cyclic",
            {"mode": mode},
            up=Range(0.125, 0.03, 0.5, log=True),
            low=Range(0.1, 1e-3, 0.5, log=True),
        )
        for name, more, mode in (
            ("cyclic", "", "triangular"),
            ("cyclic-2", ", each half as high", "triangular2"),
        )
    ),
    _warmed("warmup-constant", "a linear rise, then constant", _warmup_constant),
    _warmed("warmup-cosine", "a linear rise, then half a cosine wave", _warmup_cosine, floor=_FLOOR),
    _warmed("warmup-linear", "a linear rise, then a line to zero or to a floor", _warmup_linear, end=_FLOOR),
    _warmed(
        "exponential-warmup-cosine",
        "an exponential rise, then a cosine",
        partial(_warmup_cosine, shape="exponential"),
        floor=_FLOOR,
    ),
    ScheduleContender(
        name="hold-then-linear",
        about="a sequence: constant, then a line to zero or to a floor",
        space={"milestone": Range(0.5, 0.1, 0.95), "end": _FLOOR},
        factory=_hold_then_fall,
    ),
]

_RULES = [
    _rule(
        "reduce-on-plateau",
        "cuts the LR when the loss stops improving",
        factor=Range(0.3, 0.05, 0.9),
        patience=Range(2, 1, 8, log=True, whole=True),
    ),
    _rule("loss-decay", "the LR follows a power of the loss", power=Range(1.0, 0.1, 4.0, log=True)),
    _rule(
        "gradient-norm",
        "shrinks when the gradient norm grows, grows when it falls",
        up=Range(1.05, 1.01, 1.2),
        down=Range(0.8, 0.5, 0.98),
    ),
    _rule(
        "greedy",
        "GreedyLR: LR / F on improvement, LR * F otherwise",
        factor=Range(0.9, 0.3, 0.98),
        patience=Range(0, 0, 4, whole=True),
    ),
    _rule(
        "up-down",
        "the reactive rule to be tuned: up on a fall of the loss, down otherwise",
        up=Range(1.05, 1.01, 1.5),
        down=Range(0.7, 0.2, 0.95),
    ),
]

_STAGED = StagedContender(
    name="staged-search",
    about="AutoLRS in small: short probes find the LR of each stage, and count",
    space={"stages": Range(4, 2, 12, log=True, whole=True), "probes": Range(5, 3, 10, log=True, whole=True)},
)

_WRAPPERS = [
    WrapperContender(
        name="hypergradient",
        about="the task's optimizer with hypergradient descent on its LR (SGD-HD, Adam-HD)",
        space={"beta": Range(1e-4, 1e-7, 1e-1, log=True)},
        factory=Hypergradient,
    ),
    WrapperContender(
        name="lookahead",
        about="the task's optimizer under slow weights, constant LR",
        space={"k": Choice(5, (5, 10)), "share": Choice(0.5, (0.5, 0.8))},
        factory=Lookahead,
    ),
]

SCHEDULE_CONTENDERS: dict[str, ScheduleContender] = {entry.name: entry for entry in _SCHEDULES}
CONTENDERS: dict[str, Contender] = {entry.name: entry for entry in (*_SCHEDULES, *_RULES, _STAGED, *_WRAPPERS)}

# Not among `CONTENDERS`: they need packages of their own, and train one run at a time.
EXTERNAL_CONTENDERS: dict[str, ExternalContender] = {
    name: ExternalContender(
        name=name, about=entry.about, usual_lr=entry.base_lr, schedule=entry.schedule, inner=entry.inner
    )
    for name, entry in EXTERNAL_OPTIMIZERS.items()
}

# The eight that every comparison shows unless told otherwise.
CLASSIC: tuple[str, ...] = (
    "constant",
    "step",
    "exponential",
    "linear",
    "cosine",
    "warmup-cosine",
    "wsd",
    "one-cycle",
)


def get_contender(name: str) -> Contender:
    """A registered contender.

    Raises:
        ValueError: the name is unknown; the message names the nearest one.
    """
    return look_up({**CONTENDERS, **EXTERNAL_CONTENDERS}, name, "contender")


def target_contenders() -> list[TargetContender]:
    """Four optimizers with cosine decay, the best of which sets the target of a task.

    The AlgoPerf benchmark sets its targets so, at scale (Dahl et al. 2023, arXiv 2306.07179). Each optimizer searches
    around its own usual LR.
    """
    usual_lrs = {"nesterov": 0.1, "rmsprop": 3e-3, "adam": 3e-3, "adamw": 3e-3}
    return [
        TargetContender(
            name=f"target: {name}", about=f"{name} with cosine decay", replacement=OPTIMIZERS[name], usual_lr=lr
        )
        for name, lr in usual_lrs.items()
    ]
