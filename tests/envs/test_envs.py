"""The environment: Gymnasium's and Stable-Baselines3's own checks, rewards that add up, and repeatability."""

import itertools
import math
import warnings
from dataclasses import fields

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.wrappers import RecordEpisodeStatistics
from stable_baselines3.common.env_checker import check_env as sb3_check

import metalr.envs  # noqa: F401 -- registers the environment
from metalr.agents.sb3_vec_env import LRControlVecEnv
from metalr.control.actions import ActionSpec
from metalr.envs.lr_control import LRControlEnv
from metalr.envs.rewards import PENALTY, REWARDS
from metalr.envs.transition import EnvConfig, Transition
from metalr.schedules import Constant, Cosine
from metalr.signals.observations import FEATURES
from metalr.tasks.catalog import make_task

ID = "metalr/LRControl-v0"
SMALL = {"task": "digits-mlp", "horizon": 20, "decisions": 5, "width": 8}
VARIANTS = {
    "continuous": {},
    "levels": {"levels": 5},
    "recursive": {"mode": "recursive", "alpha": 0.5},
    "recursive levels": {"mode": "recursive", "levels": 3},
    "absolute": {"mode": "absolute", "reference": 0.05},
    "layers": {"groups": "module"},
    "layers with levels": {"groups": "module", "levels": 5},
}


def transition(num_envs=4, seed=0, horizon=20, **options) -> Transition:
    config = {"decisions": 5, "schedule": Constant(), **options}
    return Transition([make_task("digits-mlp", horizon=horizon, width=8)], num_envs, EnvConfig(**config), seed)


