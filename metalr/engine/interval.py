"""One decision interval: its inner steps and their statistics."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from metalr.engine.layout import ParameterLayout
from metalr.engine.step import RunState
from metalr.signals import stats
from metalr.signals.stats import RunStats
from metalr.tasks.data import Batch

Advance = Callable[[RunState, Batch, Tensor], tuple[RunState, Tensor, Tensor]]


class Interval(NamedTuple):
    """One decision interval of `num_runs` runs.

    Attributes:
        seeds, variants: `(num_runs,)` int64.
        lr: `(num_steps, num_runs, num_groups)`, absolute.
    """

    seeds: Tensor
    variants: Tensor
    lr: Tensor


class Trace(NamedTuple):
    """What the statistics of an interval are computed from.

    Attributes:
        losses: `(num_steps, num_runs)`.
        gradient_before, gradient_last: of the last two inner steps, `(num_runs, num_params)`; the first is empty where
            the interval has one step.
        params_before: weights before the last inner step, `(num_runs, num_params)`.
    """

    losses: Tensor
    gradient_before: Tensor
    gradient_last: Tensor
    params_before: Tensor


def run_interval(
    advance: Advance, layout: ParameterLayout, state: RunState, batches: Iterable[Batch], lr: Tensor
) -> tuple[RunState, RunStats]:
    """Apply an inner step for each LR and measure the interval; at least two steps.

    Args:
        advance: the inner step.
        layout: of the params.
        state: of `num_runs` runs.
        batches: one for each step.
        lr: `(num_steps, num_runs, num_groups)`.
    """
    state, trace = run_steps(advance, state, batches, lr)
    return state, measure(layout, trace, state.params)


def run_steps(advance: Advance, state: RunState, batches: Iterable[Batch], lr: Tensor) -> tuple[RunState, Trace]:
    """Apply an inner step for each LR and keep what `measure` needs.

    Gradients and updates are compared over the last two steps only, so nothing else is held.
    """
    losses: list[Tensor] = []
    before = last = old = torch.empty(0)
    for batch, step_lr in zip(batches, lr.unbind(), strict=True):
        before, old = last, state.params
        state, loss, last = advance(state, batch, step_lr)
        losses.append(loss)
    return state, Trace(torch.stack(losses), before, last, old)


def measure(layout: ParameterLayout, trace: Trace, params: Tensor) -> RunStats:
    """The statistics of an interval that ended with `params`, `(num_runs, num_params)`."""
    before, last = trace.gradient_before, trace.gradient_last
    square_before, square_last = layout.group_sum(before.square()), layout.group_sum(last.square())
    return RunStats(
        *stats.loss_stats(trace.losses),
        gradient_norm=stats.gradient_norm(square_before, square_last),
        gradient_cosine=stats.cosine(layout.group_sum(before * last), square_before, square_last),
        update_ratio=update_ratio(layout, params, trace.params_before),
    )


def update_ratio(layout: ParameterLayout, params: Tensor, before: Tensor) -> Tensor:
    """Norm of an update over the norm of the weights, `(num_runs, num_groups)`."""
    return stats.ratio(layout.group_sum((params - before).square()), layout.group_sum(before.square()))
