"""Does the general controller replace tuning on tasks that share nothing with its training?

    python -m experiments.general_meta_test --part tuned     # the reference; stopped and called again, it resumes
    python -m experiments.general_meta_test                  # everything

The plan, fixed before the first run of a controller:

Tasks: all of `metalr.tasks.meta_test`. Each axis (data, network, optimizer, horizon, batch, scale) is held out alone,
and all of them together. Nothing is chosen on them, and controllers are run on them once.

Reference: the *tuned best classic*. Nine schedules, each with 16 trials over the LR (a range of 1,000) and its own
shape on 3 tuning seeds; the one with the best tuning score is reported on 10 fresh seeds. x1 is its LR, rounded to the
nearest of 1, 2 and 5 times a power of ten.

Contenders, from x0.01, x0.1, x1, x10 and x100 on the same 10 seeds, with nothing tuned: the shipped file; students of
other training seeds; its base schedule; cosine; the edge rule; and the calibrated setting, which ignores the guess: one
LR for each kind of optimizer under the base schedule, fitted on the oracle curves of meta-train (RMSprop, which is not
there, takes Adam's). At their own default LRs: Schedule-Free, Prodigy, D-Adaptation, DoG, Mechanic and MoMo, where they
are installed and are variants of the task's optimizer.

Measure: train loss over the train split, or its first 4,096 examples, at the last iterate, floored at 1e-3 of the
untrained loss; a diverged run counts as untrained, and is counted.

Expected: geometric mean over the tuned best classic's at most 1.05 from x1 and 1.15 from x0.1 and x10; over the
calibrated setting's at most 0.90; from x1 no task above 1.25 times its base schedule; from x0.01 and x100 no worse than
the base schedule on 95 % of the tasks; from x0.1 and x10 a median regret of at most a tenth of cosine's; test loss no
worse than tuned cosine's within its interval.

Found: no controller has been run yet.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.support import harness, records
from experiments.support.general_setup import FACTORS, Setup, calibrated_lrs, rivals
from metalr.agents.clone_runs import CloneConfig
from metalr.artefacts.controller_file import load_controller
from metalr.compare.catalog import CLASSIC, EXTERNAL_CONTENDERS
from metalr.compare.comparison import Comparison, compare
from metalr.compare.contenders import FixedContender
from metalr.compare.run_record import RunRecord
from metalr.compare.selection import Criterion, best_trial, chosen_runs, tuned_best, tuned_best_runs, tuning_runs
from metalr.compare.settings import Settings
from metalr.control.controller import Controller
from metalr.tasks.general import draw_task
from metalr.tasks.meta_test import META_TEST
from metalr.tasks.task import Task
from metalr.workers import Workers

NAME = "general_meta_test"


@dataclass(frozen=True)
class Args(harness.Spread):
    """Tune the classics, then run the controllers from every guess."""

    part: Literal["tuned", "all"] = "all"
    """`tuned` stops after the reference."""
    folder: Path = Path("runs/general_meta_test")
    """Where everything goes."""
    training: Path = Path("runs/general")
    """The folder of `experiments.general`, whose curves give the calibrated setting."""
    training_tasks: int = 1200
    """Tasks behind those curves."""
    students: tuple[Path, ...] = ()
    """Files of students of other training seeds."""
    trials: int = 16
    """Of each classic schedule."""
    seeds: int = 10
    """Fresh seeds behind each number."""

    def small(self) -> "Args":
        return replace(self, folder=Path("runs/general_meta_test-smoke"), trials=2, seeds=2)


def tasks_of(args: Args) -> dict[str, Task]:
    """The meta-test set; a smoke run takes two small tasks of the validation family, so as not to touch it."""
    if args.smoke:
        return {f"smoke-{i}": draw_task("meta-validation", i).with_(horizon=40, name=f"smoke-{i}") for i in range(2)}
    return {name: entry.task(name) for name, entry in META_TEST.items()}


def reference(task: Task, args: Args, workers: Workers) -> Comparison:
    """The classics with their trials, reported on the fresh seeds."""
    settings = Settings(
        contenders=(*CLASSIC, "wsd-linear"),
        trials=args.trials,
        price_at=(args.trials,),
        report_seeds=args.seeds,
        factors=(),
        ablations=False,
    )
    return compare(task, args.folder / "tuned" / task.name, settings, workers=workers)


def best_lr(found: Comparison, task: str) -> float:
    """The LR of the tuned best classic, rounded to the nearest of 1, 2 and 5 times a power of ten."""
    name = tuned_best(found.records, task, Criterion.TRAIN)
    trial = best_trial(found.records, task, name, Criterion.TRAIN)
    lr = next(r.base_lr for r in tuning_runs(found.records, task, name) if r.trial == trial)
    return rounded(lr)


def rounded(lr: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten, on a log scale.

    Example:
        >>> [rounded(lr) for lr in (0.0031, 0.04, 0.8)]
        [0.002, 0.05, 1.0]
    """
    power = math.floor(math.log10(lr))
    candidates = [float(f"{digit}e{power}") for digit in (1, 2, 5, 10)]
    return min(candidates, key=lambda candidate: abs(math.log(candidate / lr)))


