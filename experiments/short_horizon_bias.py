"""How much does each classic schedule lose on the noisy quadratic, and what does greed cost?

The noisy quadratic (Wu et al. 2018, arXiv 1803.02021): curvatures h_i = 1/i, i = 1 … 1000, second moments A_i from 1,
A_i ← (1 - lr·h_i)² A_i + lr²·0.01·h_i, expected loss ½ Σ h_i A_i after T inner steps. It is exact and has no noise, so
every number here is one evaluation; each schedule is tuned to its best LR and its best parameters under lr <= 2, the
limit of stability.

    python -m experiments.short_horizon_bias

Expected: at T = 1000 greedy ends at 0.2548 and the best constant at 0.0425; the optimum under the cap is 0.01402033;
greedy's loss over the optimum grows with T; every tuned schedule beats the tuned constant.

Found: 0.25480, 0.042495 and 0.01402033 at T = 1000; greedy over the optimum is 1.8, 4.2, 18 and 44 at T = 100, 300,
1000 and 3000. The last expectation fails at every horizon: at T = 1000 linear-cosine (0.0591), its noisy variant
(0.0626) and warmup-constant (0.0429) end above the constant, and at T = 100 even cosine and linear do (1.51 against
1.20 times the optimum), for under the cap there is no time to decay. WSD with its 1-sqrt fall is within 3, 3, 4 and
13 % of the optimum.

A minute and a half on one CPU core.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from experiments.support import harness, plotting, records
from experiments.support.noisy_quadratic import CAP, CURVATURE, NOISE, expected_loss, greedy, optimum
from experiments.support.tables import print_table
from metalr.compare.catalog import SCHEDULE_CONTENDERS
from metalr.compare.contenders import ScheduleContender
from metalr.compare.search import points

NAME = "short_horizon_bias"
# The search follows this many groups of the slow directions in place of each one; the result does not.
_GROUPS = 60
_EXACT = 60


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    horizons: tuple[int, ...] = (100, 300, 1000, 3000)
    """Inner steps in a run."""
    num_lrs: int = 25
    """LRs that are tried for every parameter setting before the best is refined."""
    max_settings: int = 12
    """Parameter settings of each schedule, at most."""

    def small(self) -> "Args":
        return replace(self, horizons=(20, 40), num_lrs=5, max_settings=1)


def grouped() -> tuple[np.ndarray, np.ndarray]:
    """Curvatures and their weights for the search: the steep directions one by one, the others in groups."""
    edges = np.unique(np.geomspace(_EXACT, len(CURVATURE), _GROUPS).astype(int))
    groups = [CURVATURE[a:b] for a, b in itertools.pairwise(edges)]
    curvature = np.concatenate([CURVATURE[:_EXACT], [group.mean() for group in groups]])
    return curvature, np.concatenate([np.ones(_EXACT), [float(len(group)) for group in groups]])


def search_losses(lrs: np.ndarray) -> np.ndarray:
    """Approximate expected losses `(num_candidates,)` of LR tables `(num_candidates, horizon)`."""
    curvature, weight = grouped()
    moments = np.ones((len(lrs), len(curvature)))
    for lr in lrs.T[..., None]:
        moments = (1.0 - lr * curvature) ** 2 * moments + lr**2 * 0.01 * curvature
    return 0.5 * moments @ (weight * curvature)


def tune(contender: ScheduleContender, horizon: int, args: Args) -> dict[str, Any]:
    """The best LR and parameters of one schedule: a grid over both, then the LR refined on the exact loss."""
    progress = torch.arange(horizon, dtype=torch.float64) / horizon
    settings = points(contender.space, args.max_settings)
    shapes = np.stack([contender.schedule(setting)(progress).numpy() for setting in settings])  # (settings, horizon)
    peaks = np.geomspace(0.02, CAP, args.num_lrs)
    # Noise may lift a multiplier above 1; the cap holds for every LR.
    tables = np.minimum(peaks[None, :, None] * shapes[:, None], CAP)  # (settings, num_lrs, horizon)
    losses = search_losses(tables.reshape(-1, horizon)).reshape(len(settings), -1)
    setting, peak = np.unravel_index(losses.argmin(), losses.shape)

    def exact(log_lr: float) -> float:
        return expected_loss(np.minimum(np.exp(log_lr) * shapes[setting], CAP), horizon)

    width = np.log(peaks[1] / peaks[0])
    bounds = (np.log(peaks[peak]) - width, min(np.log(peaks[peak]) + width, np.log(CAP)))
    found = minimize_scalar(exact, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    lrs = np.minimum(np.exp(found.x) * shapes[setting], CAP)
    return {"loss": float(found.fun), "lr": float(np.exp(found.x)), "parameters": settings[setting], "lrs": lrs}


def rows_of(horizon: int, args: Args) -> list[dict[str, Any]]:
    """Optimum, greedy, and every schedule, the best first."""
    best = optimum(horizon, np.eye(horizon), CAP)
    step_greedy = greedy(horizon, CAP)
    found = {
        "optimum under lr <= 2": {**best, "lr": float(best["lrs"].max()), "parameters": {}},
        "greedy": {
            "loss": expected_loss(step_greedy, horizon),
            "lrs": step_greedy,
            "lr": float(step_greedy.max()),
            "parameters": {},
        },
    }
    for name, contender in SCHEDULE_CONTENDERS.items():
        found[name] = tune(contender, horizon, args)
        print(f"T = {horizon}: {name} {found[name]['loss']:.6f}", flush=True)
    return [
        {
            "horizon": horizon,
            "contender": name,
            "loss": result["loss"],
            "over_optimum": result["loss"] / best["loss"],
            "lr": result["lr"],
            "last_lr": float(result["lrs"][-1]),
            "parameters": result["parameters"],
            "lrs": [round(float(lr), 6) for lr in result["lrs"][:: max(1, horizon // 100)]],
            "seed": None,
        }
        for name, result in sorted(found.items(), key=lambda item: item[1]["loss"])
    ]


def draw(rows: list[dict[str, Any]], args: Args) -> None:
    """Loss over the optimum against the horizon, and the LRs at the longest horizon."""
    figure, (left, right) = plotting.panels(2, height=4.2)
    names = ["optimum under lr <= 2", "greedy", "constant", "cosine", "wsd", "linear", "inverse-square-root", "step"]
    longest = max(args.horizons)
    for name in names:
        own = {row["horizon"]: row for row in rows if row["contender"] == name}
        style: dict[str, Any] = {"linewidth": 1.5}
        if name.startswith("optimum"):
            style = {"linewidth": 2.4, "color": "black"}
        over = [own[horizon]["over_optimum"] for horizon in args.horizons]
        left.plot(args.horizons, over, marker="o", markersize=4, label=name, **style)
        lrs = own[longest]["lrs"]
        right.plot(np.arange(len(lrs)) * max(1, longest // 100) / longest, lrs, label=name, **style)
    left.set(xscale="log", yscale="log", xlabel="horizon T", ylabel="expected loss / optimum")
    right.set(yscale="log", xlabel="progress", ylabel="learning rate", title=f"T = {longest}", ylim=(1e-3, 3.0))
    plotting.legend(figure, left)
    plotting.save(figure, NAME, smoke=args.smoke)


def main(args: Args) -> None:
    """Run all horizons, write the records after each, print, draw."""
    assert np.allclose(NOISE, 0.01 * CURVATURE)
    rows: list[dict[str, Any]] = []
    for horizon in args.horizons:
        rows += rows_of(horizon, args)
        records.write(NAME, rows, device="cpu", smoke=args.smoke)
    draw(rows, args)
    print_table(rows, ("horizon", "contender", "loss", "over_optimum", "lr", "last_lr", "parameters"))


if __name__ == "__main__":
    harness.run(main, Args)
