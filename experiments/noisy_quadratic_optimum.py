"""How close does each learner come to the best possible LR schedule, on a problem whose optimum is known?

The noisy quadratic (see `support/noisy_quadratic`). Every learner starts from a constant LR of 1 and is compared with
the optimum for its own number of decisions.

    python -m experiments.noisy_quadratic_optimum

Rows in the record are not computed again without `--fresh`: a stopped run resumes, and a finished one only prints the
table and draws. PPO is trained by `noisy_quadratic_ppo`, whose record joins the table.

Expected: at T = 1000 the optimum is 0.01402033; greedy 0.2548, best constant 0.0425, tuned WSD 0.01414733. Of their
optimum for 40 decisions meta-gradients come within 0.1 %, PES within 0.5 %, PPO within 2 %, all below WSD.

Found, as excess over the true optimum, that of an LR for every step. At T = 1000: meta-gradients on knots 0.002 %, on
40 constant pieces 0.59 %, PES on pieces 0.65 %, PPO (three training seeds) 0.72 to 0.81 %, WSD 0.91 %. At T = 100: WSD
0.22 %, knots 0.04 %, pieces 0.36 %, PES 0.37 %; at T = 300: WSD 0.20 %, knots 0.02 %, pieces and PES 0.68 %. So WSD,
which can change its LR at every step, beats PES and every other learner of pieces at T = 100 and 300. What separates
those from the optimum is the 40 pieces and not the learning: of their own optimum meta-gradients come within 0.03 %,
PES within 0.06 % and PPO within 0.22 %. Without the cap nothing is convex: WSD with a peak above 2 is the best that was
found (31 % below the capped optimum at T = 1000), and the learners, which start from 1 and must creep along a cliff of
stability, end above the capped optimum (PES 49 %, meta-gradients 85 % at T = 1000), but for PES at T = 100, 1 % below
it.

About 70 minutes of one CPU core; `--smoke` takes seconds.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments.support import harness, plotting, records
from experiments.support.noisy_quadratic import (
    CAP,
    SMALLEST,
    best_wsd,
    decision_mixing,
    expected_loss,
    greedy,
    knot_mixing,
    optimum,
    piece_mixing,
    tuned,
)
from experiments.support.tables import print_table
from metalr.agents.outer_loop import MetaGradients, MetaTrainer, MetaTrainingError, OuterConfig
from metalr.agents.pes import PES
from metalr.learned.module import OpenLoop
from metalr.learned.schedules import KnotLR, StepwiseLR
from metalr.schedules import Cosine
from metalr.tasks.catalog import make_task

NAME = "noisy_quadratic_optimum"


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    horizons: tuple[int, ...] = (100, 300, 1000, 3000)
    """Inner steps in a run."""
    uncapped: tuple[int, ...] = (100, 300, 1000)
    """Horizons that are also solved without the cap."""
    decisions: int = 40
    """LRs that each learner may choose."""
    outer_steps: int = 110
    """Of the learners."""
    long_outer_steps: int = 300
    """Of evolution beyond 1000 inner steps, where its estimates are noisier."""
    uncapped_outer_steps: int = 150
    """Without the cap, where only small outer steps are safe."""
    num_pairs: int = 32
    """Antithetic pairs of PES."""
    seed: int = 0
    """Of the perturbations; everything else is deterministic."""
    fresh: bool = False
    """Forget what is recorded."""

    def small(self) -> "Args":
        few: dict[str, Any] = {"outer_steps": 8, "uncapped_outer_steps": 8, "num_pairs": 4}
        return replace(self, horizons=(40,), uncapped=(40,), decisions=8, **few)


class Contender(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the row.
        own: name of the optimum that it is measured against, the one for its own number of LRs.
        solve: computes its loss and LRs.
        outer_steps: 0 for what is not learned.
    """

    name: str
    own: str
    solve: Callable[[], dict[str, Any]]
    outer_steps: int = 0


def references(horizon: int, capped: bool, count: int) -> Iterator[Contender]:
    """Optima and tuned classics.

    Without the cap the problem is not convex: what L-BFGS-B finds there is no optimum, and is not called one.
    """
    cap, best = (CAP, "optimum") if capped else (1e3, "L-BFGS-B")
    every = f"{best}, {horizon} LRs"
    mixings = {
        every: np.eye(horizon),
        f"{best}, {count} pieces": piece_mixing(horizon, count),
        f"{best}, {count} knots": knot_mixing(horizon, count),
        f"{best}, {count} decisions": decision_mixing(horizon, count),
    }
    for name, mixing in mixings.items():
        yield Contender(name, name, partial(optimum, horizon, mixing, cap, logs=name.endswith("knots")))

    def by_greed() -> dict[str, Any]:
        lrs = greedy(horizon, cap)
        return {"loss": expected_loss(lrs, horizon), "lrs": lrs}

    def by_cosine() -> dict[str, Any]:
        return tuned(horizon, cap, lambda floor: Cosine(floor=floor), np.array([0.0]))

    yield Contender("greedy", every, by_greed)
    yield Contender("best constant", every, lambda: optimum(horizon, np.ones((horizon, 1)), cap))
    yield Contender("cosine, tuned", every, by_cosine)
    yield Contender("WSD, tuned", every, lambda: best_wsd(horizon, cap))


