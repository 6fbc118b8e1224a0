"""The observation: raw statistics turned into named, bounded, scale-free features, here and nowhere else.

Every feature has a fixed formula, so there is nothing to normalise and nothing to ship beside a policy. Losses
enter as log ratios, gradients as cosines and log ratios, updates relative to the weights or to the loss; never a raw
loss, LR or step count. An unknown feature (no loss passed, horizon unknown, no interval seen yet) is 0, and a mask
feature says so.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from metalr.signals.stats import Prospect, RunStats

# Incremented whenever a formula, a bound or the order changes: a saved controller accepts only its own version.
OBSERVATION_VERSION = 2
# Weight of the old value in the running means, per decision.
_MEMORY = 0.7
_LOSS_MEMORY = 0.8
# A mean loss above this multiple of the loss at the start, by more than the noise explains, counts as exploded.
EXPLODED_AT = 4.0
# An interval has overshot where the mean loss rose by this factor, or the last gradient points this much along the
# update before it.
_ROSE_BY = 1.2
_TURNED_BY = 0.2
_LN10 = math.log(10.0)


class Feature(NamedTuple):
    """Name, formula and bounds of one feature; `soft(x, s)` is x / (s + |x|)."""

    name: str
    formula: str
    low: float
    high: float


# g' and g are the gradients of the last two inner steps, u is the update between them, L the mean loss of the interval.
FEATURES: tuple[Feature, ...] = (
    Feature("progress", "inner steps done / horizon; 0 if the horizon is unknown", 0.0, 1.0),
    Feature("log_progress", "1 + log10(progress) / 4, clipped; 0 if the horizon is unknown", 0.0, 1.0),
    Feature("lr_multiplier", "log(LR in force / (base LR * base schedule)) / 7, clipped", -1.0, 1.0),
    Feature("update_ratio", "(log10(|u| / |weights|) + 3) / 3, clipped", -1.0, 1.0),
    Feature("polyak", "soft(log10(L / |g'·u|) - 2, 2)", -1.0, 1.0),
    Feature("polyak_left", "soft(log10(L / |g'·u| / inner steps left), 1)", -1.0, 1.0),
    Feature("overshoot", "cosine of g and u", -1.0, 1.0),
    Feature("overshoot_mean", "its running mean, memory 0.7 per decision", -1.0, 1.0),
    Feature("edge", "soft(-g·u / g'·u, 1), the edge ratio 1 - g·u / g'·u in terms of its distance from 1", -1.0, 1.0),
    Feature("edge_mean", "its running mean, memory 0.7 per decision", -1.0, 1.0),
    Feature("gradient_cosine", "cosine of g' and g", -1.0, 1.0),
    Feature("signal_to_noise", "(log10(c / (1 - c)) + 1) / 2, clipped; c is its running mean", -1.0, 1.0),
    Feature("gradient_total", "soft(log(gradient norm / that of the first interval), 1)", -1.0, 1.0),
    Feature("gradient_change", "soft(log(gradient norm / that of the interval before), 0.3)", -1.0, 1.0),
    Feature("loss_total", "soft(log(L / loss at the start), 1)", -1.0, 1.0),
    Feature("loss_change", "soft(log(L / that of the interval before), 0.1)", -1.0, 1.0),
    Feature("loss_trend", "soft(log(L / its running geometric mean), 0.3), memory 0.8 per decision", -1.0, 1.0),
    Feature("loss_over_best", "soft(log(L / lowest so far), 0.1)", 0.0, 1.0),
    Feature("loss_slope", "soft(slope of log loss / its standard error, 3); 0 for fewer than 3 losses", -1.0, 1.0),
    Feature("loss_slope_left", "soft(slope of log loss · inner steps left, 1)", -1.0, 1.0),
    Feature("loss_noise", "(log10(deviation of log loss from its line) + 1) / 2, clipped; 0 for < 3 losses", -1.0, 1.0),
    Feature(
        "loss_exploded", "1 if a loss was not finite or L beyond 4 times the loss at the start and noise", 0.0, 1.0
    ),
    Feature("over_lowest_overshot", "soft(log(multiplier / lowest that overshot), 1); -1 before any has", -1.0, 1.0),
    Feature("over_steepest", "soft(log(multiplier / that of the steepest fall of the loss), 1)", -1.0, 1.0),
    Feature("has_history", "1 once an interval has been seen", 0.0, 1.0),
    Feature("has_loss", "1 if losses are passed", 0.0, 1.0),
    Feature("has_horizon", "1 if the horizon is known", 0.0, 1.0),
    Feature("has_gradient", "1 if the gradients could be measured", 0.0, 1.0),
)
FEATURE_NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
NUM_FEATURES = len(FEATURES)


class ObservationState(NamedTuple):
    """Memory of the features between decisions, each `(num_runs, num_groups)`; NaN before anything is known.

    Attributes:
        first_log_loss, last_log_loss, best_log_loss, mean_log_loss: at the start, of the interval before, lowest, and
            running mean.
        first_log_norm, last_log_norm: of the gradient.
        overshoot_mean, edge_mean, cosine_mean: running means.
        noise_mean: running mean of the deviation of log loss from its line.
        lowest_overshot: log of the lowest multiplier whose interval overshot.
        steepest_slope, steepest: lowest slope of log loss between two intervals, and the log of its multiplier.
        last_step: inner steps made by then; NaN before the first interval.
    """

    first_log_loss: Tensor
    last_log_loss: Tensor
    best_log_loss: Tensor
    mean_log_loss: Tensor
    first_log_norm: Tensor
    last_log_norm: Tensor
    overshoot_mean: Tensor
    edge_mean: Tensor
    cosine_mean: Tensor
    noise_mean: Tensor
    lowest_overshot: Tensor
    steepest_slope: Tensor
    steepest: Tensor
    last_step: Tensor


def initial_state(like: Tensor) -> ObservationState:
    """Memory before the first interval, with the shape `(num_runs, num_groups)`, dtype and device of `like`."""
    unknown = torch.full_like(like, torch.nan)
    return ObservationState(*([unknown] * len(ObservationState._fields)))


class Context(NamedTuple):
    """Inputs of the features besides the statistics, each broadcastable to `(num_runs, num_groups)`.

    Attributes:
        step: inner steps made.
        horizon: inner steps in the run; infinite if unknown.
        lr_multiplier: the controller's multiplier in force, LR / (base LR * base schedule).
        has_loss: 1.0 if losses are passed, else 0.0.
        has_horizon: 1.0 if the horizon is known, else 0.0.
    """

    step: Tensor
    horizon: Tensor
    lr_multiplier: Tensor
    has_loss: Tensor
    has_horizon: Tensor


def soft(value: Tensor, scale: float) -> Tensor:
    """Soft clipping, value / (scale + |value|): odd, in (-1, 1), fine near zero and never quite flat.

    Example:
        >>> soft(torch.tensor(3.0), scale=1.0).item()
        0.75
    """
    # Beyond 1e6 the quotient rounds to 1; the clamp keeps infinity from becoming NaN.
    value = value.clamp(-1e6, 1e6)
    return value / (scale + value.abs())


def _known(value: Tensor, fallback: Tensor) -> Tensor:
    """The value, or the fallback where it is NaN; `nan_to_num` would be one more kind of operation (see `stats`)."""
    return torch.where(value.isnan(), fallback, value)


def _log10(value: Tensor) -> Tensor:
    # The clamp also stops derivatives: that of a logarithm of zero or NaN would be NaN even when multiplied by zero.
    return value.clamp(min=1e-30).log10()


def _finite(value: Tensor) -> Tensor:
    return torch.where(value.abs() < math.inf, value, torch.full_like(value, torch.nan))


def _running(mean: Tensor, value: Tensor, memory: float) -> Tensor:
    """The running mean with one more value: the value itself at first, the old mean where the value is unknown."""
    return _known(_known(memory * mean + (1.0 - memory) * value, mean), value)


def _update_ratio_feature(update_ratio: Tensor) -> Tensor:
    return ((_log10(update_ratio) + 3.0) / 3.0).clamp(-1.0, 1.0)


def _polyak_features(log_loss: Tensor, log_descent: Tensor, left: Tensor) -> dict[str, Tensor]:
    """How many updates like this one would use up the loss, and that number over the updates that are left.

    Source: the LR of Polyak (1987, "Introduction to Optimization", section 5.3) makes the first ratio 1 for SGD; here
    it is measured, as in MoMo (Schaipp et al. 2023, arXiv 2305.07583).
    """
    updates = (log_loss - log_descent) / _LN10
    return {"polyak": soft(updates - 2.0, 2.0), "polyak_left": soft(updates - left.log10(), 1.0)}


def _stack(named: dict[str, Tensor], context: Context, like: Tensor) -> Tensor:
    zero = torch.full_like(like, 0.0)
    progress = (context.step / context.horizon * context.has_horizon).clamp(0.0, 1.0) + zero
    named["progress"] = progress
    named["log_progress"] = (1.0 + progress.log10() / 4.0).clamp(0.0, 1.0)
    named["lr_multiplier"] = (context.lr_multiplier.log() / 7.0).clamp(-1.0, 1.0) + zero
    named["has_loss"], named["has_horizon"] = context.has_loss + zero, context.has_horizon + zero
    columns = [named.get(name, zero) for name in FEATURE_NAMES]
    return _known(torch.stack(columns, -1), zero[..., None])


def _steps_left(context: Context) -> Tensor:
    """Inner steps left, at least 1; NaN if the horizon is unknown."""
    left = (context.horizon - context.step).clamp(min=1.0)
    return torch.where(context.has_horizon > 0.0, left, torch.full_like(left, torch.nan))


def _seen(value: Tensor, context: Context, zero: Tensor) -> Tensor:
    """A statistic of the loss, `(num_runs,)`, as `(num_runs, num_groups)`; NaN where losses are hidden."""
    value = value[:, None] + zero
    return torch.where(context.has_loss > 0.0, value, torch.full_like(value, torch.nan))


def observe_start(
    prospect: Prospect,
    state: ObservationState,
    context: Context,
) -> tuple[Tensor, ObservationState]:
    """Make the observation before the first update, when only the update that would be made is known.

    Args:
        prospect: that update.
        state: from `initial_state`.
        context: see `Context`.

    Returns:
        Features `(num_runs, num_groups, NUM_FEATURES)` and the new memory, which holds the loss at the start.
    """
    zero = torch.full_like(prospect.update_ratio, 0.0)
    log_loss = _finite(_seen(prospect.log_loss, context, zero))
    named = {
        "update_ratio": _update_ratio_feature(prospect.update_ratio),
        **_polyak_features(log_loss, prospect.log_descent, _steps_left(context)),
        "has_gradient": _is_known(prospect.update_ratio),
    }
    memory = state._replace(first_log_loss=log_loss, last_log_loss=log_loss, best_log_loss=log_loss)
    return _stack(named, context, zero), memory


def _is_known(value: Tensor) -> Tensor:
    return torch.where(value.isnan(), torch.full_like(value, 0.0), torch.full_like(value, 1.0))


def observe(stats: RunStats, state: ObservationState, context: Context) -> tuple[Tensor, ObservationState]:
    """Make the observation after a decision interval.

    Args:
        stats: statistics of the interval.
        state: memory from the previous decision.
        context: see `Context`.

    Returns:
        Features `(num_runs, num_groups, NUM_FEATURES)` and the new memory.
    """
    zero, one = torch.full_like(stats.gradient_norm, 0.0), torch.full_like(stats.gradient_norm, 1.0)
    log_loss, log_norm = _seen(stats.log_loss, context, zero), _finite(stats.gradient_norm.clamp(min=1e-30).log())
    new = _remember(stats, log_loss, log_norm, state, context)
    # Before the first interval the memory is NaN. A change from NaN would also end as 0, but through a NaN whose
    # derivative poisons every gradient; the current value in its place gives the same 0.
    loss_change = log_loss - _known(state.last_log_loss, log_loss)
    gradient_change = log_norm - _known(state.last_log_norm, log_norm)
    loss_total = log_loss - new.first_log_loss
    slope, noise, certainty = _line(stats, context, zero)
    exploded = torch.where(_exploded(loss_total, state, stats, zero), one, _seen(stats.exploded, context, zero))
    left, multiplier = _steps_left(context), context.lr_multiplier.log() + zero
    over_overshot = torch.where(new.lowest_overshot.isnan(), -one, soft(multiplier - new.lowest_overshot, 1.0))
    named = {
        "update_ratio": _update_ratio_feature(stats.update_ratio),
        **_polyak_features(log_loss, stats.log_descent, left),
        "overshoot": stats.overshoot,
        "overshoot_mean": new.overshoot_mean,
        "edge": soft(stats.edge_ratio - 1.0, 1.0),
        "edge_mean": new.edge_mean,
        "gradient_cosine": stats.gradient_cosine,
        "signal_to_noise": _signal_to_noise(new.cosine_mean),
        "gradient_total": soft(log_norm - new.first_log_norm, 1.0),
        "gradient_change": soft(gradient_change, 0.3),
        "loss_total": soft(loss_total, 1.0),
        "loss_change": soft(loss_change, 0.1),
        "loss_trend": soft(log_loss - _known(state.mean_log_loss, log_loss), 0.3),
        "loss_over_best": soft(log_loss - new.best_log_loss, 0.1),
        "loss_slope": soft(certainty, 3.0),
        "loss_slope_left": torch.where(left.isnan(), left, soft(slope * _known(left, one), 1.0)),
        "loss_noise": ((_log10(noise) + 1.0) / 2.0).clamp(-1.0, 1.0),
        "loss_exploded": exploded,
        "over_lowest_overshot": over_overshot,
        "over_steepest": soft(multiplier - new.steepest, 1.0),
        "has_history": one,
        "has_gradient": _is_known(stats.gradient_norm),
    }
    return _stack(named, context, zero), new


def _line(stats: RunStats, context: Context, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope of log loss, deviation from the line, and slope over its standard error; two losses have no deviation."""
    count = _seen(stats.num_losses, context, zero)
    slope = _seen(stats.log_loss_slope, context, zero)
    noise = torch.where(count > 2.5, _seen(stats.log_loss_noise, context, zero), torch.full_like(count, torch.nan))
    step_square = (count * (count * count - 1.0) / 12.0).clamp(min=1e-6)
    error = (noise / step_square.sqrt()).clamp(min=1e-12)
    # A derivative that comes back through a quotient by NaN is NaN, even where the quotient itself is not used.
    certainty = torch.where(error.isnan(), error, slope / _known(error, torch.full_like(error, 1.0)))
    return slope, noise, certainty


