"""One contract for all routes: losses and gradients are those of a plain autograd loop, for every kind of task."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from metalr.engine.compilation import compiled
from metalr.engine.evaluation import Evaluator
from metalr.engine.gradients import ROUTES, Route, choose_route
from metalr.engine.runs import BatchedRuns
from metalr.engine.step import UnmaskedStep
from metalr.optimizers.classic import SGD, Adam
from metalr.tasks.catalog import TASKS, make_task
from metalr.tasks.losses import ScaledLoss
from metalr.tasks.models import MLP
from metalr.tasks.task import Task
from metalr.trees import leaves
from tests.engine.test_executors import NETWORKS, Tied, inputs_of, started, task_of

SEEDS = torch.tensor([3, 1, 4])
EXACT = {"rtol": 1e-12, "atol": 1e-12}


class Subclass(MLP):
    """One of the library's own networks, changed so that it looks at the whole minibatch."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        return outputs - outputs.mean(0)


class PartlyUnused(nn.Module):
    """A layer that the outputs do not depend on, beside a buffer on which they do."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(12, 3), nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * self.used(inputs)


def own_network() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 8), nn.GroupNorm(2, 8), nn.GELU(), nn.Linear(8, 3))


def partly_frozen() -> nn.Module:
    """A network that could take many runs if all of it were trained."""
    module = MLP([12, 6, 3], torch.tanh)
    module.layers[0].bias.requires_grad_(False)
    return module


def task_with_targets(loss, targets_of) -> Task:
    inputs = inputs_of("mlp", 40)
    return Task(NETWORKS["mlp"][0], (inputs, targets_of(inputs[:, :3])), loss)


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.nll_loss(outputs.sin(), targets).exp()


SMALLER = {
    "noisy-quadratic": {"dimensions": 7},
    "digits-mlp": {"width": 5},
    "digits-cnn": {"width": 4},
    "mnist1d-mlp": {"width": 5},
    "mnist1d-cnn": {"width": 4, "depth": 2},
    "teacher-student": {"width": 5, "num_variants": 3},
    "bytes-transformer": {"width": 8, "depth": 1, "length": 6},
}
KINDS = {
    # All but the one whose data are not shipped.
    **{name: partial(make_task, name, **SMALLER.get(name, {})) for name in TASKS if name != "cifar10-cnn"},
    **{f"network: {name}": partial(task_of, name) for name in NETWORKS},
    "network: own": partial(task_of, model=own_network),
    "network: subclass": partial(task_of, model=partial(Subclass, [12, 6, 3], torch.tanh)),
    "weights: tied and frozen": partial(task_of, model=Tied),
    "weights: frozen": partial(task_of, model=partly_frozen),
    "weights: unused": partial(task_of, model=PartlyUnused),
    "loss: own": partial(task_of, loss=own_loss),
    "loss: mse": partial(task_with_targets, functional.mse_loss, torch.sin),
    "loss: smooth l1": partial(task_with_targets, functional.smooth_l1_loss, torch.exp),
    "loss: scaled": partial(task_of, loss=ScaledLoss(functional.cross_entropy, 3.0)),
    "loss: scaled, own": partial(task_of, loss=ScaledLoss(own_loss, 0.5)),
    "loss: cross entropy of probabilities": partial(
        task_with_targets, functional.cross_entropy, partial(torch.softmax, dim=-1)
    ),
    "loss: constant": partial(task_of, loss=lambda outputs, targets: targets.double().mean()),
    "clipped": partial(task_of, optimizer=SGD(clip_norm=0.1)),
    "clipped: own network": partial(task_of, model=own_network, optimizer=replace(Adam(), clip_norm=1e-3)),
}
# Losses that are linear in the weights, or do not depend on them.
WITHOUT_CURVATURE = ("noisy-quadratic", "loss: constant")
# A second or so each; the others are slow tests.
COMPILED_QUICKLY = ("network: mlp", "network: own", "weights: tied and frozen", "clipped")


def make(kind: str, num_runs: int) -> BatchedRuns:
    """Runs of a kind of task whose weights differ, in a layout whose order is not that of the network."""
    package = {"digits": "sklearn", "mnist1d": "mnist1d"}.get(kind.partition("-")[0])
    if package:
        pytest.importorskip(package)
    task = KINDS[kind]().with_(batch_size=4)
    names = [name for name, p in task.build().named_parameters() if p.requires_grad][::-1]
    runs = started(task, SEEDS[:num_runs], groups=[names[:1], names[1:]] if names[1:] else "global")
    noise = torch.randn(runs.state.params.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    runs.state = runs.state._replace(params=runs.state.params + 0.1 * noise)
    return runs


def batch_of(runs: BatchedRuns) -> tuple[Tensor, Tensor]:
    state = runs.state
    return next(iter(runs.data.batches(runs.seeds, runs.variants, state.step, 1, runs.task.batch_size)))


def plain_modules(runs: BatchedRuns):
    """A module of each run, as a user would have it."""
    for row in runs.state.params:
        module = copy.deepcopy(runs.module)
        named = dict(module.named_parameters())
        for name, weight in runs.layout.unflatten(row).items():
            named[name].data.copy_(weight)
        yield module


def by_definition(runs: BatchedRuns, batch) -> tuple[Tensor, Tensor]:
    """Clipped gradient and loss, run by run, by `backward()`."""
    gradients, losses = [], []
    for module, inputs, targets in zip(plain_modules(runs), *batch, strict=True):
        loss = runs.task.loss(module(inputs), targets)
        if loss.requires_grad:
            loss.backward()
        if runs.task.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), runs.task.optimizer.clip_norm)
        found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in module.named_parameters()}
        gradients.append(runs.layout.flatten(found))
        losses.append(loss.detach())
    return torch.stack(gradients), torch.stack(losses)


def curvature_by_definition(runs: BatchedRuns, batch, direction: Tensor) -> Tensor:
    """Second derivative of each run's loss along a direction, `(num_runs, num_params)`."""
    rows = []
    for module, inputs, targets, along in zip(plain_modules(runs), *batch, direction, strict=True):
        weights = dict(module.named_parameters())
        trained = [weights[name] for name in runs.layout.names]
        loss = runs.task.loss(module(inputs), targets)
        options = {"allow_unused": True, "materialize_grads": True}
        gradient = torch.autograd.grad(loss, trained, create_graph=True, **options)
        slope = sum((g * d).sum() for g, d in zip(gradient, runs.layout.pieces(along), strict=True))
        found = torch.autograd.grad(slope, trained, **options)
        rows.append(runs.layout.flatten(dict(zip(runs.layout.names, found, strict=True))))
    return torch.stack(rows)


