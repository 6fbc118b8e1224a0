"""Options that a command line or a file can hold, and the run folders in which they become controllers.

`train` starts or resumes a run; `export_folder` turns the last checkpoint of a run, finished or not, into a
controller. The options are kept in the folder's `config.json`, so that a folder alone is enough to continue.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stable_baselines3 import DQN, PPO

from metalr import schedules
from metalr.agents.clone_runs import CloneConfig
from metalr.agents.clone_training import CloneSettings, clone_files, export_clone, train_clone
from metalr.agents.dqn import DQNSettings, train_dqn
from metalr.agents.ppo import PPOSettings, train_ppo
from metalr.agents.sb3_callbacks import CHECKPOINT, has_checkpoint, load_checkpoint
from metalr.agents.sb3_export import export_policy
from metalr.agents.sb3_training import Budget, provenance
from metalr.agents.training_folder import OPTIONS
from metalr.control.actions import ActionSpec
from metalr.control.controller import Controller
from metalr.envs.transition import EnvConfig, Transition
from metalr.progress import Progress
from metalr.records import CONFIG, difference, read_config
from metalr.registry import look_up
from metalr.tasks.catalog import is_imported, named_task
from metalr.tasks.families import FAMILIES
from metalr.tasks.task import Task
from metalr.workers import Workers

AgentName = Literal["ppo", "dqn", "clone"]
# Of a shipped task, unless another is asked for.
_HORIZON = 200


@dataclass(frozen=True)
class TrainOptions:
    """Everything that defines a training run of an agent, as plain values."""

    agent: AgentName = "ppo"
    """The learner: PPO sets a continuous action, DQN chooses among levels, clone imitates the LR best in hindsight."""
    task: str = "mnist1d-mlp"
    """A shipped task (see `metalr list`), or module:function of your own that returns a metalr.Task."""
    family: str | None = None
    """A task family in place of one task; see `metalr list`."""
    groups: int | None = None
    """With a family: how many tasks to draw from it; none stands for 4, with a clone for 16."""
    horizon: int | None = None
    """Optimizer updates in a training run; none stands for 200, or your own task's (a family has its own)."""
    optimizer: str | None = None
    """Inner optimizer, in place of the task's own; see `metalr list`."""
    base_lr: float | None = None
    """Guess of the LR, in place of the task's own; the agent meets it wrong by random factors."""
    decisions: int = 20
    """LR decisions in a training run; for PPO and DQN they must divide the horizon."""
    schedule: str | None = None
    """Base schedule that the controller corrects (see `metalr list`); none stands for linear, with a clone for wsd."""
    reward: str = "train"
    """Reward of a decision, for PPO and DQN; see `metalr list`."""
    mode: Literal["anchored", "recursive"] | None = None
    """Multiply the base LR (anchored) or the LR in force (recursive); none: PPO anchored, DQN and clone recursive."""
    alpha: float | None = None
    """Log-range of an action; none stands for 3, a factor of 20 each way, and with DQN for 2.3, a factor of 10."""
    levels: int = 7
    """Actions that DQN chooses among."""
    hide_loss: float = 0.0
    """Share of training runs in which the controller sees no losses, so that it also works without."""
    hide_horizon: float = 0.0
    """Share of training runs in which the controller does not know the horizon."""
    visible: tuple[str, ...] | None = None
    """Features to show to the controller, in place of all of them; `progress` alone makes a state-blind ablation."""
    num_envs: int = 64
    """Training runs that advance together, for PPO and DQN."""
    episodes: int = 5120
    """Training runs in all, for PPO and DQN."""
    max_minutes: float | None = None
    """Stop PPO and DQN earlier, after so much time."""
    compile: bool = False
    """Compile the training step, for PPO and DQN: worth it for runs of a minute and more."""
    device: str = "cpu"
    """Where the training runs live: cpu or cuda; those of a clone always on the cpu."""
    seed: int = 0
    """Makes the run repeatable."""
    ppo: PPOSettings = field(default_factory=PPOSettings)
    dqn: DQNSettings = field(default_factory=DQNSettings)
    clone: CloneSettings = field(default_factory=CloneSettings)


def build_tasks(options: TrainOptions) -> list[Task]:
    """The tasks that the options describe.

    Raises:
        ValueError: a name or number is wrong.
    """
    if options.family is not None:
        groups = options.groups or (16 if options.agent == "clone" else 4)
        return look_up(FAMILIES, options.family, "task family").sample(options.seed, groups)
    changes = {"optimizer": options.optimizer, "base_lr": options.base_lr}
    return [named_task(options.task, options.horizon, _HORIZON, **changes)]


