"""Reactive rules: hand-written controllers that change the LR in response to the latest loss or gradient.

They compete with learned controllers and read the same observation, one feature at a time. All are pure, batched state
machines that an exported scheduler can run. A decision interval takes the place of an epoch in the original rules: the
loss is the mean over the interval.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from metalr import schedules
from metalr.control.controller import Controller, Spacing, check_spacing
from metalr.schedules import Constant, Schedule
from metalr.signals.observations import feature

Rule = TypeVar("Rule", bound="ReactiveRule")


def unsoft(value: Tensor, scale: float) -> Tensor:
    """The inverse of `metalr.signals.observations.soft`: scale · x / (1 - |x|) for x in (-1, 1).

    Example:
        >>> unsoft(torch.tensor(0.5), 0.1).item()
        0.10000000149011612
    """
    return scale * value / (1.0 - value.abs()).clamp(min=1e-6)


class RuleState(NamedTuple):
    """The memory of a rule between decisions, each field `(num_runs, num_groups)`.

    Attributes:
        multiplier: in force.
        best: log loss at the last improvement, relative to the first interval; infinite before any.
        bad: intervals in a row without an improvement.
        good: intervals in a row with an improvement.
        wait: decisions of cooldown left.
    """

    multiplier: Tensor
    best: Tensor
    bad: Tensor
    good: Tensor
    wait: Tensor


@dataclass(frozen=True)
class ReactiveRule(Controller):
    """The base of all rules; subclasses are final and implement `react`.

    Attributes:
        schedule: base schedule that the multiplier multiplies.
        decisions: per run.
        low: lower bound of the multiplier.
        high: upper bound of the multiplier.
        spacing: of the decisions.

    Raises:
        ValueError: a number is not finite, there are no decisions, or the bounds do not contain 1.
    """

    schedule: Schedule = field(default_factory=Constant)
    decisions: int = 40
    low: float = 1e-4
    high: float = 1e3
    spacing: Spacing = "even"

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
        """The state after a decision, with the multiplier not yet clipped."""

    def known(self, observation: Tensor) -> Tensor:
        """1.0 where the rule can react, `(num_runs, num_groups)`: after an interval, if losses are passed."""
        return feature(observation, "has_history") * feature(observation, "has_loss")

    def with_schedule(self: Rule, schedule: Schedule) -> Rule:
        """The same rule on another base schedule."""
        return replace(self, schedule=schedule)

    def config(self) -> dict[str, Any]:
        kind = next(name for name, rule in RULES.items() if type(self) is rule)
        schedule = schedules.to_config(self.schedule)
        return {"kind": kind, "schedule": schedule, "spacing": self.spacing, **self._numbers()}

    def _numbers(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("schedule", "spacing")}

    @classmethod
    def build(cls: type[Rule], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Rule:
        """Rebuild the rule from the result of `config`."""
        numbers = {key: value for key, value in config.items() if key not in ("kind", "schedule", "spacing")}
        schedule, spacing = schedules.from_config(config["schedule"]), check_spacing(config["spacing"])
        return cls(schedule=schedule, spacing=spacing, **numbers)


def _improved(observation: Tensor, state: RuleState, threshold: float) -> tuple[Tensor, Tensor]:
    """Whether the loss is below best · (1 - threshold) without an explosion, and log(loss / first loss)."""
    exploded = feature(observation, "loss_exploded") > 0.0
    log_loss = unsoft(feature(observation, "loss_total"), 1.0)
    return (log_loss < state.best + math.log1p(-threshold)) & ~exploded, log_loss


@dataclass(frozen=True)
class ReduceOnPlateau(ReactiveRule):
    """Multiply the LR by `factor` after more than `patience` intervals without a new best loss.

    With patience 1, factor 0.1 and losses 3, 2, 2, 2, the third of the equal losses cuts the LR to 0.1 of the base.

    Source: torch's `ReduceLROnPlateau` (mode "min", relative threshold), with an interval in place of an epoch.

    Attributes:
        factor: of a cut.
        patience: intervals in a row without an improvement that are tolerated.
        threshold: least relative fall of the loss that counts as an improvement.
        cooldown: intervals after a cut that are not counted.
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
    """Lower the LR as a power of the loss.

    Equation: multiplier = min(1, (mean loss / mean loss of the first interval) ** power). With power 2, the LR is a
    quarter of the base when the loss has halved.

    Attributes:
        power: exponent.
    """

    power: float = 1.0

    def react(self, observation: Tensor, state: RuleState) -> RuleState:
        log_loss = unsoft(feature(observation, "loss_total"), 1.0)
        return state._replace(multiplier=(self.power * log_loss).clamp(max=0.0).exp())


