"""RecurrentPPO of Stable-Baselines3's contributions: trained, exported, and the same actions decision by decision."""

import numpy as np
import pytest
import torch
from torch import nn

from metalr.control.actions import ActionSpec
from metalr.control.lstm import LSTMPolicyController
from metalr.schedules import Constant
from metalr.tasks.catalog import make_task
from tests.integrations.installed import library

contrib = library("sb3_contrib")

import metalr  # noqa: E402
from metalr.agents.sb3_export import export_policy  # noqa: E402
from metalr.agents.sb3_vec_env import LRControlVecEnv  # noqa: E402
from metalr.artefacts.controller_file import load_controller, save_controller  # noqa: E402
from metalr.envs.transition import EnvConfig, Transition  # noqa: E402


def transition(levels=0):
    action = ActionSpec(alpha=1.0, levels=levels)
    return Transition([make_task("teacher-student", horizon=40)], 4, EnvConfig(10, action, schedule=Constant()), 3)


def model_of(core, **policy_kwargs):
    env = LRControlVecEnv(core)
    kwargs = {"lstm_hidden_size": 16, **policy_kwargs}
    return contrib.RecurrentPPO(
        "MlpLstmPolicy", env, n_steps=10, batch_size=20, seed=0, device="cpu", policy_kwargs=kwargs
    )


@pytest.mark.parametrize(
    ("levels", "kwargs"),
    [
        (0, {}),
        (7, {}),
        (0, {"n_lstm_layers": 2, "net_arch": []}),
        (0, {"enable_critic_lstm": False, "shared_lstm": True, "net_arch": {"pi": [8], "vf": [8]}}),
    ],
)
def test_the_exported_controller_acts_as_the_policy(levels, kwargs, tmp_path):
    core = transition(levels)
    model = model_of(core, **kwargs)
    model.learn(80)
    path = save_controller(tmp_path / "c.safetensors", export_policy(model))
    controller = load_controller(path)
    assert isinstance(controller, LSTMPolicyController)
    env = model.get_env()
    seen, start, memory = env.reset(), np.ones(4, dtype=bool), None
    own = controller.init(torch.zeros(4, 1)).memory
    gap, actions = 0.0, []
    for _ in range(10):
        chosen, memory = model.predict(seen, state=memory, episode_start=start, deterministic=True)
        mine, own = controller.decide(torch.as_tensor(seen)[:, None], own)
        expected = torch.as_tensor(chosen).view(4, 1)
        expected = core.config.action.level_action(expected) if levels else expected
        gap = max(gap, float((mine - expected).abs().max()))
        actions.append(expected)
        seen, _, start, _ = env.step(chosen)
    assert levels or torch.stack(actions).unique().numel() > 20  # it does not do the same all the time
    print(f"RecurrentPPO {levels} levels {kwargs}: largest difference of an action {gap:.1e} in 40 decisions")
    assert gap < 1e-6


def test_in_a_users_loop(tmp_path):
    model = model_of(transition())
    model.learn(40)
    path = save_controller(tmp_path / "c.safetensors", export_policy(model))
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    scheduler = metalr.load_scheduler(path, optimizer, horizon=40)
    x = torch.randn(64, 3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        scheduler.step()
    assert len(scheduler.history) == 10
    assert loss.item() < 0.5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"activation_fn": nn.ReLU}, r"ReLU.*expected linear layers with tanh"),
        ({"lstm_kwargs": {"bias": False}}, r"got LSTM.*bias=False.*expected one direction, biases"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        export_policy(model_of(transition(), **kwargs))


def test_an_agent_of_another_kind_is_refused_by_name():
    sb3 = library("stable_baselines3")
    env = LRControlVecEnv(transition())
    for algorithm in (sb3.SAC, sb3.TD3, contrib.TQC):
        model = algorithm("MlpPolicy", env, device="cpu", buffer_size=100)
        with pytest.raises(ValueError, match=f"got a {algorithm.__name__} with a .*, expected PPO, A2C, DQN"):
            export_policy(model)
    model = contrib.QRDQN("MlpPolicy", LRControlVecEnv(transition(levels=5)), device="cpu", buffer_size=100)
    with pytest.raises(ValueError, match="got a QRDQN with a QRDQNPolicy"):
        export_policy(model)
