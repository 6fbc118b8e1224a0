"""Training runs from start to horizon under a controller: the data flow of training without an agent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalr.control import loop
from metalr.control.controller import Controller, decision_steps
from metalr.control.loop import EVERYTHING, Known
from metalr.control.lr import interval_lr
from metalr.engine.base import Runs


@dataclass
class Episode:
    """The controlled runs of one call, one for each seed.

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
    runs: Runs,
    seeds: Tensor,
    base_lr: Tensor,
    *,
    decisions: int | None = None,
    known: Known = EVERYTHING,
    splits: Sequence[str] = ("train", "valid", "test"),
) -> Episode:
    """Train every run to its horizon under a controller.

    Args:
        controller: decides the multiplier.
        runs: batched or plain; they are started anew.
        seeds: `(num_runs,)` int64.
        base_lr: `(num_runs,)`, the LR that the controller is given.
        decisions: per run; by default the controller's own number, or fewer in a run too short for them.
        known: what the runs show, a number for all or `(num_runs, 1)`: `Known(loss=0.0)` hides the losses.
        splits: evaluated at the last step.

    Raises:
        ValueError: the horizon has fewer than two inner steps for each decision, or `base_lr` has another shape.
    """
    horizon = runs.task.horizon
    starts = controller.decision_steps(horizon)
    if decisions is not None:
        starts = decision_steps(horizon, decisions, controller.spacing)
    if tuple(base_lr.shape) != (runs.num_runs,):
        raise ValueError(f"got base_lr of shape {tuple(base_lr.shape)}, expected ({runs.num_runs},): one for each run")
    runs.init(seeds)
    base_lr = controller.base(base_lr.to(runs.device, torch.float64))
    like = torch.ones((runs.num_runs, runs.num_groups), dtype=runs.dtype, device=runs.device)
    state = loop.init(controller.init(like), like)

    def lr_of(start: int, num_steps: int) -> Tensor:
        first = torch.full((runs.num_runs,), start, device=runs.device)
        return interval_lr(controller.schedule, base_lr, state.multiplier, first, num_steps, horizon)

    state = loop.start(controller, state, runs.probe(lr_of(0, 1)[0]), horizon, known)
    record: dict[str, list[Tensor]] = {"lr": [], "log_loss": [], "observations": [], "multipliers": []}
    for start, stop in zip(starts, [*starts[1:], horizon], strict=True):
        lr = lr_of(start, stop - start)
        stats = runs.unroll(lr, stop - start)
        for name, value in zip(record, (lr, stats.log_loss, state.observation, state.multiplier), strict=True):
            record[name].append(value)
        if stop < horizon:
            state = loop.decide(controller, state, stats, stop, horizon, known)
    final = {split: tuple(runs.evaluate(split)) for split in splits}  # type: ignore[arg-type]
    return Episode(
        torch.cat(record["lr"]),
        torch.stack(record["log_loss"]),
        torch.stack(record["observations"]),
        torch.stack(record["multipliers"]),
        runs.diverged,
        final,  # type: ignore[arg-type]
    )
