"""The runs that a clone learns from: those behind an oracle curve, and its own, judged by that curve."""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from metalr import schedules, seeding
from metalr.compare.oracle import Grid, OracleCurve, log_outcome, oracle_curve
from metalr.control.actions import ActionSpec
from metalr.control.controller import Controller, Spacing
from metalr.control.loop import Known
from metalr.control.reference import ScheduleController
from metalr.engine.episodes import Episode, run_episode
from metalr.engine.runs import BatchedRuns
from metalr.schedules import Schedule
from metalr.tasks.task import Task

_GUESS_SHARES = (1.0, 0.5, 0.15)


@dataclass(frozen=True)
class CloneConfig:
    """The settings of a training.

    Attributes:
        action: how an action sets the multiplier; continuous.
        schedule: base schedule. Runs of unknown horizon have a constant one.
        decisions: lowest and highest number of decisions of a task, drawn log-uniformly.
        spacing: of the decisions.
        guess: factors of the best LR between which the base LRs of rollouts are drawn; see `spread_guesses`.
        grid: of the oracle curves.
        own_seeds: each task has as many seeds of its own; without it all tasks have those of the grid.
        runs_per_task: in each round of rollouts.
        rounds: of rollouts.
        disturbance: standard deviation of the offsets on the log multiplier in the last round; see
            `metalr.agents.disturbed`.
        hide_loss: share of runs that hide their losses.
        hide_horizon: share of tasks that hide their horizon.
        visible: features that the policies see; None for all.
        hidden_size: of a policy's memory.
        members: policies that are trained on the same episodes; the student is their average.
        steps: updates of each policy in each round.
        last_steps: in the last round; None for as many.
        batch: episodes in each update.
        peak_lr: of AdamW under a one-cycle schedule.
        smoothness: weight of the squared change of the log multiplier, beside the regret.
        noise: standard deviation of the noise on the observations that the policies are trained on.
        seed: of the plans of the tasks.
        student_seed: of the policies, their batches and the student's guesses.
    """

    action: ActionSpec = field(default_factory=lambda: ActionSpec("recursive", alpha=3.0, low=1e-3, high=1e3))
    schedule: Schedule = field(default_factory=lambda: schedules.WSD(warmup=0.05, decay=0.4, shape="linear"))
    decisions: tuple[int, int] = (10, 80)
    spacing: Spacing = "doubling"
    guess: tuple[float, float] = (0.01, 100.0)
    grid: Grid = field(default_factory=Grid)
    own_seeds: bool = False
    runs_per_task: int = 32
    rounds: int = 3
    disturbance: float = 0.0
    hide_loss: float = 0.1
    hide_horizon: float = 0.1
    visible: tuple[str, ...] | None = None
    hidden_size: int = 32
    members: int = 1
    steps: int = 2000
    last_steps: int | None = None
    batch: int = 512
    peak_lr: float = 5e-3
    smoothness: float = 1e-3
    noise: float = 0.1
    seed: int = 0
    student_seed: int = 0

    def of_task(self, index: int) -> "CloneConfig":
        """The settings for one task: with its own seeds, if each has them."""
        if not self.own_seeds:
            return self
        count = len(self.grid.seeds)
        seeds = tuple(seed + index * count for seed in range(count))
        return replace(self, grid=replace(self.grid, seeds=seeds))


@dataclass(frozen=True)
class Plan:
    """How one task is run.

    Attributes:
        index: of the task.
        task: to train.
        decisions: per run.
        schedule: base schedule.
        horizon_known: whether the observations show the horizon.
    """

    index: int
    task: Task
    decisions: int
    schedule: Schedule
    horizon_known: bool

    def controller(self, spacing: Spacing) -> ScheduleController:
        """The base schedule alone, observed at the decisions."""
        return ScheduleController(self.schedule, self.decisions, spacing)


