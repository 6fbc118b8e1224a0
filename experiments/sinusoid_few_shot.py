"""Do learned per-parameter LRs (Meta-SGD) beat MAML's fixed LR on few-shot sinusoids, as their paper says?

Amplitude 0.1 to 5, phase 0 to pi, net 1-40-40-1 (ReLU), one inner step, mean squared error on new points of new
sinusoids. Meta-SGD's paper (Li et al. 2017, arXiv 1707.09835, table 1) reports MAML 1.13, Meta-SGD 0.90 at 5 shots and
0.77, 0.53 at 10, with the frequency varied in [0.8, 1.2] too, so that the record to compare is the first of

    python -m experiments.sinusoid_few_shot --frequency 0.8 1.2
    python -m experiments.sinusoid_few_shot

MAML's inner LR is tuned: with the first training seed every value of `--maml-lrs` is trained and judged on sinusoids
that are neither those of the training nor those of the result; the other seeds have the best. Meta-SGD learns its LRs
from the first value.

Expected: Meta-SGD below MAML at 5 and at 10 shots, both at or below the paper's numbers.

Found before MAML was tuned and with one seed (the committed records; the commands above replace them): with the
frequency varied 0.77 against MAML's 1.15 at 5 shots, 0.48 against 0.90 at 10. Meta-SGD is below MAML and below the
paper, but MAML is worse than the paper's 1.13 and 0.77, so that the second expectation fails for it and the gap is
flattering. At a fixed frequency, which the paper does not have, 0.48 against 0.84 and 0.27 against 0.61.

About 15 minutes on a CPU core for each command.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from experiments.support import harness, plotting, records
from experiments.support.tables import print_table
from metalr.agents.few_shot import few_shot_learner
from metalr.agents.meta_gradients import meta_gradient
from metalr.agents.outer_loop import MetaGradients, MetaTrainer, OuterConfig
from metalr.engine.runs import BatchedRuns
from metalr.tasks.sinusoids import sinusoid_task

NAME = "sinusoid_few_shot"
PAPER = {("maml", 5): 1.13, ("meta-sgd", 5): 0.90, ("maml", 10): 0.77, ("meta-sgd", 10): 0.53}


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    shots: tuple[int, ...] = (5, 10)
    """Training points of a sinusoid."""
    frequency: tuple[float, float] = (1.0, 1.0)
    """Range of the frequency."""
    outer_steps: int = 4000
    """Meta-updates."""
    meta_batch: int = 32
    """Sinusoids in each."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of initial weights and sinusoids."""
    maml_lrs: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Inner LRs of MAML that are tried."""
    test_tasks: int = 2000
    """New sinusoids that the result is the mean over."""

    def small(self) -> "Args":
        return replace(self, outer_steps=20, test_tasks=50, seeds=self.seeds[:2], maml_lrs=self.maml_lrs[:2])


def train_and_test(method: str, shots: int, inner_lr: float, seed: int, args: Args) -> dict[str, Any]:
    """Meta-train, then the mean squared error after one inner step on new sinusoids, and on others to tune by."""
    started = time.perf_counter()
    task = sinusoid_task(shots, frequency=args.frequency)
    learned = few_shot_learner(task, method, inner_lr=inner_lr, seed=seed)
    options: dict[str, Any] = {"meta_loss": "final-valid", "dtype": torch.float32, "seed": seed}
    gradients = MetaGradients(learned, [task], num_seeds=args.meta_batch, **options)
    MetaTrainer(learned, gradients, OuterConfig(args.outer_steps, lr=2e-3, final_lr=1e-5, clip_norm=10.0)).train()
    runs = BatchedRuns(sinusoid_task(shots, frequency=args.frequency, queries=100), args.test_tasks)
    result, tuning = (
        meta_gradient(learned, runs, start + torch.arange(args.test_tasks), meta_loss="final-valid", order=1)
        for start in (10**9, 2 * 10**9)
    )
    return {
        "method": method,
        "shots": shots,
        "frequency": list(args.frequency),
        "inner_lr": inner_lr,
        "loss": result.loss,
        "tuning_loss": tuning.loss,
        "confidence_95": 1.96 * result.losses.std().item() / args.test_tasks**0.5,
        "paper": PAPER[(method, shots)],
        "negative_lrs": (learned.lr < 0).double().mean().item(),
        "largest_lr": learned.lr.max().item(),
        "seconds": round(time.perf_counter() - started, 1),
        "seed": seed,
        "outer_steps": args.outer_steps,
    }


def all_seeds(method: str, shots: int, args: Args) -> list[dict[str, Any]]:
    """A row for each training seed, MAML's at its best inner LR."""
    first, *others = args.seeds
    lrs = args.maml_lrs if method == "maml" else args.maml_lrs[:1]
    tried = [train_and_test(method, shots, lr, first, args) for lr in lrs]
    best = min(tried, key=lambda row: row["tuning_loss"])
    best["tried"] = {f"{row['inner_lr']:g}": row["tuning_loss"] for row in tried}
    return [best, *(train_and_test(method, shots, best["inner_lr"], seed, args) for seed in others)]


def draw(rows: list[dict[str, Any]], smoke: bool) -> None:
    """Bars of the first seed with confidence intervals beside the paper's numbers, dots of the others."""
    figure, (axes,) = plotting.panels(1)
    first = rows[0]["seed"]
    others, rows = [row for row in rows if row["seed"] != first], [row for row in rows if row["seed"] == first]
    for index, row in enumerate(rows):
        colour = plotting.COLOURS[0 if row["method"] == "maml" else 1]
        axes.bar(index, row["loss"], yerr=row["confidence_95"], color=colour, width=0.6)
        axes.plot([index - 0.3, index + 0.3], [row["paper"]] * 2, color="black", label="" if index else "paper")
    for row in others:
        index = next(i for i, r in enumerate(rows) if (r["method"], r["shots"]) == (row["method"], row["shots"]))
        axes.plot(index, row["loss"], "o", color="black", markersize=4)
    axes.set_xticks(range(len(rows)), [f"{row['method']}\n{row['shots']} shots" for row in rows])
    axes.set_ylabel("mean squared error after one inner step")
    plotting.legend(figure, axes)
    plotting.save(figure, NAME, smoke=smoke)


def main(args: Args) -> None:
    """All methods and shots."""
    rows = []
    for shots in args.shots:
        for method in ("maml", "meta-sgd"):
            rows += all_seeds(method, shots, args)
            print(rows[-1], flush=True)
    name = NAME if args.frequency == (1.0, 1.0) else f"{NAME}_frequency"
    records.write(name, rows, device="cpu", smoke=args.smoke)
    if name == NAME:
        draw(rows, args.smoke)
    print_table(
        rows,
        (
            "method",
            "shots",
            "inner_lr",
            "seed",
            "loss",
            "confidence_95",
            "paper",
            "negative_lrs",
            "largest_lr",
            "seconds",
        ),
    )


if __name__ == "__main__":
    harness.run(main, Args)
