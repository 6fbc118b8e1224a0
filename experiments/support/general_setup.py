"""The folders and settings of the general controller's training, shared by the experiments about it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from metalr.agents.clone_folder import CloneFolder
from metalr.agents.clone_runs import CloneConfig
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
        short: tasks of 40 updates, for a smoke run.
    """

    folder: Path
    config: CloneConfig
    short: bool = False

    def of(self, split: MetaSplit) -> CloneFolder:
        """The files of a split."""
        return CloneFolder(self.folder / split, partial(_draw, split, self.short), self.config)


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
