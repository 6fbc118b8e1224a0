"""Does the general controller set the LR of RL agents?

    python -m experiments.rl_agents      # two hours of a CPU core; a run that has a record is not made again

When another controller is shipped, delete the records of general: its runs alone are then made anew.

Reinforcement learning is the task here. Agents of Stable-Baselines3 learn from their usual LR and from a tenth and ten
times of it, with the LR of

- constant, linear, cosine: open loop, as SB3's `learning_rate`;
- general: the shipped controller in closed loop, which was trained on supervised tasks alone. It runs without losses,
  which say little about an agent's progress;
- tuned constant, tuned linear: the LR of a grid from a tenth to ten times the usual one, five values, that has the
  largest mean area on three tuning seeds. Shown are its runs on the same ten fresh seeds as all others.

Settings are near those of rl-baselines3-zoo; runs are shorter, so that a usual LR learns visibly and no more:

- PPO on CartPole-v1: 20,480 time steps in place of 100,000, constant clipping; usual LR 1e-3, 1,600 updates.
- PPO on Acrobot-v1: 20,480 time steps in place of a million, 8 environments with 64 steps between updates in place of
  16 with 256, observations not normalised; usual LR 3e-4, 1,280 updates.
- DQN on CartPole-v1: 25,600 time steps in place of 50,000, two layers of 64 in place of 256, four environments with a
  quarter of the steps between updates each; usual LR 2.3e-3, about 12,300 updates.

The lengths of runs and the changes were chosen by a few runs with other seeds and a constant LR.

Metrics: the area under the learning curve (the mean over 20 equal parts of the run of the mean return of the episodes
that ended in each, counted from the least return that an episode can have: 0 on CartPole, -500 on Acrobot, so that 500
is the most on both) and the return of the final deterministic policy (mean of 20 episodes on fresh environment seeds).
Shown are interquartile means over seeds with 95 % bootstrap intervals. The areas of general from each base LR are
compared with those of the best open-loop schedule: the largest mean area among constant, linear and cosine from the
usual LR and the two tuned ones. It is chosen on the seeds that are shown, which favours it. The difference is the mean
over seeds in percent of that schedule's mean area.

Expected: the lower end of the interval of that difference is not below -5 % from any base LR.

Found with six of the ten seeds, without DQN, which has not run: no, the expectation fails from every base LR. By the
area, from x0.1 / x1 / x10:

- PPO on CartPole: general 165 / 112 / 54, constant 56 / 246 / 244; beside the best open-loop schedule, tuned constant
  (at x3), -44 [-68, -14] / -62 [-77, -48] / -80 [-88, -73] %. Five of its 18 final policies have a return below 10.
- PPO on Acrobot: general 324 / 321 / 296, constant 90 / 331 / 355; beside tuned constant (at x10) -8 [-13, -4] /
  -12 [-20, -6] / -20 [-40, -3] %.

It repairs an LR that is ten times too low on both, and does harm from the usual one on CartPole and from x10 on both.
Within the first updates it drives the LR, warmup and decay left out, to 30 to 100 times the usual one (medians over
decisions, then seeds, of the six settings). A likely reason, seen in one run on CartPole that is not in the records:
all 20 updates between two rollouts use the same batch, so that signal to noise and gradient cosine are close to 1 at
most of the first decisions, as in supervised training without noise, where larger LRs are right.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from experiments.support import harness, plotting, records
from experiments.support.tables import print_table
from metalr.agents.sb3_lr_callback import ControlledLR
from metalr.artefacts.controller_file import load_controller
from metalr.compare.statistics import Interval, bootstrap
from metalr.control.controller import Controller
from metalr.schedulers.adapters import sb3_learning_rate
from metalr.schedules import Constant, Cosine, Linear, Schedule
from metalr.workers import Unit, Workers

NAME = "rl_agents"
COMPARED = "rl_agents-compared"  # the summary, a row for each case and base LR
OPEN_LOOP: dict[str, Schedule] = {"constant": Constant(), "linear": Linear(), "cosine": Cosine()}
CONTENDERS = (*OPEN_LOOP, "general")
TUNED = ("constant", "linear")
FACTORS = (0.1, 1.0, 10.0)
FIRST_TUNING_SEED = 100  # fresh seeds are below
PARTS = 20  # of a run, for its learning curve
METRICS = {"area": "area under the learning curve", "return": "return of the final policy"}


@dataclass(frozen=True)
class Case:
    """An agent and what it learns.

    Attributes:
        agent: of Stable-Baselines3.
        env: name of the environment, whose returns are between `least` and `least` + 500.
        usual_lr: base LR at factor 1.
        timesteps: of a run.
        num_envs: that it learns from.
        settings: of the agent.
        least: return that an episode can have.
        scale_rewards: with a running estimate, for the agent alone.
    """

    agent: type[BaseAlgorithm]
    env: str
    usual_lr: float
    timesteps: int
    num_envs: int
    settings: dict[str, Any] = field(default_factory=dict)
    least: float = 0.0
    scale_rewards: bool = False


_DQN = {
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
}
_PPO_CARTPOLE = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20}
_PPO_ACROBOT = {"n_steps": 64, "batch_size": 64, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4}
CASES = {
    "PPO on CartPole": Case(PPO, "CartPole-v1", 1e-3, 20_480, 8, _PPO_CARTPOLE),
    "PPO on Acrobot": Case(PPO, "Acrobot-v1", 3e-4, 20_480, 8, _PPO_ACROBOT, least=-500.0, scale_rewards=True),
    "DQN on CartPole": Case(DQN, "CartPole-v1", 2.3e-3, 25_600, 4, _DQN),
}
# The slowest last: runs are made group by group, in each seed by seed, so that an unfinished study is balanced.
GROUPS = (("PPO on CartPole", "PPO on Acrobot"), ("DQN on CartPole",))


@dataclass(frozen=True)
class Args(harness.Spread):
    """Options of the experiment."""

    cases: tuple[str, ...] = tuple(CASES)
    """Names of cases to run; the report has all that have records."""
    seeds: int = 10
    """Fresh seeds of each setting."""
    tuning_seeds: int = 3
    """Behind the choice of an LR."""
    grid: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """LRs to choose from, times the usual one."""

    def small(self) -> "Args":
        return replace(self, seeds=1, tuning_seeds=1, grid=(1.0, 3.0))


class Run(NamedTuple):
    """One agent that learns.

    Attributes:
        case: name in `CASES`.
        contender: name in `CONTENDERS`.
        factor: its base LR over the usual one.
        seed: of the agent and its environments.
    """

    case: str
    contender: str
    factor: float
    seed: int


class Episodes(BaseCallback):
    """Collects (time step, return) of every episode that ends in training."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        found = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.ended += [(self.num_timesteps, float(value)) for value in found]
        return True

    def curve(self, timesteps: int, least: float) -> list[float]:
        """Mean return in each part of the run; a part in which no episode ended has that of the part before it."""
        values: list[float] = []
        for part in range(PARTS):
            low, high = timesteps * part / PARTS, timesteps * (part + 1) / PARTS
            found = [value for at, value in self.ended if low < at <= high]
            values.append(float(np.mean(found)) if found else (values or [least])[-1])
        return values


