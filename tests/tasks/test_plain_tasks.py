"""A user's own task: torch's optimizers, datasets and networks, and refusals that name the plain path."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import SGD, Adagrad, Adam, AdamW, RMSprop
from metalr.optimizers.own import OwnOptimizer
from metalr.tasks.catalog import make_task
from metalr.tasks.models import MLP
from metalr.tasks.task import Task

INPUTS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > INPUTS[:, 1]).long()


def own_task(model=partial(MLP, [4, 8, 2]), **changes) -> Task:  # noqa: B008 - not mutated
    return Task(model, changes.pop("data", (INPUTS, LABELS)), functional.cross_entropy, **{"horizon": 20, **changes})


def noisy_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.optim.SGD, SGD()),
        (partial(torch.optim.SGD, momentum=0.8, nesterov=True), SGD(momentum=0.8, nesterov=True)),
        (partial(torch.optim.RMSprop, alpha=0.9), RMSprop(decay=0.9)),
        (torch.optim.Adagrad, Adagrad()),
        (partial(torch.optim.Adam, betas=(0.8, 0.99), weight_decay=0.1), Adam(0.1, None, 0.8, 0.99)),
        (partial(torch.optim.AdamW, weight_decay=0.2, lr=7.0), AdamW(weight_decay=0.2)),
        (OwnOptimizer(factory=torch.optim.Adam, clip_norm=0.5), Adam(clip_norm=0.5)),
    ],
    ids=lambda value: value.__class__.__name__,
)
def test_a_class_of_torch_with_its_arguments_is_the_engines_own_optimizer(given, expected):
    assert own_task(optimizer=given).optimizer == expected
    assert own_task(optimizer=given, plain=True).with_(plain=False).optimizer == expected


@pytest.mark.parametrize(
    "given", [torch.optim.NAdam, partial(torch.optim.Adam, amsgrad=True), partial(torch.optim.SGD, dampening=0.5)]
)
def test_an_optimizer_without_a_formula_names_the_plain_path(given):
    with pytest.raises(
        ValueError, match=r"got the optimizer OwnOptimizer\(.*no formula, expected .*or pass plain=True"
    ):
        own_task(optimizer=given)
    assert own_task(optimizer=given, plain=True).optimizer == OwnOptimizer(factory=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), r"got a SGD of one network, expected .*functools\.partial"),
        (lambda: None, r"got OwnOptimizer\(.*\), which cannot be called as optimizer\(params, lr=0\.1\)"),
        (7, "got optimizer 7, expected a registered one"),
    ],
)
def test_an_optimizer_that_is_none_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        own_task(optimizer=given)


def test_the_plain_path_checks_its_optimizer_and_loader():
    with pytest.raises(ValueError, match=r"got a list from the optimizer, expected a torch.optim.Optimizer"):
        own_task(optimizer=lambda params, lr: [lr], plain=True)
    with pytest.raises(ValueError, match=r"ExpectedSGD.*, without plain=True"):
        make_task("noisy-quadratic", plain=True)
    loader = DataLoader(TensorDataset(INPUTS, LABELS), 8, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match=r"got a DataLoader with persistent_workers=True, expected .*: set"):
        own_task(data=loader, plain=True)
    with pytest.raises(ValueError, match="got a network without parameters"):
        own_task(nn.Tanh, plain=True)
    with pytest.raises(ValueError, match=r"got weight_decay 0\.1, expected 0 here: pass it to the optimizer itself"):
        OwnOptimizer(weight_decay=0.1)


def test_what_cannot_be_batched_names_the_plain_path_which_takes_it():
    with pytest.raises(ValueError, match=r"BatchNorm1d at '1'.*or pass plain=True to train one run at a time, slower"):
        own_task(noisy_net)
    with pytest.raises(ValueError, match=r"got a Dataset, expected .* two tensors: stack them, or pass plain=True"):
        own_task(data=TensorDataset(INPUTS, LABELS))
    assert own_task(noisy_net, data=TensorDataset(INPUTS, LABELS), plain=True).num_params == 74


@pytest.mark.parametrize("plain", [False, True])
def test_every_run_starts_from_the_weights_of_a_given_network(plain):
    net = nn.Linear(4, 2)
    task = own_task(net, plain=plain)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net.weight.zero_()  # the task has its own copy
    for value, wanted in zip(task.build().state_dict().values(), expected.values(), strict=True):
        assert torch.equal(value, wanted)
    assert torch.equal(task.with_(horizon=30).initial_weights["weight"], expected["weight"])
    other = task.with_(model=nn.Linear(4, 2))
    assert torch.equal(other.initial_weights["weight"], other.build().weight)
    assert task.with_(model=partial(MLP, [4, 8, 2])).initial_weights is None


def test_given_weights_start_batched_runs():
    net = nn.Linear(4, 2)
    runs = BatchedRuns(own_task(net), 3)
    runs.init(torch.arange(3))
    assert all(torch.equal(runs.module_of(run).weight, net.weight) for run in range(3))


def test_an_optimizer_of_ones_own_reads_the_same_in_every_process():
    def own(params, lr):
        return torch.optim.SGD(params, lr)

    assert repr(OwnOptimizer(factory=own)).startswith("OwnOptimizer(test_an_optimizer_of_ones_own")
    assert " at 0x" not in repr(OwnOptimizer(factory=partial(own, nesterov=True)))
