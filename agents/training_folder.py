"""The folder of a training, as far as all agents agree on it.

It holds `config.json` (everything that defines the run) and, when training is done, `controller.safetensors`. What a
training resumes from lies beside them and is the agent's own.
"""

from pathlib import Path
from typing import Any

from metalr.records import CONFIG
from metalr.tasks.task import Task

CONTROLLER = "controller.safetensors"
# Key of config.json under which the caller's own options are kept.
OPTIONS = "options"


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that is not in the state which the caller expects.

    Raises:
        FileExistsError: the folder holds files and `resume` is off.
        FileNotFoundError: `resume` is on and the folder holds no run.
    """
    if resume and not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"got {folder} to resume, expected a run folder with {CONFIG}: start it without resume")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"got folder {folder}, which already holds files, expected a new one: resume it or choose another"
        )


def about_task(task: Task) -> dict[str, Any]:
    """A task as the card of a controller names it, JSON-able."""
    return {
        "name": task.name,
        "horizon": task.horizon,
        "batch_size": task.batch_size,
        "base_lr": task.base_lr,
        "optimizer": repr(task.optimizer),
        "num_params": task.num_params,
    }
