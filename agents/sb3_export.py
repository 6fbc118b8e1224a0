"""A trained Stable-Baselines3 policy becomes a torch-only controller."""

from typing import Any

from torch import nn

from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.envs.transition import EnvConfig
from metalr.schedules import Schedule


def export_policy(model: Any, config: EnvConfig, schedule: Schedule) -> PolicyController:
    """The deterministic policy of a PPO or DQN model as a controller.

    Args:
        model: `stable_baselines3.PPO` or `DQN` with an "MlpPolicy" of tanh layers.
        config: of the environment that it was trained in.
        schedule: the base schedule of that environment.

    Raises:
        ValueError: the policy is not a plain tanh network over the observation.
    """
    if hasattr(model.policy, "q_net"):
        layers = list(model.policy.q_net.q_net)
    else:
        layers = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    between = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    if not linear or any(not isinstance(layer, nn.Tanh) for layer in between) or len(between) != len(linear) - 1:
        raise ValueError(
            f"got a policy of layers {layers}, expected linear layers with tanh between them: "
            'pass policy_kwargs={"activation_fn": torch.nn.Tanh}'
        )
    network = PolicyNetwork([layer.weight.cpu() for layer in linear], [layer.bias.cpu() for layer in linear])
    return PolicyController(network, config.action, schedule, config.decisions, config.visible)
