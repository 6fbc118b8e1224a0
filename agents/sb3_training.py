"""The training that PPO and DQN share: a run folder, checkpoints that it resumes from, and the export at its end.

The folder holds `config.json` (everything that defines the run), `checkpoint.zip` (the SB3 model),
`progress.json` (where training stands) and, when training is done, `controller.safetensors`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from metalr.agents.sb3_callbacks import (
    CheckpointCallback,
    EpisodeCounter,
    has_checkpoint,
    load_checkpoint,
    read_progress,
)
from metalr.agents.sb3_export import export_policy
from metalr.agents.training_folder import CONTROLLER, OPTIONS, about_task, check_folder
from metalr.artefacts.controller_file import load_controller, to_bytes
from metalr.control.policy import PolicyController
from metalr.envs.transition import Transition
from metalr.files import write_whole
from metalr.progress import Progress
from metalr.records import open_run, read_config, versions
from metalr.schedules import to_config


@dataclass(frozen=True)
class Budget:
    """How long to train.

    Attributes:
        episodes: training runs in all, over every environment.
        max_seconds: stop earlier after so much wall time; None for no limit.
        checkpoint_seconds: wall time between checkpoints.

    Raises:
        ValueError: there are no episodes or no seconds.
    """

    episodes: int = 4000
    max_seconds: float | None = None
    checkpoint_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.episodes < 1 or not (self.max_seconds is None or self.max_seconds > 0.0):
            raise ValueError(
                f"got a budget of {self.episodes} episodes and {self.max_seconds} seconds, expected at least 1 episode "
                "and more than 0 seconds, or None for no limit"
            )


@dataclass(frozen=True)
class Learner:
    """An algorithm of Stable-Baselines3 with its settings.

    Attributes:
        name: in the config and on the card.
        settings: the dataclass that `build` takes.
        build: makes the untrained model on an `LRControlVecEnv` from the environment's core, the settings, the seed
            and the folder for TensorBoard, None for no log.
        callbacks: more of SB3's callbacks, for the algorithm's own needs.
    """

    name: str
    settings: Any
    build: Callable[[Transition, Any, int, Path | None], BaseAlgorithm]
    callbacks: tuple[BaseCallback, ...] = ()


def train_agent(
    learner: Learner,
    transition: Transition,
    folder: str | Path,
    *,
    budget: Budget | None,
    seed: int,
    progress: Progress | None,
    tensorboard: bool,
    resume: bool,
    options: Mapping[str, Any] | None,
) -> PolicyController:
    """Train to the budget in a new folder, or in one that an interrupted run left, then export.

    Args:
        learner: the algorithm.
        transition: the environment's core.
        folder: a new run folder, or with `resume` one that an interrupted run left.
        budget: episodes and wall time; None for the default.
        seed: of the policy and the episodes.
        progress: called with episodes done and episodes in all.
        tensorboard: write `folder/tensorboard`.
        resume: continue from the last checkpoint.
        options: kept in `config.json` for whoever resumes the folder without this call at hand.

    Returns:
        The exported controller, also in `controller.safetensors`.

    Raises:
        FileExistsError: the folder holds files and `resume` is off.
        FileNotFoundError: `resume` is on and the folder holds no run.
        ValueError: the folder holds a run with other settings.
    """
    folder, budget = Path(folder), budget or Budget()
    card = {"agent": learner.name, "seed": seed, "settings": asdict(learner.settings), **_describe(transition)}
    check_folder(folder, resume)
    with open_run(folder, {**card, "budget": asdict(budget), OPTIONS: options, "versions": _versions()}):
        if resume and (folder / CONTROLLER).is_file():  # written when training is done: nothing is left to do
            return cast(PolicyController, load_controller(folder / CONTROLLER))
        transition.seed(seed)
        model = learner.build(transition, learner.settings, seed, folder / "tensorboard" if tensorboard else None)
        if resume and has_checkpoint(folder):
            model = _trained_so_far(model, transition, seed, folder)
        timesteps = budget.episodes * transition.num_groups * transition.config.decisions
        keeper = CheckpointCallback(folder, budget.max_seconds, budget.checkpoint_seconds)
        callbacks: list[BaseCallback] = [keeper, *learner.callbacks]
        if progress is not None:
            callbacks.append(EpisodeCounter(budget.episodes, timesteps // budget.episodes, progress))
        _learn(model, timesteps, callbacks, keeper)
        controller = cast(PolicyController, export_policy(model))
        write_whole(folder / CONTROLLER, to_bytes(controller, provenance(folder)))
        return controller


def provenance(folder: Path) -> dict[str, Any]:
    """The facts for the card of a controller from a run's last checkpoint: its config, and how far it has trained."""
    config, progress = read_config(folder, "training"), read_progress(folder)
    about = {key: value for key, value in config.items() if key not in ("kind", "budget", OPTIONS)}
    return {
        **about,
        "decisions_trained": progress.timesteps,
        "seconds": progress.seconds,
        "learning_curve": progress.thinned_curve(),
    }


def falling(first: float, last: float) -> Callable[[float], float]:
    """A learning rate of the agent itself that falls linearly over training; SB3 counts progress from 1 to 0."""
    return lambda remaining: last + (first - last) * remaining


def _trained_so_far(model: BaseAlgorithm, transition: Transition, seed: int, folder: Path) -> BaseAlgorithm:
    """The model of a checkpoint, in the environment of an untrained one."""
    loaded = load_checkpoint(type(model), folder, env=model.get_env())
    # Episodes that were seen before the interruption are not seen again.
    transition.seed(seed + 1_000_003 * loaded.num_timesteps)
    return loaded


def _learn(model: BaseAlgorithm, timesteps: int, callbacks: list[BaseCallback], keeper: CheckpointCallback) -> None:
    """Train until the model has made so many time steps in all; save a checkpoint at the end, also after Ctrl-C."""
    left = timesteps - model.num_timesteps
    try:
        if left > 0:
            model.learn(left, CallbackList(callbacks), reset_num_timesteps=False)
    finally:
        keeper.init_callback(model)
        keeper.save()


def _describe(transition: Transition) -> dict[str, Any]:
    """The environment's settings, JSON-able."""
    config = asdict(transition.config)
    config["schedule"] = to_config(transition.schedule)
    tasks = [about_task(task) for task in transition.tasks]
    return {"tasks": tasks, "num_envs": transition.num_envs, "env": config, "torch_threads": torch.get_num_threads()}


def _versions() -> dict[str, str]:
    return versions("gymnasium", "stable-baselines3")
