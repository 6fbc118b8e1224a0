"""The environment in hands that do not know it: odd actions and resets, copies, Gymnasium's own vector wrappers."""

import copy
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import NormalizeObservation, NormalizeReward, RecordEpisodeStatistics

import metalr.envs  # noqa: F401
from metalr.envs.lr_control import LRControlEnv
from metalr.envs.lr_control_vector import LRControlVectorEnv

SMALL = {"task": "teacher-student", "horizon": 20, "decisions": 5, "base_lr_range": (0.1, 1.0)}


def single(**options) -> LRControlEnv:
    env = LRControlEnv(**SMALL, **options)
    env.reset(seed=3)
    return env


def several(num_envs: int = 4, **options) -> LRControlVectorEnv:
    env = LRControlVectorEnv(num_envs, **SMALL, **options)
    env.reset(seed=3)
    return env


# Actions


@pytest.mark.parametrize(
    "action", [np.array([np.nan]), np.array([np.inf]), np.zeros(2), np.zeros((1, 1)), None, "up", [True], [0.1j]]
)
def test_an_action_that_is_none_is_refused(action):
    env = single()
    with pytest.raises(ValueError, match=r"got actions of .*expected"):
        env.step(action)
    env.step(np.array([0.1]))


@pytest.mark.parametrize("shape", [(4, 2), (3, 1), (1, 4), (8,), (4, 1, 1), ()])
def test_actions_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"got actions of shape .*expected \(4, 1\)"):
        several().step(np.zeros(shape))


@pytest.mark.parametrize("level", [-1, 7, 1.5, np.nan, 10**9])
def test_a_level_that_is_none_is_refused(level):
    env = single(levels=7)
    with pytest.raises(ValueError, match="expected"):
        env.step(level)
    with pytest.raises(ValueError, match="expected"):
        several(levels=7).step(np.array([0, 1, level, 2]))


def test_forms_of_the_same_action():
    expected = single().step(np.array([0.3]))[1]
    for action in (0.3, [0.3], np.array(0.3), np.float64(0.3)):
        assert single().step(action)[1] == expected
    beyond, at = single().step(np.array([7.0])), single().step(np.array([1.0]))
    assert beyond[1] == at[1]
    assert single(levels=7).step(np.int64(3))[1] == single(levels=7).step(3.0)[1]


# Resets


def test_a_given_base_lr_is_in_force():
    env = single(schedule=None)
    env.reset(seed=3, options={"base_lr": 0.0125})
    spec = env.transition.config.action
    first = env.step(np.array([0.0]))[4]["lr"]
    other = single()
    other.reset(seed=3, options={"base_lr": 0.025})
    assert other.step(np.array([0.0]))[4]["lr"] == pytest.approx(2.0 * first)
    assert spec.low <= first / 0.0125 <= spec.high
    drawn = single().step(np.array([0.0]))[4]["lr"]
    env.reset(seed=3)  # of that episode alone
    assert env.step(np.array([0.0]))[4]["lr"] == drawn


def test_base_lrs_of_several_environments():
    env = several()
    env.reset(seed=3, options={"base_lr": np.array([0.01, 0.02, 0.04, 0.08])})
    lrs = env.step(np.zeros((4, 1)))[4]["lr"]
    assert lrs / lrs[0] == pytest.approx([1.0, 2.0, 4.0, 8.0])
    env.reset(options={"reset_mask": np.array([True, False, False, False]), "base_lr": 0.08})
    again = env.step(np.zeros((4, 1)))[4]["lr"]
    assert again == pytest.approx([0.08, 0.02, 0.04, 0.08])


@pytest.mark.parametrize("base_lr", [0.0, -1.0, np.nan, np.inf, [0.1, 0.2, 0.3]])
def test_a_base_lr_that_is_none_is_refused(base_lr):
    with pytest.raises(ValueError, match="got base_lr"):
        single().reset(options={"base_lr": base_lr})


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match=r"got options \['lr'\] for reset, expected base_lr"):
        single().reset(options={"lr": 0.1})
    with pytest.raises(ValueError, match="expected reset_mask or base_lr"):
        several().reset(options={"mask": 1})


def test_a_reset_mask_starts_some_and_leaves_the_others():
    masked, whole = several(), several()
    for env in (masked, whole):
        env.step(np.full((4, 1), 0.2))
    mask = np.array([False, True, False, True])
    seen = masked.reset(options={"reset_mask": mask})[0]
    after, others = (env.step(np.full((4, 1), 0.1)) for env in (masked, whole))
    assert np.array_equal(after[0][~mask], others[0][~mask])
    assert not np.array_equal(after[0][mask], others[0][mask])
    assert (seen[mask][:, 0] == 0.0).all()  # progress
    for bad in (np.zeros(4, dtype=bool), np.ones(3, dtype=bool), np.ones(4)):
        with pytest.raises(ValueError, match="got a reset_mask"):
            masked.reset(options={"reset_mask": bad})


# Copies


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("make", [single, several])
def test_a_copy_continues_the_same_episode(make, duplicate):
    env = make()
    action = np.full(env.action_space.shape, 0.3)
    for _ in range(2):
        env.step(action)
    other = duplicate(env)
    for _ in range(8 if make is several else 3):
        first, second = env.step(action), other.step(action)
        for a, b in zip(first[:4], second[:4], strict=True):
            assert np.array_equal(a, b)
        assert np.array_equal(first[4]["loss"], second[4]["loss"])


# Gymnasium's vector wrappers


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("wrapper", [NormalizeObservation, NormalizeReward, RecordEpisodeStatistics])
def test_vector_wrappers(wrapper, mode):
    env = gymnasium.make_vec("metalr/LRControl-v0", num_envs=4, vectorization_mode=None, autoreset_mode=mode, **SMALL)
    if wrapper is NormalizeObservation and mode != AutoresetMode.NEXT_STEP:
        pytest.skip("accepts no other mode")
    env = wrapper(env)
    env.reset(seed=0)
    for _ in range(13):
        *_, done, _, infos = env.step(np.full((4, 1), -0.2))
        if mode == AutoresetMode.DISABLED and done.any():
            env.reset(options={"reset_mask": done})
        if done.any() and wrapper is RecordEpisodeStatistics:
            assert set(infos["episode"]["l"][done]) == {5}


def test_a_reset_at_the_next_step():
    same, after = several(autoreset_mode="SameStep"), several(autoreset_mode="NextStep")
    action = np.full((4, 1), 0.1)
    ends = [env.step(action) for env in (same, after) for _ in range(5)]
    assert ends[4][2].all()
    assert ends[9][2].all()
    assert np.array_equal(ends[9][0], np.stack(ends[4][4]["final_obs"]))
    observation, reward, done, _, _ = after.step(action)
    assert np.array_equal(observation, ends[4][0])  # of the new episodes
    assert not reward.any()
    assert not done.any()
    assert np.array_equal(after.step(action)[0], same.step(action)[0])


# Arguments


@pytest.mark.parametrize("make", [lambda **k: LRControlEnv(**k), lambda **k: LRControlVectorEnv(2, **k)])
def test_an_unknown_argument_is_told_which_there_are(make):
    with pytest.raises(TypeError, match=r"got arguments .*'decisons'.*environment's: task, decisions, reward.*alpha"):
        make(task="teacher-student", horizon=20, decisons=5)


def test_no_warnings_in_proper_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = several()
        for _ in range(7):
            env.step(np.zeros((4, 1)))
