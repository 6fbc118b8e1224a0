"""The learning rate of RL agents: an open-loop schedule as SB3's `learning_rate`, a closed-loop one by a callback."""

import pytest

from metalr.control.reference import ScheduleController
from metalr.schedulers.adapters import sb3_learning_rate
from metalr.schedules import Cosine, Linear
from tests.support.policies import random_policy

sb3 = pytest.importorskip("stable_baselines3")
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.logger import KVWriter, Logger  # noqa: E402

from metalr.agents.sb3_lr_callback import ControlledLR, num_updates  # noqa: E402

SETTINGS = {
    "PPO": {"n_steps": 64, "batch_size": 32, "n_epochs": 3},
    "A2C": {},
    "SAC": {},
    "DQN": {"learning_starts": 40, "train_freq": 4, "gradient_steps": 2, "batch_size": 16},
}
KINDS = pytest.mark.parametrize("kind", ["PPO", "DQN"])


def agent(kind: str, learning_rate=1e-3, env="CartPole-v1", **changes):
    settings = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    options = {**settings, **SETTINGS[kind], **changes}
    return getattr(sb3, kind)("MlpPolicy", env, learning_rate=learning_rate, **options)


def recorded(model, steps: int, callback=None, **options) -> list[float]:
    """The LR of every optimizer update."""
    rates: list[float] = []
    hook = model.policy.optimizer.register_step_post_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    model.learn(steps, callback=callback, **options)
    hook.remove()
    return rates


