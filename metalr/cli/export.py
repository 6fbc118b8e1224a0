"""`metalr export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from metalr.cli.checks import file_or_name


@dataclass
class Export:
    """Write a controller to one file.

    The ending of the target says which kind:
    - .safetensors: a controller file, from a run folder's last checkpoint
    - .py: a scheduler in one Python file that needs torch alone
    - .csv: the mean LR of some runs, for programs that can only follow a table
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """A run folder, a .safetensors file, or the name of a shipped controller."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
    """The file to write, a new one."""
    task: str = "mnist1d-mlp"
    """For .csv: the task on whose runs the table is recorded, shipped or your own module:function."""
    horizon: int = 200
    """For .csv: optimizer updates in those runs."""

    def run(self) -> None:
        """Write the file."""
        from metalr.artefacts.controller_file import list_controllers, load_card, load_controller, save_controller
        from metalr.artefacts.replay_table import write_replay_csv
        from metalr.artefacts.standalone import write_standalone

        if self.source.is_dir():
            from metalr.agents.run_folder import export_folder

            controller: Any
            controller, about = export_folder(self.source)
            card: dict[str, Any] = {"about": {**about, "exported_from": self.source.name}}
        elif self.source.is_file() or isinstance(file_or_name(self.source), str):
            source = file_or_name(self.source)
            controller, card = load_controller(source), load_card(source)
        else:
            raise FileNotFoundError(
                f"got source {self.source}, where there is nothing, expected a run folder, a .safetensors file or the "
                f"name of a shipped controller ({', '.join(list_controllers())}): check the path, or make a run folder "
                "with `metalr train`"
            )
        if self.target.suffix == ".safetensors":
            save_controller(self.target, controller, card["about"])
        elif self.target.suffix == ".py":
            write_standalone(controller, card, self.target)
        elif self.target.suffix == ".csv":
            multipliers = self._multipliers(controller)
            write_replay_csv(controller, multipliers, self.target, card=card, horizon=self.horizon)
        else:
            raise ValueError(f"got target {self.target}, expected a name that ends in .safetensors, .py or .csv")
        print(self.target)

    def _multipliers(self, controller: Any) -> torch.Tensor:
        from metalr.engine.episodes import run_episode
        from metalr.schedulers.plain_runs import runs_of
        from metalr.tasks.catalog import make_task

        runs = runs_of(make_task(self.task, horizon=self.horizon), num_runs=16)
        base_lr = torch.full((16,), runs.task.base_lr)
        return run_episode(controller, runs, torch.arange(16), base_lr, splits=()).multipliers