@functools.cache
def general() -> Controller:
    """The shipped controller, read once."""
    return load_controller("general")


def build(case: Case, learning_rate: Any, seed: int) -> BaseAlgorithm:
    """A new agent."""
    # Environments of one run have successive seeds, so those of two runs must not be neighbours.
    env: VecEnv = make_vec_env(case.env, case.num_envs, seed=1000 * seed)
    if case.scale_rewards:
        env = VecNormalize(env, norm_obs=False, gamma=case.settings["gamma"])
    return case.agent("MlpPolicy", env, learning_rate=learning_rate, seed=seed, device="cpu", **case.settings)


def train(run: Run, smoke: bool) -> records.Row:
    """One agent learns; its record."""
    started, case = time.monotonic(), CASES[run.case]
    timesteps = case.timesteps // 16 if smoke else case.timesteps
    base_lr, episodes, controlled = case.usual_lr * run.factor, Episodes(), None
    learning_rate: Any = base_lr
    if run.contender in OPEN_LOOP:
        learning_rate = sb3_learning_rate(OPEN_LOOP[run.contender], base_lr)
    else:
        controlled = ControlledLR(general())
    model = build(case, learning_rate, run.seed)
    model.learn(timesteps, callback=CallbackList([episodes, *([controlled] if controlled else [])]))
    test = make_vec_env(case.env, 20, seed=1_000_000 + 1000 * run.seed)
    final = evaluate_policy(model, test, n_eval_episodes=20, deterministic=True)[0]
    curve = episodes.curve(timesteps, case.least)
    return {
        **run._asdict(),
        "timesteps": timesteps,
        "area": float(np.mean(curve)) - case.least,
        "return": float(np.mean(final)),
        "curve": [round(value, 1) for value in curve],
        "lr_multipliers": multipliers(controlled),
        "seconds": round(time.monotonic() - started, 2),
    }


