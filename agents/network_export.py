"""A trained network that is no more than its layers becomes a torch-only controller: an actor of CleanRL, say."""

from collections.abc import Iterable
from typing import Any

import gymnasium
from torch import Tensor, nn

from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.envs.transition import Transition
from metalr.signals.observations import NUM_FEATURES


def export_network(network: nn.Sequential, env: Any) -> PolicyController:
    """The deterministic policy of a bare network as a controller.

    Args:
        network: linear layers with tanh between them, trained on observations as the environment gives them. Its output
            is the mean of the action, or one value or logit for each level, of which the largest is taken.
        env: the environment in which it was trained, single or vectorised, or its `transition`. The action, the base
            schedule, the decisions and the visible features are its own.

    Raises:
        ValueError: the network has other layers or outputs, or a wrapper changes the observations.
    """
    transition = transition_of(env)
    return policy_controller(PolicyNetwork(*tanh_layers(network)), transition)


def policy_controller(network: PolicyNetwork, transition: Transition) -> PolicyController:
    """The controller of a network that was trained in an environment."""
    return PolicyController(network, **acting_options(transition))


def acting_options(transition: Transition) -> dict[str, Any]:
    """The arguments of a controller that follow from the environment in which its policy was trained."""
    config = transition.config
    return {
        "action": config.action,
        "schedule": transition.schedule,
        "decisions": config.decisions,
        "visible": config.visible,
    }


def transition_of(env: Any) -> Transition:
    """The core of an environment.

    Args:
        env: of Gymnasium or Stable-Baselines3, with wrappers or without, or the core itself.

    Raises:
        ValueError: a wrapper changes the observations, or this is no environment of ours.
    """
    kind = type(env).__name__
    while env is not None and not isinstance(env, Transition):
        if _changes_observations(env):
            raise ValueError(
                f"got a model behind {type(env).__name__}, expected one that sees the observations as they are, "
                "since a controller in a training loop has nothing that would change them: train without it, or with "
                "VecNormalize(norm_obs=False); every feature lies in [-1, 1] already"
            )
        several = getattr(env, "envs", None) or (None,)  # all equal
        inside = [getattr(env, "venv", None), getattr(env, "env", None), several[0], getattr(env, "transition", None)]
        env = next((found for found in inside if found is not None), None)
    if env is None:
        raise ValueError(
            f"got a {kind} in which there is no metalr/LRControl-v0, expected one: pass the environment of the "
            "training, or its transition"
        )
    return env


def _changes_observations(env: Any) -> bool:
    is_wrapper = isinstance(env, gymnasium.ObservationWrapper | gymnasium.vector.VectorObservationWrapper)
    return is_wrapper or bool(vars(env).get("norm_obs"))  # that of VecNormalize; other wrappers pass on its attributes


def tanh_layers(layers: Iterable[nn.Module], num_inputs: int = NUM_FEATURES) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of linear layers with tanh between them.

    Args:
        layers: of the network, in order.
        num_inputs: of the first.

    Raises:
        ValueError: there is another layer, which the message names.
    """
    layers = list(layers)
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    between = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    alternate = layers[::2] == linear and len(between) == len(linear) - 1
    if not alternate or any(not isinstance(layer, nn.Tanh) for layer in between):
        raise ValueError(
            f"got a policy of layers {layers}, expected linear layers with tanh between them: "
            'pass policy_kwargs={"activation_fn": torch.nn.Tanh}, or build the network of them'
        )
    if linear[0].in_features != num_inputs or any(layer.bias is None for layer in linear):
        raise ValueError(
            f"got a policy of layers {layers}, expected {num_inputs} inputs and layers with a bias: train it on the "
            "observations as they are"
        )
    return [layer.weight.cpu() for layer in linear], [layer.bias.cpu() for layer in linear]
