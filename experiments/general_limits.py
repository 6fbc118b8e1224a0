"""What keeps the general controller from the best LR: few tasks, a small policy, noise, or how little one run shows?

    python -m experiments.general_limits

The closed loop is taken away, and with it everything but the question of what observations tell. The runs behind the
oracle curves of `experiments.general` have constant LRs under the base schedule. From those of one task, at one LR or
at several LRs around a guess, watched for a share of the run, a recurrent network predicts the best LR; its loss is the
regret of that LR on the task's curve, as in the cloning. The guess is off by up to three places of the grid, a factor
of 12. It is judged on 200 tasks of meta-train that it was not trained on.

Variants take fewer tasks, a wider network, less noise on the observations in training, observations averaged over the
curve's six seeds (which no real run has, and which take away most of the measurement's noise), several LRs at once
(which would take as many runs), and the whole run in place of its first quarter. Seven LRs over their whole runs show
the curve itself, up to the network's own faults.

Beside them: how many of the observations on meta-validation leave the range of those on meta-train, feature by feature?
A controller that falls back to its base schedule where its observations are strange would have to notice it there.

Expected: if the number of tasks or the width were the limit, regret on held-out tasks would fall with them, and that
on the training tasks would be far below it.

Found, mean of two trainings: neither the number of tasks nor the width is the limit. From a quarter of the run at one
LR the regret on held-out tasks is 0.29, 0.25, 0.24 and 0.24 after training on 125, 250, 500 and 1,000 tasks, and with
1,000 it is the same on tasks that were trained on; width 128 and less noise in training have 0.23. Before the first
update it is 0.35. Six seeds' mean gives 0.21, three LRs 0.20, seven 0.19, the whole run at one LR 0.17, and seven whole
runs 0.12, which is what the network itself leaves. So it is what one run shows that is short, and none of the
remedies takes away much more than a fifth. None of 176,850 observations on meta-validation is out of range: features
are bounded and meta-train is wide, so that a fallback for strange observations would never act, and there is none.

About half an hour of one core once the curves are there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from experiments.support import harness, records
from experiments.support.general_setup import Setup, small_grid
from experiments.support.tables import print_table
from metalr.agents.clone_folder import CloneFolder
from metalr.agents.clone_runs import CloneConfig, Episodes
from metalr.compare.oracle import regret_at
from metalr.compare.statistics import bootstrap
from metalr.signals.observations import NUM_FEATURES
from metalr.workers import Unit, Workers

NAME = "general_limits"
# The guess is off by up to so many places of the grid.
_OFF = 3
# Examples of each task that a judgement averages over.
_JUDGED = 12


@dataclass(frozen=True)
class Variant:
    """What a predictor sees, and from how much it learned.

    Attributes:
        name: of its rows.
        places: of the LRs that it sees, from the guess on the grid; the guess first.
        share: of the run that it sees.
        tasks: that it is trained on, at most.
        hidden_size: of its network.
        noise: on the observations in training, standard deviation.
        averaged: its observations are means over all seeds.
    """

    name: str
    places: tuple[int, ...] = (0,)
    share: float = 0.25
    tasks: int = 10_000
    hidden_size: int = 48
    noise: float = 0.1
    averaged: bool = False


_THREE, _SEVEN = (0, 2, -2), (0, 1, 2, 3, -1, -2, -3)
VARIANTS = (
    Variant("before the first update", share=0.0),
    Variant("one LR, a quarter of the run"),
    Variant("the same, 125 tasks", tasks=125),
    Variant("the same, 250 tasks", tasks=250),
    Variant("the same, 500 tasks", tasks=500),
    Variant("the same, width 128", hidden_size=128),
    Variant("the same, noise 0.03", noise=0.03),
    Variant("the same, mean of six seeds", averaged=True),
    Variant("three LRs, a quarter of the run", places=_THREE),
    Variant("seven LRs, a quarter of the run", places=_SEVEN),
    Variant("one LR, the whole run", share=1.0),
    Variant("seven LRs, the whole run", places=_SEVEN, share=1.0),
)


@dataclass(frozen=True)
class Args(harness.Spread):
    """Train the predictors and judge them on tasks that they have not seen."""

    folder: Path = Path("runs/general")
    """The folder of `experiments.general`, whose curves are used; those that are missing are made."""
    tasks: int = 1200
    """Tasks of the meta-train family."""
    held_out: int = 200
    """The last of them, to judge by."""
    validation_tasks: int = 60
    """Tasks of the meta-validation family, for the ranges."""
    steps: int = 1500
    """Updates of each predictor."""
    seeds: tuple[int, ...] = (0, 1)
    """Trainings of each."""

    def small(self) -> "Args":
        few: dict[str, Any] = {"tasks": 4, "held_out": 2, "validation_tasks": 2, "steps": 3, "seeds": (0,)}
        return replace(self, folder=Path("runs/general_limits-smoke"), **few)


class Examples(NamedTuple):
    """What predictors see and are judged by; `B` examples of `K` runs each.

    Attributes:
        observations: `(decisions, B, K, NUM_FEATURES + 1)`, the last feature the run's log LR over the guess; zeros
            stand before those of shorter runs.
        regrets: `(B, num_lrs)`.
        first_log_lr, grid_spacing, log_guess: `(B,)`.
    """

    observations: Tensor
    regrets: Tensor
    first_log_lr: Tensor
    grid_spacing: Tensor
    log_guess: Tensor

    def regret(self, shift: Tensor) -> Tensor:
        """The regret of the guess times exp(shift), `(B,)`."""
        log_lr = (self.log_guess + shift)[:, None]
        return regret_at(self.regrets, self.first_log_lr[:, None], self.grid_spacing[:, None], log_lr)[:, 0]


class Predictor(nn.Module):
    """A gated recurrent unit over each run, whose last memories are averaged over the runs."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.GRU(NUM_FEATURES + 1, hidden_size)
        self.each = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))

    def forward(self, observations: Tensor) -> Tensor:
        """`(decisions, B, K, NUM_FEATURES + 1)` -> shift of the log LR from the guess, `(B,)`."""
        _, last = self.cell(observations.flatten(1, 2))
        return 3.0 * self.head(self.each(last[0]).view(*observations.shape[1:3], -1).mean(1))[:, 0]


