"""The registered contenders: every classic schedule, reactive rule and LR-adapting optimizer, with its search space."""

from functools import partial

from metalr import schedules
from metalr.compare.contenders import (
    Contender,
    ExternalContender,
    Parameters,
    RuleContender,
    ScheduleContender,
    TargetContender,
    Tunable,
    WrapperContender,
)
from metalr.compare.external_optimizers import EXTERNAL_OPTIMIZERS
from metalr.control.rules import RULES
from metalr.optimizers.classic import OPTIMIZERS
from metalr.optimizers.wrappers import Hypergradient, Lookahead
from metalr.registry import look_up
from metalr.schedules import Schedule


def _schedule(
    name: str, about: str, schedule: str, fixed: Parameters | None = None, **space: Tunable
) -> ScheduleContender:
    """A registered schedule with some parameters fixed."""
    factory = partial(schedules.make, schedule, **(fixed or {}))
    return ScheduleContender(name=name, about=about, space=space, factory=factory)


def _warmed(name: str, about: str, inner: Schedule, shape: str = "linear") -> ScheduleContender:
    length = Tunable(0.1, (0.02, 0.05, 0.1, 0.2))
    factory = partial(schedules.Warmup, inner, shape=shape)
    return ScheduleContender(name=name, about=about, space={"length": length}, factory=factory)


def _rule(name: str, about: str, **space: Tunable) -> RuleContender:
    return RuleContender(name=name, about=about, space=space, factory=RULES[name])


def _hold_then_fall(milestone: float) -> Schedule:
    return schedules.Sequence((schedules.Constant(), schedules.Linear()), milestones=(milestone,))


def _three_values(middle: float, last: float) -> Schedule:
    return schedules.PiecewiseConstant(boundaries=(0.5, 0.75), values=(1.0, middle, last))


_FLOOR = Tunable(0.0, (0.0, 0.01, 0.1))
_DROP = Tunable(0.1, (0.1, 0.2, 0.3, 0.5))
_PERIODS = Tunable(0.5, (0.5, 1.5, 2.5))

_SCHEDULES = [
    _schedule("constant", "the LR as it is", "constant"),
    _schedule("step", "a drop at equal intervals", "step", every=Tunable(0.3, (0.2, 0.25, 0.3, 0.5)), gamma=_DROP),
    _schedule("multi-step", "drops at 1/2 and 3/4 of the run", "multi-step", gamma=_DROP),
    ScheduleContender(
        name="piecewise-constant",
        about="own values in the last quarters",
        space={"middle": Tunable(0.3, (0.1, 0.3, 0.5)), "last": Tunable(0.03, (0.003, 0.01, 0.03, 0.1))},
        factory=_three_values,
    ),
    _schedule(
        "exponential",
        "falls by one factor over the run",
        "exponential",
        {"every": 1.0},
        rate=Tunable(0.01, (0.001, 0.01, 0.03, 0.1, 0.3)),
    ),
    _schedule(
        "exponential-staircase",
        "the same in steps",
        "exponential",
        {"staircase": True, "every": 0.1},
        rate=Tunable(0.6, (0.5, 0.6, 0.7, 0.8, 0.9)),
    ),
    _schedule(
        "natural-exponential",
        "exponential decay with a rate in the exponent",
        "natural-exponential",
        {"every": 1.0},
        rate=Tunable(4.0, (1.0, 2.0, 4.0, 7.0)),
    ),
    _schedule(
        "natural-exponential-staircase",
        "the same in steps",
        "natural-exponential",
        {"staircase": True, "every": 0.1},
        rate=Tunable(0.4, (0.1, 0.2, 0.4, 0.7)),
    ),
    _schedule(
        "inverse-time",
        "decay as 1 / time",
        "inverse-time",
        {"every": 1.0},
        rate=Tunable(9.0, (1.0, 3.0, 9.0, 30.0, 100.0)),
    ),
    _schedule(
        "inverse-time-staircase",
        "the same in steps",
        "inverse-time",
        {"staircase": True, "every": 0.1},
        rate=Tunable(1.0, (0.1, 0.3, 1.0, 3.0, 10.0)),
    ),
    _schedule(
        "inverse-square-root",
        "linear warmup, then decay as 1 / sqrt(time)",
        "inverse-square-root",
        warmup=Tunable(0.1, (0.01, 0.03, 0.1, 0.3)),
    ),
    _schedule("linear", "a line to zero or to a floor", "linear", end=_FLOOR),
    _schedule(
        "polynomial",
        "a power of the rest of the run",
        "polynomial",
        power=Tunable(2.0, (0.5, 1.0, 2.0, 3.0)),
    ),
    _schedule(
        "polynomial-cycle",
        "TensorFlow's cycle=True: as polynomial within the horizon, it jumps up after it",
        "polynomial",
        {"cycle": True},
        power=Tunable(1.0, (0.5, 1.0, 2.0, 3.0)),
        end=Tunable(0.01, (0.001, 0.01, 0.1)),
    ),
    _schedule("cosine", "half a cosine wave to zero or to a floor", "cosine", floor=_FLOOR),
    _schedule(
        "cosine-restarts",
        "cosine waves, each longer by t_mul and lower by m_mul",
        "cosine-restarts",
        {"period": 1 / 3},
        t_mul=Tunable(2.0, (1.0, 2.0)),
        m_mul=Tunable(1.0, (0.5, 0.75, 1.0)),
    ),
    _schedule(
        "linear-cosine",
        "a falling line times a cosine",
        "linear-cosine",
        num_periods=_PERIODS,
        beta=Tunable(0.001, (0.0, 0.001, 0.01)),
    ),
    _schedule(
        "noisy-linear-cosine",
        "the same with shrinking noise from its own seed",
        "noisy-linear-cosine",
        initial_variance=Tunable(0.1, (0.01, 0.1, 1.0)),
        num_periods=_PERIODS,
    ),
    _schedule("k-decay", "polynomial decay in progress ** k", "k-decay", k=Tunable(1.5, (1.5, 2.0, 3.0, 5.0))),
    _schedule(
        "tanh",
        "flat, a smooth fall, flat",
        "tanh",
        lower=Tunable(-6.0, (-6.0, -4.0, -2.0)),
        upper=Tunable(3.0, (2.0, 3.0)),
    ),
    _schedule("rex", "above the line all the way, steep at the end", "rex", floor=_FLOOR),
    *(
        _schedule(
            name,
            f"warmup, plateau, {fall} fall",
            "wsd",
            {"shape": shape},
            warmup=Tunable(0.05, (0.0, 0.05, 0.1)),
            decay=Tunable(0.2, (0.1, 0.2, 0.4, 0.6)),
        )
        for name, fall, shape in (
            ("wsd", "1 - sqrt", "1-sqrt"),
            ("wsd-linear", "linear", "linear"),
            ("wsd-cosine", "cosine", "cosine"),
        )
    ),
    _schedule(
        "one-cycle",
        "one rise to the full LR and a long fall below the start",
        "one-cycle",
        pct_start=Tunable(0.3, (0.1, 0.2, 0.3, 0.4)),
        div_factor=Tunable(25.0, (5.0, 10.0, 25.0)),
    ),
    *(
        _schedule(
            name,
            f"triangles between a low and the full LR{more}",
            "cyclic",
            {"mode": mode},
            up=Tunable(0.125, (0.0625, 0.125, 0.25)),
            low=Tunable(0.1, (0.01, 0.1, 0.3)),
        )
        for name, more, mode in (
            ("cyclic", "", "triangular"),
            ("cyclic-2", ", each half as high", "triangular2"),
        )
    ),
    _warmed("warmup-constant", "a linear rise, then constant", schedules.Constant()),
    _warmed("warmup-cosine", "a linear rise, then half a cosine wave", schedules.Cosine()),
    _warmed("warmup-linear", "a linear rise, then a line to zero", schedules.Linear()),
    _warmed("exponential-warmup-cosine", "an exponential rise, then a cosine", schedules.Cosine(), "exponential"),
    ScheduleContender(
        name="hold-then-linear",
        about="a sequence: constant, then a line to zero",
        space={"milestone": Tunable(0.5, (0.25, 0.5, 0.75))},
        factory=_hold_then_fall,
    ),
]

