"""Training a clone on tasks of one's own, in a run folder, from oracle curves to a controller file.

`metalr.agents.clone` has the method. The folder holds `config.json`, oracle curves, rollouts and students, each written
whole, and when training is done `controller.safetensors`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from metalr import schedules
from metalr.agents.clone_folder import CloneFolder
from metalr.agents.clone_runs import CloneConfig, Episodes
from metalr.agents.training_folder import CONTROLLER, OPTIONS, about_task, check_folder
from metalr.artefacts.controller_file import load_controller, to_bytes
from metalr.compare.oracle import Grid
from metalr.control.recurrent import RecurrentPolicyController
from metalr.files import write_whole
from metalr.progress import Progress
from metalr.records import open_run, read_config, versions
from metalr.tasks.task import Task
from metalr.workers import Workers

# A curve of fewer plans would leave the policy with too few seeds, and a share of hidden horizons with all or none.
_LEAST_PLANS = 8


@dataclass(frozen=True)
class CloneSettings:
    """Settings of a clone; the defaults suit a few small tasks and some two minutes.

    The shipped controller was made with the larger ones of `CloneConfig`.
    """

    rounds: int = 3
    """Rounds of rollouts from wrong base LRs, each followed by another training of the policy."""
    runs_per_task: int = 32
    """Rollouts of each task in a round."""
    guess: float = 30.0
    """Largest factor by which the base LRs of rollouts are too small or too big."""
    num_lrs: int = 15
    """LRs on an oracle curve, the final loss of a task against its LR."""
    decades: float = 5.0
    """Decades from the lowest to the highest LR of a curve."""
    seeds: int = 4
    """Training runs of each LR on a curve."""
    hidden_size: int = 32
    """Width of a policy's recurrent state."""
    members: int = 1
    """Policies trained on the same runs; the controller is their average."""
    steps: int = 500
    """Updates of each policy in each round."""
    batch: int = 256
    """Training runs in each update."""
    peak_lr: float = 5e-3
    """Peak LR of the policy's own optimizer, AdamW, under a one-cycle schedule."""
    smoothness: float = 1e-3
    """Weight of the penalty on a change of the LR, beside the regret."""
    noise: float = 0.1
    """Standard deviation of the noise on the features that a policy is trained on."""

    def config(self, **changes: Any) -> CloneConfig:
        """The settings as the training takes them, with changes to `CloneConfig`'s fields."""
        if self.seeds < 1 or not self.guess >= 1.0:
            raise ValueError(f"got {self.seeds} seeds and guess {self.guess}, expected at least 1 of both")
        own = asdict(self)
        guess, seeds = own.pop("guess"), range(own.pop("seeds"))
        grid = Grid(own.pop("num_lrs"), own.pop("decades"), tuple(seeds))
        return replace(CloneConfig(**own), grid=grid, own_seeds=True, guess=(1.0 / guess, guess), **changes)


def train_clone(
    tasks: Sequence[Task],
    folder: str | Path,
    *,
    config: CloneConfig | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
) -> RecurrentPolicyController:
    """Train a clone of the oracle on tasks and export it to `folder/controller.safetensors`.

    Few tasks are run several times, on other seeds.

    Args:
        tasks: of any shapes and horizons.
        folder: a new run folder, or with `resume` one that an interrupted run left.
        config: settings; by default those of `CloneSettings`.
        workers: where curves and rollouts are made; this process if None.
        progress: called with how much is done, how much there is in all, and what it is.
        resume: continue with what is there; it ends as a training that was not interrupted.
        options: kept in `config.json` for whoever resumes the folder without this call at hand.

    Raises:
        FileExistsError: the folder holds files and `resume` is off.
        FileNotFoundError: `resume` is on and the folder holds no run.
        ValueError: there are no tasks, or the folder holds a run with other settings.
    """
    if not tasks:
        raise ValueError("got no tasks, expected at least one: pass a list of tasks")
    folder, config = Path(folder), config or CloneSettings().config()
    check_folder(folder, resume)
    card = {"agent": "clone", "seed": config.student_seed, "settings": _settings(config)}
    about = {**card, "tasks": [about_task(task) for task in tasks], "torch_threads": torch.get_num_threads()}
    with open_run(folder, {**about, OPTIONS: options, "versions": versions()}):
        if resume and (folder / CONTROLLER).is_file():  # written when training is done: nothing is left to do
            return cast(RecurrentPolicyController, load_controller(folder / CONTROLLER))
        files = clone_files(tasks, folder, config)
        _train(files, workers, progress)
        controller, facts = export_clone(files)
        write_whole(folder / CONTROLLER, to_bytes(controller, facts))
        return controller


