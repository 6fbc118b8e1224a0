"""The folders and settings of the general controller's training, shared by the experiments about it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from experiments.support import records
from metalr.agents.clone_folder import CloneFolder
from metalr.agents.clone_runs import CloneConfig, roll_out
from metalr.compare.calibrated import LossCurve, fit
from metalr.compare.oracle import Grid
from metalr.control.controller import Controller
from metalr.control.reference import ScheduleController
from metalr.control.rules import EdgeRule
from metalr.schedules import Cosine
from metalr.tasks.general import MetaSplit, draw_task
from metalr.tasks.task import Task

# Base LRs over the best LR, or over what stands for it.
FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)
# Decisions of every controller in use, or one for every two updates of a shorter run.
DECISIONS = 40


@dataclass(frozen=True)
class Setup:
    """A training of the general controller.

    Attributes:
        folder: of all files.
        config: of the cloning.
        student: name of the students, before their seed.
        short: tasks of 40 updates, for a smoke run.
    """

    folder: Path
    config: CloneConfig
    student: str = "student"
    short: bool = False

    def of(self, split: MetaSplit) -> CloneFolder:
        """The files of a split."""
        return CloneFolder(self.folder / split, partial(_draw, split, self.short), self.config, self.student)

    def validation(self, *, loss_known: bool = True, horizon_known: bool = True) -> CloneFolder:
        """The files of meta-validation where all runs, or none, have losses, and all tasks, or none, a horizon."""
        config = replace(self.config, hide_loss=float(not loss_known), hide_horizon=float(not horizon_known))
        folder = self.folder / ("meta-validation" if horizon_known else "meta-validation-no-horizon")
        return CloneFolder(folder, partial(_draw, "meta-validation", self.short), config)


def small_grid(config: CloneConfig) -> Grid:
    """A grid for a smoke run."""
    return Grid(num_lrs=7, decades=config.grid.decades, seeds=(0, 1))


def rivals(config: CloneConfig) -> dict[str, Controller]:
    """Controllers that learned nothing, from the same base LRs."""
    return {
        "base schedule": ScheduleController(config.schedule, DECISIONS, config.spacing),
        "cosine": ScheduleController(Cosine(), DECISIONS, config.spacing),
        "edge rule": EdgeRule(
            schedule=config.schedule,
            decisions=DECISIONS,
            low=config.action.low,
            high=config.action.high,
            spacing=config.spacing,
        ),
    }


def regret_rows(
    folder: CloneFolder, tasks: int, controllers: Mapping[str, Controller], **about: object
) -> list[records.Row]:
    """A row for each controller, task and guess: the mean log regret over the seeds.

    Args:
        folder: of meta-validation.
        tasks: their number.
        controllers: by name.
        **about: put into each row.
    """
    grid = folder.config.grid
    seeds = torch.tensor(grid.seeds).repeat(len(FACTORS))
    log_guess = torch.tensor(FACTORS, dtype=torch.float64).log().repeat_interleave(len(grid.seeds))
    rows = []
    for index in range(tasks):
        planned = folder.plan(index)
        planned = replace(planned, decisions=min(DECISIONS, planned.task.horizon // 2))
        curve, _ = folder.oracle(index)
        best = curve.log_loss[curve.best_index]
        for name, controller in controllers.items():
            controller = controller if planned.horizon_known else controller.with_schedule(planned.schedule)
            episodes = roll_out(controller, planned, curve, log_guess, seeds, folder.config)
            regret = (episodes.log_loss.double().view(len(FACTORS), -1) - best).mean(1)
            diverged = episodes.diverged.view(len(FACTORS), -1).sum(1)
            for place, factor in enumerate(FACTORS):
                row = {"controller": name, "task": planned.task.name, "horizon": planned.task.horizon, "factor": factor}
                outcome = {"log_regret": regret[place].item(), "diverged": int(diverged[place])}
                rows.append({**row, **outcome, "runs": len(grid.seeds), **about})
    return rows


def calibrated_lrs(setup: Setup, tasks: int) -> dict[str, float]:
    """Class of optimizer -> its lr / (1 - momentum) with the lowest mean regret on the curves of meta-train."""
    folder = setup.of("meta-train")
    return fit([effective_curve(folder, index) for index in range(tasks)])


def effective_curve(folder: CloneFolder, index: int) -> LossCurve:
    """The oracle curve of a task against lr / (1 - momentum), so that one LR can serve every momentum."""
    planned, (curve, _) = folder.plan(index), folder.oracle(index)
    optimizer = planned.task.optimizer
    log_lr = curve.log_lrs.numpy() - np.log1p(-getattr(optimizer, "momentum", 0.0))
    mean = curve.log_loss.mean(1)
    return LossCurve(planned.task.name, type(optimizer).__name__, log_lr, (mean - mean.min()).numpy())


def _draw(split: MetaSplit, short: bool, index: int) -> Task:
    task = draw_task(split, index)
    return task.with_(horizon=40, batch_size=8) if short else task
