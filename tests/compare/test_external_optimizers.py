"""Optimizers of other packages: against a plain loop over the user's module, and in a comparison."""

import builtins
import importlib

import pytest
import torch
from torch import nn

from metalr.compare.catalog import EXTERNAL_CONTENDERS
from metalr.compare.comparison import compare
from metalr.compare.contenders import Kind
from metalr.compare.external_optimizers import EXTERNAL_OPTIMIZERS, LoneRun, make_optimizer
from metalr.compare.results import result_table
from metalr.compare.selection import Criterion
from metalr.compare.settings import Settings
from metalr.engine.runs import BatchedRuns
from metalr.tasks.catalog import make_task


def optimizer_for(name: str) -> str:
    """An inner optimizer that the external one is a variant of."""
    return {"SGD": "momentum", "Adam": "adam"}[EXTERNAL_OPTIMIZERS[name].inner]


def started(seed: int = 3, **changes) -> BatchedRuns:
    runs = BatchedRuns(make_task("teacher-student", horizon=20, **changes), 1, dtype=torch.float64)
    runs.init(torch.tensor([seed]))
    return runs


@pytest.fixture(params=EXTERNAL_OPTIMIZERS)
def name(request) -> str:
    pytest.importorskip(EXTERNAL_OPTIMIZERS[request.param].package)
    return request.param


def test_a_lone_run_is_a_plain_loop(name: str) -> None:
    runs = started()
    model = runs.module_of(0)
    optimizer = make_optimizer(name, list(model.parameters()), 0.1 * EXTERNAL_OPTIMIZERS[name].base_lr)
    switch = getattr(optimizer, "train", None)
    if switch:
        switch()
    entry = EXTERNAL_OPTIMIZERS[name]
    averager = importlib.import_module(entry.package).PolynomialDecayAverager(model) if entry.averager else None
    losses = []
    batches = runs.data.batches(runs.seeds, runs.variants, runs.state.step, 20, runs.task.batch_size)
    for step, (inputs, targets) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.1 * entry.base_lr * entry.schedule(step / 20)
        optimizer.zero_grad()
        loss = runs.task.loss(model(inputs[0]), targets[0])
        loss.backward()
        optimizer.step(**({"loss": loss} if entry.takes_loss else {}))
        if averager:
            averager.step()
        losses.append(loss.item())
    if switch:
        optimizer.eval()

    lone = LoneRun(runs, name, 0.1 * EXTERNAL_OPTIMIZERS[name].base_lr)
    means = [lone.unroll(10), lone.unroll(10)]
    assert means == pytest.approx([sum(losses[:10]) / 10, sum(losses[10:]) / 10], rel=1e-9)
    trained = runs.module_of(0).state_dict()
    expected = averager.averaged_model if averager else model
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(trained[key], value, rtol=1e-9, atol=1e-12)
    assert int(runs.state.step) == 20


def test_evaluation_in_between_changes_nothing(name: str) -> None:
    whole, parts = started(), started()
    LoneRun(whole, name, 0.01).unroll(20)
    lone = LoneRun(parts, name, 0.01)
    for _ in range(10):
        lone.unroll(2)
        parts.evaluate("valid")
    torch.testing.assert_close(whole.state.params, parts.state.params, rtol=1e-12, atol=1e-12)


def test_a_diverged_run_is_marked_and_stops(name: str) -> None:
    runs = started()
    lone = LoneRun(runs, name, 1e12)
    if EXTERNAL_OPTIMIZERS[name].takes_loss:  # a Polyak step caps the LR
        assert lone.unroll(20) < float("inf")
        return
    assert lone.unroll(20) == float("inf")
    assert runs.state.diverged.all()
    assert lone.unroll(20) == float("inf")


def test_clipping_is_the_tasks_own(name: str) -> None:
    task = make_task("teacher-student")
    free, clipped = started(), started(optimizer=task.optimizer.__class__(clip_norm=1e-3))
    for runs in (free, clipped):
        LoneRun(runs, name, EXTERNAL_OPTIMIZERS[name].base_lr).unroll(5)
    assert not torch.equal(free.state.params, clipped.state.params)


def test_in_a_comparison_with_the_same_number_of_trials(name: str, tmp_path) -> None:
    task = make_task("teacher-student", horizon=150, optimizer=optimizer_for(name))
    settings = Settings(contenders=("cosine", name), trials=3, tuning_seeds=1, report_seeds=2, factors=(0.1,))
    comparison = compare([task, make_task("noisy-quadratic", horizon=20)], tmp_path, settings)
    rows = {row.contender: row for row in result_table(comparison.records, "teacher-student", Criterion.TRAIN)}
    assert rows[name].kind is Kind.EXTERNAL
    own = [r for r in comparison.records if r.contender == name]
    assert len([r for r in own if r.phase == "tuning"]) == 3
    assert {r.task for r in own} == {"teacher-student"}  # the other task has no weights for it to train
    assert min(r.train_loss for r in own) < 0.9 * own[0].untrained_loss
    curve = next(c for key, c in comparison.curves.items() if name in key)
    assert len(curve.train_loss) == len(curve.valid_loss) == len(curve.step)
    steps = [0, *curve.step[:-1]]
    schedule = EXTERNAL_OPTIMIZERS[name].schedule
    assert curve.lr == pytest.approx([curve.lr[0] * schedule(step / 150) for step in steps], rel=1e-5)


def test_a_missing_package_is_named(monkeypatch) -> None:
    there = builtins.__import__
    monkeypatch.setattr("importlib.import_module", lambda package: there("no_such_package_of_" + package))
    with pytest.raises(
        ImportError, match=r"prodigy needs the package 'prodigyopt': pip install 'metalr\[optimizers\]'"
    ):
        make_optimizer("prodigy", [nn.Parameter(torch.ones(1))], 1.0)


def test_registered_under_the_same_names() -> None:
    assert list(EXTERNAL_CONTENDERS) == list(EXTERNAL_OPTIMIZERS)
