"""Does a learned controller set the learning rate of PPO and DQN on CartPole, and does it repair a wrong one?

    python -m experiments.cartpole_lr      # 50 minutes of a shared CPU core; a run that has a record is not made again

Reinforcement learning is the task here. An agent of Stable-Baselines3 learns CartPole-v1 from its usual LR and from a
tenth and ten times of it, with the LR of

- constant, linear, cosine: open loop, as SB3's `learning_rate`;
- shipped: the shipped `mnist1d-mlp` controller in closed loop. It was trained with momentum SGD and with losses; here
  it is used with Adam and without losses, both of which it never saw;
- loss-free: a controller that was trained for use without losses, by PPO in two minutes on three small supervised tasks
  with Adam whose losses were hidden, and exported beside the records. It has seen no reinforcement learning either.

Settings are those of rl-baselines3-zoo for CartPole-v1, with four changes: constant clipping for PPO; for DQN two
layers of 64 in place of 256, and four environments with a quarter of the steps between updates each; shorter runs for
both (20,480 and 25,600 time steps in place of 100,000 and 50,000). PPO's usual LR is 1e-3, DQN's is 2.3e-3. The length
of runs and the width were chosen by a few runs with other seeds and a constant LR; no contender was tuned on the seeds
that are shown.

The metrics are the return of the final deterministic policy (last iterate, mean of 20 episodes on fresh environment
seeds) and the area under the learning curve: the mean over 20 equal parts of the run of the mean return of the episodes
that ended in each. 500 is the most that an episode can have. Shown are interquartile means over seeds with 95 %
bootstrap intervals.

Expected: at the usual LR all are close to 500 for PPO and far from it for the fragile DQN, where an LR that falls to
zero helps; at ten times the LR the loss-free controller helps PPO, because the first update ratio shows the error.

Found, by the return of the final policy from x0.1 / x1 / x10, ten seeds each:

- PPO, shipped 490 / 500 / 495; constant 123 / 445 / 495, linear 25 / 244 / 451, cosine 24 / 401 / 490. It repairs an LR
  that is too low (intervals [408, 500] against [91, 220] for constant) and is no worse elsewhere. From all three base
  LRs it begins at 1.4e-3 to 2.3e-3 (medians). Ten times the usual LR was not wrong for runs so short: constant is as
  good there, so that nothing had to be repaired. At the usual LR its lead over constant is within the intervals.
- DQN, shipped 141 / 185 / 184; constant 120 / 186 / 55, linear 121 / 142 / 250, cosine 86 / 140 / 140. From no base LR
  can it be told from the best open-loop one; from x10 it is above constant, and linear is too. By the area at the usual
  LR it is worse than all three: 100 [85, 115] against 134, 135 and 142; it drives the LR up to 2e-2 (median).
- loss-free failed: PPO 473 / 500 / 155, DQN 141 / 43 / 9. It goes to its upper bound (20 times base LR x linear) and
  mostly stays there, whatever the base LR is; that suits PPO from x0.1 and x1, and from x10 it ruins both agents.
  Training for loss-free use on these supervised tasks (one training seed) did not make a controller for agents.
- So the expectation was wrong about the loss-free controller, about PPO at the usual LR (linear has 244 of 500) and
  about DQN there, which an LR that falls to zero did not help.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from experiments.support import harness, plotting, records
from experiments.support.tables import print_table
from metalr.agents.ppo import train_ppo
from metalr.agents.sb3_lr_callback import ControlledLR
from metalr.agents.sb3_training import Budget
from metalr.agents.training_folder import CONTROLLER
from metalr.artefacts.controller_file import load_controller
from metalr.compare.statistics import bootstrap
from metalr.control.controller import Controller
from metalr.envs.transition import EnvConfig, Transition
from metalr.records import CONFIG
from metalr.schedulers.adapters import sb3_learning_rate
from metalr.schedules import Constant, Cosine, Linear, Schedule
from metalr.tasks.catalog import make_task

NAME = "cartpole_lr"
OPEN_LOOP: dict[str, Schedule] = {"constant": Constant(), "linear": Linear(), "cosine": Cosine()}
CONTENDERS = (*OPEN_LOOP, "shipped", "loss-free")
FACTORS = (1.0, 0.1, 10.0)
LEARNED_ON = {"digits-mlp": 5e-3, "mnist1d-mlp": 5e-3, "teacher-student": 1e-2}
PARTS = 20  # of a run, for its learning curve
METRICS = {"return": "return of the final policy", "area": "area under the learning curve"}
TIMESTEPS = {"ppo": 20_480, "dqn": 25_600}
SMOKE_TIMESTEPS = {"ppo": 1024, "dqn": 2048}
USUAL_LR = {"ppo": 1e-3, "dqn": 2.3e-3}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "clip_range": 0.2},
    "dqn": {
        "batch_size": 64,
        "buffer_size": 100_000,
        "learning_starts": 1000,
        "gamma": 0.99,
        "target_update_interval": 10,
        "train_freq": 64,  # of four environments: every 256 time steps
        "gradient_steps": 128,
        "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04,
        "policy_kwargs": {"net_arch": [64, 64]},
    },
}
NUM_ENVS = {"ppo": 8, "dqn": 4}
Record = dict[str, Any]


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    agents: tuple[str, ...] = ("ppo", "dqn")
    """Agents that learn: ppo, dqn."""
    seeds: int = 10
    """Of each setting."""
    episodes: int = 9216
    """Training runs that the loss-free controller learns from."""

    def small(self) -> "Args":
        return replace(self, seeds=1, episodes=192)


class Episodes(BaseCallback):
    """Collects (time step, return) of every episode that ends in training."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        found = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.ended += [(self.num_timesteps, float(value)) for value in found]
        return True

    def curve(self, timesteps: int) -> list[float]:
        """Mean return in each part of the run; a part in which no episode ended has that of the part before it."""
        values: list[float] = []
        for part in range(PARTS):
            low, high = timesteps * part / PARTS, timesteps * (part + 1) / PARTS
            found = [value for at, value in self.ended if low < at <= high]
            values.append(float(np.mean(found)) if found else (values or [0.0])[-1])
        return values


