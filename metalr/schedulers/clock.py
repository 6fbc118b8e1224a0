"""The update count of a run, less the updates that were skipped, and the decisions that fall along it."""

import numbers
from typing import Any

import torch
from torch import Tensor

from metalr.control.controller import Spacing, decision_steps, fitting_decisions


def check_horizon(horizon: int) -> int:
    """The horizon, once checked.

    Raises:
        ValueError: it is not a whole number of updates, or is below 1.
    """
    if isinstance(horizon, bool) or not isinstance(horizon, numbers.Integral) or horizon < 1:
        raise ValueError(
            f"got horizon {horizon!r}, expected a whole number of optimizer updates, at least 1: "
            "pass len(loader) * epochs // accumulation_steps"
        )
    return int(horizon)  # NumPy's whole numbers would get into every checkpoint


# After the last decision nothing needs the exact count, but the flags of updates that may be skipped must not pile up.
_MOST_SKIPS = 256


class DecisionClock:
    """The optimizer updates of one run, and the decisions among them.

    The first decision falls before the first update; the others fall where `metalr.control.controller.decision_steps`
    has them, or every `steps_per_action` updates if the horizon is unknown.

    Args:
        horizon: updates in the run; None if unknown.
        decisions: per run of known horizon.
        steps_per_action: updates between decisions if the horizon is unknown.
        spacing: of the decisions, as for `metalr.control.controller.decision_steps`.
        fitted: a run too short for the decisions has fewer; otherwise it is refused.

    Attributes:
        horizon: current horizon.
        updates: made so far. An update that a `GradScaler` skipped on the device counts until `settle` takes it back.
        started: whether the first decision has been taken.
        last_decision: update count at the latest decision.
        next_decision: update count at the next decision; None after the last one.

    Raises:
        ValueError: the horizon is too short for the decisions, or missing without `steps_per_action`.

    Example:
        >>> clock = DecisionClock(10, decisions=4)
        >>> clock.next_decision, clock.updates_left
        (3, 3)
    """

    def __init__(
        self,
        horizon: int | None,
        decisions: int,
        steps_per_action: int | None = None,
        spacing: Spacing = "even",
        *,
        fitted: bool = False,
    ) -> None:
        self.decisions = int(decisions)
        self.fitted = fitted
        self.spacing = spacing
        self.steps_per_action = None if steps_per_action is None else int(steps_per_action)
        self._skips: list[tuple[int, Tensor]] = []
        self.updates = 0
        self.last_decision = 0
        self.started = False
        self.set_horizon(horizon)

    def restart(self) -> None:
        """Start a new run of the same length."""
        self.updates = 0
        self.last_decision = 0
        self.started = False
        self._skips = []
        self._aim()

    def set_horizon(self, horizon: int | None) -> None:
        """Lengthen or shorten the run; decisions already taken stand.

        Raises:
            ValueError: the horizon is too short for the decisions, or missing without `steps_per_action`.
        """
        if horizon is not None:
            horizon = check_horizon(horizon)
            decisions = fitting_decisions(self.decisions, horizon) if self.fitted else self.decisions
            self._stops = decision_steps(horizon, decisions, self.spacing)[1:]
        elif self.steps_per_action is None or self.steps_per_action < 2:
            raise ValueError(
                f"got horizon None with steps_per_action {self.steps_per_action}, expected the horizon in optimizer "
                "updates, or at least 2 updates between decisions: pass one of them"
            )
        self.horizon = horizon
        self._aim()

    @property
    def progress(self) -> float:
        """Updates made / horizon; 0 if the horizon is unknown."""
        return self.updates / self.horizon if self.horizon else 0.0

    @property
    def updates_left(self) -> int | None:
        """Updates until the next decision; None after the last one."""
        return None if self.next_decision is None else self.next_decision - self.updates

    @property
    def due(self) -> bool:
        """Whether the next decision falls now."""
        return self.next_decision is not None and self.updates >= self.next_decision

    @property
    def over(self) -> bool:
        """Whether the horizon has been reached."""
        return self.horizon is not None and self.updates >= self.horizon

    def decided(self) -> None:
        """Record that the decision that was due has been taken."""
        assert self.next_decision is not None
        self.last_decision = self.next_decision
        self._aim()

    def may_be_skipped(self, flag: Tensor) -> None:
        """Record that the coming update does not count if `flag`, which stays on its device, is not zero."""
        if self._skips and self._skips[-1][0] == self.updates:  # tried again, or announced by several calls
            self._skips.pop()
        self._skips.append((self.updates, flag.detach().clone()))

    @property
    def must_settle(self) -> bool:
        """Whether the count must be exact before the coming update, mostly because that one may be measured."""
        if not self._skips:
            return False
        left = self.updates_left
        return not self.started or (len(self._skips) >= _MOST_SKIPS if left is None else left <= 2)

    def settle(self) -> list[int]:
        """Take back the updates that were skipped. This reads the device, so call it as rarely as decisions allow.

        Returns:
            The update counts at which they were attempted.
        """
        if not self._skips:
            return []
        flags = torch.stack([flag.reshape(()) for _, flag in self._skips]).tolist()
        skipped = [update for (update, _), flag in zip(self._skips, flags, strict=True) if flag]
        self.updates -= len(skipped)
        self._skips = []
        return skipped

    def state(self) -> dict[str, Any]:
        """The counts as plain numbers; call `settle` first."""
        return {"updates": self.updates, "interval_start": self.last_decision, "started": self.started}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`, under this clock's own horizon."""
        self.updates = int(state["updates"])
        self.last_decision = int(state["interval_start"])
        self.started = bool(state["started"])
        self._skips = []
        self._aim()

    def _aim(self) -> None:
        if self.horizon is None:
            gap = self.steps_per_action or 0
            if self.spacing == "doubling":
                gap = min(gap, max(self.last_decision, 2))
            self.next_decision: int | None = self.last_decision + gap
        else:
            earliest = max(self.last_decision + 1, self.updates)
            self.next_decision = next((stop for stop in self._stops if stop >= earliest), None)
