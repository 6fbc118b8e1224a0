"""Controllers that learn nothing: a schedule, random actions, a fixed list of multipliers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from metalr import schedules, seeding
from metalr.control import actions
from metalr.control.actions import ActionSpec, ActionState
from metalr.control.controller import Controller, Spacing, acting_config, acting_parts, check_spacing
from metalr.schedules import Constant, Schedule


@dataclass(frozen=True)
class ScheduleController(Controller):
    """The open-loop controller: a schedule and nothing else; its multiplier is always 1.

    Attributes:
        schedule: base schedule.
        decisions: per run; they change nothing but when the run is observed.
        spacing: of the decisions.
    """

    schedule: schedules.Schedule
    decisions: int = 40
    spacing: Spacing = "even"

    @property
    def bounds(self) -> tuple[float, float]:
        return 1.0, 1.0

    def init(self, like: Tensor) -> tuple:
        return ()

    def __call__(self, observation: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        return torch.ones_like(observation[..., 0]), state

    def config(self) -> dict[str, Any]:
        return {
            "kind": "schedule",
            "schedule": schedules.to_config(self.schedule),
            "decisions": self.decisions,
            "spacing": self.spacing,
        }

    def with_schedule(self, schedule: schedules.Schedule) -> "ScheduleController":
        return replace(self, schedule=schedule)

    @staticmethod
    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "ScheduleController":
        """Rebuild the controller from the results of `config` and `tensors`."""
        schedule, spacing = schedules.from_config(config["schedule"]), check_spacing(config["spacing"])
        return ScheduleController(schedule, int(config["decisions"]), spacing)


@dataclass(frozen=True)
class RandomController(Controller):
    """An ablation: a uniformly random action at every decision.

    Attributes:
        action: how an action sets the multiplier.
        schedule: base schedule.
        decisions: per run.
        seed: of the actions.
        spacing: of the decisions.
    """

    action: ActionSpec = field(default_factory=ActionSpec)
    schedule: schedules.Schedule = field(default_factory=schedules.Constant)
    decisions: int = 40
    seed: int = 0
    spacing: Spacing = "even"

    def init(self, like: Tensor) -> tuple[Tensor, ActionState]:
        """The number of decisions taken, `(num_runs, num_groups)`, and the state of the action."""
        return torch.zeros_like(like), actions.initial_state(self.action, like)

    def __call__(self, observation: Tensor, state: tuple[Tensor, ActionState]) -> tuple[Tensor, tuple]:
        count, action_state = state
        # The observation is the key: runs differ, and none depends on its place in the batch.
        key = (observation.double().sum(-1) * 2.0**40).long()
        action = 2.0 * seeding.uniform(seeding.stream(self.seed, "policy"), key, count.long()) - 1.0
        multiplier, action_state = actions.act(self.action, action, observation, action_state)
        return multiplier, (count + 1.0, action_state)

    def config(self) -> dict[str, Any]:
        return {**acting_config("random", self), "seed": self.seed}

    def with_schedule(self, schedule: schedules.Schedule) -> "RandomController":
        return replace(self, schedule=schedule)

    @staticmethod
    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "RandomController":
        """Rebuild the controller from the results of `config` and `tensors`."""
        return RandomController(**acting_parts(config), seed=int(config["seed"]))


@dataclass(frozen=True)
class ReplayController(Controller):
    """An ablation: a fixed list of multipliers, one for each decision, whatever the observation.

    Attributes:
        multipliers: for decisions 0, 1, …; the last one holds for any further decisions.
        schedule: base schedule.
        spacing: of the decisions.
        even_decisions: per run, where they are evenly spaced; None for one for each multiplier. With early decisions
            there are a few more of them.

    Raises:
        ValueError: the list is empty, or a multiplier is not a positive finite number.

    Example:
        >>> controller = ReplayController((1.0, 0.5))
        >>> observation = torch.zeros(1, 1, 28)
        >>> state = controller.init(observation[..., 0])
        >>> for _ in range(3):
        ...     multiplier, state = controller(observation, state)
        ...     print(multiplier.item())
        1.0
        0.5
        0.5
    """

    multipliers: tuple[float, ...]
    schedule: Schedule = field(default_factory=Constant)
    spacing: Spacing = "even"
    even_decisions: int | None = None

    def __post_init__(self) -> None:
        if not self.multipliers or not all(isinstance(m, float) and 0.0 < m < math.inf for m in self.multipliers):
            raise ValueError(f"got multipliers {self.multipliers}, expected positive finite numbers, at least one")

    @property
    def decisions(self) -> int:  # type: ignore[override]
        """One for each multiplier, unless there are early ones."""
        return len(self.multipliers) if self.even_decisions is None else self.even_decisions

    @property
    def bounds(self) -> tuple[float, float]:
        return min(self.multipliers), max(self.multipliers)

    def init(self, like: Tensor) -> Tensor:
        """The number of decisions taken, `(num_runs, num_groups)`."""
        return torch.zeros_like(like)

    def __call__(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        table = torch.tensor(self.multipliers, dtype=state.dtype, device=state.device)
        return table[state.long().clamp(max=len(self.multipliers) - 1)], state + 1.0

    def with_schedule(self, schedule: Schedule) -> "ReplayController":
        """The same multipliers on another base schedule."""
        return replace(self, schedule=schedule)

    def config(self) -> dict[str, Any]:
        return {
            "kind": "replay",
            "multipliers": list(self.multipliers),
            "schedule": schedules.to_config(self.schedule),
            "spacing": self.spacing,
            "even_decisions": self.even_decisions,
        }

    @staticmethod
    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "ReplayController":
        """Rebuild the controller from the results of `config` and `tensors`."""
        multipliers = tuple(map(float, config["multipliers"]))
        schedule = schedules.from_config(config["schedule"])
        even = config["even_decisions"]
        spacing = check_spacing(config["spacing"])
        return ReplayController(multipliers, schedule, spacing, None if even is None else int(even))
