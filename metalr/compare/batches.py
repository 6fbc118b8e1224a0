"""Train the cells of a comparison: one cell is one run of one contender at one LR from one seed.

Cells of different contenders share one batch. Each has its own LR, schedule and controller; the engine only sees
a table of LRs. Which cells there are, and what is made of their records, is not known here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from metalr.compare.contenders import Baseline
from metalr.compare.external_optimizers import LoneRun
from metalr.control.controller import Controller, decision_steps
from metalr.control.loop import ControlLoop
from metalr.control.reference import ScheduleController
from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import InnerOptimizer
from metalr.records import Record
from metalr.signals.stats import RunStats
from metalr.tasks.data import SPLITS
from metalr.tasks.task import Task
from metalr.trees import concatenate

Curves = Literal["none", "train", "full"]

# A run whose final train loss is above this share of its untrained loss has made no progress: it sits at chance.
NO_PROGRESS_ABOVE = 0.9
# Examples behind each point of a curve of valid losses.
CURVE_EXAMPLES = 1024
# A loss beyond this is a failed run, whatever number the evaluation made of it.
_LARGEST_LOSS = 1e300


@dataclass(frozen=True)
class Cell:
    """One run to be made.

    Attributes:
        task, contender: names.
        phase: what it is for: "tuning", "report" or "wrong-base".
        trial: index of the trial in the contender's search; -1 for one without trials.
        parameters: of the contender, as (name, value) pairs.
        base_lr_factor: the base LR over the task's default.
        base_lr: absolute.
        seed: of weights and data order.
    """

    task: str
    contender: str
    phase: str
    trial: int
    parameters: tuple[tuple[str, Any], ...]
    base_lr_factor: float
    base_lr: float
    seed: int

    @property
    def key(self) -> str:
        """Names the cell in its records: unique within a comparison."""
        return "|".join(
            (self.task, self.phase, self.contender, str(self.trial), f"x{self.base_lr_factor:.6g}", str(self.seed))
        )


class _Segment:
    """Neighbouring cells of a batch that share a contender and its parameters, and hence one controller."""

    def __init__(self, rows: slice, controller: Controller, runs: BatchedRuns) -> None:
        self.rows = rows
        horizon = runs.task.horizon
        progress = torch.arange(horizon, dtype=torch.float64, device=runs.device) / horizon
        self.factor = controller.schedule(progress)  # (horizon,)
        self.loop: ControlLoop | None = None
        if not isinstance(controller, ScheduleController):
            num_runs, num_groups = rows.stop - rows.start, runs.layout.num_groups
            self.loop = ControlLoop(controller, num_runs, num_groups, dtype=runs.dtype, device=runs.device)

    def lr(self, base_lr: Tensor, start: int, stop: int) -> Tensor:
        """`(stop - start, rows, num_groups)` float64, by the same arithmetic as `metalr.engine.episodes`."""
        open_loop = (base_lr[self.rows] * self.factor[start:stop, None])[..., None]
        return open_loop if self.loop is None else open_loop * self.loop.multiplier.double()


def chunks(cells: Sequence[Cell], contenders: Mapping[str, Baseline], task: Task, max_runs: int) -> list[list[Cell]]:
    """Cut cells into batches: one inner optimizer and one number of decisions in each, at most `max_runs` runs.

    The cut depends on the cells alone, so a comparison that is gone on with makes the same batches again.
    """
    groups: dict[tuple[InnerOptimizer, int, str], list[Cell]] = {}
    for cell in cells:
        baseline, parameters = contenders[cell.contender], dict(cell.parameters)
        decisions = baseline.controller(parameters, task.horizon).decisions
        outside = baseline.name if baseline.kind == "outside" else ""
        groups.setdefault((baseline.optimizer(parameters, task.optimizer), decisions, outside), []).append(cell)
    return [g[i : i + max_runs] for g in groups.values() for i in range(0, len(g), max_runs)]


def run_cells(
    task: Task,
    contenders: Mapping[str, Baseline],
    cells: Sequence[Cell],
    *,
    curves: Curves = "none",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[list[Record], list[Record]]:
    """Train one batch of cells to the horizon.

    Args:
        task: of all the cells.
        contenders: name -> contender, those of the cells at least.
        cells: one batch of `chunks`.
        curves: "train" also returns LR and train loss over the run, "full" the valid loss too, which costs an
            evaluation at every decision.
        dtype, device: of the engine.

    Returns:
        A record for each cell, and a curve for each cell (or none).
    """
    first = contenders[cells[0].contender]
    optimizer = first.optimizer(dict(cells[0].parameters), task.optimizer)
    runs = BatchedRuns(task.with_(optimizer=optimizer), len(cells), dtype=dtype, device=device)
    runs.init(torch.tensor([cell.seed for cell in cells]))
    decisions = first.controller(dict(cells[0].parameters), task.horizon).decisions
    untrained = runs.evaluate("train").loss
    if first.kind == "outside":
        curve = _train_alone(runs, cells, decisions, curves)
    else:
        base_lr = torch.tensor([cell.base_lr for cell in cells], dtype=torch.float64, device=runs.device)
        curve = _train(runs, list(_segments(contenders, cells, runs)), base_lr, decisions, curves)
    records = _records(cells, contenders, runs, untrained)
    return records, [_curve(cell.key, curve, row) for row, cell in enumerate(cells)] if curve["step"] else []


def _segments(contenders: Mapping[str, Baseline], cells: Sequence[Cell], runs: BatchedRuns) -> Iterator[_Segment]:
    start = 0
    for (name, parameters), group in groupby(cells, key=lambda cell: (cell.contender, cell.parameters)):
        stop = start + len(list(group))
        controller = contenders[name].controller(dict(parameters), runs.task.horizon)
        yield _Segment(slice(start, stop), controller, runs)
        start = stop


def _train(
    runs: BatchedRuns, segments: Sequence[_Segment], base_lr: Tensor, decisions: int, curves: Curves
) -> dict[str, list[Any]]:
    horizon = runs.task.horizon
    starts = decision_steps(horizon, decisions)
    closed = [segment for segment in segments if segment.loop is not None]
    if closed:
        ratio = runs.probe(torch.cat([segment.lr(base_lr, 0, 1)[0] for segment in segments])).update_ratio
        for segment in closed:
            segment.loop.start(ratio[segment.rows])  # type: ignore[union-attr]
    curve: dict[str, list[Any]] = {"step": [], "lr": [], "train_loss": [], "valid_loss": []}
    for start, stop in zip(starts, [*starts[1:], horizon], strict=True):
        lr = torch.cat([segment.lr(base_lr, start, stop) for segment in segments], 1)
        stats = runs.unroll(lr, stop - start)
        if curves != "none":
            curve["step"].append(stop)
            curve["lr"].append(lr[0, :, 0].tolist())
            curve["train_loss"].append(torch.where(stats.num_losses > 0, stats.log_loss.exp(), torch.inf).tolist())
        if curves == "full":
            curve["valid_loss"].append(runs.evaluate("valid", CURVE_EXAMPLES).loss.tolist())
        if stop < horizon:
            for segment in closed:
                part = RunStats(*(value[segment.rows] for value in stats))
                segment.loop.decide(part, stop / horizon)  # type: ignore[union-attr]
    return curve


def _train_alone(runs: BatchedRuns, cells: Sequence[Cell], decisions: int, curves: Curves) -> dict[str, list[Any]]:
    """Train under an optimizer of another package, one run after the other, and put the results into `runs`."""
    starts = decision_steps(runs.task.horizon, decisions)
    stops = [*starts[1:], runs.task.horizon]
    states, train_losses, valid_losses = [], [], []
    for cell in cells:
        one = BatchedRuns(runs.task, 1, dtype=runs.dtype, device=runs.device)
        one.init(torch.tensor([cell.seed]))
        lone = LoneRun(one, cell.contender, cell.base_lr)
        for start, stop in zip(starts, stops, strict=True):
            train_losses.append(lone.unroll(stop - start))
            if curves == "full":
                valid_losses.append(one.evaluate("valid", CURVE_EXAMPLES).loss.item())
        states.append(one.state)
    runs.state = concatenate(states)
    if curves == "none":
        return {"step": [], "lr": [], "train_loss": [], "valid_loss": []}
    return {
        "step": stops,
        "lr": [[cell.base_lr for cell in cells]] * len(stops),
        "train_loss": _by_stop(train_losses, len(stops)),
        "valid_loss": _by_stop(valid_losses, len(stops)),
    }


def _by_stop(values: list[float], num_stops: int) -> list[list[float]]:
    """From run after run to stop after stop."""
    return [values[stop::num_stops] for stop in range(num_stops)] if values else []


def _records(
    cells: Sequence[Cell], contenders: Mapping[str, Baseline], runs: BatchedRuns, untrained: Tensor
) -> list[Record]:
    columns = {"untrained_loss": untrained.tolist()}
    for split in SPLITS:
        evaluation = runs.evaluate(split)
        columns[f"{split}_loss"], columns[f"{split}_metric"] = evaluation.loss.tolist(), evaluation.metric.tolist()
    diverged = runs.state.diverged.tolist()
    records = []
    for row, cell in enumerate(cells):
        numbers = {name: _failed_as_infinite(name, values[row], diverged[row]) for name, values in columns.items()}
        records.append(
            {
                "cell": cell.key,
                "task": cell.task,
                "phase": cell.phase,
                "contender": cell.contender,
                "kind": contenders[cell.contender].kind,
                "trial": cell.trial,
                "parameters": dict(cell.parameters),
                "base_lr_factor": cell.base_lr_factor,
                "base_lr": cell.base_lr,
                "seed": cell.seed,
                "diverged": diverged[row],
                "no_progress": not diverged[row]
                and numbers["train_loss"] > NO_PROGRESS_ABOVE * numbers["untrained_loss"],
                **numbers,
            }
        )
    return records


def _failed_as_infinite(name: str, value: float, diverged: bool) -> float:
    failed = name.endswith("_loss") and name != "untrained_loss" and (diverged or not value < _LARGEST_LOSS)
    return math.inf if failed else value


def _curve(key: str, curve: Mapping[str, list[Any]], row: int) -> Record:
    """Six digits: a curve is for the eye and for crossing a target, and 40 points of 17 digits are a large file."""
    columns = {
        name: [float(f"{values[row]:.6g}") for values in curve[name]] for name in ("lr", "train_loss", "valid_loss")
    }
    return {"cell": key, "step": curve["step"], **columns}


def at_seeds(cell: Cell, seeds: Sequence[int]) -> list[Cell]:
    """The same cell from several seeds."""
    return [replace(cell, seed=seed) for seed in seeds]