def build_transition(options: TrainOptions, workers: Workers | None = None) -> Transition:
    """The environment's core that the options describe.

    Args:
        options: all of them.
        workers: where its training runs are; this process if None.

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
        schedule=schedules.make(options.schedule or "linear"),
        hide_loss=options.hide_loss,
        hide_horizon=options.hide_horizon,
        visible=options.visible,
        compile=options.compile,
        device=options.device,
    )
    return Transition(build_tasks(options), options.num_envs, config, workers=workers)


def clone_config(options: TrainOptions) -> CloneConfig:
    """The settings of the clone that the options describe.

    Raises:
        ValueError: a name or number is wrong.
    """
    usual = CloneConfig()
    action = replace(
        usual.action,
        mode=options.mode or usual.action.mode,
        alpha=usual.action.alpha if options.alpha is None else options.alpha,
    )
    return options.clone.config(
        action=action,
        schedule=usual.schedule if options.schedule is None else schedules.make(options.schedule),
        decisions=(options.decisions, options.decisions),
        hide_loss=options.hide_loss,
        hide_horizon=options.hide_horizon,
        visible=options.visible,
        seed=options.seed,
        student_seed=options.seed,
    )


@dataclass(frozen=True)
class _Agent:
    """An agent that `train` knows.

    Attributes:
        train: called with the options, the folder, where to work, what to call with the progress, whether to resume,
            and whether to write a log for TensorBoard.
        export: the controller of an unfinished run, and the facts for its card.
        unread: options that would change nothing.
    """

    train: Callable[[TrainOptions, Path, Workers, Progress | None, bool, bool], Controller]
    export: Callable[[TrainOptions, Path], tuple[Controller, dict[str, Any]]]
    unread: tuple[str, ...]


def _train_sb3(
    options: TrainOptions, folder: Path, workers: Workers, progress: Progress | None, resume: bool, tensorboard: bool
) -> Controller:
    shared: dict[str, Any] = {
        "budget": Budget(options.episodes, None if options.max_minutes is None else 60.0 * options.max_minutes),
        "seed": options.seed,
        "progress": progress,
        "tensorboard": tensorboard,
        "resume": resume,
        "options": asdict(options),
    }
    transition = build_transition(options, workers)
    if options.agent == "dqn":
        return train_dqn(transition, folder, settings=options.dqn, **shared)
    return train_ppo(transition, folder, settings=options.ppo, **shared)


def _export_sb3(options: TrainOptions, folder: Path) -> tuple[Controller, dict[str, Any]]:
    if not has_checkpoint(folder):
        raise FileNotFoundError(f"got {folder} without {CHECKPOINT}, expected one: let it train a little longer")
    model = load_checkpoint(DQN if options.agent == "dqn" else PPO, folder)
    return export_policy(model, build_transition(options)), provenance(folder)


def _train_clone(
    options: TrainOptions, folder: Path, workers: Workers, progress: Progress | None, resume: bool, tensorboard: bool
) -> Controller:
    return train_clone(
        build_tasks(options),
        folder,
        config=clone_config(options),
        workers=workers,
        progress=progress,
        resume=resume,
        options=asdict(options),
    )


def _export_clone(options: TrainOptions, folder: Path) -> tuple[Controller, dict[str, Any]]:
    return export_clone(clone_files(build_tasks(options), folder, clone_config(options)))


_OF_THE_ENVIRONMENT = ("reward", "num_envs", "episodes", "max_minutes", "compile", "device")
AGENTS: dict[str, _Agent] = {
    "ppo": _Agent(_train_sb3, _export_sb3, ("levels", "dqn", "clone")),
    "dqn": _Agent(_train_sb3, _export_sb3, ("ppo", "clone")),
    "clone": _Agent(_train_clone, _export_clone, ("levels", "ppo", "dqn", *_OF_THE_ENVIRONMENT)),
}


def _refuse_unread(options: TrainOptions) -> None:
    unread = [name for name in AGENTS[options.agent].unread if getattr(options, name) != getattr(TrainOptions(), name)]
    if unread:
        raise ValueError(
            f"got a change of {', '.join(unread)} for the agent {options.agent}, which reads no such option, expected "
            "none: leave it out, or choose another agent"
        )


def train(
    options: TrainOptions,
    folder: Path,
    *,
    workers: Workers | None = None,
    progress: Progress | None = None,
    tensorboard: bool = True,
) -> Controller:
    """Train in a new folder, or continue in one that holds the same run.

    Args:
        options: all of them.
        folder: of the run.
        workers: where training runs are made; this process if None. The controller is the same wherever that is. PPO
            and DQN take several local ones, and those for several tasks.
        progress: called with how much is done, how much there is in all, and what is counted.
        tensorboard: write `folder/tensorboard`, as far as the agent has a log.

    Raises:
        ValueError: the folder holds a run with other options, or an option is wrong.
        FileExistsError: the folder holds something else.
    """
    agent = look_up(AGENTS, options.agent, "agent")
    _refuse_unread(options)
    resume = (folder / CONFIG).is_file()
    if options.horizon is None and not is_imported(options.task):
        options = dataclasses.replace(options, horizon=_HORIZON)  # as config.json has always had it
    changed = difference(asdict(read_options(folder)), asdict(options)) if resume else []
    if changed:
        raise ValueError(
            f"got {folder}, which holds a run with other options, expected the same (changed: {'; '.join(changed)}) "
            f"or a new folder: choose another, or resume it as it is with `metalr train --resume {folder}`"
        )
    return agent.train(options, folder, workers or Workers(), progress, resume, tensorboard)


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
    known = {item.name for item in dataclasses.fields(TrainOptions)} & stored.keys()
    chosen: dict[str, Any] = {name: stored[name] for name in known}
    if chosen.get("visible") is not None:
        chosen["visible"] = tuple(chosen["visible"])  # JSON has no tuples
    for name, kind in (("ppo", PPOSettings), ("dqn", DQNSettings), ("clone", CloneSettings)):
        if name in chosen:
            chosen[name] = kind(**chosen[name])
    return TrainOptions(**chosen)


def export_folder(folder: Path) -> tuple[Controller, dict[str, Any]]:
    """The controller of a run as far as it has got, and the facts for its card; training need not be finished.

    Raises:
        FileNotFoundError: there is nothing to export yet.
    """
    options = read_options(folder)
    return look_up(AGENTS, options.agent, "agent").export(options, folder)
