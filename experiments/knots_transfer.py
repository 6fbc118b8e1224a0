"""Is a knot schedule learned at T = 400 any good at T = 1600, in a user's plain loop, beside tuned classics?

`mnist1d-mlp` (MLP 40-32-32-10, momentum 0.9). Knots over progress are learned on the final train loss at T = 400, from
a constant 0.1, once by PES and once by meta-gradients; saved with `metalr.save_controller`, loaded with
`metalr.load_scheduler`, and used in a plain torch loop at both horizons on seeds that nothing was tuned on. Each
classic schedule has its LR chosen on the final train loss (the number that is reported) from the same grid: once at
T = 400, like the knots, and once at the horizon itself.

    python -m experiments.knots_transfer

Expected: at T = 400 PES's knots are level with or below the best classic; at T = 1600 near the classics tuned at 400,
while the classics that were tuned at 1600 may be better. Meta-gradients through 400 steps with momentum stay above PES
at this outer LR (0.05).

Found: at T = 400 PES's knots 1.033, the best classic (linear) 1.051; at T = 1600 the knots 0.466, the best classic
tuned at 400 (WSD) 0.469 and tuned at 1600 (WSD) 0.444. Meta-gradients' knots 1.106 and 0.658; with an outer LR of 0.15
the LRs pass the edge of stability, where the gradient's norm grows to 1e5 and the knots end at a loss of 1.8.

About 10 minutes on one CPU core.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metalr
from experiments.support import harness, plotting, records
from experiments.support.tables import print_table
from metalr.agents.outer_loop import MetaGradients, MetaTrainer, OuterConfig
from metalr.agents.pes import PES
from metalr.engine.runs import BatchedRuns
from metalr.learned.export import controller_of
from metalr.learned.schedules import KnotLR
from metalr.schedules import WSD, Constant, Cosine, Linear, Schedule, Warmup
from metalr.tasks.catalog import make_task
from metalr.tasks.data import TensorData
from metalr.tasks.task import Task

NAME = "knots_transfer"
CLASSICS: dict[str, Schedule] = {
    "constant": Constant(),
    "linear": Linear(),
    "cosine": Cosine(),
    "warmup + cosine": Warmup(Cosine(), length=0.1),
    "WSD": WSD(),
}


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    learn_at: int = 400
    """Inner steps of the runs that the knots are learned on."""
    use_at: tuple[int, ...] = (400, 1600)
    """Inner steps of the runs that are reported."""
    num_knots: int = 10
    """Of the schedule."""
    pes_outer_steps: int = 80
    """Meta-updates of PES."""
    outer_steps: int = 60
    """Meta-updates by meta-gradients."""
    num_seeds: int = 6
    """Runs in each of the latter."""
    lr_grid: tuple[float, ...] = (0.03, 0.05, 0.08, 0.12, 0.18, 0.27, 0.4, 0.6)
    """Candidates for every classic, around the task's 0.1."""
    tune_seeds: int = 3
    """Runs that each candidate is the mean over."""
    report_seeds: int = 5
    """Runs that every reported number is the mean over."""

    def small(self) -> "Args":
        few: dict[str, Any] = {"lr_grid": (0.05, 0.2), "tune_seeds": 2, "report_seeds": 2}
        return replace(self, learn_at=80, use_at=(80, 160), pes_outer_steps=2, outer_steps=2, num_seeds=2, **few)


def learn(method: str, args: Args) -> KnotLR:
    """Knots from a constant, on the final train loss."""
    learned = KnotLR(args.num_knots, 1.0, low=1e-3, high=20.0)
    task = make_task("mnist1d-mlp", horizon=args.learn_at)
    common: dict[str, Any] = {"meta_loss": "final-train", "log": True, "dtype": torch.float32, "seed": 0}
    estimator: Any
    if method == "PES":
        estimator = PES(learned, task, num_pairs=2 * args.num_knots, sigma=0.15, final_sigma=0.05, **common)
        config = OuterConfig(args.pes_outer_steps, lr=0.12, final_lr=0.005, betas=(0.8, 0.98))
    else:
        estimator = MetaGradients(learned, [task], num_seeds=args.num_seeds, **common)
        config = OuterConfig(args.outer_steps, lr=0.05, final_lr=0.005, betas=(0.8, 0.98), clip_norm=1.0)

    def progress(record: dict[str, Any]) -> None:
        if record["outer_step"] % 10 == 0:
            print(method, {key: record[key] for key in ("outer_step", "meta_loss", "gradient_norm")}, flush=True)

    MetaTrainer(learned, estimator, config, progress).train()
    return learned


