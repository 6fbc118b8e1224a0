"""Recurrent policies as controllers, exported, saved and compared exactly as those from PPO or DQN."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from metalr import schedules
from metalr.control import actions
from metalr.control.actions import ActionSpec, ActionState
from metalr.control.controller import Controller, Spacing, acting_config, acting_parts
from metalr.signals.observations import NUM_FEATURES, visibility

_NAMES = (
    "from_input.weight",
    "from_input.bias",
    "from_memory.weight",
    "from_memory.bias",
    "head.weight",
    "head.bias",
)


class RecurrentState(NamedTuple):
    """The state of a recurrent policy.

    Attributes:
        memory: hidden state, `(num_runs, num_groups, memory_size)`.
        action: state of the action.
    """

    memory: Tensor
    action: ActionState


class RecurrentPolicyController(Controller):
    """A gated recurrent policy: observation and memory -> action -> multiplier.

    It computes in the dtype of the observation, as `PolicyController` does.

    Args:
        weights: name -> tensor, of one GRU cell and a linear read-out, named as the parameters of `GRUPolicy`.
        action: how the action sets the multiplier.
        schedule: base schedule.
        decisions: per run.
        visible: features that the policy sees; None for all.
        spacing: of the decisions.

    Raises:
        ValueError: a tensor is missing, has the wrong shape or is not finite, or the action has levels.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        action: ActionSpec,
        schedule: schedules.Schedule,
        decisions: int,
        visible: tuple[str, ...] | None = None,
        spacing: Spacing = "even",
    ) -> None:
        if action.levels:
            raise ValueError(f"got a recurrent policy with {action.levels} levels, expected a continuous action")
        self.weights = _checked(weights)
        self.memory_size = self.weights["head.weight"].shape[1]
        self.action = action
        self.schedule = schedule
        self.decisions = decisions
        self.spacing = spacing
        self.visible = tuple(visible) if visible is not None else None
        self._mask = None if visible is None else visibility(self.visible, self.weights["head.weight"])

    def init(self, like: Tensor) -> RecurrentState:
        memory = like.new_zeros(*like.shape, self.memory_size)
        return RecurrentState(memory, actions.initial_state(self.action, like))

    def decide(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's action `(num_runs, num_groups)`, not yet clipped, and the new memory."""

        def linear(inputs: Tensor, name: str) -> Tensor:
            weight, bias = (self.weights[f"{name}.{part}"].to(inputs) for part in ("weight", "bias"))
            return functional.linear(inputs, weight, bias)

        seen = observation if self._mask is None else observation * self._mask.to(observation)
        memory = gru_cell(linear(seen, "from_input"), linear(memory, "from_memory"), memory)
        return linear(memory, "head")[..., 0], memory

    def __call__(self, observation: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        action, memory = self.decide(observation, state.memory)
        multiplier, action_state = actions.act(self.action, action, observation, state.action)
        return multiplier, RecurrentState(memory, action_state)

    def config(self) -> dict[str, Any]:
        visible = None if self.visible is None else list(self.visible)
        return {**acting_config("recurrent", self), "visible": visible}

    def with_schedule(self, schedule: schedules.Schedule) -> "RecurrentPolicyController":
        return RecurrentPolicyController(
            self.weights, self.action, schedule, self.decisions, self.visible, self.spacing
        )

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.weights)

    @staticmethod
    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "RecurrentPolicyController":
        """Rebuild the controller from the results of `config` and `tensors`."""
        visible = tuple(config["visible"]) if config["visible"] is not None else None
        return RecurrentPolicyController(tensors, **acting_parts(config), visible=visible)


def _checked(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    missing = [name for name in _NAMES if name not in weights]
    if missing:
        raise ValueError(f"got a recurrent policy without {missing}, expected {list(_NAMES)}: export it again")
    size = weights["from_memory.weight"].shape[-1]
    shapes = ((3 * size, NUM_FEATURES), (3 * size,), (3 * size, size), (3 * size,), (1, size), (1,))
    for name, shape in zip(_NAMES, shapes, strict=True):
        if tuple(weights[name].shape) != shape or not bool(weights[name].isfinite().all()):
            raise ValueError(
                f"got {name} of shape {tuple(weights[name].shape)}, expected finite numbers of shape {shape}: "
                "the file does not belong to this observation version"
            )
    return {name: weights[name].detach().clone() for name in _NAMES}


def gru_cell(driven: Tensor, recurrent: Tensor, memory: Tensor) -> Tensor:
    """One step of a gated recurrent unit, in the form of `torch.nn.GRUCell`.

    With reset gate r, update gate z and candidate n: memory' = n + z · (memory - n), where
    r = sigmoid(x_r + h_r), z = sigmoid(x_z + h_z) and n = tanh(x_n + r · h_n).

    Source: Cho et al. 2014, arXiv 1406.1078, section 2.3; here r multiplies after the linear map, as in cuDNN.

    Args:
        driven: linear map x of the input, `(…, 3 · memory_size)`: r, z and n in this order.
        recurrent: linear map h of the memory, in the same shape.
        memory: `(…, memory_size)`.

    Returns:
        The new memory, `(…, memory_size)`.
    """
    reset_x, update_x, new_x = driven.chunk(3, -1)
    reset_h, update_h, new_h = recurrent.chunk(3, -1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return new + update * (memory - new)
