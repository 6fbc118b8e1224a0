"""Learned modules as controllers: the recurrent policy, and the way from every module of `metalr.learned`.

A controller made here is exported, saved and compared exactly as one from PPO or DQN.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from metalr import actions, schedules
from metalr.actions import ActionSpec, ActionState
from metalr.controllers import Controller, PolicyController, PolicyNetwork, ScheduleController
from metalr.learned import Learned, OpenLoop
from metalr.learned_policies import ClosedLoop, GRUPolicy, MLPPolicy, gru_cell
from metalr.observations import NUM_FEATURES, feature

_NAMES = (
    "from_input.weight",
    "from_input.bias",
    "from_memory.weight",
    "from_memory.bias",
    "head.weight",
    "head.bias",
)


class RecurrentState(NamedTuple):
    """The policy's memory `(num_runs, num_groups, memory_size)` and the state of its action."""

    memory: Tensor
    action: ActionState


class RecurrentPolicyController(Controller):
    """A gated recurrent policy: observation and memory -> action -> multiplier.

    It computes in the dtype of the observation, as `PolicyController` does.

    Args:
        weights: name -> tensor, of one GRU cell and a linear read-out, with the names of `GRUPolicy`.
        action: how the action sets the multiplier.
        schedule: base schedule.
        decisions: per run.

    Raises:
        ValueError: a tensor is missing, has a wrong shape, or is not finite.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], action: ActionSpec, schedule: schedules.Schedule, decisions: int
    ) -> None:
        if action.levels:
            raise ValueError(f"got a recurrent policy with {action.levels} levels, expected a continuous action")
        self.weights = _checked(weights)
        self.memory_size = self.weights["head.weight"].shape[1]
        self.action = action
        self.schedule = schedule
        self.decisions = decisions

    def init(self, num_runs: int, num_groups: int, like: Tensor) -> RecurrentState:
        memory = torch.zeros((num_runs, num_groups, self.memory_size), dtype=like.dtype, device=like.device)
        return RecurrentState(memory, actions.initial_state(self.action, num_runs, num_groups, like))

    def __call__(self, observation: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        def linear(inputs: Tensor, name: str) -> Tensor:
            weight, bias = (self.weights[f"{name}.{part}"].to(inputs) for part in ("weight", "bias"))
            return functional.linear(inputs, weight, bias)

        memory = gru_cell(linear(observation, "from_input"), linear(state.memory, "from_memory"), state.memory)
        exploded, has_history = feature(observation, "loss_exploded"), feature(observation, "has_history")
        multiplier, action = actions.apply(
            self.action, linear(memory, "head")[..., 0], exploded, has_history, state.action
        )
        return multiplier, RecurrentState(memory, action)

    def config(self) -> dict[str, Any]:
        return {
            "kind": "recurrent",
            "action": asdict(self.action),
            "schedule": schedules.to_config(self.schedule),
            "decisions": self.decisions,
        }

    def with_schedule(self, schedule: schedules.Schedule) -> "RecurrentPolicyController":
        return RecurrentPolicyController(self.weights, self.action, schedule, self.decisions)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.weights)

    @staticmethod
    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "RecurrentPolicyController":
        return RecurrentPolicyController(
            tensors,
            ActionSpec(**config["action"]),
            schedules.from_config(config["schedule"]),
            int(config["decisions"]),
        )


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


def controller_of(learned: Learned, *, schedule: schedules.Schedule | None = None, decisions: int = 40) -> Controller:
    """The controller that a learned module is, ready to be saved, evaluated or put into `LearnedLR`.

    Args:
        learned: an open-loop module with one LR, `MLPPolicy` or `GRUPolicy`.
        schedule: base schedule of a closed-loop policy; constant by default. An open-loop module is one itself.
        decisions: in the card of an open-loop controller, which does not use them.

    Raises:
        ValueError: the module is of another kind, or has several LRs.

    Example:
        >>> from metalr.learned import ConstantLR
        >>> controller_of(ConstantLR(1.0)).schedule
        Constant(value=1.0)
    """
    if isinstance(learned, OpenLoop):
        if schedule is not None:
            raise ValueError(
                f"got base schedule {schedule} for an open-loop {type(learned).__name__}, expected none: it is "
                "the schedule itself"
            )
        return ScheduleController(learned.schedule(), decisions)
    base = schedule or schedules.Constant()
    if isinstance(learned, MLPPolicy):
        layers = [layer for layer in learned.layers if isinstance(layer, nn.Linear)]
        network = PolicyNetwork([layer.weight for layer in layers], [layer.bias for layer in layers])
        return PolicyController(network, learned.action, base, learned.decisions)
    if isinstance(learned, GRUPolicy):
        named = {name: p.detach() for name, p in learned.named_parameters()}
        return RecurrentPolicyController(named, learned.action, base, learned.decisions)
    raise ValueError(
        f"got a {type(learned).__name__}, expected an open-loop module, MLPPolicy or GRUPolicy: "
        f"{'wrap its policy in a Controller of your own' if isinstance(learned, ClosedLoop) else 'use those'}"
    )
