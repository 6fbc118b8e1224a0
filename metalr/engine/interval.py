"""One decision interval: its inner steps and their statistics."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from metalr.engine.layout import ParameterLayout
from metalr.engine.step import RunState
from metalr.signals import stats
from metalr.signals.stats import Prospect, RunStats, UpdateSums
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
    """The losses of an interval, and its last two inner steps.

    Attributes:
        losses: `(num_steps, num_runs)`.
        gradient_before, gradient_after: of these two steps, `(num_runs, num_params)`.
        params_before, params_after: weights at which they were taken, `(num_runs, num_params)`.
    """

    losses: Tensor
    gradient_before: Tensor
    gradient_after: Tensor
    params_before: Tensor
    params_after: Tensor


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
    return state, measure(layout, trace)


def run_steps(advance: Advance, state: RunState, batches: Iterable[Batch], lr: Tensor) -> tuple[RunState, Trace]:
    """Apply an inner step for each LR, at least two, and keep what `measure` needs."""
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    params: list[Tensor] = []
    for batch, step_lr in zip(batches, lr.unbind(), strict=True):
        params = [*params[-1:], state.params]
        state, loss, gradient = advance(state, batch, step_lr)
        gradients = [*gradients[-1:], gradient]
        losses.append(loss)
    return state, Trace(torch.stack(losses), *gradients, *params)


def measure(layout: ParameterLayout, trace: Trace) -> RunStats:
    """The statistics of an interval."""
    before, after = trace.gradient_before, trace.gradient_after
    update = trace.params_after - trace.params_before
    sums = UpdateSums(
        *(layout.group_sum(values) for values in (before.square(), after.square(), before * after)),
        *(layout.group_sum(values) for values in (before * update, after * update)),
        *(layout.group_sum(values.square()) for values in (update, trace.params_after)),
    )
    return RunStats(*stats.loss_stats(trace.losses), *stats.update_stats(sums))


def prospect(layout: ParameterLayout, params: Tensor, new: Tensor, gradient: Tensor, loss: Tensor) -> Prospect:
    """The first update before it is made.

    Args:
        layout: of the params.
        params: before the update, `(num_runs, num_params)`.
        new: after it.
        gradient: that it follows.
        loss: before it, `(num_runs,)`.
    """
    update = new - params
    update_ratio = stats.ratio(layout.group_sum(update.square()), layout.group_sum(params.square()))
    return Prospect(update_ratio, stats.log_size(layout.group_sum(gradient * update)), loss.log())
