"""A trained Stable-Baselines3 policy becomes a torch-only controller."""

from typing import Any

from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from metalr.agents.network_export import acting_options, policy_controller, tanh_layers, transition_of
from metalr.control.lstm import LSTMCell, LSTMPolicyController
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.envs.transition import Transition


def export_policy(model: Any, transition: Transition | None = None) -> PolicyController | LSTMPolicyController:
    """The deterministic policy of a PPO, A2C, DQN or RecurrentPPO model as a controller.

    Args:
        model: of Stable-Baselines3 or its contributions, with an "MlpPolicy" or "MlpLstmPolicy" of tanh layers, trained
            on observations as the environment gives them. The action, the base schedule, the decisions and the visible
            features are those of its environment.
        transition: the core of that environment, for a model that was loaded without one.

    Raises:
        ValueError: the policy is of another kind, which the message names; something between environment and policy
            changes the observations; or there is no environment.
    """
    env = model.get_env()
    if env is None and transition is None:
        raise ValueError(
            f"got a {type(model).__name__} without its environment, expected one on metalr/LRControl-v0: "
            "pass transition=env.transition"
        )
    transition = transition_of(transition if env is None else env)
    policy = model.policy
    if hasattr(policy, "q_net"):
        _require_plain(policy, policy.q_net.features_extractor)
        return policy_controller(PolicyNetwork(*tanh_layers(policy.q_net.q_net)), transition)
    if not hasattr(policy, "mlp_extractor"):
        raise ValueError(
            f"got a {type(model).__name__} with a {type(policy).__name__}, expected PPO, A2C, DQN or RecurrentPPO, "
            "whose deterministic action is the output of linear layers: train one of them"
        )
    _require_plain(policy, policy.pi_features_extractor)
    layers = [*policy.mlp_extractor.policy_net, policy.action_net]
    if not hasattr(policy, "lstm_actor"):
        return policy_controller(PolicyNetwork(*tanh_layers(layers)), transition)
    cells = _cells(policy.lstm_actor)
    size = policy.lstm_actor.hidden_size
    head = PolicyNetwork(*tanh_layers(layers, size), num_inputs=size)
    return LSTMPolicyController(cells, head, **acting_options(transition))


def _require_plain(policy: Any, extractor: nn.Module) -> None:
    if type(extractor) is not FlattenExtractor or getattr(policy, "squash_output", False):
        raise ValueError(
            f"got a policy with {type(extractor).__name__} or squashed actions, expected its layers to be all that "
            "lies between observation and action: train without features_extractor_class and squash_output"
        )


def _cells(lstm: nn.LSTM) -> list[LSTMCell]:
    if lstm.bidirectional or lstm.proj_size or not lstm.bias:
        raise ValueError(
            f"got {lstm}, expected one direction, biases and no projection: train without such lstm_kwargs"
        )
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [LSTMCell(*(getattr(lstm, f"{name}_l{i}").cpu() for name in names)) for i in range(lstm.num_layers)]
