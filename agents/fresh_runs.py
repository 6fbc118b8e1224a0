"""A trained controller on fresh seeds, from right and wrong base LRs, beside its base schedule alone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from metalr.compare import statistics
from metalr.compare.statistics import Interval
from metalr.control.controller import Controller
from metalr.control.reference import ScheduleController
from metalr.engine.episodes import run_episode
from metalr.schedulers.plain_runs import runs_of
from metalr.tasks.task import Task

FACTORS = (0.1, 1.0, 10.0)
# Where fresh seeds begin: agents train on hashes and on small numbers.
_FIRST_SEED = 1 << 30


class FreshRow(NamedTuple):
    """One task under a controller or under its base schedule.

    Attributes:
        task: its name.
        alone: whether it is the base schedule alone.
        loss: factor of the task's base LR -> interquartile mean of the final train loss, infinite for diverged runs.
    """

    task: str
    alone: bool
    loss: dict[float, Interval]


def fresh_rows(
    controller: Controller,
    tasks: Sequence[Task],
    *,
    factors: Sequence[float] = FACTORS,
    num_seeds: int = 10,
    device: torch.device | str = "cpu",
) -> list[FreshRow]:
    """Two rows for each task: the controller's and its base schedule's, on the same seeds and base LRs.

    Args:
        controller: any.
        tasks: to train.
        factors: of each task's base LR.
        num_seeds: runs behind each number.
        device: of the runs.
    """
    alone = ScheduleController(controller.schedule, controller.decisions, controller.spacing)
    seeds = torch.arange(_FIRST_SEED, _FIRST_SEED + num_seeds).repeat(len(factors))
    rows = []
    for task in tasks:
        runs = runs_of(task, len(seeds), device=device)
        base_lr = task.base_lr * torch.tensor(factors, dtype=torch.float64).repeat_interleave(num_seeds)
        for contender in (controller, alone):
            episode = run_episode(contender, runs, seeds, base_lr, splits=("train",))
            loss = episode.final["train"][0].cpu()
            failed = episode.diverged.cpu() | ~loss.isfinite()
            table = torch.where(failed, torch.inf, loss).view(len(factors), num_seeds)
            means = (statistics.bootstrap(row.numpy()) for row in table)
            rows.append(FreshRow(task.name, contender is alone, dict(zip(factors, means, strict=True))))
    return rows
