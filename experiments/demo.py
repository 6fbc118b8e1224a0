"""Can a controller that was trained for a minute and a half replace the tuning of the learning rate?

    python -m experiments.demo                   # what `make demo` runs: one training seed, some minutes
    python -m experiments.demo --seeds 0 1 2     # the table of docs/results.md

A PPO controller and a state-blind ablation are trained on batched runs of a small network on MNIST-1D, whose base LR
is wrong by up to ten times either way. The controller is exported to one file, used in a plain PyTorch loop without
any RL library, and compared with eight classic schedules that have the same number of trials each.

Expected: from every base LR between a tenth and ten times the default the controller ends within 1.05 times the
final train loss of *tuned* cosine, below cosine from the same base LR, below a random and below a state-blind policy.

Found, three training seeds: 1.228 to 1.258 from every base LR, where tuned cosine has 1.261; cosine from the same base
LRs 2.00 / 1.67 / 1.35 / 1.26 / 2.30 (x0.1 to x10). The state-blind policy is level at x3 alone (1.238), the random one
at none.
"""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.support import harness
from metalr.agents.ppo import train_ppo
from metalr.agents.sb3_training import Budget
from metalr.agents.training_folder import CONTROLLER
from metalr.artefacts.controller_file import load_card, load_controller
from metalr.compare.comparison import compare
from metalr.compare.selection import Criterion
from metalr.compare.settings import Settings
from metalr.envs.transition import EnvConfig, Transition
from metalr.progress import ProgressLines
from metalr.records import CONFIG
from metalr.reports import report, text_table
from metalr.reports.tables import result_grid
from metalr.schedules import Linear
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task
from metalr.workers import Unit, Workers

BLIND = "state-blind policy"


@dataclass(frozen=True)
class Args(harness.Spread):
    """Train, export, use and compare a PPO controller."""

    seeds: tuple[int, ...] = (0,)
    """Training seeds of the controller."""
    folder: Path = Path("runs/demo")
    """Where everything goes; an interrupted demo resumes from here."""
    episodes: int = 8192
    """Training runs that each policy learns from."""
    workers: int = 2
    """Local processes that train; each takes one core."""

    def small(self) -> "Args":
        return replace(self, episodes=128, folder=self.folder.with_name(f"{self.folder.name}-smoke"))


def demo_task() -> Task:
    """MNIST-1D, a 40-32-32-10 network, SGD with momentum, 200 updates."""
    return make_task("mnist1d-mlp", horizon=200)


def train(args: Args, name: str, seed: int, visible: tuple[str, ...] | None) -> None:
    """Train a policy in a folder of its own, unless a finished one is there."""
    torch.set_num_threads(1)
    folder = args.folder / name
    if (folder / CONTROLLER).is_file():
        print(f"{name}: already trained, in {folder}")
        return
    config = EnvConfig(decisions=20, schedule=Linear(), visible=visible, compile=not args.smoke)
    transition = Transition([demo_task()], 64, config)
    lines, resume = ProgressLines(), (folder / CONFIG).is_file()
    # Without a limit of time: on a busy machine it takes longer, and learns the same.
    train_ppo(
        transition,
        folder,
        budget=Budget(args.episodes),
        seed=seed,
        resume=resume,
        progress=lambda done, total, what: lines(done, total, f"{name}: {what}"),
    )
    about = load_card(folder / CONTROLLER)["about"]
    runs = about["decisions_trained"] // config.decisions
    print(f"{name}: learned from {runs} training runs in {about['seconds']:.0f} s", flush=True)


def train_all(args: Args, workers: Workers) -> None:
    """Train every policy, a unit each."""
    units = [Unit((args, f"ppo-{seed}", seed, None)) for seed in args.seeds]
    units.append(Unit((args, "state-blind", args.seeds[0], ("progress", "has_horizon"))))
    at_once = f", {args.workers} policies at once" * (args.workers > 1)
    print(f"Training {len(units)} policies, each on {args.episodes} runs, 64 at a time{at_once}:", flush=True)
    for _ in workers.each(train, units):
        pass


def main(args: Args) -> None:
    """Start the workers, and let them work."""
    with args.start_workers() as workers:
        run(args, workers)


def run(args: Args, workers: Workers) -> None:
    """Run the demo."""
    train_all(args, workers)
    files = {f"ppo (seed {seed})": args.folder / f"ppo-{seed}" / CONTROLLER for seed in args.seeds}
    first = next(iter(files.values()))

    print("\nThe exported file in a plain PyTorch loop, with guesses of the LR up to ten times off:", flush=True)
    subprocess.run([sys.executable, "-m", "experiments.support.plain_loop", str(first)], check=True)

    print("\nEight classic schedules with 16 trials each, and everything rerun on fresh seeds:", flush=True)
    few: dict[str, Any] = {"trials": 5, "report_seeds": 3} if args.smoke else {}
    comparison = compare(
        demo_task(),
        args.folder / ("compare-" + "-".join(map(str, args.seeds))),
        Settings(wrong_base=("cosine",), **few),
        controllers={name: load_controller(path) for name, path in files.items()},
        ablations={BLIND: load_controller(args.folder / "state-blind" / CONTROLLER)},
        progress=ProgressLines(),
        workers=workers,
    )
    task = comparison.tasks[0]
    random = [f"{name}: random policy" for name in files][:1]
    for criterion in Criterion:
        print(text_table.as_text(result_grid(comparison, task, criterion)), end="\n\n")
    print(report.wrong_base_text(comparison, contenders=["cosine", *files, BLIND, *random]))
    picture = report.repair_figure(comparison, args.folder / "demo.png", next(iter(files)))
    page = report.html(comparison, args.folder / "report.html")
    print(f"\nfigure      {picture}\nreport      {page}\ncontroller  {first}")


if __name__ == "__main__":
    harness.run(main, Args)
