"""An agent in the form of CleanRL: one file, a bare `nn.Sequential` actor, an environment made by its prefixed name."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tests.integrations.installed import library

gymnasium = library("gymnasium")

from metalr.agents.network_export import export_network  # noqa: E402
from metalr.signals.observations import NUM_FEATURES  # noqa: E402

# The name needs no import: Gymnasium imports what is before the colon.
ID = "metalr.envs:metalr/LRControl-v0"
OPTIONS = {"task": "teacher-student", "horizon": 40, "decisions": 10, "alpha": 1.0}


def test_the_prefix_needs_no_import():
    code = f"""
import gymnasium, sys
assert "metalr" not in sys.modules
env = gymnasium.make({ID!r}, task="teacher-student", horizon=40, decisions=10)
env.reset(seed=0)
print(env.step(env.action_space.sample())[0].shape, gymnasium.make_vec({ID!r}, 3, task="teacher-student").num_envs)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.split("\n")[0] == f"({NUM_FEATURES},) 3", result.stderr


def make_env(wrap=lambda env: env, **options):
    return lambda: wrap(gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(ID, **OPTIONS, **options)))


def layer_init(layer, std=2**0.5):
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, 0.0)
    return layer


def actor(outputs=1, activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(
        layer_init(nn.Linear(NUM_FEATURES, 64)),
        activation(),
        layer_init(nn.Linear(64, 64)),
        activation(),
        layer_init(nn.Linear(64, outputs), std=0.1),
    )


def train(network, envs, updates=3):
    """Policy gradients of the simplest kind: what trains the actor does not matter to its export."""
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(updates):
        seen, _ = envs.reset(seed=1)
        logs, rewards = [], []
        for _ in range(OPTIONS["decisions"]):
            distribution = torch.distributions.Normal(network(torch.as_tensor(seen)), 0.3)
            action = distribution.sample()
            seen, reward, *_ = envs.step(action.clamp(-1.0, 1.0).numpy())
            logs.append(distribution.log_prob(action).sum(-1))
            rewards.append(torch.as_tensor(reward))
        returns = torch.stack(rewards).sum(0)
        loss = -(torch.stack(logs).sum(0) * (returns - returns.mean())).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("levels", [0, 5])
def test_an_actor_is_exported(levels):
    envs = gymnasium.vector.SyncVectorEnv([make_env(levels=levels) for _ in range(2)])
    network = actor(levels or 1)
    if not levels:
        train(network, envs)
    controller = export_network(network, envs)
    assert controller.decisions == 10
    assert controller.action.alpha == 1.0
    seen, _ = envs.reset(seed=5)
    for _ in range(OPTIONS["decisions"]):
        with torch.no_grad():
            output = network(torch.as_tensor(seen))
        mine = controller.act(torch.as_tensor(seen)[:, None])
        if levels:
            action = output.argmax(-1)
            expected = controller.action.level_action(action)[:, None]
        else:
            action = expected = output.clamp(-1.0, 1.0)
        assert torch.equal(mine, expected)
        seen, *_ = envs.step(np.asarray(action))


@pytest.mark.parametrize("vectorised", [False, True])
def test_the_environment_may_be_single_or_native(vectorised):
    env = gymnasium.make_vec(ID, 3, **OPTIONS) if vectorised else make_env()()
    assert export_network(actor(), env).decisions == 10
    assert export_network(actor(), env.unwrapped.transition).decisions == 10


def test_what_cannot_be_exported_is_refused_by_name():
    env = make_env()()
    with pytest.raises(ValueError, match=r"ReLU.*expected linear layers with tanh between them"):
        export_network(actor(activation=nn.ReLU), env)
    with pytest.raises(ValueError, match=r"LayerNorm.*expected linear layers with tanh between them"):
        export_network(nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 1)), env)
    with pytest.raises(ValueError, match="expected linear layers with tanh between them"):
        export_network(nn.Sequential(*actor(), nn.Tanh()), env)
    with pytest.raises(ValueError, match=f"expected {NUM_FEATURES} inputs and layers with a bias"):
        export_network(nn.Sequential(nn.Linear(4, 1)), env)
    with pytest.raises(ValueError, match="got a policy with 3 outputs, expected 1"):
        export_network(actor(3), env)
    normalised = make_env(gymnasium.wrappers.NormalizeObservation)
    for behind in (normalised(), gymnasium.vector.SyncVectorEnv([normalised])):
        with pytest.raises(ValueError, match="got a model behind NormalizeObservation"):
            export_network(actor(), behind)
    with pytest.raises(ValueError, match="got a CartPoleEnv in which there is no metalr/LRControl-v0"):
        export_network(actor(), gymnasium.make("CartPole-v1").unwrapped)
