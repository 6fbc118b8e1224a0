"""The observation: raw statistics turned into named, bounded, scale-free features, here and nowhere else.

Every feature has a fixed formula, so there is nothing to normalise and nothing to ship beside a policy. Losses
enter as log ratios, gradients as cosines and log ratios, updates relative to the weights; never a raw loss, LR or
step count. An unknown feature (no loss passed, horizon unknown, no interval seen yet) is 0, and a mask feature
says so.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from metalr.signals.stats import RunStats

# Incremented whenever a formula, a bound or the order changes: a saved controller accepts only its own version.
OBSERVATION_VERSION = 1
# Weight of the old value in the running mean of the gradient cosine, per decision.
_COSINE_MEMORY = 0.7
# A mean loss above this multiple of the first interval's counts as exploded.
EXPLODED_AT = 4.0


class Feature(NamedTuple):
    """Name, formula and bounds of one feature; `soft(x, s)` is x / (s + |x|)."""

    name: str
    formula: str
    low: float
    high: float


FEATURES: tuple[Feature, ...] = (
    Feature("progress", "inner steps done / horizon; 0 if the horizon is unknown", 0.0, 1.0),
    Feature("lr_multiplier", "log(LR in force / (base LR * base schedule)) / 3, clipped", -1.0, 1.0),
    Feature("update_ratio", "(log10(|update| / |weights|) + 3) / 3, clipped", -1.0, 1.0),
    Feature("loss_total", "soft(log(mean loss / mean loss of the first interval), 1)", -1.0, 1.0),
    Feature("loss_change", "soft(log(mean loss / mean loss of the interval before), 0.1)", -1.0, 1.0),
    Feature("loss_over_best", "soft(log(mean loss / lowest mean loss so far), 0.1)", 0.0, 1.0),
    Feature("loss_slope", "soft(slope of log loss / its standard error, 3)", -1.0, 1.0),
    Feature("loss_noise", "(log10(standard deviation of log loss around its line) + 1) / 2, clipped", -1.0, 1.0),
    Feature("loss_exploded", "1 if a loss was not finite or the mean is 4 times the first interval's", 0.0, 1.0),
    Feature("gradient_total", "soft(log(gradient norm / that of the first interval), 1)", -1.0, 1.0),
    Feature("gradient_change", "soft(log(gradient norm / that of the interval before), 0.3)", -1.0, 1.0),
    Feature("gradient_cosine", "cosine of the last two gradients", -1.0, 1.0),
    Feature("gradient_cosine_mean", "its running mean, memory 0.7 per decision", -1.0, 1.0),
    Feature("has_history", "1 once an interval has been seen", 0.0, 1.0),
    Feature("has_loss", "1 if losses are passed", 0.0, 1.0),
    Feature("has_horizon", "1 if the horizon is known", 0.0, 1.0),
)
FEATURE_NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
NUM_FEATURES = len(FEATURES)


class ObservationState(NamedTuple):
    """Memory of the features between decisions, each `(num_runs, num_groups)`; NaN before the first interval."""

    first_log_loss: Tensor
    last_log_loss: Tensor
    best_log_loss: Tensor
    first_log_norm: Tensor
    last_log_norm: Tensor
    cosine_mean: Tensor


def initial_state(like: Tensor) -> ObservationState:
    """Memory before the first interval, with the shape `(num_runs, num_groups)`, dtype and device of `like`."""
    unknown = torch.full_like(like, torch.nan)
    return ObservationState(*([unknown] * len(ObservationState._fields)))


class Context(NamedTuple):
    """Inputs of the features besides the statistics, each broadcastable to `(num_runs, num_groups)`.

    Attributes:
        progress: inner steps made / horizon.
        lr_multiplier: the controller's multiplier in force, LR / (base LR * base schedule).
        has_loss: 1.0 if losses are passed, else 0.0.
        has_horizon: 1.0 if the horizon is known, else 0.0.
    """

    progress: Tensor
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


def _update_ratio_feature(update_ratio: Tensor) -> Tensor:
    return ((update_ratio.log10() + 3.0) / 3.0).clamp(-1.0, 1.0)


def _stack(named: dict[str, Tensor], context: Context, like: Tensor) -> Tensor:
    zero = torch.full_like(like, 0.0)
    named["progress"] = (context.progress * context.has_horizon).clamp(0.0, 1.0) + zero
    named["lr_multiplier"] = (context.lr_multiplier.log() / 3.0).clamp(-1.0, 1.0) + zero
    named["has_loss"], named["has_horizon"] = context.has_loss + zero, context.has_horizon + zero
    columns = [named.get(name, zero) for name in FEATURE_NAMES]
    return _known(torch.stack(columns, -1), zero[..., None])


def observe_start(prospective_update_ratio: Tensor, context: Context) -> Tensor:
    """Make the observation before the first update, when only the update that would be made is known.

    Args:
        prospective_update_ratio: |update| / |weights|, `(num_runs, num_groups)`; NaN where it cannot be predicted.
        context: see `Context`.

    Returns:
        Features `(num_runs, num_groups, NUM_FEATURES)`.
    """
    named = {"update_ratio": _update_ratio_feature(prospective_update_ratio)}
    return _stack(named, context, prospective_update_ratio)


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
    log_loss = stats.log_loss[:, None] + zero
    log_norm = stats.gradient_norm.log()
    log_norm = torch.where(log_norm.abs() < math.inf, log_norm, torch.full_like(log_norm, torch.nan))
    cosine = stats.gradient_cosine
    new = ObservationState(
        first_log_loss=_known(state.first_log_loss, log_loss),
        last_log_loss=_known(log_loss, state.last_log_loss),
        best_log_loss=torch.fmin(state.best_log_loss, log_loss),
        first_log_norm=_known(state.first_log_norm, log_norm),
        last_log_norm=_known(log_norm, state.last_log_norm),
        cosine_mean=_known(_COSINE_MEMORY * state.cosine_mean + (1.0 - _COSINE_MEMORY) * cosine, cosine),
    )
    # Before the first interval the memory is NaN. A change from NaN would also end as 0, but through a NaN whose
    # derivative poisons every gradient; the current value in its place gives the same 0.
    loss_change = log_loss - _known(state.last_log_loss, log_loss)
    gradient_change = log_norm - _known(state.last_log_norm, log_norm)
    loss_total = log_loss - new.first_log_loss
    exploded = torch.where(loss_total > math.log(EXPLODED_AT), one, stats.exploded[:, None])
    step_square = (stats.num_losses * (stats.num_losses * stats.num_losses - 1.0) / 12.0).clamp(min=1e-6)
    slope_error = stats.log_loss_noise / step_square.sqrt()
    slope = stats.log_loss_slope / slope_error.clamp(min=1e-12)
    named = {
        "update_ratio": _update_ratio_feature(stats.update_ratio),
        "loss_total": soft(loss_total, 1.0),
        "loss_change": soft(loss_change, 0.1),
        "loss_over_best": soft(log_loss - new.best_log_loss, 0.1),
        "loss_slope": soft(slope, 3.0)[:, None],
        "loss_noise": ((stats.log_loss_noise.log10() + 1.0) / 2.0).clamp(-1.0, 1.0)[:, None],
        "loss_exploded": exploded,
        "gradient_total": soft(log_norm - new.first_log_norm, 1.0),
        "gradient_change": soft(gradient_change, 0.3),
        "gradient_cosine": cosine,
        "gradient_cosine_mean": new.cosine_mean,
        "has_history": one,
    }
    for name in named:
        if name.startswith("loss_"):
            named[name] = named[name] * context.has_loss
    return _stack(named, context, zero), new


def feature(observation: Tensor, name: str) -> Tensor:
    """Select one feature of an observation `(…, NUM_FEATURES)` by name.

    Raises:
        ValueError: the name is not a feature.

    Example:
        >>> feature(torch.arange(16), "update_ratio").item()
        2
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
