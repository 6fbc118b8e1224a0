"""PPO and DQN: they learn, they are repeatable, they resume, and what is exported acts as they did."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metalr.agents.dqn import DQNSettings, build_dqn, train_dqn
from metalr.agents.ppo import PPOSettings, build_ppo, train_ppo
from metalr.agents.run_folder import TrainOptions, build_transition, export_folder, read_options, train
from metalr.agents.sb3_callbacks import CHECKPOINT
from metalr.agents.sb3_export import export_policy
from metalr.agents.sb3_training import Budget
from metalr.agents.training_folder import CONTROLLER
from metalr.artefacts.controller_file import load_card, load_controller
from metalr.control.actions import ActionSpec
from metalr.control.policy import PolicyController
from metalr.control.reference import ScheduleController
from metalr.engine.episodes import run_episode
from metalr.engine.runs import BatchedRuns
from metalr.envs.transition import EnvConfig, Transition
from metalr.schedules import Constant
from metalr.tasks.catalog import make_task

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*distutils Version classes are deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

TINY = TrainOptions(task="teacher-student", horizon=20, decisions=5, num_envs=8, episodes=32)


def small_transition(levels: int = 0) -> Transition:
    config = EnvConfig(decisions=5, schedule=Constant(), action=ActionSpec(levels=levels))
    return Transition([make_task("teacher-student", horizon=20, width=8)], 8, config)


def best_constant(task) -> tuple[float, float]:
    """Loss and LR of the best of 200 constant LRs."""
    grid = torch.logspace(-2, 0.5, 200, dtype=torch.float64)
    runs = BatchedRuns(task, 200, dtype=torch.float64)
    episode = run_episode(ScheduleController(Constant(), 5), runs, torch.arange(200), grid, splits=("train",))
    loss = episode.final["train"][0]
    return loss.min().item(), grid[loss.argmin()].item()


def loss_from_wrong_bases(controller: PolicyController, task, factors=(0.1, 10.0)) -> torch.Tensor:
    runs = BatchedRuns(task, len(factors), dtype=torch.float64)
    base = task.base_lr * torch.tensor(factors, dtype=torch.float64)
    return run_episode(controller, runs, torch.arange(len(factors)), base, splits=("train",)).final["train"][0]


@pytest.fixture(scope="module")
def noisy_quadratic():
    task = make_task("noisy-quadratic", horizon=100, dimensions=100)
    loss, lr = best_constant(task)
    return task.with_(base_lr=lr), loss


def test_ppo_repairs_a_wrong_base_on_the_noisy_quadratic(noisy_quadratic, tmp_path):
    task, constant = noisy_quadratic
    transition = Transition([task], 64, EnvConfig(decisions=20, schedule=Constant()))
    settings = PPOSettings(gae_lambda=0.95)
    controller = train_ppo(transition, tmp_path / "run", settings=settings, budget=Budget(episodes=6400))
    assert (loss_from_wrong_bases(controller, task) / constant).max() <= 0.8


def test_dqn_repairs_a_wrong_base_on_the_noisy_quadratic(noisy_quadratic, tmp_path):
    task, constant = noisy_quadratic
    action = ActionSpec(mode="recursive", alpha=2.3, levels=7)
    transition = Transition([task], 32, EnvConfig(decisions=10, schedule=Constant(), action=action))
    # After half as many, one seed in two has found it.
    controller = train_dqn(transition, tmp_path / "run", budget=Budget(episodes=6400))
    assert (loss_from_wrong_bases(controller, task) / constant).max() <= 0.8


@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_the_exported_controller_acts_as_the_policy(agent):
    transition = small_transition(levels=7 if agent == "dqn" else 0)
    model = build_ppo(transition, PPOSettings(), 0) if agent == "ppo" else build_dqn(transition, DQNSettings(), 0)
    torch.manual_seed(0)
    for parameter in model.policy.parameters():
        nn.init.normal_(parameter, std=0.3)
    controller = export_policy(model)
    observation = 2.0 * torch.rand(500, 1, transition.reset().shape[-1]) - 1.0
    action, _ = model.predict(observation[:, 0].numpy(), deterministic=True)
    expected = torch.as_tensor(action).view(500, 1)
    if agent == "dqn":
        expected = transition.config.action.level_action(expected)
    torch.testing.assert_close(controller.act(observation).double(), expected.double(), rtol=0.0, atol=1e-6)


def test_an_untrained_ppo_is_its_base_schedule():
    transition = small_transition()
    controller = export_policy(build_ppo(transition, PPOSettings(), 0))
    assert bool((controller.act(transition.reset()) == 0.0).all())


@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_one_seed_makes_a_run_repeatable(agent, tmp_path):
    learn = train_ppo if agent == "ppo" else train_dqn
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        transition = small_transition(levels=7 if agent == "dqn" else 0)
        controller = learn(transition, tmp_path / name, budget=Budget(episodes=32), seed=seed)
        weights.append(torch.cat([w.flatten() for w in controller.tensors().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_an_interrupted_run_goes_on_where_it_was(agent, tmp_path, monkeypatch):
    import dataclasses

    options = dataclasses.replace(TINY, agent=agent)
    original = Transition.step
    calls = {"left": 11}

    def interrupted(self, action):
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt
        return original(self, action)

    monkeypatch.setattr(Transition, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(options, tmp_path / "run", tensorboard=False)
    assert (tmp_path / "run" / CHECKPOINT).is_file()
    assert not (tmp_path / "run" / CONTROLLER).is_file()
    half, about = export_folder(tmp_path / "run")
    curve_before = about["learning_curve"]
    assert 0 < about["decisions_trained"] < options.episodes * options.decisions
    monkeypatch.setattr(Transition, "step", original)
    train(read_options(tmp_path / "run"), tmp_path / "run", tensorboard=False)
    card = load_card(tmp_path / "run" / CONTROLLER)
    assert card["about"]["decisions_trained"] == options.episodes * options.decisions
    assert half.config() == load_controller(tmp_path / "run" / CONTROLLER).config()
    curve = card["about"]["learning_curve"]
    assert curve[: len(curve_before)] == curve_before
    assert len(curve) > len(curve_before)
    written = (tmp_path / "run" / CONTROLLER).stat().st_mtime_ns
    again = train(read_options(tmp_path / "run"), tmp_path / "run", tensorboard=False)
    assert (tmp_path / "run" / CONTROLLER).stat().st_mtime_ns == written  # a finished run stays as it is
    assert again.config() == half.config()


def test_the_card_says_what_the_controller_is(tmp_path):
    train(TINY, tmp_path / "run", tensorboard=False)
    about = load_card(tmp_path / "run" / CONTROLLER)["about"]
    assert about["agent"] == "ppo"
    assert about["tasks"][0]["name"] == "teacher-student"
    assert about["env"]["base_lr_range"] == [0.1, 10.0]
    assert about["versions"]["torch"].startswith("2.")


def test_an_alpha_of_zero_is_refused_and_not_replaced():
    import dataclasses

    with pytest.raises(ValueError, match="got alpha 0"):
        build_transition(dataclasses.replace(TINY, alpha=0.0))


def test_a_tensorboard_log_is_written(tmp_path):
    train(TINY, tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))


def test_a_folder_with_another_run_is_refused(tmp_path):
    import dataclasses

    train(TINY, tmp_path / "run", tensorboard=False)
    with pytest.raises(ValueError, match=r"got .*, which holds a run with other options, expected.*seed was 0, is 1"):
        train(dataclasses.replace(TINY, seed=1), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="which already holds files"):
        train(TINY, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "keep me"


def test_a_call_resumes_what_it_began_and_nothing_else(tmp_path):
    budget = Budget(episodes=8)
    with pytest.raises(FileNotFoundError, match="to resume, expected a run folder"):
        train_ppo(small_transition(), tmp_path / "run", budget=budget, resume=True)
    train_ppo(small_transition(), tmp_path / "run", budget=budget)
    with pytest.raises(FileExistsError, match="expected a new one: resume it"):
        train_ppo(small_transition(), tmp_path / "run", budget=budget)
    with pytest.raises(ValueError, match=r"different run \(changed: gamma was 1.0, is 0.9\)"):
        train_ppo(small_transition(), tmp_path / "run", settings=PPOSettings(gamma=0.9), budget=budget, resume=True)
    with pytest.raises(ValueError, match="agent was"):
        train_dqn(small_transition(levels=7), tmp_path / "run", budget=budget, resume=True)
    train_ppo(small_transition(), tmp_path / "run", budget=budget, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    train(TINY, tmp_path / "run", tensorboard=False)
    (tmp_path / "run" / CONTROLLER).unlink()  # with it the run would count as finished
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def refuse(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        train(TINY, tmp_path / "run", tensorboard=False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


DAMAGE = {
    "empty progress": ("progress.json", b"", "progress.json, which is damaged"),
    "progress of nothing": ("progress.json", b"{}", "progress.json, which is damaged"),
    "progress of something else": ("progress.json", b'{"timesteps": 1, "seconds": "x"}', "which is damaged"),
    "progress as a list": ("progress.json", b"[]", "which is damaged"),
    "empty checkpoint": (CHECKPOINT, b"", f"{CHECKPOINT}, which is damaged"),
    "truncated checkpoint": (CHECKPOINT, None, f"{CHECKPOINT}, which is damaged"),
    "no checkpoint": (CHECKPOINT, "remove", f"with progress.json but without {CHECKPOINT}"),
}


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(TINY, folder, tensorboard=False)
    (folder / CONTROLLER).unlink()  # with it the run would count as finished
    return folder


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_explained(name, a_run, tmp_path):
    file, content, message = DAMAGE[name]
    folder = Path(shutil.copytree(a_run, tmp_path / "run"))
    if content == "remove":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes((folder / file).read_bytes()[:-100] if content is None else content)
    for use in (lambda: train(read_options(folder), folder, tensorboard=False), lambda: export_folder(folder)):
        with pytest.raises(ValueError, match=message) as refused:
            use()
        assert "remove" in str(refused.value)
    for path in (CHECKPOINT, "progress.json"):  # the way out
        (folder / path).unlink(missing_ok=True)
    train(read_options(folder), folder, tensorboard=False)


def test_a_start_that_fails_leaves_the_folder_to_the_corrected_command(tmp_path):
    with pytest.raises(RuntimeError, match="negative dimension"):
        train_ppo(small_transition(), tmp_path / "run", settings=PPOSettings(width=-3), budget=Budget(episodes=8))
    train_ppo(small_transition(), tmp_path / "run", budget=Budget(episodes=8))


def test_a_limit_of_time_ends_training_and_still_exports(tmp_path):
    controller = train_ppo(small_transition(), tmp_path / "run", budget=Budget(episodes=10**6, max_seconds=2.0))
    assert isinstance(controller, PolicyController)
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["seconds"] < 10.0


def test_dqn_refuses_continuous_actions():
    with pytest.raises(ValueError, match="got continuous actions, expected levels"):
        build_dqn(small_transition(), DQNSettings(), 0)


def test_a_policy_that_is_no_tanh_network_is_refused():
    from stable_baselines3 import PPO

    from metalr.agents.sb3_vec_env import LRControlVecEnv

    transition = small_transition()
    kwargs = {"activation_fn": nn.ReLU}
    model = PPO("MlpPolicy", LRControlVecEnv(transition), n_steps=5, batch_size=40, policy_kwargs=kwargs, device="cpu")
    with pytest.raises(ValueError, match="expected linear layers with tanh between them"):
        export_policy(model)


def on_wrapped(wrap, **policy_kwargs):
    from stable_baselines3 import PPO

    from metalr.agents.sb3_vec_env import LRControlVecEnv

    kwargs = {"activation_fn": nn.Tanh, **policy_kwargs}
    env = wrap(LRControlVecEnv(small_transition()))
    return PPO("MlpPolicy", env, n_steps=5, batch_size=10, policy_kwargs=kwargs, device="cpu")


def test_a_model_behind_normalised_observations_is_refused():
    from gymnasium.wrappers import NormalizeObservation
    from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

    from metalr.envs.lr_control import LRControlEnv

    def single(wrap):
        return DummyVecEnv([lambda: wrap(LRControlEnv("teacher-student", horizon=20, decisions=5))] * 2)

    for wrap in (VecNormalize, lambda env: VecMonitor(VecNormalize(env)), lambda env: VecNormalize(VecMonitor(env))):
        with pytest.raises(ValueError, match="got a model behind VecNormalize, expected"):
            export_policy(on_wrapped(wrap))
    with pytest.raises(ValueError, match="got a model behind NormalizeObservation"):
        export_policy(on_wrapped(lambda _: single(NormalizeObservation)))
    for wrap in (lambda env: VecNormalize(env, norm_obs=False), VecMonitor, lambda _: single(lambda env: env)):
        assert export_policy(on_wrapped(wrap)).decisions == 5


def test_a_policy_with_more_than_its_layers_is_refused():
    from stable_baselines3.common.torch_layers import FlattenExtractor

    class Doubled(FlattenExtractor):
        def forward(self, observations):
            return 2.0 * super().forward(observations)

    with pytest.raises(ValueError, match="got a policy with Doubled"):
        export_policy(on_wrapped(lambda env: env, features_extractor_class=Doubled))


def test_a_model_without_its_environment_needs_one(tmp_path):
    from stable_baselines3 import PPO

    model = on_wrapped(lambda env: env)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match="without its environment"):
        export_policy(loaded)
    assert export_policy(loaded, small_transition()).config() == export_policy(model).config()


def test_a_family_gives_several_tasks():
    options = TrainOptions(family="small", groups=3, num_envs=6)
    transition = build_transition(options)
    assert [group.task.name for group in transition.groups] == ["mnist1d-mlp", "teacher-student", "mnist1d-cnn"]
    assert np.isfinite(transition.reset().numpy()).all()
