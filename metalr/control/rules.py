"""Reactive rules: hand-written controllers that move the LR by what the loss or the gradient just did.

They are rivals of a learned controller, and read the very observation that it reads, one feature at a time. All
are pure, batched state machines that an exported scheduler can run. A decision interval is to them what an epoch
is to the rules' authors: their loss is the mean over the interval.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from metalr import schedules
from metalr.control.controller import Controller
from metalr.schedules import Constant, Schedule
from metalr.signals.observations import feature

Rule = TypeVar("Rule", bound="ReactiveRule")


def unsoft(value: Tensor, scale: float) -> Tensor:
    """The inverse of `metalr.signals.observations.soft`: scale · x / (1 - |x|).

    Example:
        >>> unsoft(torch.tensor(0.5), 0.1).item()
        0.10000000149011612
    """
    return scale * value / (1.0 - value.abs()).clamp(min=1e-6)


class RuleState(NamedTuple):
    """What the rules remember between decisions, each `(num_runs, num_groups)`.

    Attributes:
        multiplier: in force.
        best: lowest log loss so far that counted as an improvement, relative to the first interval's; infinite
            before any.
        bad, good: intervals in a row without and with an improvement.
        wait: decisions of cooldown left.
    """

    multiplier: Tensor
    best: Tensor
    bad: Tensor
    good: Tensor
    wait: Tensor


@dataclass(frozen=True)
class ReactiveRule(Controller):
    """What all rules share; subclasses are final and implement `react`.

    Attributes:
        schedule: base schedule that the multiplier multiplies.
        decisions: per run.
        low, high: bounds of the multiplier.
    """

    schedule: Schedule = field(default_factory=Constant)
    decisions: int = 40
    low: float = 1e-4
    high: float = 1e3

    def __post_init__(self) -> None:
        for name, value in self._numbers().items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"got {name} {value!r} for {type(self).__name__}, expected a finite number")
        if self.decisions < 1 or not 0.0 < self.low <= 1.0 <= self.high < math.inf:
            raise ValueError(
                f"got {self.decisions} decisions and bounds [{self.low}, {self.high}], expected at least 1 and "
                "0 < low <= 1 <= high: 1 is the base LR"
            )

    def init(self, like: Tensor) -> RuleState:
        one = torch.ones_like(like)
        return RuleState(one, one * math.inf, one * 0.0, one * 0.0, one * 0.0)

    def __call__(self, observation: Tensor, state: RuleState) -> tuple[Tensor, RuleState]:
        reacted = self.react(observation, state)
        reacted = reacted._replace(multiplier=reacted.multiplier.clamp(self.low, self.high))
        # Before the first interval, and where the rule's own signal is missing, nothing moves.
        known = self.known(observation) > 0.0
        new = RuleState(*(torch.where(known, now, old) for now, old in zip(reacted, state, strict=True)))
        return new.multiplier, new

    @abstractmethod
    def react(self, observation: Tensor, state: RuleState) -> RuleState:
        """The state after a decision, the multiplier not yet clipped."""

    def known(self, observation: Tensor) -> Tensor:
        """1.0 where the rule can react, `(num_runs, num_groups)`: an interval was seen and losses are passed."""
        return feature(observation, "has_history") * feature(observation, "has_loss")

    def with_schedule(self: Rule, schedule: Schedule) -> Rule:
        """The same rule on another base schedule."""
        return replace(self, schedule=schedule)

    def config(self) -> dict[str, Any]:
        kind = next(name for name, rule in RULES.items() if type(self) is rule)
        return {"kind": kind, "schedule": schedules.to_config(self.schedule), **self._numbers()}

    def _numbers(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "schedule"}

    @classmethod
    def build(cls: type[Rule], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Rule:
        """Rebuild from `config()`."""
        numbers = {key: value for key, value in config.items() if key not in ("kind", "schedule")}
        return cls(schedule=schedules.from_config(config["schedule"]), **numbers)


def _improved(observation: Tensor, state: RuleState, threshold: float) -> tuple[Tensor, Tensor]:
    """Whether the loss is below best · (1 - threshold), and log(loss / first loss); an explosion never is."""
    exploded = feature(observation, "loss_exploded") > 0.0
    log_loss = unsoft(feature(observation, "loss_total"), 1.0)
    return (log_loss < state.best + math.log1p(-threshold)) & ~exploded, log_loss


@dataclass(frozen=True)
class ReduceOnPlateau(ReactiveRule):
    """Multiply the LR by `factor` after more than `patience` intervals without a new best loss.

    The state machine of torch's `ReduceLROnPlateau` (mode "min", relative threshold), with an interval in the place
    of an epoch. After a cut, `cooldown` intervals are not counted.

    Example: patience 1, factor 0.1, losses 3, 2, 2, 2: the third of the equal losses cuts the LR to 0.1.
    """

    factor: float = 0.3
    patience: int = 2
    threshold: float = 1e-4
    cooldown: int = 0

    def react(self, observation: Tensor, state: RuleState) -> RuleState:
        better, log_loss = _improved(observation, state, self.threshold)
        best = torch.where(better, log_loss, state.best)
        bad = torch.where(better, 0.0, state.bad + 1.0)
        waiting = state.wait > 0.0
        wait, bad = (state.wait - 1.0).clamp(min=0.0), torch.where(waiting, 0.0, bad)
        cut = bad > self.patience
        return RuleState(
            torch.where(cut, state.multiplier * self.factor, state.multiplier),
            best,
            torch.where(cut, 0.0, bad),
            state.good,
            torch.where(cut, float(self.cooldown), wait),
        )


@dataclass(frozen=True)
class LossDecay(ReactiveRule):
    """Loss-based decay: the LR falls as a power of the loss.

    multiplier = (mean loss / mean loss of the first interval) ** power, at most 1.

    Example: with power 2 the LR is a quarter of the base when the loss has halved.
    """

    power: float = 1.0

    def react(self, observation: Tensor, state: RuleState) -> RuleState:
        log_loss = unsoft(feature(observation, "loss_total"), 1.0)
        return state._replace(multiplier=(self.power * log_loss).clamp(max=0.0).exp())


@dataclass(frozen=True)
class GradientNormRule(ReactiveRule):
    """Shrink the LR when the gradient norm grows, grow it when the norm falls.

    With r = log(gradient norm / that of the interval before): multiplier *= down if r > tolerance, *= up if
    r < -tolerance, else unchanged. It needs no loss.
    """

    up: float = 1.05
    down: float = 0.8
    tolerance: float = 0.05

    def react(self, observation: Tensor, state: RuleState) -> RuleState:
        change = unsoft(feature(observation, "gradient_change"), 0.3)
        factor = torch.where(change > self.tolerance, self.down, 1.0)
        factor = torch.where(change < -self.tolerance, self.up, factor)
        return state._replace(multiplier=state.multiplier * factor)

    def known(self, observation: Tensor) -> Tensor:
        return feature(observation, "has_history")


@dataclass(frozen=True)
class GreedyLR(ReactiveRule):
    """Divide the LR by `factor` < 1 while the loss improves on its best, multiply by it while it does not.

    Subramanian, Krishnamoorthy and Murthy 2025, arXiv 2512.14527: with more than `patience` good intervals in a row
    the LR is divided, with more than `patience` bad ones multiplied. The paper's smoothing window is the mean
    over our interval; its warmup and cooldown counters are left at zero, their default.

    Example: factor 0.9, patience 0: three improvements in a row give 0.9 ** -3 = 1.37 times the LR.
    """

    factor: float = 0.9
    patience: int = 0
    threshold: float = 1e-4

    def react(self, observation: Tensor, state: RuleState) -> RuleState:
        better, log_loss = _improved(observation, state, self.threshold)
        good = torch.where(better, state.good + 1.0, 0.0)
        bad = torch.where(better, 0.0, state.bad + 1.0)
        first = state.best.isinf()  # the first loss is a reference, not an improvement
        factor = torch.where(good > self.patience, 1.0 / self.factor, 1.0)
        factor = torch.where(bad > self.patience, self.factor, factor)
        return RuleState(
            state.multiplier * torch.where(first, 1.0, factor),
            torch.where(better, log_loss, state.best),
            torch.where(first, 0.0, bad),
            torch.where(first, 0.0, good),
            state.wait,
        )


@dataclass(frozen=True)
class UpDownRule(ReactiveRule):
    """The reactive rule to be tuned: LR times `up` if the loss fell since the last interval, else times `down`.

    Both factors are searched, which is all that separates it from GreedyLR without memory of the best loss.
    """

    up: float = 1.05
    down: float = 0.7

    def react(self, observation: Tensor, state: RuleState) -> RuleState:
        change = feature(observation, "loss_change")
        fell = (change < 0.0) & (feature(observation, "loss_exploded") == 0.0)
        first = state.best.isinf()
        factor = torch.where(first, 1.0, torch.where(fell, self.up, self.down))
        return state._replace(multiplier=state.multiplier * factor, best=torch.zeros_like(state.best))


RULES: dict[str, Any] = {
    "reduce-on-plateau": ReduceOnPlateau,
    "loss-decay": LossDecay,
    "gradient-norm": GradientNormRule,
    "greedy": GreedyLR,
    "up-down": UpDownRule,
}
