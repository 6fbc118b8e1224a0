"""Drive a controller through training runs and report what came out. No gym, no RL library.

This is the data flow of training with a controller in the place of an agent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalr.control.controller import Controller, decision_steps
from metalr.control.loop import ControlLoop
from metalr.engine.runs import BatchedRuns
from metalr.schedules import Schedule


def interval_lr(
    schedule: Schedule, base_lr: Tensor, multiplier: Tensor, first_step: Tensor, num_steps: int, horizon: int
) -> Tensor:
    """base_lr · schedule(t / horizon) · multiplier for each inner step t of an interval.

    Args:
        schedule: the base schedule.
        base_lr: `(num_runs,)` float64.
        multiplier: `(num_runs, num_groups)`.
        first_step: `(num_runs,)` int64.
        num_steps: inner steps in the interval.
        horizon: inner steps in the run.

    Returns:
        `(num_steps, num_runs, num_groups)` float64.
    """
    step = first_step + torch.arange(num_steps, device=first_step.device)[:, None]  # (num_steps, num_runs)
    factor = schedule(step.double() / horizon)
    return (base_lr * factor)[..., None] * multiplier.double()


@dataclass
class Episode:
    """What one controlled run of each seed did.

    Attributes:
        lr: `(horizon, num_runs, num_groups)`, the LR of every inner step.
        log_loss: `(decisions, num_runs)`, mean of the log minibatch loss in each interval.
        observations: `(decisions, num_runs, num_groups, NUM_FEATURES)`, what each decision was taken on.
        multipliers: `(decisions, num_runs, num_groups)`.
        diverged: `(num_runs,)` bool.
        final: split -> `(loss, metric)`, each `(num_runs,)` float64, at the last step.
    """

    lr: Tensor
    log_loss: Tensor
    observations: Tensor
    multipliers: Tensor
    diverged: Tensor
    final: dict[str, tuple[Tensor, Tensor]]


def run_episode(
    controller: Controller,
    runs: BatchedRuns,
    seeds: Tensor,
    base_lr: Tensor,
    *,
    decisions: int | None = None,
    has_loss: bool = True,
    splits: Sequence[str] = ("train", "valid", "test"),
) -> Episode:
    """Train every run to its horizon under a controller.

    Args:
        controller: decides the multiplier.
        runs: the engine; its runs are started anew.
        seeds: `(num_runs,)` int64.
        base_lr: `(num_runs,)`, the LR that the controller is given.
        decisions: per run; the controller's own number by default.
        has_loss: False hides the losses, as in a loop that passes none.
        splits: evaluated at the last step.

    Raises:
        ValueError: the horizon has fewer than two inner steps for each decision, or `base_lr` has another shape.
    """
    horizon = runs.task.horizon
    starts = decision_steps(horizon, controller.decisions if decisions is None else decisions)
    if tuple(base_lr.shape) != (runs.num_runs,):
        raise ValueError(f"got base_lr of shape {tuple(base_lr.shape)}, expected ({runs.num_runs},): one for each run")
    runs.init(seeds)
    base_lr = base_lr.to(runs.device, torch.float64)
    loop = ControlLoop(controller, runs.num_runs, runs.layout.num_groups, dtype=runs.dtype, device=runs.device)
    known = {"has_loss": float(has_loss)}
    start_lr = interval_lr(controller.schedule, base_lr, loop.multiplier, runs.state.step, 1, horizon)[0]
    loop.start(runs.probe(start_lr).update_ratio, **known)
    record: dict[str, list[Tensor]] = {"lr": [], "log_loss": [], "observations": [], "multipliers": []}
    for start, stop in zip(starts, [*starts[1:], horizon], strict=True):
        first = torch.full((runs.num_runs,), start, device=runs.device)
        lr = interval_lr(controller.schedule, base_lr, loop.multiplier, first, stop - start, horizon)
        stats = runs.unroll(lr, stop - start)
        for name, value in zip(record, (lr, stats.log_loss, loop.observation, loop.multiplier), strict=True):
            record[name].append(value)
        if stop < horizon:
            loop.decide(stats, stop / horizon, **known)
    final = {split: tuple(runs.evaluate(split)) for split in splits}  # type: ignore[arg-type]
    return Episode(
        torch.cat(record["lr"]),
        torch.stack(record["log_loss"]),
        torch.stack(record["observations"]),
        torch.stack(record["multipliers"]),
        runs.state.diverged,
        final,  # type: ignore[arg-type]
    )


def record_rows(episode: Episode, seeds: Tensor, base_lr: Tensor, **labels: Any) -> list[dict[str, Any]]:
    """One tidy, JSON-able row for each run of an episode, with `labels` repeated in every row."""
    rows = []
    for run, seed in enumerate(seeds.tolist()):
        row = {
            **labels,
            "seed": seed,
            "base_lr": float(base_lr[run]),
            "diverged": bool(episode.diverged[run]),
        }
        for split, (loss, metric) in episode.final.items():
            row[f"{split}_loss"], row[f"{split}_metric"] = float(loss[run]), float(metric[run])
        rows.append(row)
    return rows
