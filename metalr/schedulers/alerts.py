"""Warnings about a user's loop, each given once."""

import math
import warnings
import weakref
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# Decisions in a row at a bound, and the share of the run that they take, after which the base LR is to blame. Only in
# the first half of a run: near its end a multiplier at the lower bound is an annealed LR.
_AT_BOUND, _SHARE_AT_BOUND = 4, 0.1
_TOLERANCE = 1e-6
_SEEN: weakref.WeakKeyDictionary[Optimizer, weakref.ref[LRScheduler]] = weakref.WeakKeyDictionary()


class Alerts:
    """The warnings of one scheduler."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def called_per_epoch(self, updates: int) -> None:
        """Warn that so many updates passed between two calls of `step`."""
        self._warn_once(
            "epochs",
            f"scheduler.step() was called once after {updates} optimizer updates. "
            "Decisions still come at the right updates, because updates are counted, not calls; "
            "call step() after every optimizer.step() to silence this",
        )

    def breaker(self, update: int, multipliers: list[float]) -> None:
        """Warn that the breaker has cut the LR."""
        self._warn_once(
            "breaker",
            f"the loss exploded or was not finite before update {update}; the LR was cut to "
            f"{multipliers} times the base and may rise again slowly",
        )

    def no_loss(self) -> None:
        """Warn that a controller that was trained with losses gets none."""
        self._warn_once(
            "losses",
            "no loss was observed by the second decision, expected one for each update, since the controller was never "
            "trained without: call scheduler.observe(loss) before optimizer.step(), or step(loss) after it",
        )

    def at_bound(
        self,
        controller: Any,
        decisions: list[tuple[float, list[float]]],
        base_lrs: list[float],
        horizon: int | None,
    ) -> None:
        """Warn if the multiplier of a group has been at the same bound for long.

        Args:
            controller: with bounds or without.
            decisions: updates made and multiplier of each controlled group, for the latest decisions.
            base_lrs: of the parameter groups.
            horizon: updates in the run; None if unknown.
        """
        bounds = _reachable(controller)
        if bounds is None or "bound" in self._given:
            return
        low, high = bounds
        updates = [update for update, _ in decisions]
        for base, column in zip(base_lrs, zip(*(m for _, m in decisions), strict=True), strict=False):
            if _lasts(updates, [m >= high * (1.0 - _TOLERANCE) for m in column], horizon):
                self._warn_once(
                    "bound",
                    f"the LR multiplier has been at its upper bound of {high:.3g} for {_AT_BOUND} decisions or more, "
                    f"expected one inside its bounds: the base LR of {base:.3g} is too low by {high:.3g} times or "
                    "more; raise it, or take a controller with wider bounds",
                )
            elif _lasts(updates, [m <= low * (1.0 + _TOLERANCE) for m in column], horizon):
                self._warn_once(
                    "bound",
                    f"the LR multiplier has been at its lower bound of {low:.3g} for {_AT_BOUND} decisions or more, "
                    f"expected one inside its bounds: the base LR of {base:.3g} is too high by {1.0 / low:.3g} times "
                    "or more; lower it, or take a controller with wider bounds",
                )

    def not_alone(self, scheduler: LRScheduler) -> None:
        """Warn if another scheduler drives the optimizer between two calls of this one; call once for each of them."""
        optimizer = scheduler.optimizer
        before = _SEEN.get(optimizer)
        other = None if before is None else before()
        if other is scheduler:
            self._moved(optimizer, scheduler._last_lr)
            return
        _SEEN[optimizer] = weakref.ref(scheduler)
        if other is not None and "stepped" in self._given:
            self._warn_once(
                "second",
                "two LearnedLR step the same optimizer, expected one: each undoes the LRs of the other; remove one",
            )
        self._given.add("stepped")

    def _moved(self, optimizer: Optimizer, written: list[float | Tensor]) -> None:
        for group, last in zip(optimizer.param_groups, written, strict=False):
            lr = group["lr"]
            if isinstance(lr, Tensor) and not lr.is_cpu:  # reading it would wait for the device
                continue
            if lr != last:
                self._warn_once(
                    "moved",
                    f"something else has changed the LR of this optimizer from {float(last):.3g} to {float(lr):.3g}, "
                    "expected no other scheduler beside a LearnedLR, which sets absolute LRs and undoes that: remove "
                    "the other, or pass it as load_scheduler(..., base=schedule)",
                )

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._given:
            self._given.add(key)
            warnings.warn(f"LearnedLR: {message}.", UserWarning, stacklevel=4)


def _lasts(updates: list[float], holds: list[bool], horizon: int | None) -> bool:
    """Whether something holds at the latest decisions, at enough of them and for a good part of the run."""
    since = next((i + 1 for i in reversed(range(len(holds))) if not holds[i]), 0)
    span = updates[-1] - updates[since] if since < len(holds) else 0.0
    return len(holds) - since >= _AT_BOUND and span >= _SHARE_AT_BOUND * (horizon or 0)


def _reachable(controller: Any) -> tuple[float, float] | None:
    """The least and greatest multiplier that a controller can decide.

    None if it cannot change its multiplier, or if that is not one of the base LR.
    """
    low, high = controller.bounds
    action = getattr(controller, "action", None)
    if action is not None and action.mode == "absolute":
        return None
    if action is not None and action.mode == "anchored":
        low, high = max(low, math.exp(-action.alpha)), min(high, math.exp(action.alpha))
    return (low, high) if low < high < math.inf and not hasattr(controller, "multipliers") else None
