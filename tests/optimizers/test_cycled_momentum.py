"""A cycled momentum in the engine is the one of torch's `OneCycleLR` and `CyclicLR` around torch's own optimizers."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.nn import functional
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from metalr.control.lr import interval_lr
from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import SGD, Adam, AdamW, InnerOptimizer, RMSprop
from metalr.optimizers.wrappers import CycledMomentum
from metalr.schedules import Cyclic, OneCycle, Schedule
from metalr.tasks.models import MLP
from metalr.tasks.task import Task

HORIZON, SEEDS = 60, torch.tensor([4, 2, 9])
INNER = {
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=0.5),
    "adam": Adam(weight_decay=0.01),
    "adamw": AdamW(beta2=0.99, weight_decay=0.1),
}
MOMENTA = {"base_momentum": 0.7, "max_momentum": 0.98}
SCHEDULES: dict[str, Schedule] = {
    "one-cycle": OneCycle(steps=HORIZON, **MOMENTA),
    "cyclic": Cyclic(up=7 / HORIZON, down=13 / HORIZON, **MOMENTA),
}


def peak(inner: InnerOptimizer) -> float:
    return 0.1 if isinstance(inner, SGD) else 0.01


def task_of(optimizer: InnerOptimizer) -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 5, generator=generator)
    targets = inputs[:, :3].argmax(1)
    model = partial(MLP, [5, 8, 3], torch.tanh)
    return Task(model, (inputs, targets), functional.cross_entropy, optimizer, batch_size=8, horizon=HORIZON)


def cycled(inner: InnerOptimizer, schedule: Schedule) -> CycledMomentum:
    return CycledMomentum(inner=inner, schedule=schedule, horizon=HORIZON)


def engine_run(inner: InnerOptimizer, schedule: Schedule, **options) -> BatchedRuns:
    runs = BatchedRuns(task_of(cycled(inner, schedule)), len(SEEDS), dtype=torch.float64, **options)
    runs.init(SEEDS)
    base = torch.full((len(SEEDS),), peak(inner), dtype=torch.float64)
    like, zero = torch.ones(len(SEEDS), 1), torch.zeros(len(SEEDS), dtype=torch.int64)
    lr = interval_lr(schedule, base, like, zero, HORIZON, HORIZON)
    for start in range(0, HORIZON, 20):  # the count goes on from one interval to the next
        runs.unroll(lr[start : start + 20].to(runs.device), 20)
    return runs


def torch_scheduler(name: str, optimizer: torch.optim.Optimizer, lr: float):
    if name == "one-cycle":
        return OneCycleLR(optimizer, max_lr=lr, total_steps=HORIZON, cycle_momentum=True, **MOMENTA)
    return CyclicLR(optimizer, 0.1 * lr, lr, step_size_up=7, step_size_down=13, cycle_momentum=True, **MOMENTA)


def torch_run(inner: InnerOptimizer, name: str, seed: int) -> torch.Tensor:
    """The weights of a plain loop from the same weights with the same minibatches."""
    task = task_of(inner)
    engine = BatchedRuns(task, 1, dtype=torch.float64)
    engine.init(torch.tensor([seed]))
    module = engine.module_of(0)
    optimizer = inner.to_torch(module.parameters(), peak(inner))
    scheduler = torch_scheduler(name, optimizer, peak(inner))
    batches = engine.data.batches(engine.seeds, engine.variants, torch.zeros(1, dtype=torch.int64), HORIZON, 8)
    for step, (inputs, targets) in enumerate(batches, 1):
        optimizer.zero_grad()
        task.loss(module(inputs[0]), targets[0]).backward()
        if inner.clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), inner.clip_norm)
        optimizer.step()
        if step < HORIZON:
            scheduler.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("inner", INNER)
def test_it_is_torchs_to_the_last_digits(inner: str, schedule: str) -> None:
    runs = engine_run(INNER[inner], SCHEDULES[schedule])
    for row, seed in zip(runs.state.params, SEEDS.tolist(), strict=True):
        torch.testing.assert_close(row, torch_run(INNER[inner], schedule, seed), rtol=0.0, atol=1e-10)
    plain = BatchedRuns(task_of(INNER[inner]), len(SEEDS), dtype=torch.float64)
    plain.init(SEEDS)
    lr = interval_lr(
        SCHEDULES[schedule],
        torch.full((3,), peak(INNER[inner]), dtype=torch.float64),
        torch.ones(3, 1),
        torch.zeros(3, dtype=torch.int64),
        HORIZON,
        HORIZON,
    )
    plain.unroll(lr, HORIZON)
    assert float((plain.state.params - runs.state.params).abs().max()) > 1e-3


def test_a_compiled_step_moves_it_too_and_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=aot_eager))
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        compiled = engine_run(INNER["adamw"], SCHEDULES["one-cycle"], compile=True)
    assert compiled.executor.how == "compiled"
    eager = engine_run(INNER["adamw"], SCHEDULES["one-cycle"])
    torch.testing.assert_close(compiled.state.params, eager.state.params, rtol=0.0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("inner", ["momentum", "adam"])
def test_a_captured_interval_moves_it_too(inner: str) -> None:
    captured = engine_run(INNER[inner], SCHEDULES["one-cycle"], device="cuda")
    assert captured.executor.how.startswith("one graph")
    eager = engine_run(INNER[inner], SCHEDULES["one-cycle"])
    torch.testing.assert_close(captured.state.params.cpu(), eager.state.params, rtol=0.0, atol=1e-9)


def test_what_cannot_be_cycled_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an optimizer with momentum to cycle"):
        cycled(RMSprop(), OneCycle())
    with pytest.raises(ValueError, match="expected an optimizer with momentum to cycle"):
        cycled(SGD(), OneCycle())
    with pytest.raises(ValueError, match="got horizon 0"):
        CycledMomentum(inner=Adam(), schedule=OneCycle(), horizon=0)
    one = torch.ones(1, 1)
    with pytest.raises(NotImplementedError, match="expected an optimizer with momentum"):
        RMSprop().update_at(0.5, one, (one,), one, one, one)