def learners(horizon: int, capped: bool, args: Args) -> Iterator[Contender]:
    """Schedules learned from a constant 1, but those that take minutes for nothing new."""
    cap, best = (CAP, "optimum") if capped else (1e3, "L-BFGS-B")
    kinds: dict[str, Callable[[], OpenLoop]] = {
        "knots": lambda: KnotLR(args.decisions, low=SMALLEST, high=cap),
        "pieces": lambda: StepwiseLR(args.decisions, low=SMALLEST, high=cap),
    }
    limits = {"meta-gradient, pieces": 1000, "ES-Single, pieces": 300}
    for name in ("meta-gradient, knots", "meta-gradient, pieces", "PES, pieces", "ES-Single, pieces"):
        if horizon > limits.get(name, horizon):
            continue
        method, kind = name.split(", ")
        steps = args.outer_steps if capped else args.uncapped_outer_steps
        if method != "meta-gradient" and horizon > 1000:
            steps = args.long_outer_steps

        def solve(method: str = method, kind: str = kind, steps: int = steps) -> dict[str, Any]:
            return learn(kinds[kind], horizon, args, method, capped, steps)

        yield Contender(name, f"{best}, {args.decisions} {kind}", solve, steps)


def learn(
    make: Callable[[], OpenLoop], horizon: int, args: Args, method: str, capped: bool, outer_steps: int
) -> dict[str, Any]:
    """Train a learned schedule from a constant 1 and evaluate it with the exact recursion.

    Without the cap a large outer LR jumps over the cliff of stability, where every run diverges and no gradient is
    left; then the next smaller outer LR is tried, from the same start.
    """
    started = time.perf_counter()
    for lr in (0.3,) if capped else (0.02, 0.01, 0.005):
        learned = make()
        trainer = MetaTrainer(
            learned,
            _estimator(learned, horizon, args, method),
            OuterConfig(outer_steps, lr=lr, final_lr=1e-4, betas=(0.8, 0.98)),
        )
        try:
            trainer.train()
        except MetaTrainingError as error:
            print(f"outer lr {lr}: {error}", flush=True)
            continue
        with torch.no_grad():
            lrs = learned(torch.arange(horizon, dtype=torch.float64) / horizon)[:, 0].numpy()
        seconds = time.perf_counter() - started
        return {"loss": expected_loss(lrs, horizon), "lrs": lrs, "seconds": seconds, "outer_lr": lr}
    return {"loss": math.inf, "lrs": np.ones(horizon), "seconds": time.perf_counter() - started, "outer_lr": 0.0}


def _estimator(learned: OpenLoop, horizon: int, args: Args, method: str) -> Any:
    task = make_task("noisy-quadratic", horizon=horizon)
    if method == "meta-gradient":
        one_run = torch.zeros(1, dtype=torch.int64)
        return MetaGradients(learned, [task], seeds=one_run, meta_loss="final-train", log=True)
    return PES(
        learned,
        task,
        num_pairs=args.num_pairs,
        sigma=0.05,
        final_sigma=0.002,
        perturb="window" if method == "PES" else "run",
        unroll_length=horizon // 4,
        meta_loss="final-train",
        log=True,
        seed=args.seed,
    )