class Writer(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def write(self, key_values, key_excluded, step=0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


class Raises(BaseCallback):
    """Ends training with an exception."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            raise KeyboardInterrupt
        return True


def test_sb3_counts_its_progress_down():
    learning_rate = sb3_learning_rate(Cosine(), 0.4)
    assert [learning_rate(p) for p in (1.0, 0.5, 0.0)] == pytest.approx([0.4, 0.2, 0.0])


def test_an_open_loop_schedule_in_an_agent():
    rates = recorded(agent("PPO", sb3_learning_rate(Linear(), 1e-3)), 256)
    # Four rollouts of 64 steps, six updates each; SB3 has counted a rollout's steps before it trains on them.
    assert rates == pytest.approx([1e-3 * (1.0 - k / 4.0) for k in (1, 2, 3, 4) for _ in range(6)])


@KINDS
def test_a_controller_drives_an_agent(kind):
    steps = 256
    model, callback = agent(kind), ControlledLR(random_policy())
    foreseen = num_updates(model, steps)
    rates = recorded(model, steps, callback)
    scheduler = callback.scheduler
    assert len(rates) == foreseen
    assert scheduler.state_dict()["updates"] == foreseen
    decisions = [round(d * foreseen / 5 + 1e-9) for d in range(5)]
    assert [e["updates"] for e in scheduler.history] == decisions
    for t, rate in enumerate(rates):
        multiplier = [e["lr_multiplier"][0] for e in scheduler.history if e["updates"] <= t][-1]
        assert rate == pytest.approx(1e-3 * Cosine(floor=0.1)(t / foreseen) * multiplier)
    features = scheduler.explain()["features"]
    assert features["has_loss"] == [0.0]
    assert features["gradient_cosine"][0] != 0.0


@KINDS
def test_the_lr_is_logged(kind):
    model, callback, writer = agent(kind), ControlledLR(random_policy()), Writer()
    model.set_logger(Logger(None, [writer]))
    rates = recorded(model, 256, callback, log_interval=1)
    logged = [row for row in writer.rows if "train/learning_rate" in row]
    assert logged
    assert {row["train/learning_rate"] for row in logged[1:]} <= set(rates)
    multipliers = {e["lr_multiplier"][0] for e in callback.scheduler.history}
    assert {row["train/lr_multiplier"] for row in logged} <= multipliers


@KINDS
def test_the_agents_own_lr_is_the_base_and_comes_back(kind):
    model = agent(kind, sb3_learning_rate(Linear(), 1e-2))
    own, callback = model.lr_schedule, ControlledLR(ScheduleController(Cosine(), 5))
    first = recorded(model, 128, callback)
    assert first[0] == 1e-2
    assert model.lr_schedule is own
    # Any other `learn` starts anew: from the base, and at the beginning of the schedule.
    assert recorded(model, 128, callback)[0] == 1e-2
    # Without the callback nothing is left of it.
    remaining = model.n_steps if kind == "PPO" else 4
    assert recorded(model, 128)[-1] == pytest.approx(0.0, abs=1e-2 * remaining / 128)
    assert callback.scheduler.state_dict()["updates"] == len(first)
    # Another LR of the agent is another base.
    model.lr_schedule = lambda remaining: 5e-3
    assert recorded(model, 128, callback)[0] == 5e-3


@KINDS
@pytest.mark.parametrize("way", ["same callback", "other callback", "saved and loaded", "interrupted"])
def test_a_second_learn_goes_on(kind, way, tmp_path):
    whole = recorded(agent(kind), 384, ControlledLR(ScheduleController(Cosine(), 5)))
    model = agent(kind)
    horizon = num_updates(model, 384)
    callback = ControlledLR(ScheduleController(Cosine(), 5), horizon)
    rates: list[float] = []
    if way == "interrupted":
        hook = model.policy.optimizer.register_step_post_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        with pytest.raises(KeyboardInterrupt):
            model.learn(384, callback=CallbackList([callback, Raises(190)]))
        hook.remove()
    else:
        rates = recorded(model, 192, callback)
    if way != "same callback":
        callback = ControlledLR(ScheduleController(Cosine(), 5), horizon)
    if way == "saved and loaded":
        model.save(tmp_path / "agent")
        if kind == "DQN":
            model.save_replay_buffer(tmp_path / "buffer")
        env = model.get_env()
        model = type(model).load(tmp_path / "agent", env=env)
        if kind == "DQN":
            model.load_replay_buffer(tmp_path / "buffer")
        assert model.lr_schedule(1.0) == 1e-3
    rates += recorded(model, 384 - model.num_timesteps, callback, reset_num_timesteps=False)
    assert rates == pytest.approx(whole[: len(rates)])
    # What an interruption cut off was no whole round of updates.
    assert len(whole) - len(rates) <= (6 if way == "interrupted" else 0)
    assert callback.scheduler.state_dict()["updates"] == len(rates)
    assert model.lr_schedule(1.0) == 1e-3


@KINDS
def test_a_run_that_goes_on_has_become_longer(kind):
    model, callback = agent(kind), ControlledLR(random_policy())
    first = len(recorded(model, 192, callback))
    second = len(recorded(model, 192, callback, reset_num_timesteps=False))
    assert callback.scheduler.horizon == first + second
    # Five decisions of the first run are kept; of the longer plan those after them follow.
    updates = [e["updates"] for e in callback.scheduler.history]
    assert updates[:5] == [round(d * first / 5 + 1e-9) for d in range(5)]
    assert updates[5:] == [s for s in (round(d * (first + second) / 5 + 1e-9) for d in range(5)) if s >= first]


@KINDS
def test_a_checkpoint_under_way_holds_the_decisions(kind, tmp_path):
    checkpoints = CheckpointCallback(128, str(tmp_path))
    model, callback = agent(kind), ControlledLR(random_policy())
    model.learn(256, callback=[callback, checkpoints])
    loaded = type(model).load(tmp_path / "rl_model_128_steps", env=model.get_env())
    again = ControlledLR(random_policy(), callback.scheduler.horizon)
    made = loaded.controlled_lr.state()["updates"]
    loaded.learn(128 if kind == "PPO" else 4, callback=again, reset_num_timesteps=False)
    multipliers = [e["lr_multiplier"] for e in callback.scheduler.history]
    taken = len([e for e in again.scheduler.history if e["updates"] < made])
    assert taken >= 2
    assert [e["lr_multiplier"] for e in again.scheduler.history][:taken] == multipliers[:taken]


@pytest.mark.parametrize("changes", [{}, {"train_freq": 6}, {"gradient_steps": -1}, {"learning_starts": 44}])
@pytest.mark.parametrize("steps", [30, 101, 200])
def test_the_updates_of_dqn_are_foreseen(changes, steps):
    model = agent("DQN", **changes)
    assert len(recorded(model, steps)) == num_updates(model, steps)
    done = model.num_timesteps
    assert len(recorded(model, steps, reset_num_timesteps=False)) == num_updates(model, steps, done)


@KINDS
def test_the_updates_are_foreseen_with_several_environments(kind):
    model = agent(kind, env=make_vec_env("CartPole-v1", 3))
    assert len(recorded(model, 400)) == num_updates(model, 400)


@pytest.mark.parametrize(
    ("kind", "changes"), [("A2C", {}), ("PPO", {"target_kl": 0.01}), ("DQN", {"train_freq": (1, "episode")})]
)
def test_updates_that_cannot_be_foreseen(kind, changes):
    with pytest.raises(ValueError, match=r"got a .* cannot be foreseen, expected .* pass horizon="):
        num_updates(agent(kind, **changes), 100)


def test_with_a_horizon_any_agent_of_one_optimizer_will_do():
    callback = ControlledLR(random_policy(), horizon=20)
    assert len(recorded(agent("A2C"), 100, callback)) == 20
    assert len(callback.scheduler.history) == 5


def test_an_agent_of_several_optimizers_is_refused():
    with pytest.raises(ValueError, match=r"got a SAC whose policy has no optimizer .*, expected one .* use PPO"):
        agent("SAC", env="Pendulum-v1").learn(10, callback=ControlledLR(random_policy(), horizon=20))
