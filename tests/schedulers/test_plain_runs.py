"""The plain path: the same numbers as the batched engine where both can train, and networks that only it can train."""

# ruff: noqa: NPY002 -- the global generators are the point here

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

import metalr
from metalr.engine.episodes import run_episode
from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import OPTIMIZERS, SGD, Adam
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.plain_runs import PlainRuns, runs_of
from metalr.tasks.losses import accuracy
from metalr.tasks.models import MLP
from metalr.tasks.task import Task
from tests.support.residual_net import residual_net

SEEDS = torch.tensor([4, 0, 7])
INPUTS = torch.randn(90, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = INPUTS[:, :3].argmax(-1)
IMAGES = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))
CLASSES = (IMAGES.mean((1, 2, 3)) > 0).long()
RATES = {"sgd": 0.2, "momentum": 0.05, "nesterov": 0.05, "rmsprop": 0.005, "adagrad": 0.05, "adam": 0.01, "adamw": 0.01}


def mlp_task(optimizer, **changes) -> Task:
    model = changes.pop("model", partial(MLP, [6, 8, 3], torch.tanh))
    settings = {"metric": accuracy, "batch_size": 10, "horizon": 60, "base_lr": 0.1, **changes}
    return Task(model, (INPUTS, LABELS), functional.cross_entropy, optimizer, **settings)


def own_net() -> nn.Module:
    """Weights from torch's own initialisation, hence from the bank."""
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def image_task(**changes) -> Task:
    data = changes.pop("data", (IMAGES, CLASSES))
    settings = {"optimizer": torch.optim.NAdam, "horizon": 40, "base_lr": 0.01, "batch_size": 16, **changes}
    return Task(partial(residual_net, 4, 2), data, functional.cross_entropy, plain=True, **settings)


def started(task: Task, seeds: torch.Tensor, dtype=torch.float32) -> PlainRuns:
    runs = PlainRuns(task, len(seeds), dtype=dtype)
    runs.init(seeds)
    return runs


def weights(runs: PlainRuns, run: int) -> torch.Tensor:
    """Parameters and running statistics of a run."""
    return torch.cat([value.flatten().double() for value in runs.module_of(run).state_dict().values()])


# The batched engine and the plain path


