"""PPO (Schulman et al. 2017) from Stable-Baselines3 as the learner of a continuous controller."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from metalr.agents.sb3_training import Budget, Learner, falling, train_agent
from metalr.agents.sb3_vec_env import LRControlVecEnv
from metalr.control.policy import PolicyController
from metalr.envs.transition import Transition
from metalr.progress import Progress


@dataclass(frozen=True)
class PPOSettings:
    """PPO's own settings, in SB3's words.

    The return is undiscounted (`gamma` 1): the outcome of a run counts, not how soon it comes. A rollout is one
    whole episode of every environment. `final_log_std` takes the width of the exploration out of PPO's hands and lets
    the logarithm of its standard deviation fall linearly from `log_std_init`: what is best on average over wide noise
    is not what is best without it.
    """

    learning_rate: float = 2e-3
    """LR of the policy's own optimizer, Adam, at the start."""
    final_learning_rate: float = 2e-4
    """The same at the end; it falls linearly over training."""
    n_epochs: int = 8
    """Passes over each rollout."""
    minibatches: int = 4
    """Parts into which a rollout, one episode of every environment, is cut."""
    gamma: float = 1.0
    """Discount per decision; 1 for none."""
    gae_lambda: float = 0.98
    """Memory of the advantage estimate: less is less noisy and more biased."""
    clip_range: float = 0.2
    """Largest change of an action's probability ratio that is rewarded."""
    ent_coef: float = 0.0
    """Weight of the policy's entropy in its loss."""
    log_std_init: float = -1.5
    """Logarithm of the exploration's standard deviation at the start."""
    final_log_std: float | None = None
    """The same at the end, falling linearly over training; none lets PPO learn it."""
    width: int = 64
    """Width of the policy's two hidden layers."""
    target_kl: float | None = None
    """End the passes over a rollout once the policy has moved this far; none never does."""


class ExplorationCallback(BaseCallback):
    """Sets the standard deviation of the exploration before every rollout."""

    def __init__(self, first: float, last: float) -> None:
        super().__init__()
        self.first = first
        self.last = last

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        log_std = self.model.policy.log_std
        assert isinstance(log_std, nn.Parameter)
        done = 1.0 - self.model._current_progress_remaining
        nn.init.constant_(log_std, self.first + (self.last - self.first) * done)


def build_ppo(transition: Transition, settings: PPOSettings, seed: int, tensorboard: Path | None = None) -> PPO:
    """An untrained model whose mean action is exactly 0: it starts as the base schedule."""
    env = LRControlVecEnv(transition)
    rollout = transition.config.decisions * env.num_envs
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=falling(settings.learning_rate, settings.final_learning_rate),
        n_steps=transition.config.decisions,
        batch_size=max(rollout // settings.minibatches, 2),
        n_epochs=settings.n_epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        ent_coef=settings.ent_coef,
        target_kl=settings.target_kl,
        policy_kwargs={
            "activation_fn": nn.Tanh,
            "net_arch": [settings.width, settings.width],
            "log_std_init": settings.log_std_init,
        },
        seed=seed,
        device="cpu",
        tensorboard_log=str(tensorboard) if tensorboard else None,
    )
    head = model.policy.action_net
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return model


def train_ppo(
    transition: Transition,
    folder: str | Path,
    *,
    settings: PPOSettings | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    tensorboard: bool = False,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
) -> PolicyController:
    """Train a PPO controller and export it to `folder/controller.safetensors`.

    Args:
        transition: the environment's core.
        folder: a new run folder, or with `resume` one that an interrupted run left.
        settings: PPO's own.
        budget: episodes and wall time.
        seed: of the policy and the episodes; the same seed on the same machine gives the same controller.
        progress: called with episodes done and episodes in all; `metalr.progress.ProgressLines()` prints them.
        tensorboard: write `folder/tensorboard`.
        resume: continue from the last checkpoint.
        options: kept in `config.json` for whoever resumes the folder without this call at hand.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: see `metalr.agents.sb3_training.train_agent`.
    """
    settings = settings or PPOSettings()
    exploration: tuple[BaseCallback, ...] = ()
    if settings.final_log_std is not None:
        exploration = (ExplorationCallback(settings.log_std_init, settings.final_log_std),)
    return train_agent(
        Learner("ppo", settings, build_ppo, exploration),
        transition,
        folder,
        budget=budget,
        seed=seed,
        progress=progress,
        tensorboard=tensorboard,
        resume=resume,
        options=options,
    )
