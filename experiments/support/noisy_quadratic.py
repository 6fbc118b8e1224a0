"""The noisy quadratic, where the best possible LR schedule is known to machine precision.

Curvatures h_i = 1/i, i = 1 … 1000, second moments A_i from 1, gradient noise 0.01·h_i (Wu et al. 2018): after an inner
step A ← (1 − lr·h)²·A + lr²·0.01·h, and the expected loss is ½ Σ h·A, exact and without noise. The cap lr <= 2 is the
limit of stability; under it the optimal schedule is one and the same from every start (L-BFGS-B on the exact gradient).
Here are the loss, its gradient, the optima and the tuned classics; no learner.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, minimize

from metalr.control.controller import decision_steps
from metalr.schedules import WSD, Schedule

CURVATURE = 1.0 / np.arange(1, 1001)
NOISE = 0.01 * CURVATURE
CAP = 2.0
SMALLEST = 1e-6  # LRs from here on; the optima use nothing near it


def expected_loss(schedule: Schedule | np.ndarray, horizon: int, base_lr: float = 1.0) -> float:
    """The exact expected loss after a run: the yardstick for any learner's schedule.

    Args:
        schedule: progress -> multiplier of `base_lr`, or the LRs themselves `(horizon,)`.
        horizon: inner steps.
        base_lr: what the multiplier multiplies.

    Returns:
        ½ Σ h_i A_i; infinite where the LRs diverge.
    """
    if isinstance(schedule, Schedule):
        schedule = base_lr * schedule(torch.arange(horizon, dtype=torch.float64) / horizon).numpy()
    moments = np.ones_like(CURVATURE)
    with np.errstate(over="ignore", invalid="ignore"):
        for lr in schedule:
            moments = (1.0 - lr * CURVATURE) ** 2 * moments + lr**2 * NOISE
        loss = 0.5 * float(CURVATURE @ moments)
    return loss if math.isfinite(loss) else math.inf


def loss_and_gradient(lrs: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss and its derivative with respect to every LR, by the adjoint of the recursion."""
    path = np.empty((len(lrs) + 1, len(CURVATURE)))
    path[0] = 1.0
    for t, lr in enumerate(lrs):
        path[t + 1] = (1.0 - lr * CURVATURE) ** 2 * path[t] + lr**2 * NOISE
    gradient, adjoint = np.empty(len(lrs)), 0.5 * CURVATURE
    for t in range(len(lrs) - 1, -1, -1):
        left = 1.0 - lrs[t] * CURVATURE
        gradient[t] = adjoint @ (-2.0 * CURVATURE * left * path[t] + 2.0 * lrs[t] * NOISE)
        adjoint = adjoint * left**2
    return 0.5 * float(CURVATURE @ path[-1]), gradient


def optimum(horizon: int, mixing: np.ndarray, cap: float, start: float = 1.0, logs: bool = False) -> dict[str, Any]:
    """The best LRs `mixing @ x` (or exp(mixing @ x) with `logs`), by L-BFGS-B; x starts from a constant."""

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        lrs = np.exp(mixing @ x) if logs else mixing @ x
        with np.errstate(over="ignore", invalid="ignore"):
            loss, gradient = loss_and_gradient(lrs)
        if not math.isfinite(loss):  # beyond stability: a wall for the line search
            return 1e30, np.zeros_like(x)
        return loss, mixing.T @ (gradient * lrs if logs else gradient)

    low, high = (math.log(SMALLEST), math.log(cap)) if logs else (SMALLEST, cap)
    options = {"maxiter": 20000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-12, "maxcor": 30}
    first = np.full(mixing.shape[1], math.log(start) if logs else start)
    found = minimize(objective, first, jac=True, method="L-BFGS-B", bounds=Bounds(low, high), options=options)
    return {"loss": float(found.fun), "lrs": np.exp(mixing @ found.x) if logs else mixing @ found.x}


def piece_mixing(horizon: int, pieces: int) -> np.ndarray:
    """`(horizon, pieces)`: step t has the LR of piece floor(t · pieces / horizon), as `StepwiseLR`."""
    return np.eye(pieces)[np.arange(horizon) * pieces // horizon]


def decision_mixing(horizon: int, decisions: int) -> np.ndarray:
    """`(horizon, decisions)`: step t has the LR of the last decision, as in the environment (PPO's optimum)."""
    starts = np.array(decision_steps(horizon, decisions))
    return np.eye(decisions)[np.searchsorted(starts, np.arange(horizon), side="right") - 1]


def knot_mixing(horizon: int, knots: int) -> np.ndarray:
    """`(horizon, knots)`: the weights of straight lines between knots."""
    position = np.arange(horizon) / horizon * (knots - 1)
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(knots)))


def greedy(horizon: int, cap: float) -> np.ndarray:
    """At each step the LR that makes the next loss smallest: Σ h²A / Σ (h³A + h·noise)."""
    moments, lrs = np.ones_like(CURVATURE), np.empty(horizon)
    for t in range(horizon):
        lr = float((CURVATURE**2 @ moments) / (CURVATURE**3 @ moments + CURVATURE @ NOISE))
        lrs[t] = min(lr, cap)
        moments = (1.0 - lrs[t] * CURVATURE) ** 2 * moments + lrs[t] ** 2 * NOISE
    return lrs


def tuned(horizon: int, cap: float, family: Callable[[float], Schedule], shapes: np.ndarray) -> dict[str, Any]:
    """The best peak LR and the best of a family's shapes: a grid, then Nelder-Mead from its best point."""
    progress = torch.arange(horizon, dtype=torch.float64) / horizon

    def lrs_at(peak: float, shape: float) -> np.ndarray:
        return min(peak, cap) * family(shape)(progress).numpy()

    peaks = np.geomspace(0.05, min(cap, 2.5), 12)
    _, peak, shape = min((expected_loss(lrs_at(p, s), horizon), p, s) for p, s in itertools.product(peaks, shapes))

    def objective(x: np.ndarray) -> float:
        inside = float(np.clip(x[1], shapes.min(), shapes.max()))
        return expected_loss(lrs_at(math.exp(x[0]), inside), horizon)

    options = {"xatol": 1e-6, "fatol": 1e-12, "maxfev": 200}
    found = minimize(objective, [math.log(peak), shape], method="Nelder-Mead", options=options)
    best_shape = float(np.clip(found.x[1], shapes.min(), shapes.max()))
    return {"loss": float(found.fun), "lrs": lrs_at(math.exp(found.x[0]), best_shape), "shape": best_shape}


def _wsd(shape: str, decay: float) -> Schedule:
    return WSD(warmup=0.0, decay=decay, shape=shape)


def best_wsd(horizon: int, cap: float) -> dict[str, Any]:
    shapes = np.linspace(0.05, 1.0, 12)
    options = [tuned(horizon, cap, partial(_wsd, s), shapes) for s in ("1-sqrt", "linear", "cosine")]
    return min(options, key=lambda option: option["loss"])