def _exploded(loss_total: Tensor, memory: ObservationState, stats: RunStats, zero: Tensor) -> Tensor:
    """Whether the mean loss is above 4 times that at the start by more than three standard errors of the two.

    Without the errors, losses with heavy tails under a small batch would seem to explode again and again. The noise is
    that of the intervals before, since an explosion is no excuse for itself.
    """
    count = (stats.num_losses[:, None] + zero).clamp(min=1.0)
    error = _known(memory.noise_mean, zero) * (1.0 + 1.0 / count).sqrt()
    return loss_total > math.log(EXPLODED_AT) + 3.0 * error


def _signal_to_noise(cosine: Tensor) -> Tensor:
    # Two gradients with a common mean m and independent noise n have cosine |m|² / (|m|² + |n|²), in expectation.
    ratio = cosine.clamp(min=1e-3, max=0.999)
    return ((ratio / (1.0 - ratio)).log10() + 1.0).clamp(-2.0, 2.0) / 2.0


def _remember(
    stats: RunStats, log_loss: Tensor, log_norm: Tensor, state: ObservationState, context: Context
) -> ObservationState:
    zero, unknown = torch.full_like(log_norm, 0.0), torch.full_like(log_norm, torch.nan)
    step, multiplier = context.step + zero, context.lr_multiplier.log() + zero
    rise = log_loss - state.last_log_loss
    # Training curves are straight in log-log coordinates, so a fall is steep for its place in the run.
    slope = rise / (step / _known(state.last_step, zero).clamp(min=1.0)).clamp(min=1.0 + 1e-6).log()
    overshot = torch.where(rise > math.log(_ROSE_BY), multiplier, unknown)
    overshot = torch.where(stats.overshoot > _TURNED_BY, multiplier, overshot)
    overshot = torch.where(_seen(stats.exploded, context, zero) > 0.0, multiplier, overshot)
    steeper = slope < _known(state.steepest_slope, zero)
    return ObservationState(
        first_log_loss=_known(state.first_log_loss, log_loss),
        last_log_loss=_known(log_loss, state.last_log_loss),
        best_log_loss=torch.fmin(state.best_log_loss, log_loss),
        mean_log_loss=_running(state.mean_log_loss, log_loss, _LOSS_MEMORY),
        first_log_norm=_known(state.first_log_norm, log_norm),
        last_log_norm=_known(log_norm, state.last_log_norm),
        overshoot_mean=_running(state.overshoot_mean, stats.overshoot, _MEMORY),
        edge_mean=_running(state.edge_mean, soft(stats.edge_ratio - 1.0, 1.0), _MEMORY),
        cosine_mean=_running(state.cosine_mean, stats.gradient_cosine, _MEMORY),
        noise_mean=_running(state.noise_mean, _line(stats, context, zero)[1], _MEMORY),
        lowest_overshot=torch.fmin(state.lowest_overshot, overshot),
        steepest_slope=torch.where(steeper, slope, state.steepest_slope),
        steepest=torch.where(steeper, multiplier, state.steepest),
        last_step=step,
    )


def feature(observation: Tensor, name: str) -> Tensor:
    """Select one feature of an observation `(…, NUM_FEATURES)` by name.

    Raises:
        ValueError: the name is not a feature.

    Example:
        >>> feature(torch.arange(28), "update_ratio").item()
        3
    """
    return observation[..., FEATURE_NAMES.index(name)]


def visibility(visible: tuple[str, ...] | list[str] | None, like: Tensor) -> Tensor:
    """Make a 0/1 vector `(NUM_FEATURES,)` that hides the features not named; None shows all.

    Args:
        visible: names of the features to show.
        like: gives dtype and device.

    Raises:
        ValueError: a name is not a feature.

    Example:
        >>> visibility(["loss_change", "has_loss"], like=torch.zeros(1)).sum().item()
        2.0
    """
    unknown = sorted(set(visible or ()) - set(FEATURE_NAMES))
    if unknown:
        raise ValueError(f"got visible features {unknown}, expected names among {', '.join(FEATURE_NAMES)}")
    shown = [float(visible is None or name in visible) for name in FEATURE_NAMES]
    return torch.tensor(shown, dtype=like.dtype, device=like.device)