@pytest.mark.parametrize("model", [partial(MLP, [6, 8, 3], torch.tanh), own_net], ids=["seeded", "bank"])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, SGD(momentum=0.9, clip_norm=0.1), Adam(weight_decay=0.1)], ids=str)
def test_both_paths_agree(optimizer, model):
    task = mlp_task(optimizer, model=model, base_lr=RATES.get(optimizer, 0.02))
    batched = BatchedRuns(task, 3, dtype=torch.float64)
    plain = runs_of(task.with_(plain=True), 3, dtype=torch.float64)
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    for runs in (batched, plain):
        runs.init(SEEDS)
    rates = task.base_lr * torch.rand(51, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    close(plain.probe(rates[0]), batched.probe(rates[0]))
    for start in range(0, 51, 17):
        lr = rates[start : start + 17]
        measured, expected = plain.unroll(lr, 17), batched.unroll(lr, 17)
        for name, own, theirs in zip(measured._fields, measured, expected, strict=True):
            close(own, theirs, msg=lambda text, name=name: f"{name}: {text}")
        for split in ("train", "valid"):
            close(plain.evaluate(split, 50), batched.evaluate(split, 50))
    for run in range(3):
        close(plain.module_of(run).state_dict(), batched.module_of(run).state_dict())


def test_runs_started_anew_agree_too():
    task = mlp_task("adam")
    batched, plain = BatchedRuns(task, 3, dtype=torch.float64), started(task.with_(plain=True), SEEDS, torch.float64)
    batched.init(SEEDS)
    for runs in (batched, plain):
        runs.unroll(torch.full((3,), 0.01), 5)
        runs.reset_runs(torch.tensor([False, True, False]), torch.tensor([99, 12, 99]))
    torch.testing.assert_close(plain.seeds, torch.tensor([4, 12, 7]))
    measured, expected = plain.unroll(torch.full((3,), 0.01), 5), batched.unroll(torch.full((3,), 0.01), 5)
    torch.testing.assert_close(measured, expected, rtol=1e-10, atol=1e-10)


def test_a_run_that_diverges_is_frozen_at_the_same_step():
    task, lr, found = mlp_task("sgd"), torch.tensor([0.1, 1e9, 0.1]), []
    for runs in (BatchedRuns(task, 3, dtype=torch.float64), PlainRuns(task.with_(plain=True), 3, dtype=torch.float64)):
        runs.init(SEEDS)
        found.append([*runs.unroll(lr, 12)[:5], *runs.unroll(lr, 12)[:5], runs.module_of(1).state_dict()])
        assert runs.diverged.tolist() == [False, True, False]
        assert runs.evaluate("train").loss.isinf().tolist() == [False, True, False]
    torch.testing.assert_close(*found, equal_nan=True)


# Networks that only the plain path can train


class Shaken(Dataset):
    """Images with augmentation from all three global generators."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        shift = 0.1 * (random.random() + np.random.random() + torch.rand(()).item())
        return IMAGES[index] + shift, CLASSES[index]


SOURCES = {
    "tensors": lambda: (IMAGES, CLASSES),
    "dataset": Shaken,
    "loader": lambda: DataLoader(Shaken(), 16, shuffle=True),
    "loader with a generator": lambda: DataLoader(Shaken(), 16, shuffle=True, generator=torch.Generator()),
    "loader with workers": lambda: DataLoader(Shaken(), 16, shuffle=True, num_workers=1),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_run_depends_on_its_own_seed_only(source):
    """Batch normalisation, dropout, shuffling and augmentation: the same bits whatever else is drawn or trained."""
    task, lr = image_task(data=SOURCES[source]()), torch.full((3,), 0.01)
    first = started(task, SEEDS)
    first.unroll(lr, 4)
    first.unroll(lr, 5)
    torch.rand(3)
    again = started(task, SEEDS.flip(0))
    again.probe(lr[:, None])  # changes nothing
    again.unroll(lr, 4)
    np.random.random(), random.random()
    again.evaluate("valid")
    again.unroll(lr * torch.tensor([1.0, 9.0, 1.0]), 5)
    assert torch.equal(weights(first, 0), weights(again, 2))
    assert torch.equal(weights(first, 2), weights(again, 0))
    assert not torch.equal(weights(first, 1), weights(again, 1))
    assert not torch.equal(weights(first, 0), weights(first, 2))


def test_the_global_generators_stay_as_they_are():
    def drawn() -> list[float]:
        return [torch.rand(()).item(), np.random.random(), random.random()]

    def seed() -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    seed()
    expected = drawn()
    seed()
    runs = started(image_task(data=DataLoader(Shaken(), 16, shuffle=True)), SEEDS)
    runs.probe(torch.full((3, 1), 0.01))
    runs.unroll(torch.full((3,), 0.01), 2)
    runs.evaluate("train")
    assert drawn() == expected


def test_a_network_trains_in_one_mode_and_is_evaluated_in_the_other():
    runs = started(image_task(), SEEDS[:1])
    means = [name for name in runs.module_of(0).state_dict() if name.endswith("running_mean")]
    before = runs.evaluate("train")
    assert torch.equal(runs.evaluate("train").loss, before.loss)  # no dropout, no batch statistics
    runs.unroll(torch.tensor([0.01]), 20)
    assert all(runs.module_of(0).state_dict()[name].abs().sum() > 0.0 for name in means)
    module = runs.module_of(0).eval()
    with torch.no_grad():
        expected = functional.cross_entropy(module(IMAGES), CLASSES)
    torch.testing.assert_close(runs.evaluate("train").loss[0], expected.double(), rtol=1e-5, atol=0.0)
    assert runs.runs[0].module.training


def test_a_dataset_gives_the_examples_of_its_tensors():
    tensors, dataset = (image_task(data=data) for data in ((IMAGES, CLASSES), TensorDataset(IMAGES, CLASSES)))
    found = [started(task, SEEDS[:2]) for task in (tensors, dataset)]
    for runs in found:
        runs.unroll(torch.full((2,), 0.01), 5)
    assert torch.equal(weights(found[0], 1), weights(found[1], 1))
    assert torch.equal(found[0].evaluate("valid", 20).loss, found[1].evaluate("valid", 20).loss)


def test_parameter_groups_keep_the_ratio_of_their_lrs():
    def two_groups(params, lr):
        first, *rest = params
        return torch.optim.SGD([{"params": [first], "lr": 0.1 * lr}, {"params": rest}], lr=lr)

    runs = started(mlp_task(two_groups, plain=True), SEEDS[:1])
    before = list(runs.module_of(0).parameters())
    runs.probe(torch.tensor([[0.3]]))
    gradients = [p.grad.clone() for p in runs.runs[0].module.parameters()]
    runs.unroll(torch.tensor([[[0.3]], [[0.0]]]), 2)
    after = list(runs.module_of(0).parameters())
    for ratio, old, new, gradient in zip((0.1, 1.0, 1.0, 1.0), before, after, gradients, strict=True):
        torch.testing.assert_close(new, old - 0.3 * ratio * gradient)


def test_a_network_with_a_recurrent_layer():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, inputs):
            return self.out(self.cell(inputs[:, None].float())[0][:, -1])

    with pytest.raises(ValueError, match=r"recurrent layers.*or pass plain=True"):
        mlp_task("adam", model=Reader)
    runs = started(mlp_task("adam", model=Reader, plain=True), SEEDS[:1])
    before = runs.evaluate("train").loss
    runs.unroll(torch.tensor([0.01]), 60)
    assert runs.evaluate("train").loss < 0.7 * before


# Controllers


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.NAdam], ids=["known", "unknown"])
def test_a_plain_loop_sets_the_lrs_of_the_plain_path(optimizer):
    """The shipped controller on a residual network with batch normalisation and dropout, here and in a user's loop."""
    task, controller = image_task(optimizer=optimizer), metalr.load_controller("general")
    episode = run_episode(controller, PlainRuns(task, 1), SEEDS[:1], torch.tensor([0.003]))
    run = started(task, SEEDS[:1]).runs[0]
    own = optimizer(run.module.parameters(), lr=0.003)
    scheduler, rates = LearnedLR(own, controller, task.horizon), []
    own.register_step_post_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    zero = torch.zeros(1, dtype=torch.int64)
    with run.randomness.in_force():
        for inputs, targets in run.data.batches(run.seed, run.variant, zero, task.horizon, task.batch_size):
            own.zero_grad()
            loss = task.loss(run.module(inputs[0]), targets[0])
            loss.backward()
            scheduler.observe(loss)
            own.step()
            scheduler.step()
    assert len(episode.multipliers.unique()) > 10
    torch.testing.assert_close(torch.tensor(rates), episode.lr[:, 0, 0].float(), rtol=1e-4, atol=0.0)


# Errors


def test_what_the_plain_path_cannot_do_is_refused():
    task = image_task()
    with pytest.raises(ValueError, match=r"got runs that have not been started, expected init\(seeds\)"):
        PlainRuns(task, 2).unroll(torch.full((2,), 0.1), 2)
    with pytest.raises(ValueError, match="got groups 'module' and compile False with a task on the plain path"):
        runs_of(task, 2, groups="module")
    with pytest.raises(ValueError, match="got groups 'global' and compile True"):
        runs_of(task, 2, compile=True)
    with pytest.raises(ValueError, match="with plain=True, whose runs cannot advance in one batch"):
        BatchedRuns(task, 2)
    with pytest.raises(ValueError, match=r"got num_steps 1, expected at least 2"):
        started(task, SEEDS).unroll(torch.full((3,), 0.1), 1)
    with pytest.raises(ValueError, match=r"got a loss of shape \(16,\) for a batch, expected a scalar"):
        started(task.with_(loss=partial(functional.cross_entropy, reduction="none")), SEEDS).probe(torch.ones(3, 1))
