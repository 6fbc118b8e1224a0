"""DQN (Mnih et al. 2015) from Stable-Baselines3 as the learner of a controller with discrete levels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3 import DQN
from torch import nn

from metalr.agents.sb3_training import Budget, Learner, falling, train_agent
from metalr.agents.sb3_vec_env import LRControlVecEnv
from metalr.control.policy import PolicyController
from metalr.envs.transition import Transition
from metalr.progress import Progress


@dataclass(frozen=True)
class DQNSettings:
    """DQN's own settings, in SB3's words; `gradient_steps` follow every decision of all environments.

    The return is undiscounted (`gamma` 1): episodes are short and end by themselves.
    """

    learning_rate: float = 2e-3
    """LR of the network's own optimizer, Adam, at the start."""
    final_learning_rate: float = 1e-5
    """The same at the end; it falls linearly over training."""
    buffer_size: int = 100_000
    """Decisions that the replay buffer holds."""
    batch_size: int = 256
    """Decisions in an update of the network."""
    gradient_steps: int = 16
    """Updates of the network after every decision of all environments."""
    warmup_episodes: int = 2
    """Episodes of every environment before the first update."""
    target_update_interval: int = 20
    """Decisions of all environments between two copies to the target network."""
    exploration_fraction: float = 0.4
    """Share of the training over which random actions become rare."""
    exploration_final_eps: float = 0.02
    """Share of random actions after that."""
    n_steps: int = 1
    """Rewards that a target sums up before it trusts the network."""
    gamma: float = 1.0
    """Discount per decision; 1 for none."""
    width: int = 64
    """Width of the network's two hidden layers."""


def build_dqn(transition: Transition, settings: DQNSettings, seed: int, tensorboard: Path | None = None) -> DQN:
    """An untrained model.

    Raises:
        ValueError: the environment's actions are continuous.
    """
    if not transition.config.action.levels:
        raise ValueError("got continuous actions, expected levels for DQN: pass levels=9 to the environment")
    env = LRControlVecEnv(transition)
    return DQN(
        "MlpPolicy",
        env,
        learning_rate=falling(settings.learning_rate, settings.final_learning_rate),
        buffer_size=settings.buffer_size,
        learning_starts=settings.warmup_episodes * transition.config.decisions * env.num_envs,
        batch_size=settings.batch_size,
        n_steps=settings.n_steps,
        gamma=settings.gamma,
        train_freq=1,
        gradient_steps=settings.gradient_steps,
        # SB3 counts calls of the whole batch of environments here.
        target_update_interval=settings.target_update_interval * env.num_envs,
        exploration_fraction=settings.exploration_fraction,
        exploration_final_eps=settings.exploration_final_eps,
        policy_kwargs={"activation_fn": nn.Tanh, "net_arch": [settings.width, settings.width]},
        seed=seed,
        device="cpu",
        tensorboard_log=str(tensorboard) if tensorboard else None,
    )


def train_dqn(
    transition: Transition,
    folder: str | Path,
    *,
    settings: DQNSettings | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    tensorboard: bool = False,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
) -> PolicyController:
    """Train a DQN controller and export it to `folder/controller.safetensors`.

    The replay buffer is not part of a checkpoint; a resumed run fills a new one.

    Args, Raises: as `metalr.agents.ppo.train_ppo`.
    """
    return train_agent(
        Learner("dqn", settings or DQNSettings(), build_dqn),
        transition,
        folder,
        budget=budget,
        seed=seed,
        progress=progress,
        tensorboard=tensorboard,
        resume=resume,
        options=options,
    )