def multipliers(controlled: ControlledLR | None) -> list[float]:
    """Those that the controller decided on; none of a schedule."""
    if controlled is None or controlled.scheduler is None:
        return []
    return [round(decision["lr_multiplier"][0], 4) for decision in controlled.scheduler.history]


def tuning_plan(cases: Sequence[str], args: Args) -> list[Run]:
    """The runs that choose the LRs of the tuned schedules."""
    return [
        Run(case, contender, factor, FIRST_TUNING_SEED + seed)
        for seed in range(args.tuning_seeds)
        for case in cases
        for contender in TUNED
        for factor in args.grid
    ]


def fresh_plan(cases: Sequence[str], rows: Sequence[records.Row], args: Args) -> list[Run]:
    """The runs that are shown; a tuned schedule may be one of the others."""
    settings = [(contender, factor) for factor in FACTORS for contender in CONTENDERS]
    plan = [
        Run(case, *setting, seed)
        for seed in range(args.seeds)
        for case in cases
        for setting in (*settings, *tuned(rows, case).values())
    ]
    return list(dict.fromkeys(plan))


def make(plan: Sequence[Run], rows: list[records.Row], args: Args, workers: Workers) -> None:
    """Make every run of a plan that has no record yet, and add its row."""
    done = {tuple(row[key] for key in Run._fields) for row in rows}
    left = [run for run in plan if run not in done]
    for count, (index, row) in enumerate(workers.each(train, [Unit((run, args.smoke)) for run in left])):
        rows.append(row)
        records.write(NAME, rows, device="cpu", smoke=args.smoke)
        shown = f"area {row['area']:.0f}, return {row['return']:.0f}, {row['seconds']:.1f} s"
        print(f"{count + 1}/{len(left)}", *left[index], shown, flush=True)


def scores(rows: Sequence[records.Row], case: str, contender: str, factor: float, metric: str) -> dict[int, float]:
    """Seed -> a metric of a setting, tuning seeds too."""
    key = (case, contender, factor)
    return {row["seed"]: row[metric] for row in rows if (row["case"], row["contender"], row["factor"]) == key}


def fresh(rows: Sequence[records.Row], *setting: Any) -> dict[int, float]:
    """The same without the tuning seeds."""
    return {seed: value for seed, value in scores(rows, *setting).items() if seed < FIRST_TUNING_SEED}


def tuned(rows: Sequence[records.Row], case: str) -> dict[str, tuple[str, float]]:
    """Name of a tuned schedule -> schedule and factor with the largest mean area on the tuning seeds."""
    found: dict[str, tuple[str, float]] = {}
    for name in TUNED:
        areas: dict[float, float] = {}
        for factor in sorted({row["factor"] for row in rows}):
            own = scores(rows, case, name, factor, "area")
            judged = [area for seed, area in own.items() if seed >= FIRST_TUNING_SEED]
            if judged:
                areas[factor] = float(np.mean(judged))
        if areas:
            found[f"tuned {name}"] = (name, max(areas, key=lambda factor: areas[factor]))
    return found


def best_open_loop(rows: Sequence[records.Row], case: str) -> tuple[str, dict[int, float]]:
    """Name and areas of the best schedule: one from the usual LR, or a tuned one."""
    rivals = {name: (name, 1.0) for name in OPEN_LOOP} | tuned(rows, case)
    areas = {name: fresh(rows, case, *setting, "area") for name, setting in rivals.items()}
    best = max((name for name in areas if areas[name]), key=lambda name: np.mean(list(areas[name].values())))
    return f"{best}, x{rivals[best][1]:g}", areas[best]