def routes_of(runs: BatchedRuns) -> list[Route]:
    """Every route that applies."""
    if runs.num_runs == 1:
        return [route for route in ROUTES if route.network == "alone"]
    kinds = ("vmap", "together") if runs.step.losses.takes_runs else ("vmap",)
    return [route for route in ROUTES if route.network in kinds]


def test_each_route_is_the_choice_for_some_runs():
    chosen = {choose_route(n, takes, differentiable) for n in (1, 3) for takes in (0, 1) for differentiable in (0, 1)}
    assert chosen == set(ROUTES)
    assert choose_route(1, True, False) == Route("alone", "row")
    assert choose_route(2, True, True) == Route("together", "func")


def test_the_kinds_of_task_go_through_every_route():
    gone = {route for kind in ("network: mlp", "network: own") for n in (1, 3) for route in routes_of(make(kind, n))}
    assert gone == set(ROUTES)
    assert all(make(f"network: {name}", 3).step.losses.takes_runs for name in NETWORKS)
    others = ("network: own", "network: subclass", "weights: frozen", "weights: tied and frozen")
    assert not any(make(kind, 3).step.losses.takes_runs for kind in others)


@pytest.mark.parametrize("num_runs", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_route_gives_the_gradient_of_a_plain_loop(kind, num_runs):
    runs = make(kind, num_runs)
    batch, losses, params = batch_of(runs), runs.step.losses, runs.state.params
    before = list(runs.module.parameters())
    gradient, loss = by_definition(runs, batch)
    for route in routes_of(runs):
        with torch.set_grad_enabled(route.gradient == "func"):
            found, found_loss = losses.gradient(params, batch, route)
            losses.gradient(params + 1.0, batch, route)  # changes neither what was found nor what comes next
            kept = found.clone()
            again, _ = losses.gradient(params, batch, route)
        clipped = runs.task.optimizer.clip(kept)
        torch.testing.assert_close(clipped, gradient, **EXACT, msg=lambda m, route=route: f"{route}: {m}")
        torch.testing.assert_close(found_loss, loss, **EXACT, msg=lambda m, route=route: f"{route}: {m}")
        assert torch.equal(kept, again), route
        assert not found.requires_grad
        assert not found_loss.requires_grad
    torch.testing.assert_close(losses(params, *batch), loss, **EXACT)
    assert all(a is b for a, b in zip(runs.module.parameters(), before, strict=True))


@pytest.mark.parametrize("num_runs", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_step_takes_the_same_gradient_with_and_without_a_graph(kind, num_runs):
    runs = make(kind, num_runs)
    batch = batch_of(runs)
    expected = by_definition(runs, batch)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            found = runs.step.gradient_and_loss(runs.state.params, batch)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("num_runs", [1, 3])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITHOUT_CURVATURE])
