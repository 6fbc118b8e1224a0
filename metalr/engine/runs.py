"""The batched engine: many training runs of one task advance together in one device pass."""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from metalr import seeding
from metalr.engine import memory
from metalr.engine.base import Runs
from metalr.engine.chunks import chunk_size
from metalr.engine.compilation import compiling_pays
from metalr.engine.cuda_graphs import GraphExecutor
from metalr.engine.evaluation import Evaluation, Evaluator, runs_at_once
from metalr.engine.executors import CompiledExecutor, EagerExecutor, Executor
from metalr.engine.initial_weights import BANK_SIZE, bank_index, banked_module
from metalr.engine.interval import Interval, prospect
from metalr.engine.layout import ParameterLayout
from metalr.engine.step import RunState, TrainingStep
from metalr.signals.stats import Prospect, RunStats
from metalr.tasks.data import Batch, LoaderData, Split, TensorData
from metalr.tasks.models import seeded_parameters
from metalr.tasks.task import Task
from metalr.trees import map_leaves


class BatchedRuns(Runs):
    """`num_runs` training runs of one task, advanced together.

    Run *i* depends on `seeds[i]` alone: at the same `num_runs` it is bit-identical whatever its neighbours do.

    Args:
        task: the task to train.
        num_runs: number of runs.
        dtype: of weights, data and losses.
        device: of the runs and their data.
        groups: "global" (one LR), "module" (one for each layer) or lists of parameter names.
        compile: compile the training step with `torch.compile`. "auto" does so on CUDA, and on a CPU if
            `planned_steps` are enough to earn back the twenty seconds or so that it costs. If compilation fails, one
            warning says why and the eager step is used.
        capture: on CUDA, make each interval one CUDA graph (the data must be tensors, not a loader). Without it
            intervals are made step by step.
        planned_steps: inner steps that this batch of runs is going to make, for "auto".
        kernels_by_rule: on CUDA, have the compiler choose kernels by rule, so that a run has the same bits in every
            process. False has it choose by the clock, which may be faster.

    Raises:
        ValueError: `num_runs` is below 1, the task is for the plain path, or the runs do not fit in the memory that
            the device has free.

    Attributes:
        footprint: memory of one run.
        executor: carries out the intervals; `executor.preparation_seconds` went into compiling and capturing.

    Example:
        >>> from metalr.tasks.catalog import make_task
        >>> runs = BatchedRuns(make_task("quadratic"), num_runs=2, dtype=torch.float64)
        >>> runs.init(torch.tensor([0, 1]))
        >>> _ = runs.unroll(torch.full((2, 1), 0.1, dtype=torch.float64), num_steps=3)
        >>> round(runs.state.params[0].item(), 3)  # -1 + 6 * 0.8 ** 3
        2.072
    """

    def __init__(
        self,
        task: Task,
        num_runs: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        groups: str | Sequence[Sequence[str]] = "global",
        compile: bool | Literal["auto"] = False,
        capture: bool = True,
        planned_steps: int | None = None,
        kernels_by_rule: bool = True,
    ) -> None:
        super().__init__(task, num_runs, dtype, device)
        if compile not in (True, False, "auto"):
            raise ValueError(f"got compile {compile!r}, expected True, False or 'auto': use one of these")
        if task.plain:
            raise ValueError(
                f"got the task {task.name!r} with plain=True, whose runs cannot advance in one batch, expected one "
                "without: environments, comparisons, schedules and LR range tests train it; what needs the batched "
                "engine, such as meta-gradients, evolution strategies and cloning, does not"
            )
        self.module = task.build().to(dtype)
        if task.initial_weights is not None:  # frozen parameters are read from the module itself
            self.module.load_state_dict(dict(task.initial_weights), strict=False)
        self.module.to(self.device)
        self.data = task.data.to(self.device, dtype)
        self.layout = ParameterLayout(self.module, groups)
        self.step = TrainingStep(task, self.layout, self.module)
        self.footprint = memory.footprint(self.step, self._sample_batch(), dtype)
        if compile == "auto":
            counts = planned_steps, num_runs, self.layout.num_params, task.batch_size
            compile = self.device.type == "cuda" or compiling_pays(*counts)
        chunk = None
        if self.device.type == "cpu":
            chunk = chunk_size(num_runs, self.footprint.tensor, equal=compile)
        memory.check_fits(num_runs, self.footprint, self.device, chunk)
        self.executor = self._executor(compile, capture, kernels_by_rule, chunk)
        at_once = runs_at_once(num_runs, task.batch_size, self.footprint.tensor, self.device)
        self._evaluator = Evaluator(self.step.losses, self.data, at_once)
        self._bank: Tensor | None = None
        self._state: RunState | None = None
        self.seeds: Tensor
        self.variants: Tensor

    @property
    def num_groups(self) -> int:
        return self.layout.num_groups

    @property
    def diverged(self) -> Tensor:
        return self.state.diverged

    @property
    def state(self) -> RunState:
        """The runs between two inner steps."""
        if self._state is None:
            raise ValueError("got runs that have not been started, expected init(seeds) before anything else")
        return self._state

    @state.setter
    def state(self, state: RunState) -> None:
        self._state = state

    def init(self, seeds: Tensor) -> None:
        self._require_one_each(seeds, "seeds")
        self.data.restart()
        self.seeds = seeds.to(self.device, torch.int64)
        self.variants = seeding.integers(self.data.num_variants, seeding.stream(self.seeds, "variant"))
        self.state = self._fresh(self.seeds)

    def reset_runs(self, which: Tensor, seeds: Tensor) -> None:
        self._require_one_each(which, "which")
        self._require_one_each(seeds, "seeds")
        which = which.to(self.device, torch.bool)
        self.seeds = torch.where(which, seeds.to(self.device, torch.int64), self.seeds)
        self.variants = seeding.integers(self.data.num_variants, seeding.stream(self.seeds, "variant"))
        index = which.nonzero().squeeze(-1)
        fresh = self._fresh(self.seeds[index])
        self.state = map_leaves(lambda old, new: old.index_copy(0, index, new), self.state, fresh)

    def unroll(self, lr: Tensor, num_steps: int) -> RunStats:
        lr, state = self._check_unroll(lr, num_steps), self.state
        with torch.no_grad():
            self.state, run_stats = self.executor.unroll(state, Interval(self.seeds, self.variants, lr))
        return run_stats

    def probe(self, lr: Tensor) -> Prospect:
        lr = self._check_lr(lr, 1)[0]
        with torch.no_grad():
            state = self.state
            batch = next(iter(self.data.batches(self.seeds, self.variants, state.step, 1, self.task.batch_size)))
            new, loss, gradient = self.step.update(state, batch, lr)
            return prospect(self.layout, state.params, new.params, gradient, loss)

    def evaluate(self, split: Split, max_examples: int = 1 << 62, which: Tensor | None = None) -> Evaluation:
        params, variants, diverged = self.state.params, self.variants, self.state.diverged
        if which is not None:
            params, variants, diverged = params[which], variants[which], diverged[which]
        with torch.no_grad():
            return self._evaluator(split, max_examples, params, variants).failed_where(diverged)

    def module_of(self, run: int) -> nn.Module:
        module = copy.deepcopy(self.module)
        row = self.state.params[run].detach().clone()
        module.load_state_dict(self.layout.unflatten(row), strict=False)
        return module

    def _sample_batch(self) -> Batch | None:
        """A minibatch to measure with, `(1, batch, …)`; of two runs where all go through the network at once.

        None from a loader, whose minibatch would be missing later.
        """
        if not isinstance(self.data, TensorData):
            return None
        zero = torch.zeros(1 if self.device.type == "cpu" else 2, dtype=torch.int64, device=self.device)
        return next(iter(self.data.batches(zero, zero, zero, 1, self.task.batch_size)))

    def _executor(self, compile: bool, capture: bool, kernels_by_rule: bool, chunk: int | None) -> Executor:
        if self.device.type == "cuda" and capture and not isinstance(self.data, LoaderData):
            return GraphExecutor(self.step, self.data, compile, kernels_by_rule)
        if compile:
            return CompiledExecutor(self.step, self.data, chunk, kernels_by_rule)
        return EagerExecutor(self.step, self.data, chunk)

    def _fresh(self, seeds: Tensor) -> RunState:
        params = self._initial_params(seeds)
        num_runs = len(seeds)
        return RunState(
            params,
            self.task.optimizer.init(params),
            torch.zeros(num_runs, dtype=torch.int64, device=self.device),
            torch.full((num_runs,), torch.nan, dtype=self.dtype, device=self.device),
            torch.zeros(num_runs, dtype=torch.bool, device=self.device),
        )

    def _initial_params(self, seeds: Tensor) -> Tensor:
        if self.task.initial_weights is not None:
            weights = {name: self.task.initial_weights[name] for name in self.layout.names}
            row = self.layout.flatten(weights).to(self.device, self.dtype)
            return row.expand(len(seeds), -1).clone()
        drawn = seeded_parameters(self.module, seeds)
        if drawn is not None:
            return self.layout.flatten(drawn).to(self.dtype)
        if self._bank is None:
            self._bank = self._build_bank()
        return self._bank[bank_index(seeds)]

    def _build_bank(self) -> Tensor:
        modules = (banked_module(self.task, index) for index in range(BANK_SIZE))
        rows = [self.layout.flatten({name: p.detach() for name, p in m.named_parameters()}) for m in modules]
        return torch.stack(rows).to(self.device, self.dtype)
