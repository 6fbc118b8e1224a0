"""Callback of Stable-Baselines3 for the training of a controller: checkpoints, the time limit, the learning curve."""

import json
import time
from pathlib import Path
from typing import NamedTuple

from stable_baselines3.common.callbacks import BaseCallback

from metalr.agents.sb3_vec_env import LRControlVecEnv
from metalr.files import whole_file, write_whole

CHECKPOINT, PROGRESS = "checkpoint.zip", "progress.json"


class Progress(NamedTuple):
    """How far a training has come, over all its sittings.

    Attributes:
        timesteps: decisions made.
        seconds: wall time.
        curve: `[time steps, mean return]` of each rollout.
    """

    timesteps: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()

    def thinned_curve(self) -> list[list[float]]:
        """Fewer than a hundred rows of the curve, evenly spaced."""
        return [list(row) for row in self.curve[:: max(len(self.curve) // 50, 1)]]


def read_progress(folder: Path) -> Progress:
    """The progress that is saved in a run's folder; none in a new one."""
    path = folder / PROGRESS
    if not path.is_file():
        return Progress()
    stored = json.loads(path.read_text())
    return Progress(stored["timesteps"], stored["seconds"], tuple(map(tuple, stored.get("curve", []))))


class CheckpointCallback(BaseCallback):
    """Saves the model and the progress of its training, logs divergence, and stops at the time limit.

    Args:
        folder: of the run; the progress of earlier sittings is read from it.
        max_seconds: wall time of training, earlier sittings included; None for no limit.
        every_seconds: wall time between checkpoints.
    """

    def __init__(self, folder: Path, max_seconds: float | None, every_seconds: float) -> None:
        super().__init__()
        self.folder = folder
        self.max_seconds = max_seconds
        self.every_seconds = every_seconds
        before = read_progress(folder)
        self.curve = list(before.curve)
        self.saved = time.monotonic()
        self.started = self.saved - before.seconds

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
        if self.model.ep_info_buffer:
            returns = [info["r"] for info in self.model.ep_info_buffer]
            self.curve.append((self.num_timesteps, round(sum(returns) / len(returns), 4)))
        if time.monotonic() - self.saved > self.every_seconds:
            self.save()

    def save(self) -> None:
        """Write the model and its progress, each as a whole or not at all."""
        self.saved = time.monotonic()
        with whole_file(self.folder / CHECKPOINT) as partial:
            self.model.save(partial)
        progress = Progress(self.model.num_timesteps, round(self.seconds, 1), tuple(self.curve))
        write_whole(self.folder / PROGRESS, json.dumps(progress._asdict()) + "\n")
