"""What PPO and DQN share: a run folder, checkpoints that training resumes from, progress, export.

The folder holds `config.json` (everything that defines the run), `checkpoint.zip` (the SB3 model),
`progress.json` (where training stands) and, when training is done, `controller.safetensors`.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from metalr.agents.sb3_export import export_policy
from metalr.agents.sb3_vec_env import LRControlVecEnv
from metalr.artefacts.controller_file import save_controller
from metalr.control.policy import PolicyController
from metalr.envs.transition import Transition
from metalr.records import versions

CHECKPOINT, PROGRESS, CONFIG, CONTROLLER = "checkpoint.zip", "progress.json", "config.json", "controller.safetensors"
# Key of config.json under which the caller's own options are kept.
OPTIONS = "options"


@dataclass(frozen=True)
class Budget:
    """How long to train.

    Attributes:
        episodes: training runs in all, over every environment.
        max_seconds: stop earlier after so much wall time; None for no limit.
        checkpoint_seconds: wall time between checkpoints.
    """

    episodes: int = 4000
    max_seconds: float | None = None
    checkpoint_seconds: float = 20.0


def training_versions() -> dict[str, str]:
    """Versions that a trained controller's record needs to be understood later."""
    return versions("gymnasium", "stable-baselines3")


def falling(first: float, last: float) -> Callable[[float], float]:
    """A learning rate of the agent itself that falls linearly over training; SB3 counts progress from 1 to 0."""
    return lambda remaining: last + (first - last) * remaining


def open_folder(folder: Path, config: Mapping[str, Any], resume: bool) -> None:
    """Create a run folder, or check that it holds the same run.

    Raises:
        FileExistsError: it holds a run and `resume` is off.
        FileNotFoundError: `resume` is on and it holds none.
        ValueError: it holds a run with other settings.
    """
    path = folder / CONFIG
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    if resume:
        if not path.is_file():
            raise FileNotFoundError(
                f"got {folder} to resume, expected a run folder with {CONFIG}: start it without resume"
            )
        old = json.loads(path.read_text())
        new = json.loads(text)
        changed = sorted(key for key in {*old, *new} - {"versions"} if old.get(key) != new.get(key))
        if changed:
            raise ValueError(
                f"got other settings for {changed} than {path}, expected the same to resume: use a new folder"
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"got folder {folder}, which already holds files, expected a new one: resume it or choose another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


class FolderCallback(BaseCallback):
    """Checkpoints, logs and the wall-time limit.

    Args:
        folder: the run folder.
        budget: limits.
        seconds_before: wall time that earlier sittings of the same run used.
    """

    def __init__(self, folder: Path, budget: Budget, seconds_before: float) -> None:
        super().__init__()
        self.folder = folder
        self.budget = budget
        self.started = time.monotonic() - seconds_before
        self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time of training so far."""
        return time.monotonic() - self.started

    def _on_step(self) -> bool:
        limit = self.budget.max_seconds
        return limit is None or self.seconds < limit

    def _on_rollout_end(self) -> None:
        env = self.training_env
        if isinstance(env, LRControlVecEnv) and env.finished_episodes:
            self.logger.record("rollout/diverged_share", env.diverged_episodes / env.finished_episodes)
            self.logger.record("rollout/episodes", env.finished_episodes)
        if time.monotonic() - self.saved > self.budget.checkpoint_seconds:
            self.save()

    def save(self) -> None:
        """Write the model and where training stands; the old checkpoint is replaced only when the new one is whole."""
        self.saved = time.monotonic()
        partial = self.folder / "checkpoint.partial.zip"
        self.model.save(partial)
        partial.replace(self.folder / CHECKPOINT)
        stand = {"timesteps": self.model.num_timesteps, "seconds": round(self.seconds, 1)}
        (self.folder / PROGRESS).write_text(json.dumps(stand) + "\n")


class RewardCallback(BaseCallback):
    """Collects the mean return of each rollout, for a learning curve. Rows are (timesteps, mean return)."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.model.ep_info_buffer:
            returns = [info["r"] for info in self.model.ep_info_buffer]
            self.curve.append((self.num_timesteps, sum(returns) / len(returns)))


def learn(
    model: BaseAlgorithm,
    folder: Path,
    budget: Budget,
    *,
    timesteps: int,
    progress: bool,
    card: Mapping[str, Any],
    callbacks: Sequence[BaseCallback] = (),
) -> PolicyController:
    """Train to the budget, then export.

    Ctrl-C saves a checkpoint before it goes on up, so that the folder can be resumed.

    Args:
        model: on an `LRControlVecEnv`.
        folder: of the run, opened.
        budget: limits.
        timesteps: decisions in all, earlier sittings included.
        progress: show a bar (needs tqdm and rich).
        card: facts for the exported file.
        callbacks: more of SB3's callbacks.

    Returns:
        The exported controller, also in `controller.safetensors`.
    """
    before = 0.0
    if (folder / PROGRESS).is_file():
        before = json.loads((folder / PROGRESS).read_text())["seconds"]
    keeper, curve = FolderCallback(folder, budget, before), RewardCallback()
    left = timesteps - model.num_timesteps
    try:
        if left > 0:
            model.learn(
                left, CallbackList([keeper, curve, *callbacks]), reset_num_timesteps=False, progress_bar=progress
            )
    finally:
        keeper.init_callback(model)
        keeper.save()
    env = model.get_env()
    assert isinstance(env, LRControlVecEnv)
    transition: Transition = env.transition
    controller = export_policy(model, transition.config, transition.groups[0].schedule)
    about = {
        **card,
        "decisions_trained": model.num_timesteps,
        "seconds": round(keeper.seconds, 1),
        "learning_curve": [[t, round(r, 4)] for t, r in curve.curve[:: max(len(curve.curve) // 50, 1)]],
        "versions": training_versions(),
    }
    target = folder / CONTROLLER
    target.unlink(missing_ok=True)
    save_controller(target, controller, about)
    return controller


def describe(transition: Transition) -> dict[str, Any]:
    """The environment's settings, JSON-able."""
    from metalr.schedules import to_config

    config = asdict(transition.config)
    config["schedule"] = to_config(transition.groups[0].schedule)
    tasks = [
        {
            "name": group.task.name,
            "horizon": group.task.horizon,
            "batch_size": group.task.batch_size,
            "base_lr": group.task.base_lr,
            "optimizer": repr(group.task.optimizer),
            "num_params": group.task.num_params,
        }
        for group in transition.groups
    ]
    return {"tasks": tasks, "num_envs": transition.num_envs, "env": config, "torch_threads": torch.get_num_threads()}
