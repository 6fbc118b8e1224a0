"""Which parts of the general controller's recipe does its result rest on?

    python -m experiments.general_ablations                            # every variant, one student each
    python -m experiments.general_ablations --variants reference anchored --student-seeds 0 1 2

Each variant changes one thing of a small training: one policy, 240 tasks of the meta-train family, two rounds of
rollouts, and 60 tasks of meta-validation from five guesses. The variants share the oracle curves of
`experiments.general`; a command that was cut off resumes. About ten minutes of one core for each variant and student.

Groups of features are left out one at a time; "version 1" keeps the features of the first observation alone.
"anchored" and "short actions" are other actions; "even" spaces the decisions evenly; "15", "60" and "960 tasks" train
on fewer or more; "three policies" averages their actions. The rounds of the reference are judged one by one.

Expected: the Polyak ratio and overshoot carry most of what tells the LR; more tasks lower the regret on unseen ones
at every doubling; recursive and anchored actions do equally well, since the multiplier is among the features.

Found: not run in full yet.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.support import harness, records
from experiments.support.general_setup import FACTORS, Setup, regret_rows, small_grid
from metalr.agents.clone_folder import CloneFolder, cached
from metalr.agents.clone_runs import CloneConfig
from metalr.control.actions import ActionSpec
from metalr.control.controller import Controller
from metalr.signals.observations import FEATURE_NAMES
from metalr.workers import Workers

NAME = "general_ablations"
_POLYAK = ("polyak", "polyak_left")
_OVERSHOOT = ("overshoot", "overshoot_mean", "over_lowest_overshot")
_EDGE = ("edge", "edge_mean")
_NOISE = ("gradient_cosine", "signal_to_noise", "loss_noise")
_NEW = (*_POLYAK, *_OVERSHOOT, *_EDGE, "signal_to_noise", "loss_trend", "loss_slope_left", "over_steepest")
_LOSS = tuple(name for name in FEATURE_NAMES if name.startswith("loss")) + _POLYAK


def _without(*names: str) -> dict[str, Any]:
    return {"visible": tuple(name for name in FEATURE_NAMES if name not in names)}


# Name -> settings of `CloneConfig` that differ, and the number of tasks where that differs.
VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {},
    "no Polyak ratio": _without(*_POLYAK),
    "no overshoot": _without(*_OVERSHOOT),
    "no edge ratio": _without(*_EDGE),
    "no noise features": _without(*_NOISE),
    "no update ratio": _without("update_ratio"),
    "no memory features": _without("over_lowest_overshot", "over_steepest", "loss_over_best"),
    "no losses": _without(*_LOSS),
    "version 1": _without(*_NEW, "log_progress", "has_gradient"),
    "anchored": {"action": ActionSpec("anchored", alpha=math.log(1e3), low=1e-3, high=1e3)},
    "short actions": {"action": ActionSpec("recursive", alpha=0.7, low=1e-3, high=1e3)},
    "even": {"spacing": "even"},
    "no noise in training": {"noise": 0.0},
    "three policies": {"members": 3},
    "15 tasks": {"tasks": 15},
    "60 tasks": {"tasks": 60},
    "960 tasks": {"tasks": 960},
}


@dataclass(frozen=True)
class Args(harness.Spread):
    """Train and judge each variant."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    """Names of variants."""
    folder: Path = Path("runs/general")
    """The folder of `experiments.general`, whose curves are used and extended."""
    tasks: int = 240
    """Tasks of the meta-train family, where a variant does not say otherwise."""
    validation_tasks: int = 60
    """Tasks of the meta-validation family."""
    steps: int = 2000
    """Updates of the policy in each round."""
    student_seeds: tuple[int, ...] = (0,)
    """Of the students."""

    def small(self) -> "Args":
        few = ("reference", "anchored", "15 tasks")
        folder = Path("runs/general_ablations-smoke")
        return replace(self, variants=few, folder=folder, tasks=3, validation_tasks=2, steps=10)


def setup_of(args: Args, name: str, student_seed: int) -> Setup:
    """The folders and settings of a variant."""
    changes = {key: value for key, value in VARIANTS[name].items() if key != "tasks"}
    config = CloneConfig(rounds=2, hidden_size=48, steps=args.steps, student_seed=student_seed)
    if args.smoke:
        config = replace(config, rounds=1, hidden_size=8, grid=small_grid(config))
    # Oracle curves carry the observations at the decisions, so other decisions need curves of their own.
    folder = args.folder / "even" if changes.get("spacing") == "even" else args.folder
    return Setup(folder, replace(config, **changes), f"ablation-{name.replace(' ', '-')}", args.smoke)


def trained(folder: CloneFolder, tasks: int, workers: Workers) -> dict[str, Controller]:
    """The controllers after each round, by name."""
    rounds = range(folder.config.rounds + 1)
    return {f"round {r}": folder.train(r, range(tasks), workers).controller(folder.config) for r in rounds}


def rows_of(args: Args, name: str, student_seed: int, workers: Workers) -> list[records.Row]:
    """The rows of a variant, made once."""
    setup = setup_of(args, name, student_seed)
    folder = setup.of("meta-train")

    def make() -> dict[str, list[records.Row]]:
        tasks = min(VARIANTS[name].get("tasks", args.tasks), 3 if args.smoke else 10_000)
        by_round = trained(folder, tasks, workers)
        last = list(by_round)[-1]
        judged = by_round if name == "reference" else {last: by_round[last]}
        about = {"variant": name, "seed": student_seed}
        return {"rows": regret_rows(setup.validation(), args.validation_tasks, judged, **about)}

    return cached(folder.student / f"validation-{args.validation_tasks}.pt", make)["rows"]


def summary(rows: Sequence[records.Row]) -> str:
    """Mean log regret by variant, round and guess, over tasks and students."""
    lines = []
    for variant, controller in dict.fromkeys((row["variant"], row["controller"]) for row in rows):
        own = [row for row in rows if (row["variant"], row["controller"]) == (variant, controller)]
        cells = [np.mean([row["log_regret"] for row in own if row["factor"] == factor]) for factor in FACTORS]
        everything = [row["log_regret"] for row in own]
        label = f"{variant}, {controller}"
        by_guess = "  ".join(f"x{factor:g} {cell:.3f}" for factor, cell in zip(FACTORS, cells, strict=True))
        lines.append(f"{label:30s} mean {np.mean(everything):.3f}  median {np.median(everything):.3f}  {by_guess}")
    return "\n".join(lines)


def main(args: Args) -> None:
    """Train and judge every variant, and print as they come."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows: list[records.Row] = []
    with args.start_workers() as workers:
        for name in args.variants:
            for student_seed in args.student_seeds:
                found = rows_of(args, name, student_seed, workers)
                print(summary(found), flush=True)
                rows += found
    print("\nlog regret over tasks and students\n" + summary(rows))
    print(records.write(NAME, rows, device="cpu", smoke=args.smoke))


if __name__ == "__main__":
    harness.run(main, Args)
