"""Actions as LR multipliers, within explicit bounds and behind a breaker.

The LR in force at inner step t of decision d is

    lr(t) = base_lr · schedule(t / horizon) · lr_multiplier(d)

and this module computes the last factor. The environment, the meta-gradients and exported controllers all call `act`,
so a policy meets the same breaker in training as in use.

In absolute mode an LR of the specification, `reference`, stands in the place of base_lr everywhere: multiplier, bounds,
breaker and the first update that is foreseen are relative to it, and the guess is not used. That gives up what makes a
controller transfer. The observation is free of scale, so the LR that it names is right only for weights, losses and
optimizers of the scale of those in its training; and parameter groups with base LRs of their own get one and the same.
In exchange a wrong guess does no harm. It is the mode to compare with, and one for a task that is trained again and
again.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metalr.signals.observations import feature

# After an explosion the multiplier is held to this fraction of the last good one; each quiet interval then raises the
# ceiling by the second factor.
_BREAKER_CUT = 0.3
_BREAKER_LIFT = 1.3


@dataclass(frozen=True)
class ActionSpec:
    """How an action in [-1, 1] sets the multiplier.

    Attributes:
        mode: "anchored" sets exp(alpha · a), independently at every decision; "recursive" multiplies the multiplier
            in force by exp(alpha · a); "absolute" is anchored to `reference` in place of the base LR.
        alpha: log-range of an action. The default, 3, can undo a base LR that is wrong by a factor of 10: the action
            0.5 gives exp(1.5) = 4.48 times the base.
        levels: 0 for a continuous action, otherwise the number of equally spaced levels of a in [-1, 1] (for DQN).
        low: lower bound of the multiplier.
        high: upper bound of the multiplier.
        reference: the LR that the action 0 sets in absolute mode; None in the others.

    Raises:
        ValueError: an unknown mode, or a number out of its range; a reference without absolute mode, or none with it.
    """

    mode: Literal["anchored", "recursive", "absolute"] = "anchored"
    alpha: float = 3.0
    levels: int = 0
    low: float = 0.05
    high: float = 20.0
    reference: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("anchored", "recursive", "absolute"):
            raise ValueError(f"got action mode {self.mode!r}, expected 'anchored', 'recursive' or 'absolute'")
        if not 0.0 < self.alpha <= 20.0:
            raise ValueError(f"got alpha {self.alpha}, expected a number in (0, 20]: 3 spans a factor of 20 each way")
        if not isinstance(self.levels, int) or (self.levels != 0 and not 2 <= self.levels <= 1000):
            raise ValueError(f"got {self.levels} levels, expected 0 (continuous) or 2 to 1000")
        if not 0.0 < self.low <= 1.0 <= self.high < float("inf"):
            raise ValueError(f"got bounds [{self.low}, {self.high}], expected 0 < low <= 1 <= high: 1 is the base LR")
        if (self.reference is not None) != (self.mode == "absolute"):
            raise ValueError(
                f"got reference {self.reference} in {self.mode} mode, expected one in absolute mode and in no other: "
                "it is an LR in the middle of those that suit the task"
            )
        if self.reference is not None and not 0.0 < self.reference < float("inf"):
            raise ValueError(f"got reference {self.reference}, expected a positive finite LR")

    def base(self, base_lr: Any) -> Any:
        """The LR that the multiplier multiplies: the base LR, a number or a tensor, or `reference` in its place.

        Example:
            >>> ActionSpec().base(0.5), ActionSpec("absolute", reference=0.1).base(0.5)
            (0.5, 0.1)
        """
        if self.reference is None:
            return base_lr
        return torch.full_like(base_lr, self.reference) if isinstance(base_lr, Tensor) else self.reference

    def level_action(self, index: Tensor) -> Tensor:
        """The action in [-1, 1] of each level index.

        Example:
            >>> ActionSpec(levels=5).level_action(torch.tensor([0, 1, 4])).tolist()
            [-1.0, -0.5, 1.0]
        """
        return index.double() * (2.0 / (self.levels - 1)) - 1.0


class ActionState(NamedTuple):
    """The memory of an action between decisions, each field `(num_runs, num_groups)`.

    Attributes:
        multiplier: in force.
        good: in force during the last interval that did not explode; 1 before any.
        ceiling: current upper limit set by the breaker.
    """

    multiplier: Tensor
    good: Tensor
    ceiling: Tensor


def initial_state(spec: ActionSpec, like: Tensor) -> ActionState:
    """The state before the first decision, shaped `(num_runs, num_groups)` like `like`: base LR, breaker closed."""
    ones = torch.ones_like(like)
    return ActionState(ones, ones, ones * spec.high)


def act(
    spec: ActionSpec,
    action: Tensor,
    observation: Tensor,
    state: ActionState,
) -> tuple[Tensor, ActionState]:
    """The multiplier that an action sets after an observation; see `apply`.

    Args:
        spec: mode, range and bounds.
        action: `(num_runs, num_groups)`.
        observation: `(num_runs, num_groups, NUM_FEATURES)`, from which the action was chosen; the breaker reads it too.
        state: from `initial_state` or the previous decision.

    Returns:
        The multiplier in [low, high] and the new state, as for `apply`.
    """
    exploded, has_history = feature(observation, "loss_exploded"), feature(observation, "has_history")
    return apply(spec, action, exploded, has_history, state)


def apply(
    spec: ActionSpec, action: Tensor, exploded: Tensor, has_history: Tensor, state: ActionState
) -> tuple[Tensor, ActionState]:
    """The multiplier that an action sets.

    The breaker: after an interval in which the loss exploded, the multiplier is at most 0.3 · min(last good
    multiplier, the one that exploded), whatever the action; each quiet interval raises that ceiling by a factor of 1.3.
    Before any good interval the base LR, 1, counts as good.

    Args:
        spec: mode, range and bounds.
        action: `(num_runs, num_groups)`; values outside [-1, 1] are clipped, NaN counts as 0.
        exploded: 1.0 where the loss exploded in the last interval, `(num_runs, num_groups)`.
        has_history: 1.0 where an interval has been seen, `(num_runs, num_groups)`.
        state: from `initial_state` or the previous decision.

    Returns:
        The multiplier in [low, high] and the new state.
    """
    action = action.to(state.multiplier.dtype)
    action = torch.where(action.isnan(), torch.full_like(action, 0.0), action).clamp(-1.0, 1.0)
    broken = exploded > 0.0
    good = torch.where(broken, state.good, torch.where(has_history > 0.0, state.multiplier, state.good))
    cut = _BREAKER_CUT * torch.minimum(good, state.multiplier)
    ceiling = torch.where(
        broken, torch.minimum(cut, state.ceiling), (_BREAKER_LIFT * state.ceiling).clamp(max=spec.high)
    )
    anchor = state.multiplier if spec.mode == "recursive" else torch.full_like(state.multiplier, 1.0)
    wanted = anchor * (spec.alpha * action).exp()
    multiplier = torch.minimum(wanted, ceiling).clamp(spec.low, spec.high)
    return multiplier, ActionState(multiplier, good, ceiling)
