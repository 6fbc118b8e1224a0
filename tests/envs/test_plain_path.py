"""The environment on the plain path: a residual network with batch normalisation and dropout as an episode."""

from functools import partial

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch.nn import functional

import metalr
import metalr.envs
from metalr.control.policy import PolicyController
from metalr.engine.episodes import run_episode
from metalr.envs.rewards import PENALTY, REWARDS
from metalr.envs.transition import EnvConfig, Transition
from metalr.schedulers.plain_runs import PlainRuns
from metalr.schedules import Constant
from metalr.tasks.catalog import make_task
from metalr.tasks.data import TensorData
from metalr.tasks.task import Task
from tests.support.residual_net import residual_net

ID = "metalr/LRControl-v0"
IMAGES = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))
CLASSES = (IMAGES.mean((1, 2, 3)) > 0).long()
DATA = TensorData.of((IMAGES[:64], CLASSES[:64]), (IMAGES[64:], CLASSES[64:]))


def own_task(**changes) -> Task:
    settings = {"horizon": 10, "base_lr": 0.01, "batch_size": 16, "name": "own", **changes}
    return Task(partial(residual_net, 2, 2), DATA, functional.cross_entropy, torch.optim.AdamW, plain=True, **settings)


@pytest.mark.parametrize("reward", REWARDS)
def test_gymnasiums_checker_passes(reward):
    check_env(gymnasium.make(ID, task=own_task(), decisions=5, reward=reward).unwrapped, skip_render_check=True)


def test_both_paths_are_the_same_environment():
    """A network that both can train: the same observations, rewards and ends."""
    task, outcomes = make_task("teacher-student", horizon=20, width=4, num_variants=2), []
    for one in (task, task.with_(plain=True)):
        core = Transition([one], 4, EnvConfig(decisions=5, dtype="float64", schedule=Constant(), reward="paired"))
        found = [core.reset(base_lr=torch.tensor([0.02, 0.05, 0.1, 1e9], dtype=torch.float64))]
        for action in (0.3, -0.4, 0.1, 0.0, 0.2):
            outcome = core.step(torch.full((4, 1), action, dtype=torch.float64))
            found += [outcome.observation[:3], outcome.reward, outcome.done, outcome.lr[:3], outcome.loss]
        assert outcome.diverged.tolist() == [False, False, False, True]
        outcomes.append(found)
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_a_run_that_diverges_ends_with_a_finite_observation_and_penalty():
    core = Transition([own_task()], 2, EnvConfig(decisions=5))
    core.reset(base_lr=torch.tensor([0.01, 1e30]))
    returned = torch.zeros(2)
    for _ in range(5):
        outcome = core.step(torch.zeros(2, 1))
        returned += outcome.reward
        assert outcome.observation.isfinite().all()
        if outcome.done[1]:
            break
    assert outcome.diverged.tolist() == [False, True]
    assert returned[1].item() == pytest.approx(-PENALTY, abs=1e-5)
    core.reset(outcome.done)
    assert core.groups[0].runs.diverged.tolist() == [False, False]


def test_episodes_follow_from_the_seed():
    returns = []
    for _ in range(2):
        envs = gymnasium.make_vec(ID, num_envs=2, task=own_task(), decisions=5, reward="valid")
        envs.reset(seed=3)
        torch.rand(1)
        returns.append([envs.step(torch.full((2, 1), 0.2).numpy())[1].tolist() for _ in range(12)])
    assert returns[0] == returns[1]


@pytest.mark.filterwarnings("ignore:.*distutils Version classes are deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_controller_is_trained_and_used_on_an_own_network(tmp_path):
    """PPO on the plain path, then its file as a scheduler in a plain loop around the same kind of network."""
    pytest.importorskip("stable_baselines3")
    from metalr.agents.ppo import train_ppo
    from metalr.agents.sb3_training import Budget

    task = own_task()
    core = Transition([task], 2, EnvConfig(decisions=5, schedule=Constant()))
    controller = train_ppo(core, tmp_path / "run", budget=Budget(episodes=8), seed=0)
    assert isinstance(controller, PolicyController)
    episode = run_episode(controller, PlainRuns(task, 2), torch.arange(2), torch.full((2,), 0.01))
    assert episode.final["test"][0].isfinite().all()
    net = residual_net(2, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    scheduler = metalr.load_scheduler(tmp_path / "run" / "controller.safetensors", optimizer, horizon=10)
    for _ in range(10):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(IMAGES), CLASSES)
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        scheduler.step()
    assert len(scheduler.history) == 5
