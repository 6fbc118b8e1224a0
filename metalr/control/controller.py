"""Controllers: pure state machines from an observation to an LR multiplier, batched for free.

    state = controller.init(like)
    lr_multiplier, state = controller(observation, state)

The LR in force is base_lr · controller.schedule(progress) · lr_multiplier. A schedule is the controller that
ignores the observation. The engine, the environment and the exported scheduler drive the same objects.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from metalr import schedules
from metalr.control.actions import ActionSpec


def decision_steps(horizon: int, decisions: int) -> list[int]:
    """The inner steps at which decisions fall: round(d · horizon / decisions) for d = 0, 1, ….

    Raises:
        ValueError: fewer than two inner steps for each decision.

    Example:
        >>> decision_steps(10, 4)
        [0, 3, 5, 8]
    """
    if decisions < 1 or horizon < 2 * decisions:
        raise ValueError(
            f"got horizon {horizon} with {decisions} decisions, expected at least two inner steps for each decision: "
            f"use a horizon of at least {2 * max(decisions, 1)}, or at most {max(horizon // 2, 1)} decisions"
        )
    # Integer arithmetic, half rounded up: Python's round() goes to the even neighbour.
    return [(2 * d * horizon + decisions) // (2 * decisions) for d in range(decisions)]


class Controller(ABC):
    """The interface of every controller. Subclasses are final.

    Attributes:
        schedule: the base schedule that the multiplier multiplies.
        decisions: decisions per run for which it was made; the default in use.
    """

    schedule: schedules.Schedule
    decisions: int

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
    return {
        "kind": kind,
        "action": asdict(controller.action),
        "schedule": schedules.to_config(controller.schedule),
        "decisions": controller.decisions,
    }


def acting_parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments `action`, `schedule` and `decisions`, from a description that `acting_config` made."""
    return {
        "action": ActionSpec(**config["action"]),
        "schedule": schedules.from_config(config["schedule"]),
        "decisions": int(config["decisions"]),
    }
