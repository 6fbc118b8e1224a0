"""Oracle curves: the final loss of a task at every LR of a wide grid, under one base schedule.

A grid of LRs is one batch of runs, so a curve costs little; it says at once which LR a controller should have found and
what a wrong one costs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metalr.control.loop import Known
from metalr.control.reference import ScheduleController
from metalr.engine.episodes import Episode, run_episode
from metalr.engine.runs import BatchedRuns
from metalr.schedules import Schedule
from metalr.tasks.task import Task

# A final loss counts as at least this share of the untrained loss, so that no task with a loss near zero rules a mean.
LOSS_FLOOR = 1e-3
# A regret is clipped here: a factor of 55 in the loss.
_LARGEST_REGRET = 4.0
# Beyond the grid the regret rises by this much per unit of log LR.
_SLOPE_BEYOND = 0.7


@dataclass(frozen=True)
class Grid:
    """LRs and seeds of an oracle curve.

    Attributes:
        num_lrs: log-spaced LRs, centred on the task's base LR.
        decades: from the lowest to the highest.
        seeds: of the runs at each LR.
    """

    num_lrs: int = 15
    decades: float = 5.0
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)

    def log_lrs(self, task: Task) -> Tensor:
        """Natural logarithms of the LRs, `(num_lrs,)` float64, ascending."""
        half = 0.5 * self.decades * math.log(10.0)
        return math.log(task.base_lr) + torch.linspace(-half, half, self.num_lrs, dtype=torch.float64)


@dataclass(frozen=True)
class OracleCurve:
    """The log final train loss of a task by LR and seed.

    Attributes:
        log_lrs: `(num_lrs,)` float64, evenly spaced.
        log_loss: `(num_lrs, num_seeds)` float64, from `log_outcome`.
        diverged: `(num_lrs, num_seeds)` bool.
    """

    log_lrs: Tensor
    log_loss: Tensor
    diverged: Tensor

    @property
    def best_index(self) -> int:
        """Index of the LR with the lowest mean log loss."""
        return int(self.log_loss.mean(1).argmin())

    @property
    def best_log_lr(self) -> float:
        """Natural logarithm of that LR."""
        return self.log_lrs[self.best_index].item()

    def regrets(self, own: float = 0.5) -> Tensor:
        """The regret of each LR for each seed, `(num_seeds, num_lrs)`: 0 at the best LR, at most 4.

        Args:
            own: weight of the seed's own curve; the rest is the mean over seeds, which is smoother.
        """
        mean = self.log_loss.mean(1, keepdim=True)
        curve = own * self.log_loss + (1.0 - own) * mean
        return (curve - curve.min(0).values).clamp(max=_LARGEST_REGRET).T.contiguous()


def regret_at(regrets: Tensor, first_log_lr: Tensor, spacing: Tensor, log_lr: Tensor) -> Tensor:
    """The regret of an LR, by linear interpolation of a curve; beyond its ends it rises with the distance.

    Args:
        regrets: `(num_runs, num_lrs)`, a curve for each run.
        first_log_lr: log of the lowest LR of the curve, `(num_runs, 1)`.
        spacing: of the log LRs, `(num_runs, 1)`.
        log_lr: `(num_runs, decisions)`.

    Returns:
        `(num_runs, decisions)`, differentiable with respect to `log_lr`.

    Example:
        >>> curve, zero, one = torch.tensor([[4.0, 0.0, 2.0]]), torch.zeros(1, 1), torch.ones(1, 1)
        >>> [round(value, 3) for value in regret_at(curve, zero, one, torch.tensor([[0.5, 1.5, 3.0]]))[0].tolist()]
        [2.0, 1.0, 2.7]
    """
    place = (log_lr - first_log_lr) / spacing
    last = regrets.shape[1] - 1
    inside = place.clamp(0.0, float(last))
    left = inside.detach().floor().clamp(max=last - 1).long()
    low, high = regrets.gather(1, left), regrets.gather(1, left + 1)
    beyond = (place - inside).abs() * spacing
    return low + (inside - left) * (high - low) + _SLOPE_BEYOND * beyond


def log_outcome(episode: Episode, untrained: Tensor) -> Tensor:
    """The log final train loss of each run, `(num_runs,)` float64.

    It is floored at 1e-3 of the untrained loss, and a diverged run counts as untrained.

    Args:
        episode: with the split "train" evaluated.
        untrained: train loss before the first update, `(num_runs,)`.
    """
    loss, start = episode.final["train"][0].double(), untrained.double()
    failed = episode.diverged | ~(loss < math.inf)
    return torch.where(failed, start, loss.clamp(min=LOSS_FLOOR * start)).log()


def oracle_curve(
    task: Task, grid: Grid, schedule: Schedule, *, known: Known, controller: ScheduleController | None = None
) -> tuple[OracleCurve, Episode]:
    """Train a task at every LR of a grid.

    Args:
        task: to train.
        grid: LRs and seeds.
        schedule: base schedule of the runs.
        known: what the observations show.
        controller: of the same schedule, with the decisions at which observations are taken; evenly spaced by default.

    Returns:
        The curve, and the episodes behind it: those of the first LR first, in the order of the seeds.
    """
    controller = controller or ScheduleController(schedule, max(min(40, task.horizon // 2), 1))
    log_lrs = grid.log_lrs(task)
    num_seeds = len(grid.seeds)
    runs = BatchedRuns(task, grid.num_lrs * num_seeds)
    seeds = torch.tensor(grid.seeds).repeat(grid.num_lrs)
    runs.init(seeds)
    untrained = runs.evaluate("train").loss
    base_lr = log_lrs.exp().repeat_interleave(num_seeds)
    episode = run_episode(controller, runs, seeds, base_lr, known=known, splits=("train",))
    shape = (grid.num_lrs, num_seeds)
    log_loss = log_outcome(episode, untrained).view(shape)
    return OracleCurve(log_lrs, log_loss, episode.diverged.view(shape)), episode
