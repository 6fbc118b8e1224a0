"""Callbacks of Stable-Baselines3 for training a controller: checkpoints, time limit, learning curve, progress."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from stable_baselines3.common.base_class import BaseAlgorithm
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
    """The progress that is saved in a run's folder; none in a new one.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / PROGRESS
    if not path.is_file():
        return Progress()
    try:
        stored = json.loads(path.read_bytes())
        curve = tuple((int(timesteps), float(mean)) for timesteps, mean in stored.get("curve", []))
        return Progress(int(stored["timesteps"]), float(stored["seconds"]), curve)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"got {path}, which is damaged ({type(error).__name__}: {error}), expected the progress of a training: "
            "remove it; training continues from its checkpoint, and its learning curve and clock begin anew"
        ) from error


def has_checkpoint(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint.

    Raises:
        ValueError: it has none although it says how far it has trained.
    """
    if (folder / CHECKPOINT).is_file():
        return True
    if read_progress(folder).timesteps > 0:
        raise ValueError(
            f"got {folder} with {PROGRESS} but without {CHECKPOINT}, expected both: put the checkpoint back, or remove "
            f"{PROGRESS} to train from the start"
        )
    return False


def load_checkpoint(algorithm: type[BaseAlgorithm], folder: Path, **options: Any) -> BaseAlgorithm:
    """The model of a run's checkpoint, on the CPU.

    Args:
        algorithm: of the model.
        folder: of the run, with a checkpoint.
        options: of SB3's `load`.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    path = folder / CHECKPOINT
    try:
        return algorithm.load(path, device="cpu", **options)
    except Exception as error:  # damage shows in many ways: a bad zip, a missing part, tensors of other shapes
        raise ValueError(
            f"got {path}, which is damaged ({type(error).__name__}: {error}), expected a checkpoint of "
            f"{algorithm.__name__}: put back a copy, or remove it and {PROGRESS} to train from the start"
        ) from error


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


class EpisodeCounter(BaseCallback):
    """Passes on how many episodes' worth of decisions have been taken, earlier sittings included.

    Args:
        episodes: in all.
        timesteps_per_episode: SB3's time steps in an episode: decisions times LR groups.
        show: called with episodes done, episodes in all, and what they are.
    """

    def __init__(self, episodes: int, timesteps_per_episode: int, show: Callable[[int, int, str], None]) -> None:
        super().__init__()
        self.episodes = episodes
        self.timesteps_per_episode = timesteps_per_episode
        self.show = show

    def _on_training_start(self) -> None:
        self._show()

    def _on_step(self) -> bool:
        self._show()
        return True

    def _show(self) -> None:
        self.show(min(self.num_timesteps // self.timesteps_per_episode, self.episodes), self.episodes, "episodes")
