"""Callbacks of Stable-Baselines3 for the training of a controller: checkpoints, limits and the learning curve."""

import json
import time
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from metalr.agents.sb3_vec_env import LRControlVecEnv
from metalr.files import whole_file, write_whole

CHECKPOINT, PROGRESS = "checkpoint.zip", "progress.json"


class CheckpointCallback(BaseCallback):
    """Saves the model and the time that it has trained for, logs divergence, and stops at the limit of time.

    Args:
        folder: of the run; the time that earlier sittings took is read from it.
        max_seconds: wall time of training, earlier sittings included; None for no limit.
        every_seconds: wall time between checkpoints.
    """

    def __init__(self, folder: Path, max_seconds: float | None, every_seconds: float) -> None:
        super().__init__()
        self.folder = folder
        self.max_seconds = max_seconds
        self.every_seconds = every_seconds
        self.saved = time.monotonic()
        self.started = self.saved - _seconds_before(folder)

    @property
    def seconds(self) -> float:
        """Wall time of training so far."""
        return time.monotonic() - self.started

    def _on_step(self) -> bool:
        return self.max_seconds is None or self.seconds < self.max_seconds

    def _on_rollout_end(self) -> None:
        env = self.training_env
        if isinstance(env, LRControlVecEnv) and env.finished_episodes:
            self.logger.record("rollout/diverged_share", env.diverged_episodes / env.finished_episodes)
            self.logger.record("rollout/episodes", env.finished_episodes)
        if time.monotonic() - self.saved > self.every_seconds:
            self.save()

    def save(self) -> None:
        """Write the model and where training stands, each as a whole or not at all."""
        self.saved = time.monotonic()
        with whole_file(self.folder / CHECKPOINT) as partial:
            self.model.save(partial)
        stand = {"timesteps": self.model.num_timesteps, "seconds": round(self.seconds, 1)}
        write_whole(self.folder / PROGRESS, json.dumps(stand) + "\n")


def _seconds_before(folder: Path) -> float:
    path = folder / PROGRESS
    return json.loads(path.read_text())["seconds"] if path.is_file() else 0.0


class RewardCallback(BaseCallback):
    """Collects the learning curve: (time steps, mean return) of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.model.ep_info_buffer:
            returns = [info["r"] for info in self.model.ep_info_buffer]
            self.curve.append((self.num_timesteps, sum(returns) / len(returns)))

    def thinned(self) -> list[list[float]]:
        """Fewer than a hundred rows of it, evenly spaced."""
        return [[steps, round(value, 4)] for steps, value in self.curve[:: max(len(self.curve) // 50, 1)]]