def guesses(
    task: Task, lr: float, controllers: dict[str, Controller], fixed: float, args: Args, workers: Workers
) -> Comparison:
    """The controllers from every guess, and the calibrated setting."""
    settings = Settings(
        contenders=(), wrong_base=(), trials=1, report_seeds=args.seeds, factors=FACTORS, ablations=False
    )
    schedule = CloneConfig().schedule
    calibrated = FixedContender(name="calibrated", about="one LR", schedule=schedule, lrs={task.name: fixed})
    return compare(
        task.with_(base_lr=lr),
        args.folder / "guesses" / task.name,
        settings,
        controllers=controllers,
        more_contenders=[calibrated],
        workers=workers,
    )


def untuned(task: Task, args: Args, workers: Workers) -> Comparison | None:
    """The optimizers of other packages at their own default LRs; None where none fits."""
    fitting = tuple(name for name, contender in EXTERNAL_CONTENDERS.items() if contender.fits(task))
    if not fitting or args.smoke:
        return None
    settings = Settings(
        contenders=fitting, trials=1, price_at=(1,), tuning_seeds=1, report_seeds=args.seeds, factors=()
    )
    return compare(task, args.folder / "untuned" / task.name, settings, workers=workers)


def controllers_of(args: Args) -> dict[str, Controller]:
    """The shipped controller, other students, and the rivals."""
    found = {"general": load_controller("general")}
    found |= {f"student {path.stem}": load_controller(path) for path in args.students}
    return {**found, **rivals(CloneConfig())}


def rows_of(task: Task, found: Comparison, tuned: Comparison, lr: float) -> list[records.Row]:
    """A row for each contender and guess, with the losses of every seed beside those of the tuned best."""
    best = tuned_best_runs(tuned.records, task.name, Criterion.TRAIN)
    cosine = chosen_runs(tuned.records, task.name, "cosine", Criterion.TRAIN)
    by_place: dict[tuple[str, float | None], list[RunRecord]] = {}
    for record in found.records:
        if record.phase == "wrong-base" or (record.phase == "report" and not found.settings.factors):
            by_place.setdefault((record.contender, record.base_lr_factor), []).append(record)
    rows = []
    for (name, factor), runs in by_place.items():
        runs = sorted(runs, key=lambda run: run.seed)
        rows.append(
            {
                "task": task.name,
                "axes": list(META_TEST[task.name].axes) if task.name in META_TEST else [],
                "contender": name,
                "factor": None if name == "calibrated" or not found.settings.factors else factor,
                "lr": lr,
                "tuned_best": tuned_best(tuned.records, task.name, Criterion.TRAIN),
                "log_ratio": [_log_ratio(run, other, "train") for run, other in zip(runs, best, strict=True)],
                "log_test_ratio": [_log_ratio(run, other, "test") for run, other in zip(runs, cosine, strict=True)],
                "diverged": sum(run.diverged for run in runs),
                "seed": None,
            }
        )
    return rows


def _log_ratio(run: RunRecord, other: RunRecord, split: Literal["train", "test"]) -> float:
    return math.log(run.scored(split) / other.scored(split))


def show(rows: list[records.Row]) -> None:
    """Print the geometric means over the tasks, and the worst task of each contender and guess."""
    for name in dict.fromkeys(row["contender"] for row in rows):
        cells = []
        for factor in (*FACTORS, None):
            own = [row for row in rows if row["contender"] == name and row["factor"] == factor]
            if own:
                means = [float(np.mean(row["log_ratio"])) for row in own]
                label = "any" if factor is None else f"x{factor:g}"
                cells.append(f"{label} {math.exp(np.mean(means)):.3f} (worst {math.exp(max(means)):.2f})")
        print(f"{name:20s} {'  '.join(cells)}")


def main(args: Args) -> None:
    """Start the workers, tune, run, print."""
    with args.start_workers() as workers:
        tune_and_run(args, workers)


def tune_and_run(args: Args, workers: Workers) -> None:
    """All comparisons, one task after the other, and their records."""
    setup = Setup(args.training, CloneConfig())
    lrs = {} if args.smoke or args.part == "tuned" else calibrated_lrs(setup, args.training_tasks)
    rows: list[records.Row] = []
    tasks = tasks_of(args)
    for count, task in enumerate(tasks.values()):
        tuned = reference(task, args, workers)
        lr = best_lr(tuned, task.name)
        print(f"{count + 1} of {len(tasks)}: {task.name}, x1 is {lr:g}", flush=True)
        if args.part == "tuned":
            continue
        kind = type(task.optimizer).__name__.replace("RMSprop", "Adam")
        fixed = lrs.get(kind, lr) * (1.0 - getattr(task.optimizer, "momentum", 0.0))
        guessed = guesses(task, lr, controllers_of(args), fixed, args, workers)
        for found in (guessed, untuned(task, args, workers)):
            rows += rows_of(task, found, tuned, lr) if found is not None else []
    if rows:
        show(rows)
        print(records.write(NAME, rows, device="cpu", smoke=args.smoke))


if __name__ == "__main__":
    harness.run(main, Args)
