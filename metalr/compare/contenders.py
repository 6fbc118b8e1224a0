"""`BASELINES`: every classic schedule, reactive rule and LR-adapting optimizer by name, with its search space.

A baseline is what a comparison tunes. Its space holds everything but the LR: the LR grid is shared by all of them.
A user's own schedule or function joins with `of_schedule`. Knows nothing of budgets, seeds or records.
"""

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from metalr import schedules
from metalr.compare.external_optimizers import OUTSIDE, make_optimizer
from metalr.control.controller import Controller
from metalr.control.reference import ScheduleController
from metalr.control.rules import RULES
from metalr.optimizers.classic import OPTIMIZERS, InnerOptimizer
from metalr.optimizers.wrappers import Hypergradient, Lookahead
from metalr.registry import look_up
from metalr.schedules import Schedule

Parameters = Mapping[str, Any]
Kind = Literal["schedule", "rule", "optimizer", "outside", "target", "controller", "control"]

# Reactive rules decide this often, or every two inner steps in a shorter run.
DECISIONS = 40


@dataclass(frozen=True)
class Baseline:
    """One contender: how to build it, and what there is to tune beside the LR.

    Attributes:
        name: shown in tables and records.
        kind: "schedule" (open loop), "rule" (closed loop, written by hand), "optimizer" (changes the inner optimizer),
            "outside" (an optimizer of another package), "target" (an optimizer that sets a task's target),
            "controller" (learned) or "control" (stands beside a learned one).
        factory: `(**parameters) -> Schedule`, `Controller` or, for an optimizer, `(inner=…, **parameters)`. Not called
            for one of another package.
        space: parameter -> values to try, in ascending order where they are numbers.
        defaults: parameter -> its value in the first trial.
        about: one sentence.
        schedule: of an optimizer, which has no schedule of its own.
        base_lr: the centre of the LR grid for an optimizer whose LRs are of another scale than the task's; None for
            the task's base LR.

    Example:
        >>> from metalr.compare.contenders import BASELINES
        >>> BASELINES["polynomial"].build({"power": 2.0})
        Polynomial(power=2.0, end=0.0, cycle=False)
    """

    name: str
    kind: Kind
    factory: Callable[..., Any]
    space: Mapping[str, tuple] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    schedule: Schedule = field(default_factory=schedules.Constant)
    base_lr: float | None = None

    def __post_init__(self) -> None:
        outside = [k for k, v in self.defaults.items() if v not in self.space.get(k, ())]
        if outside or set(self.defaults) != set(self.space):
            raise ValueError(
                f"got defaults {dict(self.defaults)} for the space {dict(self.space)} of {self.name!r}, expected one "
                "of the listed values for every parameter"
            )

    def build(self, parameters: Parameters | None = None) -> Any:
        """The schedule or controller at these parameters; missing ones have their defaults.

        Raises:
            ValueError: a parameter is unknown, or refused by what is built.
        """
        return self.factory(**self._complete(parameters))

    def controller(self, parameters: Parameters | None, horizon: int) -> Controller:
        """The same as a controller for runs of `horizon` inner steps, its number of decisions fitted to them."""
        decisions = max(min(DECISIONS, horizon // 2), 1)
        if self.kind in ("optimizer", "outside", "target"):
            return ScheduleController(self.schedule, decisions)
        built = self.build(parameters)
        if isinstance(built, Schedule):
            return ScheduleController(built, decisions)
        return replace(built, decisions=decisions) if self.kind == "rule" else built

    def optimizer(self, parameters: Parameters | None, inner: InnerOptimizer) -> InnerOptimizer:
        """The inner optimizer that this contender trains with: `inner`, unless it replaces it."""
        if self.kind in ("optimizer", "target"):
            return self.factory(inner=inner, **self._complete(parameters))
        return inner

    def settings(self, count: int, seed: int = 0) -> list[dict[str, Any]]:
        """Up to `count` different parameter settings: the defaults, then others drawn without replacement."""
        every = [dict(zip(self.space, values, strict=True)) for values in itertools.product(*self.space.values())]
        others = [setting for setting in every if setting != dict(self.defaults)]
        random.Random(f"{seed} {self.name}").shuffle(others)
        return [dict(self.defaults), *others][:count]

    def _complete(self, parameters: Parameters | None) -> dict[str, Any]:
        unknown = sorted(set(parameters or {}) - set(self.space))
        if unknown:
            raise ValueError(
                f"got parameters {unknown} for {self.name!r}, expected names among {sorted(self.space) or 'none'}"
            )
        return {**self.defaults, **(parameters or {})}


def of_schedule(name: str, schedule: Schedule, about: str = "a schedule without a search space") -> Baseline:
    """A contender with nothing to tune but the LR, for example around `schedules.Function`.

    Example:
        >>> from metalr.schedules import Function
        >>> of_schedule("square", Function(lambda p: (1 - p) ** 2)).build()(0.5)
        0.25
    """
    return Baseline(name, "schedule", lambda: schedule, about=about)


def of_controller(name: str, controller: Controller, kind: Kind = "controller") -> Baseline:
    """A learned controller (or a control beside one) as a contender; its own number of decisions is kept."""
    return Baseline(name, kind, lambda: controller)


def _schedule(name: str, about: str, schedule: str, fixed: Parameters | None = None, **space: tuple) -> Baseline:
    """A registered schedule; each keyword is (default, values to try)."""

    def factory(**parameters: Any) -> Schedule:
        return schedules.make(schedule, **{**(fixed or {}), **parameters})

    return _baseline(name, "schedule", factory, about, space)


def _warmed(name: str, about: str, inner: Schedule, shape: str = "linear") -> Baseline:
    def factory(length: float) -> Schedule:
        return schedules.Warmup(inner, length=length, shape=shape)

    return _baseline(name, "schedule", factory, about, {"length": (0.1, (0.02, 0.05, 0.1, 0.2))})


def _rule(name: str, about: str, **space: tuple) -> Baseline:
    return _baseline(name, "rule", RULES[name], about, space)


def _baseline(name: str, kind: Kind, factory: Callable[..., Any], about: str, space: Mapping[str, tuple]) -> Baseline:
    values = {key: tuple(tried) for key, (_, tried) in space.items()}
    return Baseline(name, kind, factory, values, {key: default for key, (default, _) in space.items()}, about)


def _hold_then_fall(milestone: float) -> Schedule:
    return schedules.Sequence((schedules.Constant(), schedules.Linear()), milestones=(milestone,))


def _three_values(middle: float, last: float) -> Schedule:
    return schedules.PiecewiseConstant(boundaries=(0.5, 0.75), values=(1.0, middle, last))


_FLOORS = (0.0, (0.0, 0.01, 0.1))
_FINAL = (0.01, (0.001, 0.01, 0.03, 0.1, 0.3))
_RATES = (9.0, (1.0, 3.0, 9.0, 30.0, 100.0))
_DROPS = (0.1, (0.1, 0.2, 0.3, 0.5))

_ENTRIES = [
    _schedule("constant", "the LR as it is", "constant"),
    _schedule("step", "a drop at equal intervals", "step", every=(0.3, (0.2, 0.25, 0.3, 0.5)), gamma=_DROPS),
    _schedule("multi-step", "drops at 1/2 and 3/4 of the run", "multi-step", gamma=_DROPS),
    _baseline(
        "piecewise-constant",
        "schedule",
        _three_values,
        "own values in the last quarters",
        {"middle": (0.3, (0.1, 0.3, 0.5)), "last": (0.03, (0.003, 0.01, 0.03, 0.1))},
    ),
    _schedule("exponential", "falls by one factor over the run", "exponential", {"every": 1.0}, rate=_FINAL),
    _schedule(
        "exponential-staircase",
        "the same in steps",
        "exponential",
        {"staircase": True, "every": 0.1},
        rate=(0.6, (0.5, 0.6, 0.7, 0.8, 0.9)),
    ),
    _schedule(
        "natural-exponential",
        "exponential decay with a rate in the exponent",
        "natural-exponential",
        {"every": 1.0},
        rate=(4.0, (1.0, 2.0, 4.0, 7.0)),
    ),
    _schedule(
        "natural-exponential-staircase",
        "the same in steps",
        "natural-exponential",
        {"staircase": True, "every": 0.1},
        rate=(0.4, (0.1, 0.2, 0.4, 0.7)),
    ),
    _schedule("inverse-time", "decay as 1 / time", "inverse-time", {"every": 1.0}, rate=_RATES),
    _schedule(
        "inverse-time-staircase",
        "the same in steps",
        "inverse-time",
        {"staircase": True, "every": 0.1},
        rate=(1.0, (0.1, 0.3, 1.0, 3.0, 10.0)),
    ),
    _schedule(
        "inverse-square-root",
        "linear warmup, then decay as 1 / sqrt(time)",
        "inverse-square-root",
        warmup=(0.1, (0.01, 0.03, 0.1, 0.3)),
    ),
    _schedule("linear", "a line to zero or to a floor", "linear", end=_FLOORS),
    _schedule("polynomial", "a power of the rest of the run", "polynomial", power=(2.0, (0.5, 1.0, 2.0, 3.0))),
    _schedule(
        "polynomial-cycle",
        "TensorFlow's cycle=True: as polynomial within the horizon, it jumps up after it",
        "polynomial",
        {"cycle": True},
        power=(1.0, (0.5, 1.0, 2.0, 3.0)),
        end=(0.01, (0.001, 0.01, 0.1)),
    ),
    _schedule("cosine", "half a cosine wave to zero or to a floor", "cosine", floor=_FLOORS),
    _schedule(
        "cosine-restarts",
        "cosine waves, each longer by t_mul and lower by m_mul",
        "cosine-restarts",
        {"period": 1 / 3},
        t_mul=(2.0, (1.0, 2.0)),
        m_mul=(1.0, (0.5, 0.75, 1.0)),
    ),
    _schedule(
        "linear-cosine",
        "a falling line times a cosine",
        "linear-cosine",
        num_periods=(0.5, (0.5, 1.5, 2.5)),
        beta=(0.001, (0.0, 0.001, 0.01)),
    ),
    _schedule(
        "noisy-linear-cosine",
        "the same with shrinking noise from its own seed",
        "noisy-linear-cosine",
        initial_variance=(0.1, (0.01, 0.1, 1.0)),
        num_periods=(0.5, (0.5, 1.5, 2.5)),
    ),
    _schedule("k-decay", "polynomial decay in progress ** k", "k-decay", k=(1.5, (1.5, 2.0, 3.0, 5.0))),
    _schedule("tanh", "flat, a smooth fall, flat", "tanh", lower=(-6.0, (-6.0, -4.0, -2.0)), upper=(3.0, (2.0, 3.0))),
    _schedule("rex", "above the line all the way, steep at the end", "rex", floor=_FLOORS),
    *(
        _schedule(
            name,
            f"warmup, plateau, {fall} fall",
            "wsd",
            {"shape": shape},
            warmup=(0.05, (0.0, 0.05, 0.1)),
            decay=(0.2, (0.1, 0.2, 0.4, 0.6)),
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
        pct_start=(0.3, (0.1, 0.2, 0.3, 0.4)),
        div_factor=(25.0, (5.0, 10.0, 25.0)),
    ),
    *(
        _schedule(
            name,
            f"triangles between a low and the full LR{more}",
            "cyclic",
            {"mode": mode},
            up=(0.125, (0.0625, 0.125, 0.25)),
            low=(0.1, (0.01, 0.1, 0.3)),
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
    _baseline(
        "hold-then-linear",
        "schedule",
        _hold_then_fall,
        "a sequence: constant, then a line to zero",
        {"milestone": (0.5, (0.25, 0.5, 0.75))},
    ),
    _rule(
        "reduce-on-plateau",
        "cuts the LR when the loss stops improving",
        factor=(0.3, (0.1, 0.3, 0.5, 0.7)),
        patience=(2, (1, 2, 4)),
    ),
    _rule("loss-decay", "the LR follows a power of the loss", power=(1.0, (0.25, 0.5, 1.0, 2.0))),
    _rule(
        "gradient-norm",
        "shrinks when the gradient norm grows, grows when it falls",
        up=(1.05, (1.02, 1.05, 1.1)),
        down=(0.8, (0.7, 0.8, 0.9, 0.95)),
    ),
    _rule(
        "greedy",
        "GreedyLR: LR / F on improvement, LR * F otherwise",
        factor=(0.9, (0.5, 0.7, 0.8, 0.9, 0.95)),
        patience=(0, (0, 1, 2)),
    ),
    _rule(
        "up-down",
        "the reactive rule to be tuned: up on a fall of the loss, down otherwise",
        up=(1.05, (1.02, 1.05, 1.1, 1.2, 1.5)),
        down=(0.7, (0.3, 0.5, 0.7, 0.8, 0.9)),
    ),
    _baseline(
        "hypergradient",
        "optimizer",
        Hypergradient,
        "the task's optimizer with hypergradient descent on its LR (SGD-HD, Adam-HD)",
        {"beta": (1e-4, (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2))},
    ),
    _baseline(
        "lookahead",
        "optimizer",
        Lookahead,
        "the task's optimizer under slow weights, constant LR",
        {"k": (5, (5, 10)), "share": (0.5, (0.5, 0.8))},
    ),
]
BASELINES: dict[str, Baseline] = {entry.name: entry for entry in _ENTRIES}

# Not among `BASELINES`: they need packages of their own, and train one run at a time.
OUTSIDE_BASELINES: dict[str, Baseline] = {
    name: Baseline(name, "outside", partial(make_optimizer, name), about=entry.about, base_lr=entry.base_lr)
    for name, entry in OUTSIDE.items()
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


def target_baselines() -> list[Baseline]:
    """Four optimizers with cosine decay, whose best sets the target of a task, as the AlgoPerf benchmark does in large
    (Dahl et al. 2023, arXiv 2306.07179). Each searches around its own usual LR."""
    usual = {"nesterov": 0.1, "rmsprop": 3e-3, "adam": 3e-3, "adamw": 3e-3}

    def entry(name: str, base_lr: float) -> Baseline:
        def factory(inner: InnerOptimizer) -> InnerOptimizer:
            return replace(OPTIMIZERS[name], clip_norm=inner.clip_norm)

        about = f"{name} with cosine decay"
        return Baseline(f"target: {name}", "target", factory, {}, {}, about, schedules.Cosine(), base_lr)

    return [entry(name, base_lr) for name, base_lr in usual.items()]


def get_baseline(name: str) -> Baseline:
    """A registered baseline.

    Raises:
        ValueError: the name is unknown; the message names the nearest one.
    """
    return look_up({**BASELINES, **OUTSIDE_BASELINES}, name, "baseline")