def plan(index: int, task: Task, config: CloneConfig) -> Plan:
    """How a task is run, a function of its index and the seed of the settings."""

    def uniform(purpose: int) -> float:
        return seeding.uniform(seeding.stream(config.seed, "outer"), index, purpose).item()

    low, high = (min(count, task.horizon // 2) for count in config.decisions)
    decisions = max(round(low * (high / low) ** uniform(0)), 1)
    known = uniform(1) >= config.hide_horizon
    return Plan(index, task, decisions, config.schedule if known else schedules.Constant(), known)


class Episodes(NamedTuple):
    """Runs of one task with the regrets that judge them; `num_runs` runs with `decisions` decisions.

    Attributes:
        observations: `(decisions, num_runs, NUM_FEATURES)` float16.
        log_multiplier: in force before each decision, `(decisions, num_runs)`.
        log_base_lr: `(num_runs,)`.
        regrets: of the LRs of the task's grid, `(num_runs, num_lrs)`.
        first_log_lr: of that grid, `()`.
        grid_spacing: of its log LRs, `()`.
        log_loss: log final train loss, `(num_runs,)`.
        diverged: `(num_runs,)` bool.
    """

    observations: Tensor
    log_multiplier: Tensor
    log_base_lr: Tensor
    regrets: Tensor
    first_log_lr: Tensor
    grid_spacing: Tensor
    log_loss: Tensor
    diverged: Tensor


def make_oracle(planned: Plan, config: CloneConfig) -> tuple[OracleCurve, Episodes]:
    """The oracle curve of a task, and the episodes behind it."""
    grid = config.grid
    seeds = torch.tensor(grid.seeds).repeat(grid.num_lrs)
    known = _known(planned, seeds, config)
    controller = planned.controller(config.spacing)
    curve, episode = oracle_curve(planned.task, grid, planned.schedule, known=known, controller=controller)
    base = curve.log_lrs.repeat_interleave(len(grid.seeds))
    return curve, _episodes(episode, curve, base, seeds, curve.log_loss.flatten(), config)


def roll_out(
    controller: Controller,
    planned: Plan,
    curve: OracleCurve,
    log_guess: Tensor,
    seeds: Tensor,
    config: CloneConfig,
) -> Episodes:
    """Runs of one task under a controller.

    Args:
        controller: decides, on a base schedule of its own.
        planned: the task and its decisions.
        curve: of the task.
        log_guess: log of base LR over best LR, `(num_runs,)`.
        seeds: of the runs, among those of the curve, `(num_runs,)` int64.
        config: settings.
    """
    runs = BatchedRuns(planned.task, len(seeds))
    runs.init(seeds)
    untrained = runs.evaluate("train").loss
    log_base_lr = curve.best_log_lr + log_guess.double()
    episode = run_episode(
        controller,
        runs,
        seeds,
        log_base_lr.exp(),
        decisions=planned.decisions,
        known=_known(planned, seeds, config),
        splits=("train",),
    )
    return _episodes(episode, curve, log_base_lr, seeds, log_outcome(episode, untrained), config)


def guesses(planned: Plan, config: CloneConfig, round_index: int) -> tuple[Tensor, Tensor]:
    """The log guesses and seeds of a round of rollouts, `(runs_per_task,)` each."""
    run = torch.arange(config.runs_per_task)
    key = seeding.stream(config.student_seed, "base_lr")
    log_guess = spread_guesses(seeding.uniform(key, planned.index, round_index, run), config)
    seeds = torch.tensor(config.grid.seeds)[(run + planned.index) % len(config.grid.seeds)]
    return log_guess, seeds


def spread_guesses(place: Tensor, config: CloneConfig) -> Tensor:
    """Log guesses from uniform numbers in (0, 1), both `(num_runs,)`.

    A third of them each from the whole range of guesses, its middle half and its middle seventh, in turn: most people's
    guesses are good.
    """
    low, high = (math.log(factor) for factor in config.guess)
    share = torch.tensor(_GUESS_SHARES, dtype=place.dtype)[torch.arange(len(place)) % len(_GUESS_SHARES)]
    return 0.5 * (low + high) + share * (place - 0.5) * (high - low)


def _known(planned: Plan, seeds: Tensor, config: CloneConfig) -> Known:
    key = seeding.stream(seeds, "feature_mask")
    # Neighbours in a batch share seeds, so the place counts too.
    shown = seeding.uniform(key, planned.index, torch.arange(len(seeds))) >= config.hide_loss
    return Known(shown.float()[:, None], float(planned.horizon_known))


def _episodes(
    episode: Episode, curve: OracleCurve, log_base_lr: Tensor, seeds: Tensor, log_loss: Tensor, config: CloneConfig
) -> Episodes:
    log_multiplier = episode.multipliers[:, :, 0].float().log()
    before = torch.cat([torch.zeros_like(log_multiplier[:1]), log_multiplier[:-1]])
    row = {seed: index for index, seed in enumerate(config.grid.seeds)}
    regrets = curve.regrets()[torch.tensor([row[seed] for seed in seeds.tolist()])]
    return Episodes(
        episode.observations[:, :, 0].half(),
        before,
        log_base_lr.float(),
        regrets.float(),
        curve.log_lrs[0].float(),
        (curve.log_lrs[1] - curve.log_lrs[0]).float(),
        log_loss.float(),
        episode.diverged,
    )
