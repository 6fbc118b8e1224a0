"""Cloning the oracle: a recurrent policy learns from oracle curves which LR every moment of a run calls for.

The curve of a task says what each LR costs. A policy is trained to choose, at every decision and from the observations
so far, the multiplier of least regret on that curve. It is then rolled out from wrong base LRs, and trained again on
what it met itself, with the same curve as the target (DAgger: Ross et al. 2011, arXiv 1011.0686). Nothing is greedy:
the curve is of final losses.

All pieces are files in one folder, each written whole. What is there is not made again, so a training that was cut off
continues where it was, and several processes can share the work.
"""

import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metalr import schedules, seeding
from metalr.compare.oracle import Grid, OracleCurve, log_outcome, oracle_curve, regret_at
from metalr.control.actions import ActionSpec
from metalr.control.controller import Controller, Spacing
from metalr.control.loop import Known
from metalr.control.recurrent import RecurrentPolicyController
from metalr.control.reference import ScheduleController
from metalr.engine.episodes import Episode, run_episode
from metalr.engine.runs import BatchedRuns
from metalr.files import write_whole
from metalr.schedules import Schedule
from metalr.signals.observations import NUM_FEATURES
from metalr.tasks.task import Task

log = logging.getLogger("metalr")


@dataclass(frozen=True)
class CloneConfig:
    """The settings of a training.

    Attributes:
        action: how an action sets the multiplier; continuous.
        schedule: base schedule. Runs of unknown horizon have a constant one.
        decisions: lowest and highest number of decisions of a task, drawn log-uniformly.
        spacing: of the decisions.
        guess: factors of the best LR between which the base LRs of rollouts are drawn, log-uniformly; half of them from
            the middle half of that range.
        grid: of the oracle curves.
        runs_per_task: in each round of rollouts.
        rounds: of rollouts.
        hide_loss: share of runs that hide their losses.
        hide_horizon: share of tasks that hide their horizon.
        hidden_size: of the policy's memory.
        steps: updates of the policy in each round.
        batch: episodes in each update.
        peak_lr: of AdamW under a one-cycle schedule.
        smoothness: weight of the squared change of the log multiplier, beside the regret.
        seed: of everything that is drawn.
    """

    action: ActionSpec = field(default_factory=lambda: ActionSpec("recursive", alpha=3.0, low=1e-3, high=1e3))
    schedule: Schedule = field(default_factory=lambda: schedules.WSD(warmup=0.0, decay=0.3, shape="linear"))
    decisions: tuple[int, int] = (10, 80)
    spacing: Spacing = "doubling"
    guess: tuple[float, float] = (0.01, 100.0)
    grid: Grid = field(default_factory=Grid)
    runs_per_task: int = 32
    rounds: int = 3
    hide_loss: float = 0.1
    hide_horizon: float = 0.1
    hidden_size: int = 32
    steps: int = 2000
    batch: int = 512
    peak_lr: float = 5e-3
    smoothness: float = 1e-3
    seed: int = 0


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
        controller: decides; its base schedule is replaced by the plan's.
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
        controller.with_schedule(planned.schedule),
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
    key = seeding.stream(config.seed, "base_lr")
    place = seeding.uniform(key, planned.index, round_index, run)
    low, high = (math.log(factor) for factor in config.guess)
    wide = torch.where(run % 2 == 0, 1.0, 0.5)
    log_guess = 0.5 * (low + high) + wide * (place - 0.5) * (high - low)
    seeds = torch.tensor(config.grid.seeds)[(run + planned.index) % len(config.grid.seeds)]
    return log_guess, seeds


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


