"""`metalr explain`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from metalr.cli.checks import file_or_name
from metalr.reports.text_table import listing, screen_width


@dataclass
class Explain:
    """Run a controller on a task and say at every decision which features moved it.

    In brackets: the multiplier, over the one decided without that feature.
    """

    controller: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONTROLLER")]
    """A controller file, or the name of a shipped one."""
    task: str = "mnist1d-mlp"
    """A shipped task (see `metalr list`), or module:function of your own that returns a metalr.Task."""
    horizon: int | None = None
    """Optimizer updates in the run; none stands for 200, or your own task's."""
    optimizer: str | None = None
    """Inner optimizer, in place of the task's own; see `metalr list`."""
    factor: float = 1.0
    """Guess of the LR, as a factor of the task's base LR, to see how a wrong one is repaired."""
    seed: int = 0
    """Seed of the run: its weights and its data order."""

    def run(self) -> None:
        """Run and print."""
        from metalr.artefacts.controller_file import load_controller
        from metalr.control.explanation import reasons_of_episode
        from metalr.engine.episodes import run_episode
        from metalr.schedulers.plain_runs import runs_of
        from metalr.tasks.catalog import named_task

        controller = load_controller(file_or_name(self.controller))
        runs = runs_of(named_task(self.task, self.horizon, 200, optimizer=self.optimizer), num_runs=1)
        base_lr = torch.tensor([self.factor * runs.task.base_lr], dtype=torch.float64)
        episode = run_episode(controller, runs, torch.tensor([self.seed]), base_lr, splits=("train",))
        rows = [("update", "LR", "why")]
        steps = controller.decision_steps(runs.task.horizon)
        for step, found in zip(steps, reasons_of_episode(controller, episode.observations), strict=True):
            rows.append((str(step), f"{episode.lr[step, 0, 0]:.3g}", found.in_words(controller.bounds)))
        print(listing(rows, screen_width()))
        print(f"final train loss {episode.final['train'][0].item():.4g}, base LR {base_lr.item():.3g}")
