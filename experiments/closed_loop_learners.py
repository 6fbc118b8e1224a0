"""Which learner finds the best closed-loop controller: PPO, DQN, or evolution of an MLP or a GRU?

    python -m experiments.closed_loop_learners        # about 15 minutes on two CPU cores; `--smoke` takes seconds

All four learn on the same two tasks (MNIST-1D and teacher-student networks, 200 updates with momentum, base LR wrong by
up to ten times either way), see the same observation and correct the same linear base schedule; all are exported and
compared like any controller, on those tasks and on digits, which none of them has seen.

Expected: all four below cosine from the same wrong base LR on the tasks they learned on; the agents, which are told at
every decision how they did, need fewer training runs than evolution, which hears one number for each run.

One seed: PPO is mostly first, the GRU by PES second. DQN repairs a base LR that is too low but
fails from one that is 3 to 10 times too high on MNIST-1D (2.3 and 1.8 against tuned cosine's 1.26), and the MLP by PES
is not done after 160 outer steps: from a tenth of the base LR it stays as bad as cosine.
"""

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from experiments.meta_records import print_table, write_records
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
from metalr.envs.transition import EnvConfig, Transition
from metalr.learned.export import controller_of
from metalr.learned.policies import GRUPolicy, MLPPolicy
from metalr.schedules import Linear
from metalr.tasks.catalog import make_task

LEARNERS = ("ppo", "dqn", "pes-mlp", "pes-gru")
TRAINED_ON = ("mnist1d-mlp", "teacher-student")
SHOWN_ON = (*TRAINED_ON, "digits-mlp")
DECISIONS = 20


@dataclass
class Args:
    """Options of the experiment."""

    folder: Path = Path("runs/closed-loop-learners")
    """Controllers and comparisons; what is there is not made again."""
    episodes: int = 8192
    """Training runs that PPO and DQN learn from."""
    outer_steps: int = 160
    """Of evolution; each takes 128 training runs."""
    seed: int = 0
    """Of every learner."""
    smoke: bool = False
    """A quick run with small numbers."""


def learn(name: str, args: Args) -> None:
    """Train one learner and export it to `folder/<name>.safetensors`."""
    torch.set_num_threads(1)
    file = args.folder / f"{name}.safetensors"
    if file.is_file():
        return
    started = time.monotonic()
    tasks = [make_task(task, horizon=200) for task in TRAINED_ON]
    if name in ("ppo", "dqn"):
        action = ActionSpec() if name == "ppo" else ActionSpec(mode="recursive", alpha=2.3, levels=7)
        config = EnvConfig(decisions=DECISIONS, schedule=Linear(), action=action)
        train = train_ppo if name == "ppo" else train_dqn
        budget = Budget(args.episodes)
        controller = train(Transition(tasks, 64, config), args.folder / name, budget=budget, seed=args.seed)
        runs = args.episodes
    else:
        policy = MLPPolicy(decisions=DECISIONS) if name == "pes-mlp" else GRUPolicy(decisions=DECISIONS)
        pairs = 8 if args.smoke else 64
        options = {
            "num_pairs": pairs,
            "sigma": 0.1,
            "perturb": "run",
            "meta_loss": "final-train",
            "log": True,
            "base_lr_range": (0.1, 10.0),
            "schedule": Linear(),
            "dtype": torch.float32,
        }
        estimators = [PES(policy, task, seed=args.seed + i, **options) for i, task in enumerate(tasks)]
        config = OuterConfig(args.outer_steps, lr=0.03, final_lr=0.003, checkpoint=args.folder / f"{name}.pt")
        MetaTrainer(policy, Turns(estimators), config).train()
        controller = controller_of(policy, schedule=Linear(), decisions=DECISIONS)
        runs = args.outer_steps * 2 * pairs
    seconds = time.monotonic() - started
    save_controller(file, controller, {"learner": name, "training_runs": runs, "seconds": seconds, "seed": args.seed})
    print(f"{name}: {runs} training runs, {seconds:.0f} s", flush=True)


def show(task: str, args: Args) -> list[dict]:
    """Compare all controllers on one task; one record for each contender and base LR."""
    controllers = {name: load_controller(args.folder / f"{name}.safetensors") for name in LEARNERS}
    small = {"num_lrs": 3, "tuning_seeds": 1, "report_seeds": 2} if args.smoke else {}
    settings = Settings(contenders=("cosine", "linear", "wsd"), wrong_base=("cosine",), ablations=False, **small)
    folder = args.folder / f"compare-{task}"
    comparison = compare(make_task(task, horizon=200), folder, settings, controllers=controllers)
    rows = []
    for row in wrong_base_table(comparison.records, task):
        record = {"task": task, "contender": row.contender, "factor": row.factor, "train_loss": row.loss.value}
        more = {"low": row.loss.low, "high": row.loss.high, "runs": row.num_runs, "diverged": row.diverged}
        rows.append({**record, **more})
    return rows


def table(rows: list[dict]) -> list[dict]:
    """A line for each task and contender, a column for each base LR."""
    lines: dict[tuple[str, str], dict] = {}
    for row in rows:
        line = lines.setdefault((row["task"], row["contender"]), {"task": row["task"], "contender": row["contender"]})
        factors = (0.1, 0.3, 1.0, 3.0, 10.0) if row["factor"] is None else (row["factor"],)
        line.update({f"x{factor:g}": f"{row['train_loss']:.4g}" for factor in factors})
    return list(lines.values())


def main(args: Args) -> None:
    """Run the experiment."""
    torch.set_num_threads(1)
    if args.smoke:
        args.folder, args.episodes, args.outer_steps = args.folder.with_name("closed-loop-smoke"), 128, 2
    args.folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(learn, [(name, args) for name in LEARNERS], chunksize=1)
    rows = [row for task in SHOWN_ON for row in show(task, args)]
    write_records("closed_loop_learners", rows, args.smoke)
    print_table(table(rows), ["task", "contender", "x0.1", "x0.3", "x1", "x3", "x10"])


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