def tune(horizon: int, args: Args) -> dict[str, float]:
    """The best base LR of every classic at a horizon, by mean final train loss over the tuning seeds."""
    names, count = list(CLASSICS), args.tune_seeds
    lrs = torch.tensor(args.lr_grid, dtype=torch.float64)
    progress = torch.arange(horizon, dtype=torch.float64) / horizon
    factors = torch.stack([CLASSICS[name](progress) for name in names], -1)  # (horizon, schedules)
    grid = factors[:, :, None, None] * lrs[:, None] * torch.ones(count)  # (horizon, schedules, lrs, seeds)
    runs = BatchedRuns(make_task("mnist1d-mlp", horizon=horizon), grid[0].numel())
    runs.init(1000 + torch.arange(count).repeat(grid[0].numel() // count))
    runs.unroll(grid.flatten(1)[..., None], horizon)
    losses = runs.evaluate("train").loss.view(len(names), len(lrs), count).mean(-1)
    return {name: lrs[losses[i].argmin()].item() for i, name in enumerate(names)}


def plain_loop(task: Task, seed: int, base_lr: float, make_scheduler: Any) -> tuple[float, float, list[float]]:
    """A user's own loop: final train and test loss, and the LR of every update."""
    runs = BatchedRuns(task, 1)
    assert isinstance(runs.data, TensorData)
    runs.init(torch.tensor([seed]))
    model = runs.module_of(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=base_lr, momentum=0.9)
    scheduler = make_scheduler(optimizer, task.horizon)
    used = []
    for x, y in runs.data.batches(runs.seeds, runs.variants, runs.state.step, task.horizon, task.batch_size):
        optimizer.zero_grad()
        loss = task.loss(model(x[0]), y[0])
        loss.backward()
        if hasattr(scheduler, "observe"):
            scheduler.observe(loss)
        optimizer.step()
        used.append(float(optimizer.param_groups[0]["lr"]))  # after: a controller decides right before its first update
        scheduler.step()

    def split_loss(part: tuple[Tensor, Tensor]) -> float:
        with torch.no_grad():
            return task.loss(model(part[0][0]), part[1][0]).item()

    return split_loss(runs.data.train), split_loss(runs.data.test), used


def report(name: str, horizon: int, base_lr: float, tuned_at: int, make_scheduler: Any, args: Args) -> dict[str, Any]:
    """One row: the mean over the report seeds."""
    task = make_task("mnist1d-mlp", horizon=horizon)
    results = [plain_loop(task, 2000 + s, base_lr, make_scheduler) for s in range(args.report_seeds)]
    train, test = (torch.tensor([r[i] for r in results], dtype=torch.float64) for i in (0, 1))
    return {
        "schedule": name,
        "horizon": horizon,
        "tuned_at": tuned_at,
        "base_lr": base_lr,
        "loss": train.mean().item(),
        "standard_error": (train.std() / len(train) ** 0.5).item(),
        "test_loss": test.mean().item(),
        "seed": 2000,
        "lrs": [round(lr, 5) for lr in results[0][2][:: max(1, horizon // 80)]],
    }


def draw(rows: list[dict[str, Any]], args: Args) -> None:
    """LRs over progress, with the final train loss of each."""
    figure, panels = plotting.panels(len(args.use_at))
    for panel, horizon in zip(panels, args.use_at, strict=True):
        shades = iter(("black", "grey"))
        for row in (row for row in rows if row["horizon"] == horizon):
            style: dict[str, Any] = {"linewidth": 1.1}
            if row["schedule"].startswith("knots"):
                style = {"linewidth": 2.2, "color": next(shades)}
            elif row["tuned_at"] != horizon:
                continue
            progress = [i / len(row["lrs"]) for i in range(len(row["lrs"]))]
            panel.plot(progress, row["lrs"], label=f"{row['schedule']}: {row['loss']:.4f}", **style)
        panel.set(title=f"T = {horizon}", xlabel="progress", ylabel="learning rate", yscale="log", ylim=(1e-3, 2.0))
        panel.legend(fontsize=7, title="final train loss", title_fontsize=7, loc="lower left")
    plotting.save(figure, NAME, smoke=args.smoke)


def main(args: Args) -> None:
    """Learn, save, load, use; tune and use the classics."""
    started = time.perf_counter()
    paths = {}
    for method in ("PES", "meta-gradient"):
        learned = learn(method, args)
        print(f"{method}, {time.perf_counter() - started:.0f} s: {learned.schedule()}", flush=True)
        paths[method] = records.place(f"{NAME}_{method.lower()}", smoke=args.smoke, ending="safetensors")
        metalr.save_controller(paths[method], controller_of(learned))
    rows = []
    tuned = {horizon: tune(horizon, args) for horizon in {args.learn_at, *args.use_at}}
    for horizon in args.use_at:
        for method, path in paths.items():
            rows.append(report(f"knots by {method}", horizon, 0.1, args.learn_at, _loader(path), args))
        for tuned_at in sorted({args.learn_at, horizon}):
            for name, schedule in CLASSICS.items():
                rows.append(report(name, horizon, tuned[tuned_at][name], tuned_at, _classic(schedule), args))
        records.write(NAME, rows, device="cpu", smoke=args.smoke)
    draw(rows, args)
    print_table(rows, ("horizon", "schedule", "tuned_at", "base_lr", "loss", "standard_error", "test_loss"))


def _loader(path: Path) -> Any:
    return lambda optimizer, horizon: metalr.load_scheduler(path, optimizer, horizon=horizon)


def _classic(schedule: Schedule) -> Any:
    return lambda optimizer, horizon: metalr.ScheduleLR(optimizer, schedule, horizon)


if __name__ == "__main__":
    harness.run(main, Args)