_RULES = [
    _rule(
        "reduce-on-plateau",
        "cuts the LR when the loss stops improving",
        factor=Tunable(0.3, (0.1, 0.3, 0.5, 0.7)),
        patience=Tunable(2, (1, 2, 4)),
    ),
    _rule("loss-decay", "the LR follows a power of the loss", power=Tunable(1.0, (0.25, 0.5, 1.0, 2.0))),
    _rule(
        "gradient-norm",
        "shrinks when the gradient norm grows, grows when it falls",
        up=Tunable(1.05, (1.02, 1.05, 1.1)),
        down=Tunable(0.8, (0.7, 0.8, 0.9, 0.95)),
    ),
    _rule(
        "greedy",
        "GreedyLR: LR / F on improvement, LR * F otherwise",
        factor=Tunable(0.9, (0.5, 0.7, 0.8, 0.9, 0.95)),
        patience=Tunable(0, (0, 1, 2)),
    ),
    _rule(
        "up-down",
        "the reactive rule to be tuned: up on a fall of the loss, down otherwise",
        up=Tunable(1.05, (1.02, 1.05, 1.1, 1.2, 1.5)),
        down=Tunable(0.7, (0.3, 0.5, 0.7, 0.8, 0.9)),
    ),
]

_WRAPPERS = [
    WrapperContender(
        name="hypergradient",
        about="the task's optimizer with hypergradient descent on its LR (SGD-HD, Adam-HD)",
        space={"beta": Tunable(1e-4, (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2))},
        factory=Hypergradient,
    ),
    WrapperContender(
        name="lookahead",
        about="the task's optimizer under slow weights, constant LR",
        space={"k": Tunable(5, (5, 10)), "share": Tunable(0.5, (0.5, 0.8))},
        factory=Lookahead,
    ),
]

SCHEDULE_CONTENDERS: dict[str, ScheduleContender] = {entry.name: entry for entry in _SCHEDULES}
CONTENDERS: dict[str, Contender] = {entry.name: entry for entry in (*_SCHEDULES, *_RULES, *_WRAPPERS)}

# Not among `CONTENDERS`: they need packages of their own, and train one run at a time.
EXTERNAL_CONTENDERS: dict[str, ExternalContender] = {
    name: ExternalContender(name=name, about=entry.about, usual_lr=entry.base_lr)
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