def test_a_differentiable_route_has_the_second_derivative_of_a_plain_loop(kind, num_runs):
    runs = make(kind, num_runs)
    batch, params = batch_of(runs), runs.state.params.clone().requires_grad_()
    direction = torch.randn(params.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = curvature_by_definition(runs, batch, direction)
    for route in routes_of(runs):
        if route.gradient == "func":
            slope = (runs.step.losses.gradient(params, batch, route)[0] * direction).sum()
            found = torch.autograd.grad(slope, params, allow_unused=True, materialize_grads=True)[0]
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("num_runs", [1, 3])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in COMPILED_QUICKLY else pytest.mark.slow) for kind in KINDS]
)
def test_the_compiled_step_has_the_gradient_of_a_plain_loop(kind, num_runs, monkeypatch):
    """By the compiler's front end, which decides what is computed; its kernels are tested with the executors."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=False))
    runs = make(kind, num_runs)
    batch, lr = batch_of(runs), torch.full((num_runs, runs.layout.num_groups), 1e-3, dtype=torch.float64)
    with torch.no_grad():
        found = compiled(runs.step)(runs.state, batch, lr)
        expected = runs.step(runs.state, batch, lr)
    gradient, loss = by_definition(runs, batch)
    torch.testing.assert_close(found[1:], (loss, gradient), rtol=0.0, atol=1e-10)
    for a, b in zip(leaves(found[0]), leaves(expected[0]), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_every_evaluation_is_that_of_a_plain_module(kind):
    runs = make(kind, 3)
    (inputs, targets), losses, metric = batch_of(runs), runs.step.losses, runs.task.metric
    outputs = [module(x).detach() for module, x in zip(plain_modules(runs), inputs, strict=True)]
    loss = torch.stack([runs.task.loss(*pair) for pair in zip(outputs, targets, strict=True)])
    known = [metric(*pair) if metric else torch.tensor(torch.nan) for pair in zip(outputs, targets, strict=True)]
    for takes_runs in {losses.takes_runs, False}:
        losses.takes_runs = takes_runs
        for at_once in (1, 3):
            evaluator = Evaluator(losses, runs.data, at_once)
            with torch.no_grad():
                found = evaluator.of_batch(runs.state.params, inputs, targets)
            torch.testing.assert_close(found.loss, loss, **EXACT)
            torch.testing.assert_close(found.metric.double(), torch.stack(known).double(), **EXACT, equal_nan=True)


@pytest.mark.parametrize("num_runs", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_without_masks_is_the_step_to_the_bit(kind, num_runs):
    runs = make(kind, num_runs)
    lr = torch.full((num_runs, runs.layout.num_groups), 1e-3, dtype=torch.float64)
    state, unmasked = runs.state, UnmaskedStep(runs.step)
    with torch.no_grad():
        for batch in runs.data.batches(runs.seeds, runs.variants, state.step, 3, 4):
            quick, expected = unmasked(state, batch, lr), runs.step(state, batch, lr)
            assert unmasked.healthy
            assert all(torch.equal(a, b) for a, b in zip(leaves(quick), leaves(expected), strict=True))
            state = expected[0]


def test_tied_weights_have_one_place_in_the_row_and_stay_tied():
    runs = started(task_of(model=Tied))
    assert runs.layout.names == ["first.weight", "head.bias"]
    before = runs.state.params
    runs.unroll(torch.full((5,), 0.01), 6)
    assert (runs.state.params != before).any(-1).all()
    module = runs.module_of(0)
    assert module.second.weight is module.first.weight
    assert torch.equal(module.first.weight.flatten(), runs.state.params[0, :144])


def test_a_network_that_fails_gets_its_own_weights_back():
    runs = make("network: mlp", 3)
    before = list(runs.module.parameters())
    inputs, targets = batch_of(runs)
    with torch.no_grad(), pytest.raises(RuntimeError):
        runs.step.gradient_and_loss(runs.state.params, (inputs[..., :5], targets))
    assert all(a is b for a, b in zip(runs.module.parameters(), before, strict=True))