def controller_file(args: Args) -> Path:
    """The loss-free controller."""
    return records.place(NAME, smoke=args.smoke, ending="safetensors")


def train_controller(args: Args) -> None:
    """Train the loss-free controller, unless its file is there."""
    path = controller_file(args)
    if path.is_file():
        return
    folder = Path("runs") / path.stem
    tasks = [make_task(name, horizon=200, optimizer="adam", base_lr=lr) for name, lr in LEARNED_ON.items()]
    config = EnvConfig(decisions=20, schedule=Linear(), hide_loss=1.0, compile=not args.smoke)
    transition = Transition(tasks, 96, config)
    print(f"training the loss-free controller on {args.episodes} runs, in {folder}", flush=True)
    train_ppo(transition, folder, budget=Budget(args.episodes), seed=0, resume=(folder / CONFIG).is_file())
    path.write_bytes((folder / CONTROLLER).read_bytes())


@functools.cache
def controller_of(source: str) -> Controller:
    """A controller from a file or by name, read once."""
    return load_controller(source)


def build(agent: str, learning_rate: Any, seed: int) -> BaseAlgorithm:
    """A new agent on CartPole."""
    # Environments of one run have successive seeds, so those of two runs must not be neighbours.
    env = make_vec_env("CartPole-v1", NUM_ENVS[agent], seed=1000 * seed)
    kind = {"ppo": PPO, "dqn": DQN}[agent]
    return kind("MlpPolicy", env, learning_rate=learning_rate, seed=seed, device="cpu", **SETTINGS[agent])


def run(agent: str, contender: str, factor: float, seed: int, args: Args) -> Record:
    """One agent learns; its record."""
    started = time.monotonic()
    timesteps = (SMOKE_TIMESTEPS if args.smoke else TIMESTEPS)[agent]
    base_lr, episodes = USUAL_LR[agent] * factor, Episodes()
    callbacks: list[BaseCallback] = [episodes]
    learning_rate: Any = base_lr
    if contender in OPEN_LOOP:
        learning_rate = sb3_learning_rate(OPEN_LOOP[contender], base_lr)
    else:
        source = "general" if contender == "shipped" else str(controller_file(args))
        callbacks.append(ControlledLR(controller_of(source)))
    model = build(agent, learning_rate, seed)
    model.learn(timesteps, callback=CallbackList(callbacks))
    test = make_vec_env("CartPole-v1", 20, seed=1_000_000 + 1000 * seed)
    final = evaluate_policy(model, test, n_eval_episodes=20, deterministic=True)[0]
    curve = episodes.curve(timesteps)
    about = {"agent": agent, "contender": contender, "factor": factor, "seed": seed, "timesteps": timesteps}
    results = {"return": float(np.mean(final)), "area": float(np.mean(curve)), "curve": [round(v, 1) for v in curve]}
    return {**about, **results, **decided(callbacks), "seconds": time.monotonic() - started}


