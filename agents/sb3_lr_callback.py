"""A closed-loop controller drives the learning rate of a Stable-Baselines3 agent while it learns.

Here reinforcement learning is the task and not the teacher. The agent's losses are no measure of its progress (a better
policy often has the larger one), so the controller runs without losses: it sees gradients, updates and progress.
"""

import math
from collections.abc import Callable
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from torch.optim import Optimizer

from metalr.control.controller import Controller
from metalr.schedulers.learned_lr import LearnedLR

# The agent's attribute under which it keeps, and saves, where its controller stands.
_ATTRIBUTE = "controlled_lr"


def num_updates(model: Any, total_timesteps: int, done: int = 0) -> int:
    """Optimizer updates of `model.learn(total_timesteps)` for PPO and for off-policy agents such as DQN.

    Args:
        model: the agent.
        total_timesteps: time steps to come.
        done: time steps made before, if `reset_num_timesteps=False` keeps counting them.

    Raises:
        ValueError: it cannot be foreseen, as with a training frequency in episodes or an early stop by `target_kl`.

    Example: PPO, 2,048 steps, 10 epochs of batches of 64, 20,480 time steps: 10 · 10 · 32 = 3,200.
    """
    if isinstance(model, PPO) and model.target_kl is None:
        size = model.n_steps * model.n_envs
        return math.ceil(total_timesteps / size) * model.n_epochs * math.ceil(size / model.batch_size)
    if isinstance(model, OffPolicyAlgorithm):
        frequency = model.train_freq
        if isinstance(frequency, TrainFreq) and frequency.unit == TrainFrequencyUnit.STEP:
            size = frequency.frequency * model.n_envs
            waiting = max((model.learning_starts - done) // size, 0)
            rounds = max(math.ceil(total_timesteps / size) - waiting, 0)
            return rounds * (model.gradient_steps if model.gradient_steps >= 0 else size)
    raise ValueError(
        f"got a {type(model).__name__} whose number of optimizer updates cannot be foreseen, expected PPO without "
        "target_kl or an off-policy agent that trains every so many steps: pass horizon="
    )


class ControlledLR(BaseCallback):
    """Gives an agent's policy optimizer a `LearnedLR` while it learns; the agent's own LR at its start is the base.

    The agent logs the LR of its latest update as `train/learning_rate`; the multiplier is in `train/lr_multiplier`.
    After `learn` the agent has its own LR again.

    `learn` with `reset_num_timesteps=False` continues where the controller stood, also after the agent was saved and
    loaded, and also in another callback. As with SB3's own schedules progress then falls back, since the run has
    become longer: pass the whole `horizon` from the start to avoid it. Any other `learn` starts anew from the base.

    Args:
        controller: for example from `metalr.load_controller`.
        horizon: optimizer updates of the whole run; foreseen from the agent's settings by default.
        options: of `LearnedLR`.

    Attributes:
        scheduler: the `LearnedLR`, once training has started; `scheduler.history` shows its decisions.

    Raises:
        ValueError: when `learn` starts: the agent has no single optimizer, or its updates cannot be foreseen.

    Example:
        PPO("MlpPolicy", "CartPole-v1", learning_rate=3e-4).learn(20_000, callback=ControlledLR(controller))
    """

    def __init__(self, controller: Controller, horizon: int | None = None, **options: Any) -> None:
        super().__init__()
        self.controller = controller
        self.horizon = horizon
        self.options = options
        self.scheduler: LearnedLR | None = None

    def _on_training_start(self) -> None:
        optimizer = _only_optimizer(self.model)
        before = getattr(self.model, _ATTRIBUTE, None)
        if before is not None:
            before.release(self.model)  # an exception may have ended the last `learn`
        done = self.model.num_timesteps
        state = before.state() if before is not None and done > 0 else None
        horizon = self.horizon
        if horizon is None:
            made = state["updates"] if state else 0
            horizon = made + num_updates(self.model, self.locals["total_timesteps"] - done, done)
        group = optimizer.param_groups[0]
        group["lr"] = float(self.model.lr_schedule(1.0))
        group.pop("initial_lr", None)  # an earlier scheduler's base, which torch would prefer
        self.scheduler = LearnedLR(optimizer, self.controller, horizon, **self.options)
        if state:
            self.scheduler.load_state_dict(state)
        _LRInForce(self.scheduler, self.model.lr_schedule).take_over(self.model)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.scheduler is not None:
            self.logger.record("train/lr_multiplier", self.scheduler.explain()["lr_multiplier"][0])

    def _on_training_end(self) -> None:
        getattr(self.model, _ATTRIBUTE).release(self.model)


def _only_optimizer(model: Any) -> Optimizer:
    optimizer = getattr(model.policy, "optimizer", None)
    if isinstance(optimizer, Optimizer) and len(optimizer.param_groups) == 1:
        return optimizer
    found = f"{len(optimizer.param_groups)} parameter groups" if isinstance(optimizer, Optimizer) else "no optimizer"
    raise ValueError(
        f"got a {type(model).__name__} whose policy has {found} of its own, expected one optimizer with one group, "
        "because SB3 writes one LR into all of them: use PPO, A2C or DQN with their usual policies"
    )


class _LRInForce:
    """An agent's LR schedule while a controller drives it: the LR that is in force anyway.

    SB3 asks for it and writes it into the optimizer before every round of updates. Pickled with the agent it is the
    state of the controller, for SB3 saves attributes of an agent but no schedulers.

    Args:
        scheduler: the controller's.
        own: the agent's own LR schedule.
    """

    def __init__(self, scheduler: LearnedLR, own: Callable[[float], float]) -> None:
        self.scheduler: LearnedLR | None = scheduler
        self.own = own
        self.saved: dict[str, Any] = {}

    def __call__(self, progress_remaining: float) -> float:
        return self.own(progress_remaining) if self.scheduler is None else float(self.scheduler.get_last_lr()[0])

    def state(self) -> dict[str, Any]:
        """The scheduler's state."""
        return self.saved if self.scheduler is None else self.scheduler.state_dict()

    def take_over(self, model: Any) -> None:
        """Drive the agent's LR from now on."""
        model.lr_schedule = self
        setattr(model, _ATTRIBUTE, self)

    def release(self, model: Any) -> None:
        """Give the agent its own LR back; the scheduler keeps its history but no longer sets LRs."""
        if model.lr_schedule is self:
            model.lr_schedule = self.own
        if self.scheduler is not None:
            self.scheduler.detach()

    def __getstate__(self) -> dict[str, Any]:
        return {"scheduler": None, "own": self.own, "saved": self.state()}