class ClonePolicy(nn.Module):
    """A gated recurrent unit with a linear read-out, trained in float32 over whole episodes.

    Args:
        hidden_size: width of the memory.
        seed: of the initial weights; the read-out starts at zero, so that the untrained policy changes nothing.
    """

    cell: nn.GRU
    head: nn.Linear

    def __init__(self, hidden_size: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = nn.GRU(NUM_FEATURES, hidden_size)
            self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, observations: Tensor) -> Tensor:
        """`(decisions, num_runs, NUM_FEATURES)` -> actions `(decisions, num_runs)`."""
        memory, _ = self.cell(observations)
        return self.head(memory)[..., 0]

    def controller(self, config: CloneConfig, decisions: int = 40) -> RecurrentPolicyController:
        """The policy as a controller."""
        weights = {
            "from_input.weight": "cell.weight_ih_l0",
            "from_input.bias": "cell.bias_ih_l0",
            "from_memory.weight": "cell.weight_hh_l0",
            "from_memory.bias": "cell.bias_hh_l0",
            "head.weight": "head.weight",
            "head.bias": "head.bias",
        }
        return RecurrentPolicyController(
            {name: self.state_dict()[own] for name, own in weights.items()},
            config.action,
            config.schedule,
            decisions,
            spacing=config.spacing,
        )


class Batch(NamedTuple):
    """Episodes of several tasks, padded to the longest; see `Episodes`.

    Attributes:
        weight: of each decision, 0 where padded, `(decisions, num_runs)`; an episode's weights sum to 1.
    """

    observations: Tensor
    log_multiplier: Tensor
    log_base_lr: Tensor
    regrets: Tensor
    first_log_lr: Tensor
    grid_spacing: Tensor
    weight: Tensor


def imitation_loss(actions: Tensor, batch: Batch, config: CloneConfig) -> Tensor:
    """Mean regret of the LRs that actions choose, plus a small price for changing the LR.

    Args:
        actions: `(decisions, num_runs)`.
        batch: the episodes.
        config: settings.
    """
    spec = config.action
    # Beyond its ends an action has no effect, but its gradient leads back.
    inside = actions.clamp(-1.0, 1.0)
    step = spec.alpha * (inside + 0.1 * (actions - inside))
    anchor = batch.log_multiplier if spec.mode == "recursive" else torch.zeros_like(batch.log_multiplier)
    chosen = anchor + step
    chosen = chosen + (chosen.clamp(math.log(spec.low), math.log(spec.high)) - chosen).detach()
    log_lr = (batch.log_base_lr + chosen).T  # (num_runs, decisions)
    regret = regret_at(batch.regrets, batch.first_log_lr[:, None], batch.grid_spacing[:, None], log_lr).T
    change = (chosen - batch.log_multiplier).square()
    # The first choice is free: there is nothing yet to be smooth with.
    change = torch.cat([torch.zeros_like(change[:1]), change[1:]])
    return ((regret + config.smoothness * change) * batch.weight).sum() / batch.weight.sum()


