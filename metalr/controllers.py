"""Controllers: pure state machines from an observation to an LR multiplier, batched for free.

    state = controller.init(num_runs, num_groups, like)
    lr_multiplier, state = controller(observation, state)

The LR in force is base_lr · controller.schedule(progress) · lr_multiplier. A schedule is the controller that
ignores the observation. The engine, the environment and the exported scheduler all drive the same objects.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metalr import actions, schedules, seeding
from metalr.actions import ActionSpec, ActionState
from metalr.observations import NUM_FEATURES, feature, visibility


def decision_steps(horizon: int, decisions: int) -> list[int]:
    """Inner steps at which the decisions fall: round(d · horizon / decisions) for d = 0, 1, ….

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
    """What every controller is. Subclasses are final.

    Attributes:
        schedule: the base schedule that the multiplier multiplies.
        decisions: decisions per run it was made for; the default when it is used.
    """

    schedule: schedules.Schedule
    decisions: int

    @abstractmethod
    def init(self, num_runs: int, num_groups: int, like: Tensor) -> Any:
        """The state before the first decision, in the dtype and on the device of `like`."""

    @abstractmethod
    def __call__(self, observation: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One decision.

        Args:
            observation: `(num_runs, num_groups, NUM_FEATURES)`.
            state: from `init` or the last decision.

        Returns:
            The multiplier `(num_runs, num_groups)` and the new state.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """JSON-able description, `{"kind": …}`; with `tensors` it rebuilds the controller."""

    def tensors(self) -> dict[str, Tensor]:
        """The learned numbers, by name."""
        return {}

    @abstractmethod
    def with_schedule(self, schedule: schedules.Schedule) -> "Controller":
        """The same controller on another base schedule."""


@dataclass(frozen=True)
class ScheduleController(Controller):
    """The open-loop controller: a schedule and nothing else; its multiplier is 1."""

    schedule: schedules.Schedule
    decisions: int = 40

    def init(self, num_runs: int, num_groups: int, like: Tensor) -> tuple:
        return ()

    def __call__(self, observation: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        return torch.ones_like(observation[..., 0]), state

    def config(self) -> dict[str, Any]:
        return {
            "kind": "schedule",
            "schedule": schedules.to_config(self.schedule),
            "decisions": self.decisions,
        }

    def with_schedule(self, schedule: schedules.Schedule) -> "ScheduleController":
        return replace(self, schedule=schedule)

    @staticmethod
    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "ScheduleController":
        return ScheduleController(schedules.from_config(config["schedule"]), int(config["decisions"]))


@dataclass(frozen=True)
class RandomController(Controller):
    """A control: a uniformly random action at every decision, from a seed."""

    action: ActionSpec = field(default_factory=ActionSpec)
    schedule: schedules.Schedule = field(default_factory=schedules.Constant)
    decisions: int = 40
    seed: int = 0

    def init(self, num_runs: int, num_groups: int, like: Tensor) -> tuple[Tensor, ActionState]:
        """Decisions taken, `(num_runs, num_groups)`, and the action's state."""
        count = torch.zeros((num_runs, num_groups), dtype=like.dtype, device=like.device)
        return count, actions.initial_state(self.action, num_runs, num_groups, like)

    def __call__(self, observation: Tensor, state: tuple[Tensor, ActionState]) -> tuple[Tensor, tuple]:
        count, action_state = state
        # What a run sees is its key: runs differ, and a run does not depend on its place in the batch.
        key = (observation.double().sum(-1) * 2.0**40).long()
        action = 2.0 * seeding.uniform(seeding.stream(self.seed, "policy"), key, count.long()) - 1.0
        multiplier, action_state = _act(self.action, action, observation, action_state)
        return multiplier, (count + 1.0, action_state)

    def config(self) -> dict[str, Any]:
        return {
            "kind": "random",
            "action": asdict(self.action),
            "schedule": schedules.to_config(self.schedule),
            "decisions": self.decisions,
            "seed": self.seed,
        }

    def with_schedule(self, schedule: schedules.Schedule) -> "RandomController":
        return replace(self, schedule=schedule)

    @staticmethod
    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "RandomController":
        return RandomController(**_common(config), seed=int(config["seed"]))


def _act(spec: ActionSpec, action: Tensor, observation: Tensor, state: ActionState) -> tuple[Tensor, ActionState]:
    exploded, has_history = feature(observation, "loss_exploded"), feature(observation, "has_history")
    return actions.apply(spec, action, exploded, has_history, state)


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "action": ActionSpec(**config["action"]),
        "schedule": schedules.from_config(config["schedule"]),
        "decisions": int(config["decisions"]),
    }


class PolicyNetwork:
    """A multilayer perceptron with tanh between its layers: features in, action mean or level values out.

    It computes in the dtype of the observation, so that a float64 engine and a float64 loop agree closely.

    Args:
        weights: for each layer `(out, in)`, the first with NUM_FEATURES inputs.
        biases: for each layer `(out,)`.

    Raises:
        ValueError: the shapes do not chain, or a number is not finite.
    """

    def __init__(self, weights: list[Tensor], biases: list[Tensor]) -> None:
        width = NUM_FEATURES
        for weight, bias in zip(weights, biases, strict=True):
            if weight.dim() != 2 or weight.shape[1] != width or tuple(bias.shape) != (weight.shape[0],):
                raise ValueError(
                    f"got a policy layer of shapes {tuple(weight.shape)} and {tuple(bias.shape)}, expected "
                    f"(out, {width}) and (out,): the file does not belong to this observation version"
                )
            if not (weight.isfinite().all() and bias.isfinite().all()):
                raise ValueError("got policy weights that are not finite, expected numbers: export the policy again")
            width = weight.shape[0]
        self.weights = [weight.detach().clone() for weight in weights]
        self.biases = [bias.detach().clone() for bias in biases]
        self.num_outputs = width
        self._layers = list(zip(self.weights, self.biases, strict=True))

    def __call__(self, observation: Tensor) -> Tensor:
        """`(…, NUM_FEATURES)` -> `(…, num_outputs)`."""
        present = self._layers[0][0]
        if (present.dtype, present.device) != (observation.dtype, observation.device):
            pairs = zip(self.weights, self.biases, strict=True)
            self._layers = [(weight.to(observation), bias.to(observation)) for weight, bias in pairs]
        hidden = observation
        for index, (weight, bias) in enumerate(self._layers):
            hidden = functional.linear(torch.tanh(hidden) if index else hidden, weight, bias)
        return hidden


class PolicyController(Controller):
    """A learned policy: the observation goes through a small network, its action through `metalr.actions`.

    Args:
        network: one output (the action's mean) or `action.levels` outputs (values of the levels).
        action: how the action sets the multiplier.
        schedule: base schedule.
        decisions: per run.
        visible: features that the policy sees; None for all, `("progress",)` for a state-blind one.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        action: ActionSpec,
        schedule: schedules.Schedule,
        decisions: int,
        visible: tuple[str, ...] | None = None,
    ) -> None:
        expected = action.levels or 1
        if network.num_outputs != expected:
            raise ValueError(f"got a policy with {network.num_outputs} outputs, expected {expected} for {action}")
        self.network = network
        self.action = action
        self.schedule = schedule
        self.decisions = decisions
        self.visible = tuple(visible) if visible is not None else None
        self._mask = None if visible is None else visibility(self.visible, network.weights[0])

    def init(self, num_runs: int, num_groups: int, like: Tensor) -> ActionState:
        return actions.initial_state(self.action, num_runs, num_groups, like)

    def act(self, observation: Tensor) -> Tensor:
        """The policy's action in [-1, 1], `(num_runs, num_groups)`."""
        if self._mask is not None:
            observation = observation * self._mask.to(observation)
        outputs = self.network(observation)
        if self.action.levels:
            return self.action.level_action(outputs.argmax(-1))
        return outputs[..., 0].clamp(-1.0, 1.0)

    def __call__(self, observation: Tensor, state: ActionState) -> tuple[Tensor, ActionState]:
        return _act(self.action, self.act(observation), observation, state)

    def config(self) -> dict[str, Any]:
        return {
            "kind": "policy",
            "action": asdict(self.action),
            "schedule": schedules.to_config(self.schedule),
            "decisions": self.decisions,
            "visible": list(self.visible) if self.visible is not None else None,
            "num_layers": len(self.network.weights),
        }

    def with_schedule(self, schedule: schedules.Schedule) -> "PolicyController":
        return PolicyController(self.network, self.action, schedule, self.decisions, self.visible)

    def tensors(self) -> dict[str, Tensor]:
        named = {f"layers.{i}.weight": weight for i, weight in enumerate(self.network.weights)}
        return named | {f"layers.{i}.bias": bias for i, bias in enumerate(self.network.biases)}

    @staticmethod
    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "PolicyController":
        num_layers = int(config["num_layers"])
        if not 1 <= num_layers <= 16:
            raise ValueError(f"got {num_layers} policy layers, expected 1 to 16")
        weights = [tensors[f"layers.{i}.weight"] for i in range(num_layers)]
        biases = [tensors[f"layers.{i}.bias"] for i in range(num_layers)]
        visible = tuple(config["visible"]) if config.get("visible") is not None else None
        return PolicyController(PolicyNetwork(weights, biases), **_common(config), visible=visible)