def play(core: Transition, actions) -> list:
    core.reset()
    return [core.step(torch.as_tensor(a).expand(core.num_envs, 1)) for a in actions]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_both_checkers_pass_without_a_warning(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(ID, **SMALL, **options, render_mode="rgb_array")
        gymnasium_check(env.unwrapped)
        if "groups" not in options:  # SB3 gets a row for each group through its own facade
            sb3_check(env.unwrapped)


@pytest.mark.parametrize("reward", REWARDS)
def test_every_reward_passes_the_checks(reward):
    gymnasium_check(gymnasium.make(ID, **SMALL, reward=reward).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_vector_environment_keeps_to_its_spaces(options):
    env = gymnasium.make_vec(ID, num_envs=3, **SMALL, **options)
    observation, _ = env.reset(seed=3)
    assert env.observation_space.contains(observation)
    for step in range(7):
        env.action_space.seed(step)
        observation, reward, terminated, truncated, infos = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert reward.shape == terminated.shape == truncated.shape == (3,)
        assert not truncated.any()
        assert ("final_obs" in infos) == terminated.any()
    assert infos["lr"].shape == (3,)


def test_one_environment_of_many_is_the_environment_alone():
    # The first environment of a batch has the same episodes as a single one with the same seed.
    alone = gymnasium.make(ID, **SMALL, dtype="float64").unwrapped
    many = gymnasium.make_vec(ID, num_envs=4, **SMALL, dtype="float64")
    first, _ = alone.reset(seed=7)
    batch, _ = many.reset(seed=7)
    np.testing.assert_allclose(batch[0], first, atol=1e-6)
    for action in (0.3, -0.5, 0.1):
        seen, reward, *_ = alone.step(np.array([action], dtype=np.float32))
        batch, rewards, *_ = many.step(np.full((4, 1), action, dtype=np.float32))
        np.testing.assert_allclose(batch[0], seen, atol=1e-6)
        assert rewards[0] == pytest.approx(reward, abs=1e-6)


def test_the_same_seed_gives_the_same_episode_twice():
    env = gymnasium.make(ID, **SMALL).unwrapped
    episodes = []
    for _ in range(2):
        trace = [env.reset(seed=11)[0]]
        for action in (0.2, 0.9, -1.0, 0.0, 0.4):
            observation, reward, *_ = env.step(np.array([action], dtype=np.float32))
            trace += [observation, reward]
        episodes.append(trace)
    for a, b in zip(*episodes, strict=True):
        assert np.array_equal(a, b)


def test_a_reset_without_a_seed_is_another_episode():
    env = gymnasium.make(ID, **SMALL).unwrapped
    first, _ = env.reset(seed=1)
    second, _ = env.reset()
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("reward", ["train", "valid", "final"])
def test_the_return_is_the_outcome(reward):
    core = transition(reward=reward, base_lr_range=(1.0, 1.0), dtype="float64")
    outcomes = play(core, [0.0] * 5)
    group = core.groups[0]
    total = torch.stack([o.reward for o in outcomes]).sum(0)
    split = "valid" if reward == "valid" else "train"
    outcome = group.start_log_loss - group.runs.evaluate(split).loss.log()
    torch.testing.assert_close(total, outcome, rtol=0.0, atol=1e-9)
    if reward == "final":
        assert all(bool((o.reward == 0.0).all()) for o in outcomes[:-1])


def test_the_paired_reward_of_doing_nothing_is_nothing():
    outcomes = play(transition(reward="paired", dtype="float64"), [0.0] * 5)
    assert max(float(o.reward.abs().max()) for o in outcomes) < 1e-12


def test_the_paired_reward_is_the_advantage_over_the_base_schedule():
    core = transition(reward="paired", dtype="float64", base_lr_range=(0.1, 0.1))
    total = sum(o.reward for o in play(core, [0.7] * 5))
    group = core.groups[0]
    gain = group.twin.evaluate("train").loss.log() - group.runs.evaluate("train").loss.log()
    torch.testing.assert_close(total, gain, rtol=0.0, atol=1e-9)
    assert float(gain.min()) > 0.0  # a tenth of the LR is too small, and the action repairs it


@pytest.mark.parametrize("reward", REWARDS)
def test_a_diverged_run_ends_with_the_penalty_and_its_neighbours_go_on(reward):
    core = transition(reward=reward, base_lr_range=(1.0, 1.0), dtype="float64")
    core.reset()
    core.groups[0].base_lr = torch.tensor([0.1, 1e9, 0.1, 0.1], dtype=torch.float64)
    total = torch.zeros(4, dtype=torch.float64)
    for _ in range(5):
        outcome = core.step(torch.zeros(4, 1))
        total += outcome.reward
        if outcome.done.any():
            break
    assert outcome.diverged.tolist() == [False, True, False, False]
    assert outcome.done.tolist() == [False, True, False, False]
    assert total[1].item() == pytest.approx(-PENALTY)
    assert outcome.reward.isfinite().all()
    before = core.groups[0].runs.state.params.clone()
    core.reset(outcome.done)
    after = core.groups[0].runs.state.params
    assert [torch.equal(before[i], after[i]) for i in range(4)] == [True, False, True, True]


def test_the_first_action_already_counts():
    quiet, loud = (play(transition(dtype="float64"), [a, 0.0]) for a in (-1.0, 1.0))
    # exp(3) on either side, cut at the bounds 20 and 1 / 20
    torch.testing.assert_close(loud[0].lr / quiet[0].lr, torch.full((4, 1), 400.0, dtype=torch.float64))


def test_absolute_ignores_the_guess():
    spec = ActionSpec("absolute", alpha=0.5, reference=0.02)
    core = transition(dtype="float64", action=spec)
    outcomes = play(core, [0.5, -1.0])
    for outcome, action in zip(outcomes, (0.5, -1.0), strict=True):
        torch.testing.assert_close(outcome.lr, torch.full_like(outcome.lr, 0.02 * math.exp(0.5 * action)))
    assert len(core.groups[0].base_lr.unique()) == core.num_envs


def test_anchored_forgets_and_recursive_remembers():
    anchored = play(transition(dtype="float64"), [0.5, 0.0])
    recursive = play(transition(dtype="float64", action=ActionSpec(mode="recursive", alpha=0.5)), [0.5, 0.0])
    base = play(transition(dtype="float64"), [0.0, 0.0])
    torch.testing.assert_close(anchored[1].lr, base[1].lr)
    torch.testing.assert_close(recursive[1].lr, base[1].lr * math.exp(0.25))


def test_episodes_hide_what_they_are_told_to_hide():
    index = {feature.name: i for i, feature in enumerate(FEATURES)}
    core = transition(num_envs=64, hide_loss=0.5, hide_horizon=0.25)
    outcomes = play(core, [0.0, 0.0])
    seen = outcomes[-1].observation[:, 0]
    hidden = seen[:, index["has_loss"]] == 0.0
    assert 16 < int(hidden.sum()) < 48
    for feature in FEATURES:
        if feature.name.startswith("loss_"):
            assert bool((seen[hidden, index[feature.name]] == 0.0).all())
    without_horizon = seen[:, index["has_horizon"]] == 0.0
    assert 4 < int(without_horizon.sum()) < 30
    assert bool((seen[without_horizon, index["progress"]] == 0.0).all())


def test_losses_and_the_horizon_are_hidden_independently():
    index = {feature.name: i for i, feature in enumerate(FEATURES)}
    seen = play(transition(num_envs=256, hide_loss=0.5, hide_horizon=0.5), [0.0, 0.0])[-1].observation[:, 0]
    loss, horizon = (seen[:, index[name]] == 0.0 for name in ("has_loss", "has_horizon"))
    counts = [int((a & b).sum()) for a in (loss, ~loss) for b in (horizon, ~horizon)]
    assert all(40 <= count <= 88 for count in counts)  # 64 of each, within 3.5 standard deviations


CHANGES = {
    "decisions": 10,
    "action": ActionSpec(alpha=1.0),
    "reward": "valid",
    "schedule": Cosine(),
    "base_lr_range": (1.0, 2.0),
    "hide_loss": 1.0,
    "hide_horizon": 1.0,
    "visible": ("progress",),
    "groups": "module",
    "dtype": "float64",
}
INERT = {"compile", "device"}


def test_every_field_is_changed_below():
    assert {f.name for f in fields(EnvConfig)} == set(CHANGES) | INERT


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_run(name):
    def trace(**options):
        core = transition(**options)
        core.reset()
        action = torch.full((4, core.num_groups), 0.4)
        outcomes = [core.step(action) for _ in range(3)]
        return [(o.observation, o.reward, o.lr) for o in outcomes]

    same = all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
        for x, y in zip(trace(), trace(**{name: CHANGES[name]}), strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert not same


def test_several_tasks_share_one_axis():
    tasks = [make_task("digits-mlp", horizon=20, width=8), make_task("teacher-student", horizon=10, width=4)]
    core = Transition(tasks, 6, EnvConfig(decisions=5))
    observation = core.reset()
    assert observation.shape == (6, 1, len(FEATURES))
    for _ in range(5):
        outcome = core.step(torch.zeros(6, 1))
    assert outcome.done.all()


def test_the_sb3_facade_reports_episodes_and_replaces_them():
    env = LRControlVecEnv(transition(num_envs=3))
    env.reset()
    total = np.zeros(3)
    for step in range(5):
        observation, reward, done, infos = env.step(np.zeros((3, 1), dtype=np.float32))
        total += reward
        assert done.all() == (step == 4)
    assert [info["episode"]["l"] for info in infos] == [5, 5, 5]
    np.testing.assert_allclose([info["episode"]["r"] for info in infos], total, rtol=1e-6)
    assert not np.array_equal(infos[0]["terminal_observation"], observation[0])
    assert env.finished_episodes == 3


def test_each_lr_group_is_a_row_for_sb3():
    env = LRControlVecEnv(transition(num_envs=2, groups="module"))
    assert env.num_envs == 4  # two runs of two layers
    observation = env.reset()
    assert observation.shape == (4, len(FEATURES))
    _, reward, *_ = env.step(np.zeros((4, 1), dtype=np.float32))
    assert reward[0] == reward[1]
    assert reward[2] == reward[3]


def test_the_docstring_lists_every_feature():
    text = LRControlEnv.__doc__.replace("\\", "")
    for feature in FEATURES:
        assert f"| {feature.name} | {feature.formula} | {feature.low:g} | {feature.high:g} |" in text
    assert f"Box `({len(FEATURES)},)`" in text


def test_render_draws_what_happened():
    env = gymnasium.make(ID, **SMALL, render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    empty = env.render()
    env.step(np.zeros(1, dtype=np.float32))
    drawn = env.render()
    assert drawn.dtype == np.uint8
    assert drawn.shape == empty.shape
    assert drawn.shape[2] == 3
    assert not np.array_equal(empty, drawn)


def test_it_works_inside_gymnasium_wrappers():
    env = RecordEpisodeStatistics(gymnasium.make(ID, **SMALL))
    env.reset(seed=0)
    for _ in itertools.repeat(None, 5):
        *_, info = env.step(np.zeros(1, dtype=np.float32))
    assert info["episode"]["l"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "digit-mlp"}, "did you mean 'digits-mlp'"),
        ({"horizon": 21}, "got horizon 21 with 5 decisions, expected a multiple.*use horizon 20"),
        ({"horizon": 5}, "use horizon 10"),
        ({"reward": "trian"}, "did you mean 'train'"),
        ({"base_lr": -0.1}, "got base_lr -0.1, expected a positive"),
        ({"base_lr_range": (0.0, 1.0)}, "expected 0 < low <= high"),
        ({"visible": ("progres",)}, "got visible features"),
        ({"hide_loss": 2.0}, "expected a probability"),
        ({"dtype": "float16"}, "expected 'float32' or 'float64'"),
        ({"levels": 1}, "got 1 levels"),
    ],
)
def test_bad_options_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make(ID, **{**SMALL, **options}).unwrapped.reset(seed=0)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="horizn"):
        gymnasium.make(ID, **SMALL, horizn=3)


def test_unequal_shares_are_refused():
    tasks = [make_task("digits-mlp", horizon=20, width=8)] * 2
    with pytest.raises(ValueError, match="got 3 environments for 2 tasks"):
        Transition(tasks, 3, EnvConfig(decisions=5))
