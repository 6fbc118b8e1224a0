"""A trained Stable-Baselines3 policy becomes a torch-only controller."""

from collections.abc import Iterator
from typing import Any

import gymnasium
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.envs.transition import Transition


def export_policy(model: Any, transition: Transition | None = None) -> PolicyController:
    """The deterministic policy of a PPO or DQN model as a controller.

    Args:
        model: `stable_baselines3.PPO` or `DQN` with an "MlpPolicy" of tanh layers, trained on observations as the
            environment gives them. The action, the base schedule, the decisions and the visible features are those of
            its environment.
        transition: the core of that environment, for a model that was loaded without one.

    Raises:
        ValueError: the policy is not a plain tanh network over the observation, something between environment and
            policy changes the observations, or there is no environment.
    """
    for layer in _wrappers(model.get_env()):
        if (isinstance(layer, VecNormalize) and layer.norm_obs) or isinstance(layer, gymnasium.ObservationWrapper):
            raise ValueError(
                f"got a model behind {type(layer).__name__}, expected one that sees the observations as they are, "
                "since a controller in a training loop has nothing that would change them: train without it, or with "
                "VecNormalize(norm_obs=False); every feature lies in [-1, 1] already"
            )
        transition = getattr(layer, "transition", transition)
    if transition is None:
        raise ValueError(
            f"got a {type(model).__name__} without its environment, expected one on metalr/LRControl-v0: "
            "pass transition=env.transition"
        )
    network = PolicyNetwork(*_layers(model.policy))
    config = transition.config
    return PolicyController(network, config.action, transition.groups[0].schedule, config.decisions, config.visible)


def _wrappers(env: Any) -> Iterator[Any]:
    """An environment of Stable-Baselines3 and everything inside it, from the outside; of several equals the first."""
    while env is not None:
        yield env
        env = getattr(env, "venv", None) or next(iter(getattr(env, "envs", [])), None) or getattr(env, "env", None)


def _layers(policy: Any) -> tuple[list, list]:
    """Weights and biases of a policy's network."""
    is_q = hasattr(policy, "q_net")
    layers = list(policy.q_net.q_net) if is_q else [*policy.mlp_extractor.policy_net, policy.action_net]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    between = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    if not linear or any(not isinstance(layer, nn.Tanh) for layer in between) or len(between) != len(linear) - 1:
        raise ValueError(
            f"got a policy of layers {layers}, expected linear layers with tanh between them: "
            'pass policy_kwargs={"activation_fn": torch.nn.Tanh}'
        )
    extractor = policy.q_net.features_extractor if is_q else policy.pi_features_extractor
    if type(extractor) is not FlattenExtractor or getattr(policy, "squash_output", False):
        raise ValueError(
            f"got a policy with {type(extractor).__name__} or squashed actions, expected its layers to be all that "
            "lies between observation and action: train without features_extractor_class and squash_output"
        )
    return [layer.weight.cpu() for layer in linear], [layer.bias.cpu() for layer in linear]
