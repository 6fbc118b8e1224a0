"""Options that a command line or a file can hold, and the run folders in which they become controllers.

`train` starts or resumes a run; `export_folder` turns the last checkpoint of a run, finished or not, into a
controller. The options are kept in the folder's `config.json`, so that a folder alone is enough to continue.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from metalr import schedules
from metalr.agents.dqn import train_dqn
from metalr.agents.ppo import train_ppo
from metalr.agents.sb3_callbacks import CHECKPOINT, has_checkpoint, load_checkpoint
from metalr.agents.sb3_export import export_policy
from metalr.agents.sb3_training import OPTIONS, Budget, provenance
from metalr.control.actions import ActionSpec
from metalr.control.policy import PolicyController
from metalr.envs.transition import EnvConfig, Transition
from metalr.records import CONFIG, difference, read_config
from metalr.registry import look_up
from metalr.tasks.catalog import is_imported, named_task
from metalr.tasks.families import FAMILIES

_AGENTS: dict[str, tuple[type[BaseAlgorithm], Callable[..., PolicyController]]] = {
    "ppo": (PPO, train_ppo),
    "dqn": (DQN, train_dqn),
}
# Of a shipped task, unless another is asked for.
_HORIZON = 200


@dataclass(frozen=True)
class TrainOptions:
    """Everything that defines a training run of an agent, as plain values."""

    agent: Literal["ppo", "dqn"] = "ppo"
    """The learner: PPO sets a continuous action, DQN chooses among levels."""
    task: str = "mnist1d-mlp"
    """A shipped task (see `metalr list`), or module:function of your own that returns a metalr.Task."""
    family: str | None = None
    """A task family in place of one task; see `metalr list`."""
    groups: int = 4
    """With a family: how many tasks to draw from it."""
    horizon: int | None = None
    """Optimizer updates in a training run: 200, or your own task's, by default (a family has its own)."""
    optimizer: str | None = None
    """Inner optimizer; the task's own by default."""
    base_lr: float | None = None
    """Default LR of the task, which is then made wrong by a random factor; the task's own by default."""
    decisions: int = 20
    """LR decisions in a training run; must divide the horizon."""
    schedule: str = "linear"
    """Base schedule that the controller corrects; see `metalr list`."""
    reward: str = "train"
    """Reward of a decision; see `metalr list`."""
    mode: Literal["anchored", "recursive"] | None = None
    """Whether an action moves the LR from the base (anchored, PPO's default) or from where it is (recursive, DQN's)."""
    alpha: float | None = None
    """Log-range of an action; by default 3 for PPO, a factor of 20 each way, and 2.3 for DQN, a factor of 10."""
    levels: int = 7
    """Actions that DQN chooses among."""
    hide_loss: float = 0.0
    """Share of training runs in which the controller sees no losses, so that it also works without."""
    hide_horizon: float = 0.0
    """Share of training runs in which the controller does not know the horizon."""
    visible: tuple[str, ...] | None = None
    """Features that the controller may see; all by default. `progress` alone makes a state-blind ablation."""
    num_envs: int = 64
    """Training runs that advance together."""
    episodes: int = 5120
    """Training runs in all."""
    max_minutes: float | None = None
    """Stop earlier after so much time."""
    compile: bool = False
    """Compile the training step: worth it for runs of a minute and more."""
    device: str = "cpu"
    """Where the training runs live: cpu or cuda."""
    seed: int = 0
    """Makes the run repeatable."""


def build_transition(options: TrainOptions) -> Transition:
    """The environment's core that the options describe.

    Raises:
        ValueError: a name or number is wrong.
    """
    recursive = options.agent == "dqn"
    action = ActionSpec(
        mode=options.mode or ("recursive" if recursive else "anchored"),
        alpha=(2.3 if recursive else 3.0) if options.alpha is None else options.alpha,
        levels=options.levels if options.agent == "dqn" else 0,
    )
    config = EnvConfig(
        decisions=options.decisions,
        action=action,
        reward=options.reward,
        schedule=schedules.make(options.schedule),
        hide_loss=options.hide_loss,
        hide_horizon=options.hide_horizon,
        visible=options.visible,
        compile=options.compile,
        device=options.device,
    )
    if options.family is not None:
        tasks = look_up(FAMILIES, options.family, "task family").sample(options.seed, options.groups)
    else:
        changes = {"optimizer": options.optimizer, "base_lr": options.base_lr}
        tasks = [named_task(options.task, options.horizon, _HORIZON, **changes)]
    return Transition(tasks, options.num_envs, config)


def train(options: TrainOptions, folder: Path, *, progress: bool = False, tensorboard: bool = True) -> PolicyController:
    """Train in a new folder, or continue in one that holds the same run.

    Raises:
        ValueError: the folder holds a run with other options, or an option is wrong.
        FileExistsError: the folder holds something else.
    """
    resume = (folder / CONFIG).is_file()
    if options.horizon is None and not is_imported(options.task):
        options = dataclasses.replace(options, horizon=_HORIZON)  # as config.json has always had it
    changed = difference(asdict(read_options(folder)), asdict(options)) if resume else []
    if changed:
        raise ValueError(
            f"got {folder}, which holds a run with other options, expected the same (changed: {'; '.join(changed)}) "
            f"or a new folder: choose another, or resume it as it is with `metalr train --resume {folder}`"
        )
    _, train_one = look_up(_AGENTS, options.agent, "agent")
    return train_one(
        build_transition(options),
        folder,
        budget=Budget(options.episodes, None if options.max_minutes is None else 60.0 * options.max_minutes),
        seed=options.seed,
        progress=progress,
        tensorboard=tensorboard,
        resume=resume,
        options=asdict(options),
    )


def read_options(folder: Path) -> TrainOptions:
    """The options that a run folder was started with.

    Raises:
        FileNotFoundError: it is not a run folder.
        ValueError: it was not started from options.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"got {folder}, expected a run folder with {CONFIG}: start it with `metalr train`")
    stored = read_config(folder, "training").get(OPTIONS)
    if stored is None:
        raise ValueError(f"got {folder}, which was not started by `metalr train`, expected a folder that was")
    known = {field.name for field in dataclasses.fields(TrainOptions)} & stored.keys()
    chosen: dict[str, Any] = {name: stored[name] for name in known}
    if chosen.get("visible") is not None:
        chosen["visible"] = tuple(chosen["visible"])  # JSON has no tuples
    return TrainOptions(**chosen)


def export_folder(folder: Path) -> tuple[PolicyController, dict[str, Any]]:
    """The controller of a run's last checkpoint, and the facts for its card; training need not be finished.

    Raises:
        FileNotFoundError: there is no checkpoint yet.
    """
    options = read_options(folder)
    if not has_checkpoint(folder):
        raise FileNotFoundError(f"got {folder} without {CHECKPOINT}, expected one: let it train a little longer")
    algorithm, _ = look_up(_AGENTS, options.agent, "agent")
    model = load_checkpoint(algorithm, folder)
    return cast(PolicyController, export_policy(model, build_transition(options))), provenance(folder)
