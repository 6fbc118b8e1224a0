"""The plain path: runs through the user's own network, optimizer and loader, one after the other.

For what the batched engine refuses. Gradients and updates are measured by the meter that an exported scheduler has.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalr import seeding
from metalr.engine.base import Runs
from metalr.engine.evaluation import EVALUATION_CHUNK, Evaluation, mean_over
from metalr.engine.initial_weights import bank_index, banked_module
from metalr.engine.runs import BatchedRuns
from metalr.engine.step import divergence_limit
from metalr.schedulers.meter import OptimizerMeter
from metalr.schedulers.own_randomness import OwnRandomness, generators_of
from metalr.schedulers.param_groups import write_lr
from metalr.signals.stats import Prospect, RunStats, loss_stats
from metalr.tasks.data import Data, Split
from metalr.tasks.models import seeded_parameters
from metalr.tasks.task import Task

log = logging.getLogger("metalr")


def runs_of(
    task: Task,
    num_runs: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    groups: str | Sequence[Sequence[str]] = "global",
    compile: bool = False,
) -> Runs:
    """The runs of a task, on the path that it is for.

    Args:
        task: `Task(…, plain=True)` takes the plain path, any other the batched one.
        num_runs: number of runs.
        dtype: of weights, data and losses.
        device: of the runs.
        groups: as for `BatchedRuns`; "global" on the plain path.
        compile: as for `BatchedRuns`; not on the plain path.

    Raises:
        ValueError: an option does not fit the path.

    Example:
        >>> from metalr.tasks.catalog import make_task
        >>> type(runs_of(make_task("digits-mlp", plain=True), 2)).__name__
        'PlainRuns'
    """
    if not task.plain:
        return BatchedRuns(task, num_runs, dtype=dtype, device=device, groups=groups, compile=compile)
    if groups != "global" or compile:
        raise ValueError(
            f"got groups {groups!r} and compile {compile} with a task on the plain path, expected one LR per run and "
            "no compilation: leave both out, and compile the network where it is built"
        )
    log.info("task %s takes the plain path: %d runs, one after the other, not in one batch", task.name, num_runs)
    return PlainRuns(task, num_runs, dtype=dtype, device=device)


class PlainRuns(Runs):
    """`num_runs` training runs of one task, one after the other: the batched engine's interface without its limits.

    Each run has a network, an optimizer and a position in the data of its own, and draws its own random numbers:
    dropout, shuffling and augmentation follow from its seed too. The network is trained in `train()` mode and evaluated
    in `eval()` mode. It costs the time and memory of as many ordinary training runs.

    As in a user's loop, the first update of an optimizer without a formula here cannot be predicted: its prospect is
    NaN, and a controller's first decision sees as much.

    Args:
        task: the task to train.
        num_runs: number of runs.
        dtype: of weights, data and losses.
        device: of the runs and their data.

    Raises:
        ValueError: `num_runs` is below 1.

    Example:
        >>> from torch import nn
        >>> from metalr.tasks.task import Task
        >>> inputs = torch.linspace(-1, 1, 64)[:, None]
        >>> net = nn.Sequential(nn.Linear(1, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))
        >>> task = Task(net, (inputs, inputs.sin()), nn.functional.mse_loss, torch.optim.NAdam, plain=True)
        >>> runs = PlainRuns(task, num_runs=2)
        >>> runs.init(torch.tensor([0, 1]))
        >>> stats = runs.unroll(torch.tensor([1e-2, 1e-3]), num_steps=50)
        >>> loss = runs.evaluate("valid").loss
        >>> bool(loss[0] < loss[1])
        True
    """

    def __init__(
        self,
        task: Task,
        num_runs: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(task, num_runs, dtype, device)
        self.data = task.data.to(self.device, dtype)
        self._runs: list[_PlainRun] = []

    @property
    def num_groups(self) -> int:
        return 1

    @property
    def diverged(self) -> Tensor:
        return torch.tensor([run.diverged for run in self.runs], device=self.device)

    @property
    def runs(self) -> "list[_PlainRun]":
        """The runs in progress."""
        if not self._runs:
            raise ValueError("got runs that have not been started, expected init(seeds) before anything else")
        return self._runs

    def init(self, seeds: Tensor) -> None:
        self._require_one_each(seeds, "seeds")
        self.seeds = seeds.to(self.device, torch.int64)
        self._runs = [self._started(seed) for seed in self.seeds]

    def reset_runs(self, which: Tensor, seeds: Tensor) -> None:
        self._require_one_each(which, "which")
        self._require_one_each(seeds, "seeds")
        which = which.to(self.device, torch.bool)
        self.seeds = torch.where(which, seeds.to(self.device, torch.int64), self.seeds)
        for index in which.nonzero().flatten().tolist():
            self._runs[index] = self._started(self.seeds[index])

    def unroll(self, lr: Tensor, num_steps: int) -> RunStats:
        lrs = self._check_unroll(lr, num_steps)[..., 0].double().cpu().T.tolist()
        losses, measured = zip(*(run.unroll(own) for run, own in zip(self.runs, lrs, strict=True)), strict=True)
        of_updates = (torch.cat(column).to(self.device, self.dtype) for column in zip(*measured, strict=True))
        return RunStats(*loss_stats(torch.stack(losses, 1)), *of_updates)

    def probe(self, lr: Tensor) -> Prospect:
        lrs = self._check_lr(lr, 1)[0, :, 0].double().tolist()
        found = [run.prospect(own) for run, own in zip(self.runs, lrs, strict=True)]
        return Prospect(*(torch.cat(column).to(self.device, self.dtype) for column in zip(*found, strict=True)))

    def evaluate(self, split: Split, max_examples: int = 1 << 62, which: Tensor | None = None) -> Evaluation:
        chosen = range(self.num_runs) if which is None else which.tolist()
        found = [self.runs[index].evaluate(split, max_examples) for index in chosen]
        means = Evaluation(*(torch.cat(column) for column in zip(*found, strict=True)))
        return means.failed_where(self.diverged if which is None else self.diverged[which])

    def module_of(self, run: int) -> nn.Module:
        return copy.deepcopy(self.runs[run].module)

    def _started(self, seed: Tensor) -> "_PlainRun":
        return _PlainRun(self.task, self.data.alone(), seed[None], self.dtype)


class _PlainRun:
    """One run in torch's own terms: a network, its optimizer, and the loop around them.

    Args:
        task: the task to train.
        data: for this run alone.
        seed: `(1,)` int64, on the device of the run.
        dtype: of weights and losses.
    """

    def __init__(self, task: Task, data: Data, seed: Tensor, dtype: torch.dtype) -> None:
        self.task, self.data, self.seed, self.dtype = task, data, seed, dtype
        self.variant = seeding.integers(data.num_variants, seeding.stream(seed, "variant"))
        self.randomness = OwnRandomness(int(seed), seed.device, generators_of(data))
        with self.randomness.in_force(keep=False):
            self.module = _initial_module(task, seed, dtype)
        self.module.train()  # one that was given may be in its evaluation mode
        self.trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = task.optimizer.to_torch(self.trained, task.base_lr)
        # A parameter group may have an LR of its own, which keeps its ratio to the base LR.
        self.lr_ratios = [float(group["lr"]) / task.base_lr for group in self.optimizer.param_groups]
        self.meter = OptimizerMeter(self.optimizer, "global")
        self.step = 0
        self.limit: Tensor | None = None
        self.diverged = False
        self._loss: Tensor | None = None  # of the next update, once its gradient has been taken

    def unroll(self, lrs: Sequence[float]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Make an update at each LR.

        Returns:
            Their losses `(num_steps,)`, and the statistics of gradients and update, `(1, 1)` each.
        """
        self.meter.clear()
        with self.randomness.in_force():
            losses = torch.stack([self._update(lr, len(lrs) - index) for index, lr in enumerate(lrs)])
        measurement = self.meter.on_device()
        return losses, self.meter.statistics(None if measurement is None else measurement.cpu())

    def prospect(self, lr: float) -> tuple[Tensor, Tensor, Tensor]:
        """The next update as it would be at an LR: `(1, 1)`, `(1, 1)` and `(1,)`."""
        with self.randomness.in_force():
            loss = self._loss_and_gradient()
        return *self.meter.prospect([lr * ratio for ratio in self.lr_ratios]), loss.log()[None]

    def evaluate(self, split: Split, max_examples: int) -> Evaluation:
        """Mean loss and metric over a split, `(1,)` each; no random number of the run is used up."""
        self.module.eval()
        try:
            with torch.no_grad(), self.randomness.in_force(keep=False):
                chunks = self.data.chunks(split, self.variant, max_examples, EVALUATION_CHUNK)
                return mean_over(chunks, self._evaluation, 1, self.seed.device)
        finally:
            self.module.train()

    def _update(self, lr: float, left: int) -> Tensor:
        """Make an update, the first of so many that are left of the interval; returns the loss before it."""
        if self.diverged:
            return torch.full_like(self.seed, torch.nan, dtype=self.dtype)[0]
        loss = self._loss_and_gradient()
        self._loss = None
        if self.limit is None:
            self.limit = divergence_limit(loss)
        if not loss <= self.limit:  # so is NaN
            self.diverged = True
            self.meter.clear()
            return loss
        for group, ratio in zip(self.optimizer.param_groups, self.lr_ratios, strict=True):
            write_lr(group, lr * ratio)
        if left == 2:
            self.meter.before_second_last()
        elif left == 1:
            self.meter.before_last()
        self.optimizer.step()
        if left == 1:
            self.meter.after_last()
        self.step += 1
        return loss

    def _loss_and_gradient(self) -> Tensor:
        """The loss of the next minibatch, with its gradient in the parameters.

        Taken once for each update, whether a probe or the update itself asks first: asked twice, the network would draw
        two dropout masks and count the minibatch twice in its running statistics.
        """
        if self._loss is None:
            first = torch.full_like(self.seed, self.step)
            batches = self.data.batches(self.seed, self.variant, first, 1, self.task.batch_size)
            inputs, targets = (part[0] for part in next(iter(batches)))
            self.optimizer.zero_grad()
            loss = self.task.loss(self.module(inputs), targets)
            if loss.dim():
                raise ValueError(
                    f"got a loss of shape {tuple(loss.shape)} for a batch, expected a scalar: take its mean"
                )
            loss.backward()
            if self.task.optimizer.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.trained, self.task.optimizer.clip_norm)
            self._loss = loss.detach().to(self.dtype)
        return self._loss

    def _evaluation(self, inputs: Tensor, targets: Tensor) -> Evaluation:
        outputs = self.module(inputs[0])
        loss = self.task.loss(outputs, targets[0])
        metric: Any = self.task.metric(outputs, targets[0]) if self.task.metric else loss.new_full((), torch.nan)
        return Evaluation(loss[None], metric[None])


def _initial_module(task: Task, seed: Tensor, dtype: torch.dtype) -> nn.Module:
    """The network before its first update, with the weights that the batched engine gives a run of this seed."""
    module = banked_module(task, int(bank_index(seed))).to(dtype)
    if task.initial_weights is not None:
        module.load_state_dict(dict(task.initial_weights), strict=False)
        return module.to(seed.device)
    module.to(seed.device)
    drawn = seeded_parameters(module, seed)
    if drawn is not None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(drawn[name][0])
    return module