def decided(callbacks: Sequence[BaseCallback]) -> Record:
    """The multipliers that a controller decided on."""
    schedulers = [c.scheduler for c in callbacks if isinstance(c, ControlledLR) and c.scheduler is not None]
    return {"lr_multipliers": [round(d["lr_multiplier"][0], 4) for s in schedulers for d in s.history]}


def plan(args: Args) -> list[tuple[str, str, float, int]]:
    """Agent, contender, factor and seed of every run; seed by seed, so that an unfinished study is balanced."""
    return [
        (agent, contender, factor, seed)
        for seed in range(args.seeds)
        for agent in args.agents
        for factor in FACTORS
        for contender in CONTENDERS
    ]


def run_all(args: Args) -> list[Record]:
    """Make every run that has no record yet."""
    rows = records.recorded(NAME, smoke=args.smoke)
    done = {(r["agent"], r["contender"], r["factor"], r["seed"]) for r in rows}
    left = [key for key in plan(args) if key not in done]
    for index, key in enumerate(left):
        row = run(*key, args)
        rows.append(row)
        records.write(NAME, rows, device="cpu", smoke=args.smoke)
        shown = f"return {row['return']:.0f}, area {row['area']:.0f}, {row['seconds']:.1f} s"
        print(f"{index + 1}/{len(left)}", *key, shown, flush=True)
    return rows


def values(rows: list[Record], agent: str, contender: str, factor: float, metric: str) -> list[float]:
    """A metric of all seeds of a setting."""
    key = (agent, contender, factor)
    return [r[metric] for r in rows if (r["agent"], r["contender"], r["factor"]) == key]


def table(rows: list[Record], args: Args, metric: str) -> list[Record]:
    """A line for each agent and contender, a column for each base LR."""
    lines = []
    for agent in args.agents:
        for contender in CONTENDERS:
            line: Record = {"agent": agent, "contender": contender}
            for factor in FACTORS:
                found = values(rows, agent, contender, factor, metric)
                if found:
                    mean, low, high = bootstrap(found)
                    line[f"x{factor:g}"] = f"{mean:.0f} [{low:.0f}, {high:.0f}] ({len(found)})"
            lines.append(line)
    return lines


def draw(rows: list[Record], args: Args) -> None:
    """Both metrics against the base LR, a row of panels for each agent."""
    figure, axes = plotting.panels(2, rows=len(args.agents))
    panels = [(agent, metric) for agent in args.agents for metric in METRICS]
    for axis, (agent, metric) in zip(axes, panels, strict=True):
        draw_panel(axis, rows, agent, metric)
        axis.set(title=f"{agent.upper()}: {METRICS[metric]}", ylim=(0, 520), ylabel="return")
        axis.set_xticks(range(len(FACTORS)), [f"{USUAL_LR[agent] * f:.2g} (×{f:g})" for f in sorted(FACTORS)])
        axis.set_xlabel("base LR")
    plotting.legend(figure, axes[0])
    plotting.save(figure, NAME, smoke=args.smoke)


def draw_panel(axis: Any, rows: list[Record], agent: str, metric: str) -> None:
    """Interquartile means with intervals, side by side, over every seed as a dot."""
    for index, contender in enumerate(CONTENDERS):
        colour = plotting.COLOURS[index]
        for place, factor in enumerate(sorted(FACTORS)):
            found = values(rows, agent, contender, factor, metric)
            if found:
                x = place + 0.15 * (index - 2)
                mean, low, high = bootstrap(found)
                axis.plot([x] * len(found), found, ".", color=colour, alpha=0.3, markersize=4)
                label = contender if place == 0 else None
                error = [[mean - low], [high - mean]]
                axis.errorbar([x], [mean], error, fmt="o", color=colour, capsize=3, markersize=5, label=label)


def main(args: Args) -> None:
    """Train the controller, make the runs, print, draw."""
    train_controller(args)
    rows = run_all(args)
    for metric, label in METRICS.items():
        print(f"\n{label}: interquartile mean [95 % interval] (seeds)")
        print_table(table(rows, args, metric), ["agent", "contender", "x0.1", "x1", "x10"])
    draw(rows, args)


if __name__ == "__main__":
    harness.run(main, Args)