class EpisodeStore:
    """All episodes of a training in memory, from which batches are drawn.

    Args:
        pieces: of single tasks and rounds.
    """

    def __init__(self, pieces: Sequence[Episodes]) -> None:
        self.pieces = pieces
        # Weighted by task: every piece counts the same, whatever its number of runs.
        self.order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].observations))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of episodes of similar length: a random window of the pieces, ordered by their decisions."""
        width = min(max(count // 16, 1), len(self.order))
        start = int(torch.randint(len(self.order) - width + 1, (), generator=generator))
        chosen = [self.pieces[i] for i in self.order[start : start + width]]
        return _padded([_some_runs(piece, max(count // width, 1), generator) for piece in chosen])


def _some_runs(piece: Episodes, count: int, generator: torch.Generator) -> Episodes:
    rows = torch.randint(len(piece.log_base_lr), (count,), generator=generator)
    return Episodes(
        piece.observations[:, rows],
        piece.log_multiplier[:, rows],
        piece.log_base_lr[rows],
        piece.regrets[rows],
        piece.first_log_lr.expand(count),
        piece.grid_spacing.expand(count),
        piece.log_loss[rows],
        piece.diverged[rows],
    )


def _padded(pieces: Sequence[Episodes]) -> Batch:
    longest = max(len(piece.observations) for piece in pieces)

    def pad(tensor: Tensor) -> Tensor:
        tensor = tensor.float()
        return torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])

    weights = [torch.full_like(piece.log_multiplier, 1.0 / len(piece.log_multiplier)) for piece in pieces]
    return Batch(
        torch.cat([pad(piece.observations) for piece in pieces], 1),
        torch.cat([pad(piece.log_multiplier) for piece in pieces], 1),
        torch.cat([piece.log_base_lr for piece in pieces]),
        torch.cat([piece.regrets for piece in pieces]),
        torch.cat([piece.first_log_lr for piece in pieces]),
        torch.cat([piece.grid_spacing for piece in pieces]),
        torch.cat([pad(weight) for weight in weights], 1),
    )


def fit(policy: ClonePolicy, store: EpisodeStore, config: CloneConfig, seed: int) -> list[float]:
    """Train the policy on stored episodes.

    Returns:
        The loss of every update.
    """
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.peak_lr, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.peak_lr, config.steps, cycle_momentum=False)
    generator = torch.Generator().manual_seed(seed)
    curve = []
    for step in range(config.steps):
        batch = store.draw(config.batch, generator)
        loss = imitation_loss(policy(batch.observations), batch, config)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        curve.append(loss.item())
        if (step + 1) % 200 == 0:
            log.info("update %d of %d: loss %.4f", step + 1, config.steps, sum(curve[-200:]) / 200)
    return curve


class CloneFolder:
    """The files of a training, each made when it is first asked for.

    Args:
        folder: of all files; made if it is missing.
        draw: index -> task.
        config: settings.
    """

    def __init__(self, folder: Path, draw: Callable[[int], Task], config: CloneConfig) -> None:
        self.folder = folder
        self.draw = draw
        self.config = config

    def plan(self, index: int) -> Plan:
        """How a task is run."""
        return plan(index, self.draw(index), self.config)

    def oracle(self, index: int) -> tuple[OracleCurve, Episodes]:
        """The oracle curve of a task, and its episodes."""

        def make() -> dict:
            curve, episodes = make_oracle(self.plan(index), self.config)
            return {"curve": vars(curve), "episodes": episodes._asdict()}

        saved = cached(self.folder / "oracle" / f"{index:05d}.pt", make)
        return OracleCurve(**saved["curve"]), Episodes(**saved["episodes"])

    def rollouts(self, round_index: int, index: int, controller: Controller | None = None) -> Episodes:
        """The episodes of a task in a round of rollouts.

        Args:
            round_index: from 1.
            index: of the task.
            controller: the student before this round; None reads its file.
        """

        def make() -> dict:
            student = controller or self.policy(round_index - 1).controller(self.config)
            planned = self.plan(index)
            curve, _ = self.oracle(index)
            log_guess, seeds = guesses(planned, self.config, round_index)
            return roll_out(student, planned, curve, log_guess, seeds, self.config)._asdict()

        return Episodes(**cached(self.folder / f"round-{round_index}" / f"{index:05d}.pt", make))

    def policy(self, round_index: int) -> ClonePolicy:
        """The student after a round, which must have been trained."""
        policy = ClonePolicy(self.config.hidden_size, self.config.seed)
        policy.load_state_dict(torch.load(self.folder / f"policy-{round_index}.pt", weights_only=True))
        return policy

    def train(self, round_index: int, indices: Sequence[int]) -> ClonePolicy:
        """Train the student on the oracle's episodes and all rounds of rollouts so far; continue from the last one.

        Args:
            round_index: 0 trains on the oracle's episodes alone.
            indices: of the tasks.
        """
        path = self.folder / f"policy-{round_index}.pt"
        if not path.exists():
            pieces = [self.oracle(index)[1] for index in indices]
            pieces += [self.rollouts(r, index) for r in range(1, round_index + 1) for index in indices]
            fresh = ClonePolicy(self.config.hidden_size, self.config.seed)
            policy = self.policy(round_index - 1) if round_index else fresh
            curve = fit(policy, EpisodeStore(pieces), self.config, self.config.seed + round_index)
            log.info("round %d: loss %.4f", round_index, sum(curve[-200:]) / len(curve[-200:]))
            save_tensors(path, policy.state_dict())
        return self.policy(round_index)


def save_tensors(path: Path, tensors: object) -> None:
    """Write tensors to a file, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def cached(path: Path, make: Callable[[], dict]) -> dict:
    """The content of a file; made, and written whole, if it is not there."""
    if not path.exists():
        save_tensors(path, make())
    return torch.load(path, weights_only=True)