def draw(tasks: Sequence[Episodes], count: int, variant: Variant, generator: torch.Generator) -> Examples:
    """Examples of some tasks, `count` of each, with random guesses and seeds."""
    examples = [_example(task, variant, generator) for task in tasks for _ in range(count)]
    longest = max(len(example[0]) for example in examples)
    padded = [torch.cat([seen.new_zeros(longest - len(seen), *seen.shape[1:]), seen]) for seen, *_ in examples]
    return Examples(torch.stack(padded, 1), *(torch.stack(column) for column in list(zip(*examples, strict=True))[1:]))


def _example(task: Episodes, variant: Variant, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A row of `Examples`, not yet padded."""
    num_lrs = task.regrets.shape[1]
    num_seeds = len(task.log_base_lr) // num_lrs
    best = int(task.regrets.mean(0).argmin())
    off, seed = (int(torch.randint(n, (), generator=generator)) for n in (2 * _OFF + 1, num_seeds))
    guess = min(max(best + off - _OFF, 0), num_lrs - 1)
    places = torch.tensor([min(max(guess + place, 0), num_lrs - 1) for place in variant.places])
    watched = task.observations[: max(round(variant.share * len(task.observations)), 1)].float()
    by_place = watched.view(len(watched), num_lrs, num_seeds, -1)[:, places]
    seen = by_place.mean(2) if variant.averaged else by_place[:, :, seed]
    offset = (places - guess) * task.grid_spacing / 3.0
    seen = torch.cat([seen, offset[:, None].expand(len(seen), -1, 1)], -1)
    regrets = task.regrets[guess * num_seeds + seed]
    return seen, regrets, task.first_log_lr, task.grid_spacing, task.log_base_lr[guess * num_seeds + seed]


def fit(predictor: Predictor, tasks: Sequence[Episodes], variant: Variant, steps: int, seed: int) -> None:
    """Train a predictor in place, on two examples of each of 48 tasks at a time."""
    peak_lr = 4e-3
    optimizer = torch.optim.AdamW(predictor.parameters(), peak_lr, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, steps, cycle_momentum=False)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        drawn = [tasks[i] for i in torch.randint(len(tasks), (48,), generator=generator).tolist()]
        batch = draw(drawn, 2, variant, generator)
        noise = variant.noise * torch.randn(batch.observations.shape, generator=generator)
        loss = batch.regret(predictor(batch.observations + noise)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
        optimizer.step()
        scheduler.step()


def judge(predictor: Predictor, tasks: Sequence[Episodes], variant: Variant) -> list[float]:
    """The mean regret of each task, over the same guesses and seeds for every predictor."""
    with torch.no_grad():
        examples = draw(tasks, _JUDGED, variant, torch.Generator().manual_seed(5))
        return examples.regret(predictor(examples.observations)).view(len(tasks), -1).mean(1).tolist()


def regrets_of(shared: tuple[list[Episodes], int, int], variant: Variant, seed: int) -> dict[str, list[float]]:
    """A unit: train a predictor; its regret on tasks that it was trained on and on those held out, for each task."""
    tasks, held_out, steps = shared
    seen = tasks[:-held_out][: variant.tasks]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = Predictor(variant.hidden_size)
    fit(predictor, seen, variant, steps, seed)
    judged = {"trained on": seen[:held_out], "held out": tasks[-held_out:]}
    return {name: judge(predictor, some, variant) for name, some in judged.items()}


def summary(rows: Sequence[records.Row]) -> list[dict[str, Any]]:
    """A line for each variant: mean regret with its 95 % interval over held-out tasks, and on the tasks trained on."""
    lines = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        held = np.mean([row["held_out"] for row in own], 0)
        found = bootstrap(held, statistic=lambda values: values.mean(-1))
        trained_on = float(np.mean([row["trained_on"] for row in own]))
        cells = {"held out": found.value, "low": found.low, "high": found.high, "trained on": trained_on}
        lines.append({"variant": name, **cells})
    return lines


def strange(tasks: Sequence[Episodes], others: Sequence[Episodes]) -> records.Row:
    """How many observations of other tasks have a feature outside its range on the tasks."""
    seen = [task.observations.float().flatten(0, 1) for task in tasks]
    low = torch.stack([some.amin(0) for some in seen]).amin(0)
    high = torch.stack([some.amax(0) for some in seen]).amax(0)
    new = torch.cat([task.observations.float().flatten(0, 1) for task in others])
    return {"observations": len(new), "outside": int(((new < low) | (new > high)).any(-1).sum())}


def main(args: Args) -> None:
    """Make what is missing of the curves, train every variant, print and write."""
    config = CloneConfig()
    config = replace(config, grid=small_grid(config)) if args.smoke else config
    setup = Setup(args.folder, config, short=args.smoke)
    with args.start_workers() as workers:
        tasks = episodes_of(setup.of("meta-train"), args.tasks, workers)
        ranges = strange(tasks, episodes_of(setup.validation(), args.validation_tasks, workers))
        print(f"{ranges['outside']} of {ranges['observations']} observations on meta-validation are out of range")
        rows = rows_of(args, tasks, workers)
    print_table(summary(rows), ("variant", "held out", "low", "high", "trained on"))
    rows.append({"variant": "ranges", "seed": None, **ranges})
    print(records.write(NAME, rows, device="cpu", smoke=args.smoke))


def episodes_of(folder: CloneFolder, count: int, workers: Workers) -> list[Episodes]:
    """The runs behind the oracle curves of the first tasks."""
    folder.make_oracles(range(count), workers)
    return [folder.oracle(index)[1] for index in range(count)]


def rows_of(args: Args, tasks: list[Episodes], workers: Workers) -> list[records.Row]:
    """A row for each variant and training."""
    plan = [(variant, seed) for variant in VARIANTS for seed in args.seeds]
    units = [Unit((variant, seed), (tasks, args.held_out, args.steps)) for variant, seed in plan]
    rows = []
    for index, found in workers.each(regrets_of, units, ordered=True):
        variant, seed = plan[index]
        held, seen = found["held out"], float(np.mean(found["trained on"]))
        rows.append({"variant": variant.name, "seed": seed, "held_out": held, "trained_on": seen})
        print(f"{variant.name}, seed {seed}: held out {np.mean(held):.3f}, trained on {seen:.3f}", flush=True)
    return rows


if __name__ == "__main__":
    harness.run(main, Args)
