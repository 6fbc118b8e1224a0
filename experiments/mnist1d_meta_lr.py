"""Which LR does a meta-gradient find on MNIST-1D, and is a learned schedule better than a learned constant?

The set-up of the MNIST-1D paper's own case study (Greydanus and Kobak 2020, arXiv 2011.14439): an MLP 40-50-10 with
tanh, SGD, 200 inner steps of 50 examples taken in order from the 4,000 training signals, meta-loss = mean of the 200
minibatch losses, exact second-order meta-gradients. The paper reports 0.62 from initial LRs of 1.5 and 0.15.

    python -m experiments.mnist1d_meta_lr

Expected: 0.62 ± 0.02 for net seed 0 from both starts, 0.59 to 0.64 over five net seeds; 0.785 ± 0.03 for the final
train loss; the learned knots below the learned constant in both meta-losses.

Found: 0.6209 from both starts, 0.592 to 0.635 over five net seeds; 0.784 for the final train loss; the knots' meta-loss
is 1.666 where the constant's is 1.716, and 1.369 where it is 1.523 (final loss).

About 10 minutes on one CPU core.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from experiments.support import harness, plotting, records
from experiments.support.tables import print_table
from metalr.agents.outer_loop import MetaGradients, MetaTrainer, OuterConfig
from metalr.learned.module import OpenLoop
from metalr.learned.schedules import ConstantLR, KnotLR
from metalr.tasks import datasets, models
from metalr.tasks.data import Batch, Data
from metalr.tasks.task import Task

NAME = "mnist1d_meta_lr"


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    starts: tuple[float, ...] = (0.15, 1.5)
    """Initial LRs."""
    net_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the initial weights; seed 0 is the paper's."""
    outer_steps: int = 60
    """Of every learner."""
    num_knots: int = 8
    """Of the learned schedule."""
    horizon: int = 200
    """Inner steps."""

    def small(self) -> "Args":
        return replace(self, net_seeds=(0, 1), outer_steps=2, horizon=10, num_knots=3)


class InOrder(Data):
    """All 4,000 training signals, batch after batch in their own order, the same for every run."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def batches(
        self, seeds: Tensor, variants: Tensor, first_step: Tensor, num_steps: int, batch_size: int
    ) -> Iterator[Batch]:
        for step in range(num_steps):
            start = (first_step + step) * batch_size % len(self.inputs)
            index = start[:, None] + torch.arange(batch_size)
            yield self.inputs[index], self.targets[index]

    def chunks(self, split: str, variants: Tensor, max_examples: int, chunk_size: int) -> Iterator[Batch]:
        inputs, targets = self.inputs[:max_examples], self.targets[:max_examples]
        for x, y in zip(inputs.split(chunk_size), targets.split(chunk_size), strict=True):
            yield x.expand(len(variants), *x.shape), y.expand(len(variants), *y.shape)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "InOrder":
        return InOrder(self.inputs.to(device, dtype), self.targets.to(device))


def make_task(net_seed: int, horizon: int) -> Task:
    """The paper's task; a base LR of 1, so that a learned multiplier is the LR."""
    data = datasets.mnist1d()
    joined = [torch.cat([a[0], b[0]]) for a, b in zip(data.train, data.valid, strict=True)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(net_seed)
        weights = models.MLP([40, 50, 10], torch.tanh).state_dict()
    model = partial(models.MLP, [40, 50, 10], torch.tanh)
    loss = functional.cross_entropy
    settings: dict[str, Any] = {"base_lr": 1.0, "horizon": horizon, "batch_size": 50, "initial_weights": weights}
    return Task(model, InOrder(*joined), loss, optimizer="sgd", name="mnist1d-in-order", **settings)


def learn(learned: OpenLoop, net_seed: int, meta_loss: str, args: Args, lr: float = 0.15) -> dict[str, Any]:
    """Learn from one start; returns the LRs and the meta-loss after the last outer step."""
    gradients = MetaGradients(
        learned, [make_task(net_seed, args.horizon)], seeds=torch.zeros(1, dtype=torch.int64), meta_loss=meta_loss
    )
    MetaTrainer(learned, gradients, OuterConfig(args.outer_steps, lr=lr, final_lr=1e-3, betas=(0.7, 0.9))).train()
    loss = gradients.estimate(0).loss
    with torch.no_grad():
        lrs = learned(torch.linspace(0, 1, 51, dtype=torch.float64))[:, 0].tolist()
    row = {"learned": type(learned).__name__, "net_seed": net_seed, "meta_loss": meta_loss, "seed": 0}
    return {**row, "lr": lrs[0] if len(set(lrs)) == 1 else None, "loss": loss, "lrs": [round(v, 5) for v in lrs]}


def draw(rows: list[dict[str, Any]], args: Args) -> None:
    """Learned LRs over progress, for the two meta-losses."""
    figure, panels = plotting.panels(2)
    for panel, meta_loss in zip(panels, ("mean-train", "final-train"), strict=True):
        for row in rows:
            if row["meta_loss"] == meta_loss and row["net_seed"] == args.net_seeds[0]:
                label = f"{row['learned']} from {row['start']:g}: loss {row['loss']:.4f}"
                panel.plot([i / 50 for i in range(51)], row["lrs"], label=label)
        panel.set(title=f"meta-loss {meta_loss}", xlabel="progress", ylabel="learning rate", yscale="log")
        panel.legend(fontsize=8)
    plotting.save(figure, NAME, smoke=args.smoke)


def main(args: Args) -> None:
    """Constants from both starts, the other net seeds, the final loss, and knots."""
    first = args.net_seeds[0]
    plan: list[tuple[Any, int, str, float]] = [(ConstantLR, first, "mean-train", start) for start in args.starts]
    plan += [(ConstantLR, seed, "mean-train", 0.5) for seed in args.net_seeds[1:]]
    plan += [(ConstantLR, first, "final-train", start) for start in args.starts]
    knots = partial(KnotLR, args.num_knots)
    plan += [(knots, first, meta_loss, 0.5) for meta_loss in ("mean-train", "final-train")]
    rows = []
    for make, net_seed, meta_loss, start in plan:
        rows.append({"start": start, **learn(make(initial=start), net_seed, meta_loss, args)})
        records.write(NAME, rows, device="cpu", smoke=args.smoke)
    draw(rows, args)
    print_table(rows, ("learned", "net_seed", "meta_loss", "start", "lr", "loss"))


if __name__ == "__main__":
    harness.run(main, Args)