@dataclass(frozen=True)
class GradientNormRule(ReactiveRule):
    """Shrink the LR when the gradient norm grows, grow it when the norm falls.

    Equation: with r = log(gradient norm / gradient norm of the previous interval), the multiplier is multiplied by
    `down` if r > tolerance, by `up` if r < -tolerance, and otherwise unchanged. The rule needs no loss.

    Attributes:
        up: factor when the norm falls.
        down: factor when the norm grows.
        tolerance: change of the log norm that counts as none.
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
    """Divide the LR by `factor` < 1 while the loss improves on its best, and multiply by it while it does not.

    After more than `patience` good intervals in a row the LR is divided, after more than `patience` bad ones
    multiplied. With factor 0.9 and patience 0, three improvements in a row give 0.9 ** -3 = 1.37 times the LR.

    Source: Subramanian, Krishnamoorthy and Murthy 2025, arXiv 2512.14527. The mean over an interval takes the place of
    the paper's smoothing window; its warmup and cooldown counters stay at zero, their default.

    Attributes:
        factor: of a cut; its inverse is that of a rise.
        patience: intervals in a row that are tolerated before either.
        threshold: least relative fall of the loss that counts as an improvement.
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
    """Multiply the LR by `up` if the loss fell since the last interval, otherwise by `down`.

    The reactive rule meant for tuning: it is `GreedyLR` with two factors to search and no memory of the best loss.

    Attributes:
        up: factor when the loss falls.
        down: factor when it does not, or when it explodes.
    """

    up: float = 1.05
    down: float = 0.7

    def react(self, observation: Tensor, state: RuleState) -> RuleState:
        change = feature(observation, "loss_change")
        fell = (change < 0.0) & (feature(observation, "loss_exploded") == 0.0)
        first = state.best.isinf()
        factor = torch.where(first, 1.0, torch.where(fell, self.up, self.down))
        return state._replace(multiplier=state.multiplier * factor, best=torch.zeros_like(state.best))


@dataclass(frozen=True)
class EdgeRule(ReactiveRule):
    """Hold the LR where the loss is used up in time, and below the edge of stability.

    Equation: log multiplier += polyak_gain · (polyak_left - polyak_target) - edge_gain · (edge_mean - edge_target), at
    most `largest` either way. The first term raises an LR at which the updates that are left would not use up the
    loss; the second lowers one at which updates overshoot. With all numbers as they are, polyak_left 0.3 and
    edge_mean 0 change the multiplier by exp(0.3) = 1.35.

    Source: the edge of stability is that of Cohen et al. 2021, arXiv 2103.00065; the rule is our own.

    Attributes:
        polyak_gain, polyak_target: of the feature `polyak_left`.
        edge_gain, edge_target: of the feature `edge_mean`.
        largest: change of the log multiplier at one decision.
    """

    polyak_gain: float = 1.0
    polyak_target: float = 0.0
    edge_gain: float = 1.0
    edge_target: float = 0.0
    largest: float = 2.0

    def react(self, observation: Tensor, state: RuleState) -> RuleState:
        use = self.polyak_gain * (feature(observation, "polyak_left") - self.polyak_target)
        edge = self.edge_gain * (feature(observation, "edge_mean") - self.edge_target)
        change = (use - edge).clamp(-self.largest, self.largest)
        exploded = feature(observation, "loss_exploded") > 0.0
        change = torch.where(exploded, -self.largest, change)
        return state._replace(multiplier=state.multiplier * change.exp())

    def known(self, observation: Tensor) -> Tensor:
        return feature(observation, "has_loss") * feature(observation, "has_gradient")


RULES: dict[str, Any] = {
    "reduce-on-plateau": ReduceOnPlateau,
    "loss-decay": LossDecay,
    "gradient-norm": GradientNormRule,
    "greedy": GreedyLR,
    "up-down": UpDownRule,
    "edge": EdgeRule,
}
