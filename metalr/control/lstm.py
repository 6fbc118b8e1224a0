"""Policies with long short-term memory as controllers: the recurrent networks of Stable-Baselines3's contributions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from metalr import schedules
from metalr.control import actions
from metalr.control.actions import ActionSpec, ActionState
from metalr.control.controller import Controller, Spacing, acting_config, acting_parts
from metalr.control.policy import PolicyNetwork, choose_action, network_from, network_tensors
from metalr.signals.observations import NUM_FEATURES, visibility

_MOST_CELLS = 8


class LSTMCell(NamedTuple):
    """The weights of one layer, in the form of `torch.nn.LSTM`: the rows of the four gates are i, f, g, o.

    Attributes:
        weight_ih: `(4 · size, inputs)`.
        weight_hh: `(4 · size, size)`.
        bias_ih: `(4 · size,)`.
        bias_hh: `(4 · size,)`.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor


class LSTMState(NamedTuple):
    """The state of a policy with long short-term memory.

    Attributes:
        memory: of each cell, hidden and cell state, `(num_runs, num_groups, num_cells, 2, size)`.
        action: state of the action.
    """

    memory: Tensor
    action: ActionState


class LSTMPolicyController(Controller):
    """Long short-term memory, then a perceptron: observation and memory -> action -> multiplier.

    It computes in the dtype of the observation, as `PolicyController` does.

    Args:
        cells: one or more, all of one size, each reading the one before it.
        head: reads the hidden state of the last cell.
        action: how the action sets the multiplier.
        schedule: base schedule.
        decisions: per run.
        visible: features that the policy sees; None for all.
        spacing: of the decisions.

    Raises:
        ValueError: the shapes do not fit together, or a number is not finite.
    """

    def __init__(
        self,
        cells: Sequence[LSTMCell],
        head: PolicyNetwork,
        action: ActionSpec,
        schedule: schedules.Schedule,
        decisions: int,
        visible: tuple[str, ...] | None = None,
        spacing: Spacing = "even",
    ) -> None:
        self.size = head.num_inputs
        self.cells = [_checked(cell, NUM_FEATURES if i == 0 else self.size, self.size) for i, cell in enumerate(cells)]
        if not 1 <= len(self.cells) <= _MOST_CELLS:
            raise ValueError(f"got {len(self.cells)} cells of long short-term memory, expected 1 to {_MOST_CELLS}")
        head.require_outputs(action)
        self.head = head
        self.action = action
        self.schedule = schedule
        self.decisions = decisions
        self.spacing = spacing
        self.visible = tuple(visible) if visible is not None else None
        self._mask = None if visible is None else visibility(self.visible, self.cells[0].weight_ih)

    def init(self, like: Tensor) -> LSTMState:
        memory = like.new_zeros(*like.shape, len(self.cells), 2, self.size)
        return LSTMState(memory, actions.initial_state(self.action, like))

    def decide(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's action in [-1, 1], `(num_runs, num_groups)`, and the new memory."""
        flow = observation if self._mask is None else observation * self._mask.to(observation)
        new = []
        for cell, (hidden, kept) in zip(self.cells, (part.unbind(-2) for part in memory.unbind(-3)), strict=True):
            flow, kept = lstm_cell(LSTMCell(*(tensor.to(flow) for tensor in cell)), flow, hidden, kept)
            new.append(torch.stack([flow, kept], -2))
        return choose_action(self.head(flow), self.action), torch.stack(new, -3)

    def __call__(self, observation: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        action, memory = self.decide(observation, state.memory)
        multiplier, action_state = actions.act(self.action, action, observation, state.action)
        return multiplier, LSTMState(memory, action_state)

    def config(self) -> dict[str, Any]:
        return {
            **acting_config("lstm", self),
            "visible": None if self.visible is None else list(self.visible),
            "num_cells": len(self.cells),
            "num_layers": len(self.head.weights),
        }

    def with_schedule(self, schedule: schedules.Schedule) -> "LSTMPolicyController":
        return LSTMPolicyController(
            self.cells, self.head, self.action, schedule, self.decisions, self.visible, self.spacing
        )

    def tensors(self) -> dict[str, Tensor]:
        named = {f"cells.{i}.{name}": t for i, cell in enumerate(self.cells) for name, t in cell._asdict().items()}
        return named | network_tensors(self.head)

    @staticmethod
    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "LSTMPolicyController":
        """Rebuild the controller from the results of `config` and `tensors`."""
        num_cells = int(config["num_cells"])
        if not 1 <= num_cells <= _MOST_CELLS:
            raise ValueError(f"got {num_cells} cells of long short-term memory, expected 1 to {_MOST_CELLS}")
        cells = [LSTMCell(*(tensors[f"cells.{i}.{name}"] for name in LSTMCell._fields)) for i in range(num_cells)]
        head = network_from(config, tensors, num_inputs=cells[0].weight_hh.shape[-1])
        visible = tuple(config["visible"]) if config["visible"] is not None else None
        return LSTMPolicyController(cells, head, **acting_parts(config), visible=visible)


def _checked(cell: LSTMCell, inputs: int, size: int) -> LSTMCell:
    shapes = ((4 * size, inputs), (4 * size, size), (4 * size,), (4 * size,))
    for name, tensor, shape in zip(LSTMCell._fields, cell, shapes, strict=True):
        if tuple(tensor.shape) != shape or not bool(tensor.isfinite().all()):
            raise ValueError(
                f"got {name} of shape {tuple(tensor.shape)}, expected finite numbers of shape {shape}: "
                "the file does not belong to this observation version"
            )
    return LSTMCell(*(tensor.detach().clone() for tensor in cell))


def lstm_cell(weights: LSTMCell, inputs: Tensor, hidden: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """One step of long short-term memory, in the form of `torch.nn.LSTM`.

    With gates i, f, o (sigmoid) and candidate g (tanh): kept' = f · kept + i · g and hidden' = o · tanh(kept').

    Source: Hochreiter and Schmidhuber 1997; the forget gate f is from Gers et al. 2000.

    Args:
        weights: of the cell.
        inputs: `(…, inputs)`.
        hidden: `(…, size)`.
        kept: cell state, `(…, size)`.

    Returns:
        The new hidden and cell state.
    """
    gates = functional.linear(inputs, weights.weight_ih, weights.bias_ih)
    gates = gates + functional.linear(hidden, weights.weight_hh, weights.bias_hh)
    i, f, g, o = gates.chunk(4, -1)
    kept = torch.sigmoid(f) * kept + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(kept), kept
