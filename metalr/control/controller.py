"""Controllers: pure state machines from an observation to an LR multiplier, batched for free.

    state = controller.init(like)
    lr_multiplier, state = controller(observation, state)

The LR in force is base_lr · controller.schedule(progress) · lr_multiplier. A schedule is the controller that
ignores the observation. The engine, the environment and the exported scheduler drive the same objects.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, get_args

from torch import Tensor

from metalr import schedules
from metalr.control.actions import ActionSpec

Spacing = Literal["even", "doubling"]


def decision_steps(horizon: int, decisions: int, spacing: Spacing = "even") -> list[int]:
    """The inner steps at which decisions fall.

    Args:
        horizon: inner steps in the run.
        decisions: per run, if evenly spaced.
        spacing: "even" has them at round(d · horizon / decisions) for d = 0, 1, …; "doubling" at 0, 2, 4, 8, … until
            the spacing reaches horizon / decisions or the horizon comes, and evenly from there on, so that there are a
            few more. An interval of one step would show nothing that was not known before it: the gradient after an
            update, and whether the loss rose, are seen with the next step.

    Raises:
        ValueError: fewer than two inner steps for each decision.

    Example:
        >>> decision_steps(10, 4)
        [0, 3, 5, 8]
        >>> decision_steps(100, 10, "doubling")
        [0, 2, 4, 8, 16, 27, 37, 48, 58, 69, 79, 90]
    """
    if decisions < 1 or horizon < 2 * decisions:
        raise ValueError(
            f"got horizon {horizon} with {decisions} decisions, expected at least two inner steps for each decision: "
            f"use a horizon of at least {2 * max(decisions, 1)}, or at most {max(horizon // 2, 1)} decisions"
        )
    early = [0]
    if spacing == "doubling":
        while max(early[-1], 2) * decisions < horizon and max(2 * early[-1], 2) + 2 <= horizon:
            early.append(max(2 * early[-1], 2))
    start = early.pop()
    rest = horizon - start
    # Integer arithmetic, half rounded up: Python's round() goes to the even neighbour.
    count = decisions if start == 0 else max((2 * rest * decisions + horizon) // (2 * horizon), 1)
    return early + [start + (2 * d * rest + count) // (2 * count) for d in range(count)]


def fitting_decisions(decisions: int, horizon: int) -> int:
    """The number of decisions for a run that may be too short for all of them: at most one for every two inner steps.

    Example:
        >>> fitting_decisions(40, horizon=1000), fitting_decisions(40, horizon=30)
        (40, 15)
    """
    return min(decisions, max(horizon // 2, 1))


class Controller(ABC):
    """The interface of every controller. Subclasses are final.

    Attributes:
        schedule: the base schedule that the multiplier multiplies.
        decisions: decisions per run for which it was made; the default in use.
        spacing: of the decisions, as for `decision_steps`.
    """

    schedule: schedules.Schedule
    decisions: int
    spacing: Spacing = "even"

    def __repr__(self) -> str:
        # For controllers with weights, which would fill the screen; the others are dataclasses and have their own.
        named = {name: getattr(self, name, None) for name in ("action", "schedule", "decisions", "spacing", "visible")}
        shown = (f"{name}={value!r}" for name, value in named.items() if value is not None)
        return f"{type(self).__name__}({', '.join(shown)})"

    @abstractmethod
    def init(self, like: Tensor) -> Any:
        """The state before the first decision, with the shape `(num_runs, num_groups)`, dtype and device of `like`."""

    @abstractmethod
    def __call__(self, observation: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Decide once.

        Args:
            observation: `(num_runs, num_groups, NUM_FEATURES)`.
            state: from `init` or the previous decision.

        Returns:
            The multiplier `(num_runs, num_groups)` and the new state.
        """

    def decision_steps(self, horizon: int) -> list[int]:
        """The inner steps of a run at which its decisions fall; a short run has fewer of them.

        Raises:
            ValueError: the horizon is below 2.
        """
        return decision_steps(horizon, fitting_decisions(self.decisions, horizon), self.spacing)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest multiplier; a decision beyond them is cut off."""
        limits = getattr(self, "action", self)
        return getattr(limits, "low", 0.0), getattr(limits, "high", math.inf)

    def base(self, base_lr: Any) -> Any:
        """The LR that its multiplier multiplies, from the base LR; see `ActionSpec.base`."""
        action = getattr(self, "action", None)
        return base_lr if action is None else action.base(base_lr)

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A JSON-able description, `{"kind": …}`, from which `build_controller` rebuilds it, given its `tensors`."""

    def tensors(self) -> dict[str, Tensor]:
        """The learned tensors, by name."""
        return {}

    @abstractmethod
    def with_schedule(self, schedule: schedules.Schedule) -> "Controller":
        """The same controller on another base schedule."""


def acting_config(kind: str, controller: Any) -> dict[str, Any]:
    """The part of `Controller.config` common to all controllers with an action."""
    action = asdict(controller.action)
    if controller.action.reference is None:  # of absolute mode alone; older files have no such entry
        del action["reference"]
    return {
        "kind": kind,
        "action": action,
        "schedule": schedules.to_config(controller.schedule),
        "decisions": controller.decisions,
        "spacing": controller.spacing,
    }


def acting_parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments `action`, `schedule`, `decisions` and `spacing`, from a description that `acting_config` made."""
    return {
        "action": ActionSpec(**config["action"]),
        "schedule": schedules.from_config(config["schedule"]),
        "decisions": int(config["decisions"]),
        "spacing": check_spacing(config["spacing"]),
    }


def check_spacing(spacing: str) -> Spacing:
    """The spacing, once checked.

    Raises:
        ValueError: it is neither "even" nor "doubling".
    """
    if spacing not in get_args(Spacing):
        raise ValueError(f"got spacing {spacing!r}, expected 'even' or 'doubling'")
    return spacing  # type: ignore[return-value]