def percent_above(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of first - second over pairs in percent of the mean of second, with an interval over pairs."""
    a, b = np.array(first), np.array(second)

    def of(drawn: np.ndarray) -> np.ndarray:
        """Pairs by their places, drawn together."""
        places = drawn.astype(int)
        # No episode of a smoke run may be better than the worst one.
        return 100.0 * (a - b)[places].mean(-1) / np.maximum(b[places].mean(-1), 1.0)

    return bootstrap(range(len(a)), of)


def compared(rows: Sequence[records.Row]) -> list[records.Row]:
    """General beside the best open-loop schedule, a row for each case and base LR, in percent of its area."""
    found = []
    for case in CASES:
        for factor in FACTORS:
            own = fresh(rows, case, "general", factor, "area")
            if not own:
                continue
            rival, others = best_open_loop(rows, case)
            seeds = sorted(own.keys() & others.keys())
            percent = percent_above([own[seed] for seed in seeds], [others[seed] for seed in seeds])
            row = {"case": case, "factor": factor, "rival": rival, "seeds": len(seeds), "seed": None}
            found.append({**row, "percent": percent.value, "low": percent.low, "high": percent.high})
    return found


def shown_cells(rows: Sequence[records.Row], metric: str) -> Iterator[tuple[str, str, float, list[float]]]:
    """Case, contender, factor and values of everything that is shown."""
    for case in CASES:
        settings = [(name, name, factor) for name in CONTENDERS for factor in FACTORS]
        settings += [(label, *setting) for label, setting in tuned(rows, case).items()]
        for label, contender, factor in settings:
            values = list(fresh(rows, case, contender, factor, metric).values())
            if values:
                yield case, label, factor, values


def table(rows: Sequence[records.Row], metric: str) -> list[records.Row]:
    """A line for each case and contender, a column for each base LR; a tuned one stands in a column of its own."""
    lines: dict[tuple[str, str], records.Row] = {}
    for case, label, factor, values in shown_cells(rows, metric):
        line = lines.setdefault((case, label), {"case": case, "contender": label})
        mean, low, high = bootstrap(values)
        cell = f"{mean:.0f} [{low:.0f}, {high:.0f}] ({len(values)})"
        line |= {"tuned": f"x{factor:g}: {cell}"} if label.startswith("tuned") else {f"x{factor:g}": cell}
    return list(lines.values())


def draw(rows: Sequence[records.Row], smoke: bool) -> None:
    """Both metrics against the base LR, a row of panels for each case."""
    cases = [case for case in CASES if any(fresh(rows, case, name, 1.0, "area") for name in CONTENDERS)]
    figure, axes = plotting.panels(2, rows=len(cases))
    panels = [(case, metric) for case in cases for metric in METRICS]
    for axis, (case, metric) in zip(axes, panels, strict=True):
        draw_panel(axis, [cell[1:] for cell in shown_cells(rows, metric) if cell[0] == case])
        least = CASES[case].least if metric == "return" else 0.0
        axis.set(title=f"{case}: {METRICS[metric]}", ylim=(least, least + 520), ylabel=metric, xlabel="base LR")
        axis.set_xticks(range(len(FACTORS)), [f"{CASES[case].usual_lr * f:.2g} (×{f:g})" for f in FACTORS])
    plotting.legend(figure, axes[0])
    plotting.save(figure, NAME, smoke=smoke)


def draw_panel(axis: Any, cells: Sequence[tuple[str, float, list[float]]]) -> None:
    """Interquartile means with intervals, side by side, over every seed as a dot; the tuned ones as lines."""
    labelled: set[str] = set()
    for label, factor, values in cells:
        mean, low, high = bootstrap(values)
        name = label.removeprefix("tuned ")
        colour = plotting.COLOURS[CONTENDERS.index(name)]
        shown = None if label in labelled else label
        labelled.add(label)
        if label != name:
            axis.axhline(mean, linestyle="--", linewidth=1, color=colour, label=shown)
            continue
        x = FACTORS.index(factor) + 0.15 * (CONTENDERS.index(name) - 1.5)
        axis.plot([x] * len(values), values, ".", color=colour, alpha=0.3, markersize=4)
        error = [[mean - low], [high - mean]]
        axis.errorbar([x], [mean], error, fmt="o", color=colour, capsize=3, markersize=5, label=shown)


def main(args: Args) -> None:
    """Make the runs, print, write the summary, draw."""
    rows = records.recorded(NAME, smoke=args.smoke)
    with args.start_workers() as workers:
        for group in GROUPS:
            cases = tuple(case for case in group if case in args.cases)
            make(tuning_plan(cases, args), rows, args, workers)
            make(fresh_plan(cases, rows, args), rows, args, workers)
    report(rows, args.smoke)


def report(rows: Sequence[records.Row], smoke: bool) -> None:
    """Print both tables and the differences, write these, draw."""
    for metric, label in METRICS.items():
        print(f"\n{label}: interquartile mean [95 % interval] (seeds)")
        print_table(table(rows, metric), ["case", "contender", *(f"x{factor:g}" for factor in FACTORS), "tuned"])
    differences = compared(rows)
    records.write(COMPARED, differences, device="cpu", smoke=smoke)
    print("\narea of general over that of the best open-loop schedule, percent [95 % interval]")
    print_table(differences, ["case", "factor", "rival", "seeds", "percent", "low", "high"])
    draw(rows, smoke)


if __name__ == "__main__":
    harness.run(main, Args)