def clone_files(tasks: Sequence[Task], folder: Path, config: CloneConfig) -> CloneFolder:
    """The files of a training on tasks, which are taken in turn."""
    return CloneFolder(folder, lambda index: tasks[index % len(tasks)], config)


def export_clone(files: CloneFolder) -> tuple[RecurrentPolicyController, dict[str, Any]]:
    """The latest student as a controller, and the facts for its card; training need not be finished.

    Raises:
        FileNotFoundError: no student has been trained yet.
    """
    trained = files.rounds_trained()
    if trained == 0:
        raise FileNotFoundError(f"got {files.folder} without a student, expected one: let it train a little longer")
    facts = read_config(files.folder, "training")
    config, indices = files.config, _indices(len(facts["tasks"]))
    about = {key: value for key, value in facts.items() if key not in ("kind", OPTIONS)}
    learned = [files.oracle(index)[1] for index in indices]
    learned += [files.rollouts(r, index) for r in range(1, trained) for index in indices]
    return files.policy(trained - 1).controller(config, config.decisions[1]), {
        **about,
        "env": {
            "guess": list(config.guess),  # factors of the best LR
            "hide_loss": config.hide_loss,
            "hide_horizon": config.hide_horizon,
        },
        "decisions_trained": sum(episodes.log_multiplier.numel() for episodes in learned),
        "learning_curve": _learning_curve(files, indices),
    }


def _train(files: CloneFolder, workers: Workers | None, progress: Progress | None) -> None:
    """All rounds, and a last one of rollouts that says how good the last student is."""
    indices = _indices(len(read_config(files.folder, "training")["tasks"]))
    for round_index in range(files.config.rounds + 1):
        files.train(round_index, indices, workers, progress)
    judged = None if progress is None else lambda done, total, _: progress(done, total, "tasks judged")
    files.make_rollouts(files.config.rounds + 1, indices, workers or Workers(), judged)


def _indices(num_tasks: int) -> range:
    """The plans of a training: every task as often as the others, and at least a few plans in all."""
    return range(num_tasks * -(-_LEAST_PLANS // num_tasks))


def _learning_curve(files: CloneFolder, indices: Sequence[int]) -> list[list[float]]:
    """`[round, mean log regret of the rollouts]` of each student that has been rolled out on all tasks."""
    curve: list[list[float]] = []
    for student in range(files.rounds_trained()):
        paths = [files.rollouts_path(student + 1, index) for index in indices]
        if not all(path.exists() for path in paths):
            break
        regrets = [_regret(files, index, files.rollouts(student + 1, index)) for index in indices]
        curve.append([student, round(sum(regrets) / len(regrets), 4)])
    return curve


def _regret(files: CloneFolder, index: int, episodes: Episodes) -> float:
    """Mean log of the final loss over that of the best LR on the curve."""
    curve, _ = files.oracle(index)
    return (episodes.log_loss.double() - curve.log_loss[curve.best_index].mean()).mean().item()


def _settings(config: CloneConfig) -> dict[str, Any]:
    return {**asdict(config), "schedule": schedules.to_config(config.schedule)}
