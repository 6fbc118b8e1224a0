"""Feed-forward policies as controllers, with a network that needs no RL library."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metalr import schedules
from metalr.control import actions
from metalr.control.actions import ActionSpec, ActionState
from metalr.control.controller import Controller, Spacing, acting_config, acting_parts
from metalr.signals.observations import NUM_FEATURES, visibility


class PolicyNetwork:
    """A multilayer perceptron with tanh between its layers: features in, action mean or level values out.

    It computes in the dtype of the observation, so that a float64 engine and a float64 loop agree closely.

    Args:
        weights: `(out, in)` for each layer, the first with `num_inputs` inputs.
        biases: `(out,)` for each layer.
        num_inputs: the features, unless something else reads those before.

    Raises:
        ValueError: the layers do not fit together, or a number is not finite.
    """

    def __init__(self, weights: list[Tensor], biases: list[Tensor], num_inputs: int = NUM_FEATURES) -> None:
        self.num_inputs = width = num_inputs
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
        """The outputs `(…, num_outputs)` for observations `(…, NUM_FEATURES)`."""
        present = self._layers[0][0]
        if (present.dtype, present.device) != (observation.dtype, observation.device):
            pairs = zip(self.weights, self.biases, strict=True)
            self._layers = [(weight.to(observation), bias.to(observation)) for weight, bias in pairs]
        hidden = observation
        for index, (weight, bias) in enumerate(self._layers):
            hidden = functional.linear(torch.tanh(hidden) if index else hidden, weight, bias)
        return hidden

    def require_outputs(self, action: ActionSpec) -> None:
        """Check that the network has one output, the mean of the action, or `action.levels`, their values.

        Raises:
            ValueError: it has another number.
        """
        expected = action.levels or 1
        if self.num_outputs != expected:
            raise ValueError(f"got a policy with {self.num_outputs} outputs, expected {expected} for {action}")


def choose_action(outputs: Tensor, action: ActionSpec) -> Tensor:
    """The action in [-1, 1] that the outputs `(…, num_outputs)` of a network mean: a mean, or the level of most value.

    Of three levels, the outputs (0.1, 0.7, 0.3) mean the middle one, the action 0.
    """
    if action.levels:
        return action.level_action(outputs.argmax(-1))
    return outputs[..., 0].clamp(-1.0, 1.0)


def network_tensors(network: PolicyNetwork) -> dict[str, Tensor]:
    """The tensors of a network, by name."""
    named = {f"layers.{i}.weight": weight for i, weight in enumerate(network.weights)}
    return named | {f"layers.{i}.bias": bias for i, bias in enumerate(network.biases)}


def network_from(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], num_inputs: int = NUM_FEATURES
) -> PolicyNetwork:
    """The network of `config["num_layers"]` layers whose `network_tensors` these are.

    Raises:
        ValueError: it has no layers or too many, or see `PolicyNetwork`.
    """
    num_layers = int(config["num_layers"])
    if not 1 <= num_layers <= 16:
        raise ValueError(f"got {num_layers} policy layers, expected 1 to 16")
    weights = [tensors[f"layers.{i}.weight"] for i in range(num_layers)]
    biases = [tensors[f"layers.{i}.bias"] for i in range(num_layers)]
    return PolicyNetwork(weights, biases, num_inputs)


class PolicyController(Controller):
    """A feed-forward policy: observation -> action -> multiplier.

    Args:
        network: with one output (the mean of the action) or `action.levels` outputs (the values of the levels).
        action: how the action sets the multiplier.
        schedule: base schedule.
        decisions: per run.
        visible: features that the policy sees; None for all, `("progress",)` for a state-blind policy.
        spacing: of the decisions.

    Raises:
        ValueError: the network has another number of outputs than the action needs.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        action: ActionSpec,
        schedule: schedules.Schedule,
        decisions: int,
        visible: tuple[str, ...] | None = None,
        spacing: Spacing = "even",
    ) -> None:
        network.require_outputs(action)
        self.network = network
        self.action = action
        self.schedule = schedule
        self.decisions = decisions
        self.spacing = spacing
        self.visible = tuple(visible) if visible is not None else None
        self._mask = None if visible is None else visibility(self.visible, network.weights[0])

    def init(self, like: Tensor) -> ActionState:
        return actions.initial_state(self.action, like)

    def act(self, observation: Tensor) -> Tensor:
        """The policy's action in [-1, 1], `(num_runs, num_groups)`."""
        if self._mask is not None:
            observation = observation * self._mask.to(observation)
        return choose_action(self.network(observation), self.action)

    def __call__(self, observation: Tensor, state: ActionState) -> tuple[Tensor, ActionState]:
        return actions.act(self.action, self.act(observation), observation, state)

    def config(self) -> dict[str, Any]:
        return {
            **acting_config("policy", self),
            "visible": list(self.visible) if self.visible is not None else None,
            "num_layers": len(self.network.weights),
        }

    def with_schedule(self, schedule: schedules.Schedule) -> "PolicyController":
        return PolicyController(self.network, self.action, schedule, self.decisions, self.visible, self.spacing)

    def tensors(self) -> dict[str, Tensor]:
        return network_tensors(self.network)

    @staticmethod
    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "PolicyController":
        """Rebuild the controller from the results of `config` and `tensors`."""
        visible = tuple(config["visible"]) if config.get("visible") is not None else None
        return PolicyController(network_from(config, tensors), **acting_parts(config), visible=visible)
