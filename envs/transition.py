"""The core of the environment: runs, decisions and rewards as tensors. No spaces, no facade, no autoreset.

A `RunGroup` holds the runs that share shapes; a `Transition` puts several groups behind one axis of environments. The
Gymnasium and Stable-Baselines3 facades are thin shells around it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from metalr import seeding
from metalr.control import actions, loop
from metalr.control.actions import ActionSpec
from metalr.control.loop import Known, LoopState
from metalr.control.lr import interval_lr
from metalr.engine.base import Runs
from metalr.envs.rewards import REWARDS, rise
from metalr.registry import look_up
from metalr.schedulers.plain_runs import runs_of
from metalr.schedules import Schedule
from metalr.signals.observations import visibility
from metalr.signals.stats import RunStats
from metalr.tasks.families import draw_base_lr
from metalr.tasks.task import Task
from metalr.workers import Workers

R = TypeVar("R")

# Examples of a split that are evaluated for the potential at the end of an episode.
_OUTCOME_EXAMPLES = 2048
# The logarithm of a loss that underflows to zero.
_LEAST_LOG_LOSS = -69.0


@dataclass(frozen=True)
class EnvConfig:
    """The settings of an environment, apart from its tasks and the number of runs.

    Attributes:
        decisions: per episode; must divide the horizon of every task.
        action: how an action sets the LR multiplier.
        reward: a name in `metalr.envs.rewards.REWARDS`.
        schedule: base schedule; None takes each task's own.
        base_lr_range: factors of the task's default between which the base LR of each episode is drawn, log-uniformly.
        hide_loss: probability that an episode hides its losses.
        hide_horizon: probability that an episode hides its progress.
        visible: features that are shown; None for all.
        groups: "global" or "module", as for `BatchedRuns`; "global" for tasks on the plain path.
        compile: as for `BatchedRuns`.
        dtype: of the training runs, "float32" or "float64".
        device: of the training runs.

    Raises:
        ValueError: an unknown reward, feature or dtype, or a probability outside [0, 1].
    """

    decisions: int = 20
    action: ActionSpec = field(default_factory=ActionSpec)
    reward: str = "train"
    schedule: Schedule | None = None
    base_lr_range: tuple[float, float] = (0.1, 10.0)
    hide_loss: float = 0.0
    hide_horizon: float = 0.0
    visible: tuple[str, ...] | None = None
    groups: str = "global"
    compile: bool = False
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        look_up(REWARDS, self.reward, "reward")
        visibility(self.visible, torch.zeros(1))
        if self.decisions < 1:
            raise ValueError(f"got {self.decisions} decisions, expected at least 1 for each run")
        for name in ("hide_loss", "hide_horizon"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"got {name} {getattr(self, name)}, expected a probability between 0 and 1")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"got dtype {self.dtype!r}, expected 'float32' or 'float64'")


class Outcome(NamedTuple):
    """The outcome of one decision in `num_envs` environments.

    Attributes:
        observation: `(num_envs, num_groups, NUM_FEATURES)`.
        reward: `(num_envs,)`.
        done: whether the horizon was reached or the run diverged, `(num_envs,)` bool.
        diverged: `(num_envs,)` bool.
        lr: in force at the last inner step of the interval, `(num_envs, num_groups)`.
        loss: geometric mean of the minibatch losses of the interval, `(num_envs,)`.
    """

    observation: Tensor
    reward: Tensor
    done: Tensor
    diverged: Tensor
    lr: Tensor
    loss: Tensor


class RunGroup:
    """`num_runs` environments of one task.

    Args:
        task: to train.
        num_runs: number of environments.
        config: settings.

    Raises:
        ValueError: the number of decisions does not divide the horizon, or leaves fewer than two inner steps for each.
    """

    def __init__(self, task: Task, num_runs: int, config: EnvConfig) -> None:
        if task.horizon % config.decisions or task.horizon < 2 * config.decisions:
            near = max(round(task.horizon / config.decisions), 2) * config.decisions
            raise ValueError(
                f"got horizon {task.horizon} with {config.decisions} decisions, expected a multiple with at least two "
                f"inner steps for each decision: use horizon {near}"
            )
        self.task = task
        self.config = config
        self.reward = REWARDS[config.reward]
        self.schedule = config.schedule if config.schedule is not None else task.schedule
        self.steps_per_action = task.horizon // config.decisions
        options = {
            "dtype": getattr(torch, config.dtype),
            "device": config.device,
            "groups": config.groups,
            "compile": config.compile,
        }
        self.runs = runs_of(task, num_runs, **options)
        self.twin = runs_of(task, num_runs, **options) if self.reward.paired else None
        self.num_groups = self.runs.num_groups
        self.state: LoopState
        self.given_base_lr: Tensor  # NaN where it was drawn
        self.like = torch.ones((num_runs, self.num_groups), dtype=self.runs.dtype, device=self.runs.device)

    def reset(self, which: Tensor, seeds: Tensor, base_lr: Tensor | None = None) -> Tensor:
        """Start new episodes.

        Args:
            which: runs to start, `(num_runs,)` bool; there may be none.
            seeds: of all runs, `(num_runs,)` int64; those of other runs are ignored.
            base_lr: of the episodes that start, `(num_runs,)`; drawn if None.

        Returns:
            The observation of all runs, `(num_runs, num_groups, NUM_FEATURES)`.
        """
        if not which.any():
            return self.shown()
        which = which.to(self.like.device)
        everything = bool(which.all())
        for runs in (self.runs, self.twin):
            if runs is not None:
                runs.init(seeds) if everything else runs.reset_runs(which, seeds)
        seeds = self.runs.seeds
        if everything:
            self.decision = torch.zeros(len(seeds), dtype=torch.int64, device=self.like.device)
            self.potential = self.start_log_loss = self.like.new_zeros(len(seeds))
        self.decision = self.decision.where(~which, 0)
        drawn = draw_base_lr(self.task, seeds, self.config.base_lr_range)
        given = torch.full_like(drawn, torch.nan) if base_lr is None else base_lr.to(drawn)
        self.given_base_lr = given if everything else torch.where(which, given, self.given_base_lr)
        self.base_lr = torch.where(self.given_base_lr.isnan(), drawn, self.given_base_lr)
        hidden = seeding.stream(seeds, "feature_mask")
        self.known = Known(
            *(
                (seeding.uniform(hidden, index) >= probability).to(self.like.dtype)[:, None].expand_as(self.like)
                for index, probability in enumerate((self.config.hide_loss, self.config.hide_horizon))
            )
        )
        probe = self.runs.probe(self._lr(self.like, 1)[0])
        fresh = loop.init(actions.initial_state(self.config.action, self.like), self.like)
        fresh = loop.observe_start(fresh, probe, self.task.horizon, self.known)
        self.state = fresh if everything else loop.reset(self.state, fresh, which)
        self.start_log_loss = probe.log_loss.clamp(min=_LEAST_LOG_LOSS).where(which, self.start_log_loss)
        self.potential = self.potential.where(~which, 0.0)
        return self.shown()

    def step(self, action: Tensor) -> Outcome:
        """Take one decision in every run.

        Args:
            action: `(num_runs, num_groups)`, in [-1, 1] or level indices.
        """
        spec = self.config.action
        action = action.to(self.like.device)
        chosen = spec.level_action(action) if spec.levels else action
        self.state = loop.act(lambda seen, state: actions.act(spec, chosen, seen, state), self.state)
        lr = self._lr(self.state.multiplier, self.steps_per_action)
        stats = self.runs.unroll(lr, self.steps_per_action)
        if self.twin is not None:
            twin_stats = self.twin.unroll(self._lr(self.like, self.steps_per_action), self.steps_per_action)
        self.decision = self.decision + 1
        done = (self.decision * self.steps_per_action).to(self.like.dtype)[:, None]  # (num_runs, 1)
        self.state = loop.observe(self.state, stats, done, self.task.horizon, self.known)
        last = self.decision == self.config.decisions
        diverged = self.runs.diverged
        potential = self._potential(self.runs, stats, last)
        if self.twin is not None:
            potential = potential - self._potential(self.twin, twin_stats, last)
        reward = rise(potential, self.potential, diverged, last, self.reward.only_final)
        if not self.reward.only_final:
            self.potential = self.potential + reward
        return Outcome(self.shown(), reward, last | diverged, diverged, lr[-1], stats.log_loss.exp())

    def _lr(self, multiplier: Tensor, num_steps: int) -> Tensor:
        first = self.decision * self.steps_per_action
        # A run that awaits its reset has no next interval; any LR will do, so it gets that of its last steps.
        first = first.clamp(max=self.task.horizon - num_steps)
        base = self.config.action.base(self.base_lr)
        return interval_lr(self.schedule, base, multiplier, first, num_steps, self.task.horizon)

    def shown(self) -> Tensor:
        """The observation of all runs, with hidden features at 0, `(num_runs, num_groups, NUM_FEATURES)`."""
        return self.state.observation * visibility(self.config.visible, self.state.observation)

    def _potential(self, runs: Runs, stats: RunStats, last: Tensor) -> Tensor:
        """The potential -log(loss / initial loss), `(num_runs,)`."""
        log_loss = stats.log_loss
        measured = last if self.reward.split == "train" else torch.ones_like(last)
        which = (measured & ~runs.diverged).nonzero().squeeze(-1)
        if len(which):
            loss = runs.evaluate(self.reward.split, _OUTCOME_EXAMPLES, which).loss  # type: ignore[arg-type]
            log_loss = log_loss.index_copy(0, which, loss.log().clamp(min=_LEAST_LOG_LOSS).to(log_loss.dtype))
        return (self.start_log_loss - log_loss).nan_to_num(nan=-torch.inf)


class Transition:
    """Several run groups behind one axis of `num_envs` environments.

    Args:
        tasks: one for each run group, each with the same number of environments.
        num_envs: total number of environments, a multiple of the number of tasks.
        config: settings.
        seed: from which every episode of every environment follows.
        workers: where the run groups are, each at one place from start to end; this process if None. Outcomes are the
            same wherever that is.

    Attributes:
        groups: the run groups that are in this process; none where workers hold them.

    Raises:
        ValueError: `num_envs` is not a multiple of the number of tasks, the tasks differ in their LR groups, or the
            workers cannot hold run groups; see `Workers.hold`.
        UnitError: a worker could not make a run group; the message has the cause.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        num_envs: int,
        config: EnvConfig,
        seed: int = 0,
        *,
        workers: Workers | None = None,
    ) -> None:
        if not tasks or num_envs < 1 or num_envs % len(tasks):
            raise ValueError(
                f"got {num_envs} environments for {len(tasks)} tasks, expected the same number for each task: "
                f"use a positive multiple of {max(len(tasks), 1)}"
            )
        self.config = config
        self.num_envs = num_envs
        self.tasks = tuple(tasks)
        self.schedule = config.schedule if config.schedule is not None else tasks[0].schedule
        self._size = num_envs // len(tasks)  # of a run group
        makers = [partial(RunGroup, task, self._size, config) for task in tasks]
        if workers is None or workers.here:
            self.groups, self._held = [make() for make in makers], None
        else:
            self.groups, self._held = [], workers.hold(makers)
        self.num_groups, *others = self._each(attrgetter("num_groups"), [()] * len(tasks))
        if any(number != self.num_groups for number in others):
            raise ValueError("got tasks with different numbers of LR groups, expected one number: use groups='global'")
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Restart the sequence of episodes from a seed."""
        self._seed = seed
        self._episodes = torch.zeros(self.num_envs, dtype=torch.int64)

    def reset(self, which: Tensor | None = None, base_lr: Tensor | None = None) -> Tensor:
        """Start new episodes.

        Args:
            which: environments to start, `(num_envs,)` bool; None for all.
            base_lr: of the episodes that start, `(num_envs,)`; drawn if None.

        Returns:
            The observation of all environments, `(num_envs, num_groups, NUM_FEATURES)`.
        """
        which = torch.ones(self.num_envs, dtype=torch.bool) if which is None else which.cpu()
        index = torch.arange(self.num_envs)
        seeds = seeding.hash_integers(seeding.stream(self._seed, "outer"), index, self._episodes)
        self._episodes = self._episodes + which.long()
        size = self._size
        given = [None] * len(self.tasks) if base_lr is None else base_lr.split(size)
        parts = list(zip(which.split(size), seeds.split(size), given, strict=True))
        return torch.cat(self._each(RunGroup.reset, parts))

    def step(self, action: Tensor) -> Outcome:
        """Take one decision in every environment.

        Args:
            action: `(num_envs, num_groups)`, in [-1, 1] or level indices.
        """
        parts = self._each(RunGroup.step, [(part,) for part in action.split(self._size)])
        return Outcome(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _each(self, function: Callable[..., R], arguments: Sequence[tuple[Any, ...]]) -> list[R]:
        """Call a function of every run group."""
        if self._held is not None:
            return self._held.each(function, arguments)
        return [function(group, *given) for group, given in zip(self.groups, arguments, strict=True)]
