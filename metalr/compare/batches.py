"""Train the runs of a comparison in batches.

Runs of different contenders share one batch. Each has its own LR, schedule and controller; the engine only sees a table
of LRs.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metalr.compare.contenders import Contender
from metalr.compare.external_optimizers import LoneRun
from metalr.compare.run_record import PlannedRun, RunCurve, RunRecord
from metalr.compare.staged_search import train_in_stages
from metalr.control import loop
from metalr.control.controller import Controller
from metalr.control.loop import LoopState
from metalr.control.lr import lr_in_force, schedule_factor
from metalr.control.reference import ScheduleController
from metalr.engine.base import Runs
from metalr.engine.runs import BatchedRuns
from metalr.schedulers.plain_runs import runs_of
from metalr.signals.stats import Prospect, RunStats
from metalr.tasks.data import SPLITS
from metalr.tasks.task import Task
from metalr.trees import concatenate

Curves = Literal["none", "train", "full"]

# A run whose final train loss is above this share of its untrained loss has made no progress: it sits at chance.
NO_PROGRESS_ABOVE = 0.9
# Examples behind an initial and a final loss: the whole split, or its first so many.
EXAMPLES = 4096
# Examples behind each point of a curve of valid losses.
CURVE_EXAMPLES = 1024
# A loss beyond this is a failed run, whatever number the evaluation made of it.
_LARGEST_LOSS = 1e300


class _Interval(NamedTuple):
    """Where the runs of a batch stand at the end of a decision interval; see `RunCurve`."""

    step: int
    lr: list[float]
    train_loss: list[float]
    valid_loss: list[float] | None


class _Segment:
    """Neighbouring runs of a batch that share a contender and its parameters, and hence one controller."""

    def __init__(self, rows: slice, controller: Controller, runs: Runs) -> None:
        self.rows = rows
        horizon = runs.task.horizon
        progress = torch.arange(horizon, dtype=torch.float64, device=runs.device) / horizon
        self.factor = schedule_factor(controller.schedule, progress)  # (horizon,)
        self.controller = controller
        like = torch.ones((rows.stop - rows.start, runs.num_groups), dtype=runs.dtype, device=runs.device)
        self.state: LoopState = loop.init(controller.init(like), like)
        self.closed = not isinstance(controller, ScheduleController)

    def lr(self, base_lr: Tensor, start: int, stop: int) -> Tensor:
        """`(stop - start, rows, num_groups)` float64."""
        base, factor = self.controller.base(base_lr[self.rows, None]), self.factor[start:stop, None, None]
        return lr_in_force(base, factor, self.state.multiplier.double())

    def start(self, prospect: Prospect) -> None:
        """The first decision, from the prospect of every run of the batch."""
        own = Prospect(*(value[self.rows] for value in prospect))
        self.state = loop.start(self.controller, self.state, own, len(self.factor))

    def decide(self, stats: RunStats, step: int) -> None:
        """The decision after an interval, from the statistics of every run of the batch."""
        own = RunStats(*(value[self.rows] for value in stats))
        self.state = loop.decide(self.controller, self.state, own, step, len(self.factor))


def batches_of(
    planned: Sequence[PlannedRun], contenders: Mapping[str, Contender], task: Task, max_runs: int
) -> list[list[PlannedRun]]:
    """Cut runs into batches of at most `max_runs` that can be trained together.

    The cut depends on the planned runs alone, so a comparison that is resumed makes the same batches again.
    """
    groups: dict[Hashable, list[PlannedRun]] = {}
    for run in planned:
        key = contenders[run.contender].batch_key(dict(run.parameters), task)
        groups.setdefault(key, []).append(run)
    return [group[i : i + max_runs] for group in groups.values() for i in range(0, len(group), max_runs)]


def train_batch(
    task: Task,
    contenders: Mapping[str, Contender],
    batch: Sequence[PlannedRun],
    *,
    curves: Curves = "none",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[list[RunRecord], list[RunCurve]]:
    """Train one batch to the horizon.

    Args:
        task: of all the runs.
        contenders: name -> contender, those of the runs at least.
        batch: one of `batches_of`.
        curves: "train" also returns LR and train loss over the run, "full" the valid loss too, which costs an
            evaluation at every decision.
        dtype: of weights, data and losses.
        device: where to train.

    Returns:
        A record for each run, and a curve for each run (or none).
    """
    first, parameters = contenders[batch[0].contender], dict(batch[0].parameters)
    optimizer = first.optimizer(parameters, task)
    runs = runs_of(task.with_(optimizer=optimizer), len(batch), dtype=dtype, device=device)
    runs.init(torch.tensor([run.seed for run in batch]))
    starts = first.controller(parameters, task.horizon).decision_steps(task.horizon)
    untrained: dict[str, list[float]] = {split: runs.evaluate(split, EXAMPLES).loss.tolist() for split in SPLITS}
    base_lr = torch.tensor([run.base_lr for run in batch], dtype=torch.float64, device=runs.device)
    search = first.search(parameters)
    if first.trains_alone:
        assert isinstance(runs, BatchedRuns)  # such a contender fits no other task
        intervals = _train_one_by_one(runs, batch, starts, curves)
    elif search is not None:
        assert isinstance(runs, BatchedRuns)
        stages = train_in_stages(search, runs, base_lr)
        intervals = [_interval(runs, stage.step, stage.lr, stage.stats, curves) for stage in stages]
    else:
        intervals = _train_together(runs, list(_segments(contenders, batch, runs)), base_lr, starts, curves)
    records = _records(batch, contenders, runs, untrained)
    return records, [_curve(run.key, intervals, row) for row, run in enumerate(batch)] if curves != "none" else []


def _segments(contenders: Mapping[str, Contender], batch: Sequence[PlannedRun], runs: Runs) -> Iterator[_Segment]:
    start = 0
    for (name, parameters), group in groupby(batch, key=lambda run: (run.contender, run.parameters)):
        seeds = [run.seed for run in group]
        stop = start + len(seeds)
        controller = contenders[name].controller_of_runs(dict(parameters), runs.task.horizon, seeds)
        yield _Segment(slice(start, stop), controller, runs)
        start = stop


def _train_together(
    runs: Runs, segments: Sequence[_Segment], base_lr: Tensor, starts: list[int], curves: Curves
) -> list[_Interval]:
    horizon = runs.task.horizon
    closed = [segment for segment in segments if segment.closed]
    if closed:
        prospect = runs.probe(torch.cat([segment.lr(base_lr, 0, 1)[0] for segment in segments]))
        for segment in closed:
            segment.start(prospect)
    intervals = []
    for start, stop in zip(starts, [*starts[1:], horizon], strict=True):
        lr = torch.cat([segment.lr(base_lr, start, stop) for segment in segments], 1)
        stats = runs.unroll(lr, stop - start)
        if curves != "none":
            intervals.append(_interval(runs, stop, lr[0, :, 0], stats, curves))
        if stop < horizon:
            for segment in closed:
                segment.decide(stats, stop)
    return intervals


def _interval(runs: Runs, step: int, lr: Tensor, stats: RunStats, curves: Curves) -> _Interval:
    """Where the runs stand; the evaluation of a full curve is made here."""
    train_loss = torch.where(stats.num_losses > 0, stats.log_loss.exp(), torch.inf)
    valid_loss = runs.evaluate("valid", CURVE_EXAMPLES).loss.tolist() if curves == "full" else None
    return _Interval(step, lr.tolist(), train_loss.tolist(), valid_loss)


def _train_one_by_one(
    runs: BatchedRuns, batch: Sequence[PlannedRun], starts: list[int], curves: Curves
) -> list[_Interval]:
    """Train under an optimizer of another package, and put the results into `runs`."""
    stops = [*starts[1:], runs.task.horizon]
    intervals = [_Interval(stop, [], [], [] if curves == "full" else None) for stop in stops]
    states = []
    for run in batch:
        one = BatchedRuns(runs.task, 1, dtype=runs.dtype, device=runs.device)
        one.init(torch.tensor([run.seed]))
        lone = LoneRun(one, run.contender, run.base_lr)
        for start, interval in zip(starts, intervals, strict=True):
            interval.lr.append(lone.lr_at(start))
            interval.train_loss.append(lone.unroll(interval.step - start))
            if interval.valid_loss is not None:
                interval.valid_loss.append(one.evaluate("valid", CURVE_EXAMPLES).loss.item())
        states.append(one.state)
    runs.state = concatenate(states)
    return intervals


def _records(
    batch: Sequence[PlannedRun],
    contenders: Mapping[str, Contender],
    runs: Runs,
    untrained: Mapping[str, list[float]],
) -> list[RunRecord]:
    evaluations = {split: runs.evaluate(split, EXAMPLES) for split in SPLITS}
    losses = {split: evaluation.loss.tolist() for split, evaluation in evaluations.items()}
    metrics = {split: evaluation.metric.tolist() for split, evaluation in evaluations.items()}
    records = []
    for row, (run, diverged) in enumerate(zip(batch, runs.diverged.tolist(), strict=True)):
        final = {split: _final_loss(losses[split][row], diverged) for split in SPLITS}
        records.append(
            RunRecord(
                key=run.key,
                task=run.task,
                phase=run.phase,
                contender=run.contender,
                kind=contenders[run.contender].kind,
                trial=run.trial,
                parameters=dict(run.parameters),
                base_lr_factor=run.base_lr_factor,
                base_lr=run.base_lr,
                seed=run.seed,
                diverged=diverged,
                no_progress=not diverged and final["train"] > NO_PROGRESS_ABOVE * untrained["train"][row],
                untrained_loss=untrained["train"][row],
                train_loss=final["train"],
                train_metric=metrics["train"][row],
                valid_loss=final["valid"],
                valid_metric=metrics["valid"][row],
                test_loss=final["test"],
                test_metric=metrics["test"][row],
                untrained_valid_loss=untrained["valid"][row],
                untrained_test_loss=untrained["test"][row],
            )
        )
    return records


def _final_loss(loss: float, diverged: bool) -> float:
    return math.inf if diverged or not loss < _LARGEST_LOSS else loss


def _curve(key: str, intervals: Sequence[_Interval], row: int) -> RunCurve:
    """Six digits: a curve is for the eye and for crossing a target, and 40 points of 17 digits are a large file."""

    def rounded(values: list[float]) -> float:
        return float(f"{values[row]:.6g}")

    return RunCurve(
        key,
        step=[interval.step for interval in intervals],
        lr=[rounded(interval.lr) for interval in intervals],
        train_loss=[rounded(interval.train_loss) for interval in intervals],
        valid_loss=[rounded(interval.valid_loss) for interval in intervals if interval.valid_loss is not None],
    )