def solve(horizon: int, capped: bool, args: Args, known: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of one horizon, one after the other; those that are known are passed on.

    Args:
        horizon: inner steps.
        capped: whether LRs above 2 are forbidden.
        args: of the experiment.
        known: recorded rows by name.
    """
    losses: dict[str, float] = {}
    yardstick = optimum(horizon, np.eye(horizon), CAP)["loss"]
    for contender in [*references(horizon, capped, args.decisions), *learners(horizon, capped, args)]:
        row = known.get(contender.name)
        if row is None or row["outer_steps"] != contender.outer_steps:
            found = contender.solve()
            losses[contender.name] = found["loss"]
            row = {
                "horizon": horizon,
                "capped": capped,
                "learner": contender.name,
                "loss": found["loss"],
                "over_own_optimum_percent": 100.0 * (found["loss"] / losses[contender.own] - 1.0) if capped else None,
                "over_capped_optimum_percent": 100.0 * (found["loss"] / yardstick - 1.0),
                "seconds": round(found.get("seconds", 0.0), 1),
                "seed": args.seed,
                "decisions": args.decisions,
                "outer_steps": contender.outer_steps,
                "outer_lr": found.get("outer_lr", 0.0),
                # Every LR of a long run would make the record long; 100 of them draw the figure.
                "lrs": [round(float(lr), 6) for lr in found["lrs"][:: max(1, horizon // 100)]],
            }
            print(f"T = {horizon}, {'cap 2' if capped else 'no cap'}: {contender.name} {row['loss']:.8f}", flush=True)
        losses[contender.name] = row["loss"]
        yield row


def ppo_rows(horizon: int, capped: bool) -> list[dict[str, Any]]:
    """PPO's rows, if its experiment has been run, beside the optimum for as many decisions."""
    best = optimum(horizon, np.eye(horizon), CAP)["loss"]
    added = []
    for row in records.recorded("noisy_quadratic_ppo", smoke=False):
        if (row["horizon"], row["capped"]) != (horizon, capped):
            continue
        own = optimum(horizon, decision_mixing(horizon, row["decisions"]), CAP)["loss"]
        row["over_own_optimum_percent"] = 100.0 * (row["loss"] / own - 1.0) if capped else None
        row["over_capped_optimum_percent"] = 100.0 * (row["loss"] / best - 1.0)
        added.append({"learner": "PPO", **row})
    return added


def draw(rows: list[dict[str, Any]], args: Args) -> None:
    """LRs over progress, one panel for each horizon under the cap."""
    columns = min(2, len(args.horizons))
    figure, panels = plotting.panels(columns, rows=-(-len(args.horizons) // columns))
    blue, red, green, purple, orange, light_blue = plotting.COLOURS[:6]
    styles = {
        "optimum": ("black", "-", 2.4),
        "meta-gradient, knots": (blue, "--", 1.4),
        "PES, pieces": (orange, "-", 1.2),
        "WSD, tuned": (green, ":", 1.6),
        "cosine, tuned": (purple, ":", 1.2),
        "greedy": (red, "-.", 1.2),
        "PPO": (light_blue, "-", 1.0),
    }
    for panel, horizon in zip(panels, args.horizons, strict=False):
        for name, (colour, line, width) in styles.items():
            label = f"optimum, {horizon} LRs" if name == "optimum" else name
            found = [r for r in rows if r["horizon"] == horizon and r["capped"] and r["learner"] == label]
            if not found:  # PPO is trained elsewhere, and not for every horizon
                continue
            row = min(found, key=lambda r: r["loss"])
            lrs = row["lrs"] if "lrs" in row else row["curve"]
            progress = np.arange(len(lrs)) / len(lrs)
            text = f"{name} {row['loss']:.5f}"
            panel.plot(progress, lrs, color=colour, linestyle=line, linewidth=width, label=text)
        panel.set(title=f"T = {horizon}", xlabel="progress", ylabel="learning rate", yscale="log", ylim=(0.02, 2.5))
        panel.legend(fontsize=7, loc="lower left", title="final expected loss", title_fontsize=7)
    plotting.save(figure, NAME, smoke=args.smoke)


def earlier(args: Args) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same options, without PPO's."""
    rows = [] if args.fresh else records.recorded(NAME, smoke=args.smoke)
    same = [row for row in rows if (row["seed"], row["decisions"]) == (args.seed, args.decisions)]
    return [row for row in same if row["learner"] != "PPO"]


def main(args: Args) -> None:
    """Compute the rows that are missing, write the record after each, print the table, draw."""
    rows, old = [], earlier(args)
    for horizon, capped in [*((h, True) for h in args.horizons), *((h, False) for h in args.uncapped)]:
        same = [row for row in old if (row["horizon"], row["capped"]) == (horizon, capped)]
        old = [row for row in old if row not in same]
        for row in solve(horizon, capped, args, {row["learner"]: row for row in same}):
            rows.append(row)
            records.write(NAME, [*rows, *old], device="cpu", smoke=args.smoke)
    rows += old
    rows += [row for horizon in args.horizons for row in ppo_rows(horizon, True)]
    records.write(NAME, rows, device="cpu", smoke=args.smoke)
    draw(rows, args)
    columns = ("horizon", "capped", "learner", "loss", "over_own_optimum_percent", "over_capped_optimum_percent")
    print_table(rows, (*columns, "seconds"))


if __name__ == "__main__":
    harness.run(main, Args)
