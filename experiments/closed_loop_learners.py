"""Which learner finds the best closed-loop controller: PPO, DQN, or evolution of an MLP or a GRU?

    python -m experiments.closed_loop_learners        # about 15 minutes on two CPU cores; `--smoke` takes seconds

All four learn on the same two tasks (MNIST-1D and teacher-student networks, 200 updates with momentum, base LR wrong by
up to ten times either way), see the same observation and correct the same linear base schedule; all are exported and
compared like any controller, on those tasks and on digits, which none of them has seen.

Expected: all four below cosine from the same wrong base LR on the tasks they learned on; the agents, which are told at
every decision how they did, need fewer training runs than evolution, which hears one number for each run.

Found, one seed: PPO is below cosine from every base LR on the tasks that it learned on, and mostly first. The first
expectation fails for the other three on MNIST-1D. DQN repairs a base LR that is too low, but is above cosine from the
right one (1.45 against 1.35) and from three times that (2.31 against 1.26). The MLP by PES is not done after 160 outer
steps: but for x10 it is as bad as cosine or worse. The GRU by PES is above cosine at x3 alone (1.29 against 1.26). The
second holds: PPO learned from 8,192 training runs, evolution from 20,480.
"""

import multiprocessing
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.support import harness, records
from experiments.support.tables import by_factor, print_table
from metalr.agents.dqn import train_dqn
from metalr.agents.outer_loop import MetaTrainer, OuterConfig
from metalr.agents.pes import PES, Turns
from metalr.agents.ppo import train_ppo
from metalr.agents.sb3_training import Budget
from metalr.artefacts.controller_file import load_controller, save_controller
from metalr.compare.comparison import compare
from metalr.compare.results import wrong_base_table
from metalr.compare.settings import Settings
from metalr.control.actions import ActionSpec
from metalr.control.controller import Controller
from metalr.envs.transition import EnvConfig, Transition
from metalr.learned.export import controller_of
from metalr.learned.policies import GRUPolicy, MLPPolicy
from metalr.schedules import Linear
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task
from metalr.workers import Workers

NAME = "closed_loop_learners"
LEARNERS = ("ppo", "dqn", "pes-mlp", "pes-gru")
TRAINED_ON = ("mnist1d-mlp", "teacher-student")
SHOWN_ON = (*TRAINED_ON, "digits-mlp")
DECISIONS = 20


@dataclass(frozen=True)
class Args(harness.Spread):
    """Options of the experiment."""

    folder: Path = Path("runs/closed-loop-learners")
    """Controllers and comparisons; a controller or comparison that is there is not made again."""
    episodes: int = 8192
    """Training runs that PPO and DQN learn from."""
    outer_steps: int = 160
    """Of evolution."""
    pairs: int = 64
    """Antithetic pairs of training runs in each outer step."""
    seed: int = 0
    """Of every learner."""

    def small(self) -> "Args":
        return replace(self, folder=self.folder.with_name("closed-loop-smoke"), episodes=128, outer_steps=2, pairs=8)


def learn(name: str, args: Args) -> None:
    """Train one learner and export it to `folder/<name>.safetensors`."""
    torch.set_num_threads(1)  # in a process of its own
    file = args.folder / f"{name}.safetensors"
    if file.is_file():
        return
    started = time.monotonic()
    is_agent = name in ("ppo", "dqn")
    controller = train_agent(name, args) if is_agent else evolve(name, args)
    runs = args.episodes if is_agent else args.outer_steps * 2 * args.pairs
    seconds = time.monotonic() - started
    save_controller(file, controller, {"learner": name, "training_runs": runs, "seconds": seconds, "seed": args.seed})
    print(f"{name}: {runs} training runs, {seconds:.0f} s", flush=True)


def training_tasks() -> list[Task]:
    """The tasks that all learn on."""
    return [make_task(task, horizon=200) for task in TRAINED_ON]


def train_agent(name: str, args: Args) -> Controller:
    """Train PPO or DQN."""
    action = ActionSpec() if name == "ppo" else ActionSpec(mode="recursive", alpha=2.3, levels=7)
    config = EnvConfig(decisions=DECISIONS, schedule=Linear(), action=action)
    transition, budget = Transition(training_tasks(), 64, config), Budget(args.episodes)
    if name == "ppo":
        return train_ppo(transition, args.folder / name, budget=budget, seed=args.seed)
    return train_dqn(transition, args.folder / name, budget=budget, seed=args.seed)


def evolve(name: str, args: Args) -> Controller:
    """Evolve an MLP or a GRU, the tasks in turns."""
    policy = MLPPolicy(decisions=DECISIONS) if name == "pes-mlp" else GRUPolicy(decisions=DECISIONS)
    options: dict[str, Any] = {
        "num_pairs": args.pairs,
        "sigma": 0.1,
        "perturb": "run",
        "meta_loss": "final-train",
        "log": True,
        "base_lr_range": (0.1, 10.0),
        "schedule": Linear(),
        "dtype": torch.float32,
    }
    estimators = [PES(policy, task, seed=args.seed + i, **options) for i, task in enumerate(training_tasks())]
    config = OuterConfig(args.outer_steps, lr=0.03, final_lr=0.003, checkpoint=args.folder / f"{name}.pt")
    MetaTrainer(policy, Turns(estimators), config).train()
    return controller_of(policy, schedule=Linear(), decisions=DECISIONS)


def rows_of(task: str, args: Args, workers: Workers) -> list[dict[str, Any]]:
    """Compare all controllers on one task; one record for each contender and base LR."""
    controllers = {name: load_controller(args.folder / f"{name}.safetensors") for name in LEARNERS}
    few: dict[str, Any] = {"trials": 3, "tuning_seeds": 1, "report_seeds": 2} if args.smoke else {}
    settings = Settings(contenders=("cosine", "linear", "wsd"), wrong_base=("cosine",), ablations=False, **few)
    folder = args.folder / f"compare-{task}"
    comparison = compare(make_task(task, horizon=200), folder, settings, controllers=controllers, workers=workers)
    rows = []
    for row in wrong_base_table(comparison.records, task):
        about = {"task": task, "contender": row.contender, "factor": row.factor, "seed": args.seed}
        found = {"train_loss": row.loss.value, "low": row.loss.low, "high": row.loss.high}
        rows.append({**about, **found, "runs": row.num_runs, "diverged": row.diverged})
    return rows


def main(args: Args) -> None:
    """Train every learner, compare them on each task, write the records, print."""
    args.folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(learn, [(name, args) for name in LEARNERS], chunksize=1)
    with args.start_workers() as workers:
        rows = [row for task in SHOWN_ON for row in rows_of(task, args, workers)]
    records.write(NAME, rows, device="cpu", smoke=args.smoke)
    lines = by_factor(rows, lambda row: f"{row['train_loss']:.4g}", factors=(0.1, 0.3, 1.0, 3.0, 10.0))
    print_table(lines, ["task", "contender", "x0.1", "x0.3", "x1", "x3", "x10"])


if __name__ == "__main__":
    harness.run(main, Args)
