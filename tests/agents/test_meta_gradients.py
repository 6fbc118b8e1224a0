"""Meta-gradients: every route and backend against each other, and against finite differences."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from metalr.agents import meta_gradients
from metalr.agents.higher_gradients import higher_meta_gradient
from metalr.agents.meta_gradients import meta_gradient
from metalr.engine.runs import BatchedRuns
from metalr.learned.module import MetaVector
from metalr.learned.policies import GRUPolicy, MLPPolicy
from metalr.learned.schedules import ConstantLR, KnotLR, ParameterLR, StepwiseLR
from metalr.optimizers.classic import OPTIMIZERS, SGD, Adam
from metalr.tasks import models
from metalr.tasks.catalog import make_task
from metalr.tasks.task import Task
from tests.support.policies import randomise

HIGHER = pytest.importorskip("higher")
BASE_LR = {"adam": 0.01, "adamw": 0.01, "rmsprop": 0.003, "adagrad": 0.02}
NETS = {
    "mlp": partial(models.MLP, [16, 6, 3], torch.tanh),
    "cnn": partial(models.ConvNet, 1, 1, [8, 8], 3, torch.tanh),
    "gru": partial(models.GRUClassifier, 1, 4, 3),
}


def small_task(net: str = "mlp", optimizer="momentum", horizon: int = 10, **changes) -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(48, 1, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (48,), generator=generator)
    inputs = inputs.transpose(1, 2)[:, :8] if net == "gru" else inputs
    base_lr = changes.pop("base_lr", BASE_LR.get(optimizer, 0.1) if isinstance(optimizer, str) else 0.1)
    loss = functional.cross_entropy
    data, settings = (inputs, targets), {"base_lr": base_lr, "horizon": horizon, "batch_size": 8, **changes}
    return Task(NETS.get(net, net), data, loss, optimizer=optimizer, **settings)


def engine(task: Task, num_runs: int = 2, **options) -> BatchedRuns:
    return BatchedRuns(task, num_runs, dtype=torch.float64, **options)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.norm() > 0.0
    return ((found - expected).norm() / expected.norm()).item()


def some_directions(learned, count: int = 4) -> torch.Tensor:
    """`(count, num_meta)` random directions, where all coordinates would take too long."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, len(MetaVector(learned)), generator=generator, dtype=torch.float64)


def finite_difference(learned, runs, seeds, meta_loss: str, directions=None, width: float = 2e-4) -> torch.Tensor:
    """Central differences at two widths, extrapolated: the error is of fourth order in the width.

    Along every coordinate, or along the rows of `directions`.
    """
    meta = MetaVector(learned)
    centre, result = meta.read(), []
    for direction in torch.eye(len(meta), dtype=torch.float64) if directions is None else directions:
        slopes = []
        for h in (width, 0.5 * width):
            pair = []
            for sign in (1.0, -1.0):
                meta.write(centre + sign * h * direction)
                options = {"route": "truncated", "segment_length": 10**6}
                pair.append(meta_gradient(learned, runs, seeds, meta_loss=meta_loss, **options).loss)
            slopes.append((pair[0] - pair[1]) / (2.0 * h))
        result.append((4.0 * slopes[1] - slopes[0]) / 3.0)
    meta.write(centre)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_routes_and_backends_agree(net, optimizer):
    runs, seeds = engine(small_task(net, optimizer)), torch.arange(2)
    learned = KnotLR(3, [1.0, 0.6, 1.3])
    for meta_loss in ("mean-train", "final-valid"):
        full = meta_gradient(learned, runs, seeds, meta_loss=meta_loss)
        segments = meta_gradient(learned, runs, seeds, meta_loss=meta_loss, route="segments")
        assert relative(segments.vector(), full.vector()) < 1e-8
        assert segments.loss == pytest.approx(full.loss, rel=1e-12)
        if optimizer != "adamw":
            other = meta_gradient(learned, runs, seeds, meta_loss=meta_loss, backend="higher")
            assert relative(other.vector(), full.vector()) < 1e-8
            assert other.loss == pytest.approx(full.loss, rel=1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_full_route_meets_finite_differences(net, optimizer):
    runs, seeds = engine(small_task(net, optimizer, horizon=6)), torch.arange(2)
    learned = KnotLR(2, [1.0, 0.6])
    expected = finite_difference(learned, runs, seeds, "final-valid")
    assert relative(meta_gradient(learned, runs, seeds, meta_loss="final-valid").vector(), expected) < 1e-6


@pytest.mark.parametrize("order", [1, 2])
def test_order_and_clipping_agree_between_backends(order):
    task = small_task(optimizer=SGD(momentum=0.9, clip_norm=0.3, weight_decay=0.01))
    runs, seeds = engine(task), torch.arange(2)
    learned = KnotLR(3)
    results = [meta_gradient(learned, runs, seeds, order=order, backend=b) for b in ("batched", "higher")]
    assert relative(results[1].vector(), results[0].vector()) < 1e-8


def test_first_order_differs_from_second():
    runs, seeds = engine(small_task()), torch.arange(2)
    first, second = (meta_gradient(KnotLR(3), runs, seeds, order=order) for order in (1, 2))
    assert first.loss == second.loss
    assert 1e-4 < relative(first.vector(), second.vector()) < 1.0


@pytest.mark.parametrize("groups", ["module", "global"])
def test_one_lr_for_each_layer(groups):
    runs = engine(small_task(horizon=4), groups=groups)
    learned = StepwiseLR(4, runs.layout.num_groups)
    seeds = torch.arange(2)
    full = meta_gradient(learned, runs, seeds)
    assert relative(full.vector(), finite_difference(learned, runs, seeds, "mean-train")) < 1e-6
    assert relative(meta_gradient(learned, runs, seeds, backend="higher").vector(), full.vector()) < 1e-8


@pytest.mark.parametrize("per_parameter", [True, False])
def test_initial_weights(per_parameter):
    tiny = partial(models.MLP, [16, 1, 3], torch.tanh)
    runs, seeds = engine(small_task(tiny, horizon=2), num_runs=2), torch.arange(2)
    runs.init(seeds)
    learned = ParameterLR(runs.state.params[0], 0.7, per_parameter=per_parameter)
    full = meta_gradient(learned, runs, seeds, meta_loss="final-valid", route="full")
    directions = some_directions(learned)
    expected = finite_difference(learned, runs, seeds, "final-valid", directions)
    assert relative(directions @ full.vector(), expected) < 1e-6
    segments = meta_gradient(learned, runs, seeds, meta_loss="final-valid", route="segments", segment_length=1)
    assert relative(segments.vector(), full.vector()) < 1e-8
    if not per_parameter:
        other = meta_gradient(learned, runs, seeds, meta_loss="final-valid", backend="higher")
        assert relative(other.vector(), full.vector()) < 1e-8


excite = partial(randomise, seed=3, scale=0.1)


@pytest.mark.parametrize("policy", [MLPPolicy((2,), decisions=3), GRUPolicy(1, decisions=3)], ids=["mlp", "gru"])
def test_closed_loop_meets_finite_differences(policy):
    excite(policy)
    tiny = partial(models.MLP, [16, 2, 3], torch.tanh)
    runs, seeds = engine(small_task(tiny, horizon=12), num_runs=1), torch.arange(1)
    full = meta_gradient(policy, runs, seeds, meta_loss="final-train")
    directions = some_directions(policy)
    expected = finite_difference(policy, runs, seeds, "final-train", directions)
    assert relative(directions @ full.vector(), expected) < 1e-6
    segments = meta_gradient(policy, runs, seeds, meta_loss="final-train", route="segments", segment_length=4)
    assert relative(segments.vector(), full.vector()) < 1e-8


def test_closed_loop_trains_as_its_exported_controller():
    from metalr.engine.episodes import run_episode
    from metalr.learned.export import controller_of

    policy = GRUPolicy(3, decisions=4)
    excite(policy)
    runs, seeds = engine(small_task(horizon=20), num_runs=3), torch.arange(3)
    mine = meta_gradient(policy, runs, seeds, meta_loss="final-train")
    episode = run_episode(controller_of(policy), runs, seeds, torch.full((3,), 0.1))
    torch.testing.assert_close(mine.losses, episode.final["train"][0], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("route", ["full", "segments", "truncated"])
@pytest.mark.parametrize("learned", [KnotLR(3), MLPPolicy((3,), decisions=4)], ids=["open", "closed"])
def test_one_diverged_run_leaves_the_gradient_of_the_others(route, learned):
    if isinstance(learned, MLPPolicy):
        excite(learned)
    net = partial(models.MLP, [16, 6, 3], lambda x: x * x.square())  # cubic units overflow at a large LR
    task, seeds = small_task(net, "sgd", horizon=16), torch.arange(32)
    base_lr = torch.full((32,), 0.05, dtype=torch.float64)
    base_lr[13] = 1e6
    with_it = meta_gradient(learned, engine(task, 32), seeds, base_lr, route=route)
    assert with_it.diverged.nonzero().flatten().tolist() == [13]
    others = torch.arange(32) != 13
    without = meta_gradient(learned, engine(task, 31), seeds[others], base_lr[others], route=route)
    assert not bool(without.diverged.any())
    assert relative(with_it.vector(), without.vector()) < 1e-12
    assert with_it.loss == pytest.approx(without.loss, rel=1e-12)


def test_what_comes_back_through_a_dead_run_is_dropped(monkeypatch):
    """Its memory may be NaN, and so may the adjoint of that: none of it reaches the segments before."""
    policy = GRUPolicy(2, decisions=4)
    excite(policy)
    net = partial(models.MLP, [16, 6, 3], lambda x: x * x.square())
    task, seeds = small_task(net, "momentum", horizon=16), torch.arange(5)
    base_lr = torch.tensor([0.05, 0.05, 1e6, 0.05, 0.05], dtype=torch.float64)
    options = {"route": "segments", "segment_length": 4}
    expected = meta_gradient(policy, engine(task, 5), seeds, base_lr, **options)
    calls, real = [], meta_gradients.gradient_of

    def poisoned(value, inputs):
        found = real(value, inputs)
        calls.append(len(found))
        # The first call is of the loss itself, which does not contain the dead run.
        rows = [len(calls) > 1 and f.shape[:1] == (5,) for f in found]
        return [f.index_fill(0, torch.tensor([2]), torch.nan) if r else f for f, r in zip(found, rows, strict=True)]

    monkeypatch.setattr(meta_gradients, "gradient_of", poisoned)
    found = meta_gradient(policy, engine(task, 5), seeds, base_lr, **options)
    assert len(calls) == 5
    assert expected.diverged.tolist() == [False, False, True, False, False]
    assert torch.equal(found.vector(), expected.vector())


def test_higher_leaves_out_a_diverged_run():
    task, seeds = small_task(optimizer="sgd"), torch.arange(2)
    base_lr = torch.tensor([0.05, 1e200], dtype=torch.float64)
    net = partial(models.MLP, [16, 6, 3], lambda x: x * x.square())
    task = task.with_(model=net)
    both = meta_gradient(ConstantLR(), engine(task), seeds, base_lr, backend="higher")
    alone = meta_gradient(ConstantLR(), engine(task, 1), seeds[:1], base_lr[:1], backend="higher")
    assert both.diverged.tolist() == [False, True]
    assert relative(both.vector(), alone.vector()) < 1e-12


def test_truncation_cuts_the_graph():
    runs, seeds = engine(small_task(horizon=12)), torch.arange(2)
    full = meta_gradient(KnotLR(3), runs, seeds)
    whole = meta_gradient(KnotLR(3), runs, seeds, route="truncated", segment_length=12)
    short = meta_gradient(KnotLR(3), runs, seeds, route="truncated", segment_length=2)
    assert relative(whole.vector(), full.vector()) < 1e-12
    assert relative(short.vector(), full.vector()) > 0.1


def test_noisy_quadratic_in_closed_form():
    runs = engine(make_task("noisy-quadratic", dimensions=1, horizon=1), 1)
    result = meta_gradient(ConstantLR(0.3), runs, torch.zeros(1, dtype=torch.int64), meta_loss="final-train")
    # ½ ((1 - lr)² + 0.01 lr²) at lr = 0.3; its derivative with respect to log lr is lr · (-(1 - lr) + 0.01 lr).
    assert result.loss == pytest.approx(0.5 * (0.49 + 0.0009))
    assert result.vector().item() == pytest.approx(0.3 * (-0.7 + 0.003))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 12)

    def forward(self, inputs):
        query, key, value = self.project(inputs.view(-1, 4, 4)).chunk(3, -1)
        return functional.scaled_dot_product_attention(query, key, value).mean(1)[:, :3]


def test_attention_takes_the_route_that_has_a_second_derivative():
    runs, seeds = engine(small_task(Attention, horizon=4)), torch.arange(2)
    full = meta_gradient(KnotLR(2), runs, seeds)
    assert relative(meta_gradient(KnotLR(2), runs, seeds, backend="higher").vector(), full.vector()) < 1e-8
    assert relative(full.vector(), finite_difference(KnotLR(2), runs, seeds, "mean-train")) < 1e-6


def test_users_module_and_optimizer_are_not_changed():
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).double()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.Adam(module.parameters(), lr=7.0)
    batches = [(torch.randn(6, 4).double(), torch.randn(6, 1).double()) for _ in range(3)]
    result = higher_meta_gradient(KnotLR(2), module, optimizer, functional.mse_loss, batches, base_lr=0.1)
    assert result.vector().abs().min() > 0.0
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 7.0


def test_higher_continues_a_users_optimizer_as_torch_does():
    """Two updates by torch, then two by higher, against four by torch."""
    torch.manual_seed(0)
    batches = [(torch.randn(6, 4).double(), torch.randn(6, 1).double()) for _ in range(5)]
    for make in (
        lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-2, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.3),
    ):
        module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        optimizer = make(module.parameters())
        losses = []
        for step, (x, y) in enumerate(batches):
            if step == 2:
                arguments = (module, optimizer, functional.mse_loss, batches[2:4])
                mine = higher_meta_gradient(
                    ConstantLR(), *arguments, base_lr=0.1, meta_loss="final-train", final_batches=batches[4:]
                )
            loss = functional.mse_loss(module(x), y)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert mine.loss == pytest.approx(losses[4], rel=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.AdamW(p), "got optimizer AdamW, expected one of SGD, Adam, Adagrad, RMSprop"),
        (lambda p: torch.optim.NAdam(p), "got optimizer NAdam"),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "maximize=True"),
        (lambda p: torch.optim.Adam(p, decoupled_weight_decay=True), "decoupled_weight_decay=True"),
    ],
)
def test_higher_refuses_what_it_would_get_wrong(make, message):
    module = nn.Linear(2, 1)
    batch = (torch.zeros(1, 2), torch.zeros(1, 1))
    with pytest.raises(ValueError, match=message):
        higher_meta_gradient(KnotLR(2), module, make(module.parameters()), functional.mse_loss, [batch], base_lr=0.1)


def test_higher_refuses_modules_and_policies():
    batch = (torch.zeros(1, 2), torch.zeros(1, 1))
    wrapped = nn.DataParallel(nn.Linear(2, 1))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="got a DataParallel"):
        higher_meta_gradient(KnotLR(2), wrapped, optimizer, functional.mse_loss, [batch], base_lr=0.1)
    with pytest.raises(ValueError, match="got a MLPPolicy with backend 'higher'"):
        meta_gradient(MLPPolicy(decisions=2), engine(small_task()), torch.arange(2), backend="higher")
    task = make_task("noisy-quadratic", dimensions=2, horizon=2)
    with pytest.raises(ValueError, match=r"torch\.optim cannot train"):
        meta_gradient(KnotLR(2), engine(task, 1), torch.arange(1), backend="higher")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "jax"}, "got backend 'jax', expected one of batched, higher"),
        ({"route": "half"}, "got route 'half'"),
        ({"meta_loss": "test"}, "got meta-loss 'test'"),
        ({"order": 3}, "got order 3"),
        ({"route": "segments", "segment_length": -1}, "got segment_length -1"),
        ({"route": "segments", "backend": "higher"}, "with backend 'higher'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        meta_gradient(KnotLR(2), engine(small_task()), torch.arange(2), **options)


@pytest.mark.parametrize("backend", ["batched", "higher"])
def test_a_module_with_nothing_to_learn_is_refused(backend):
    with pytest.raises(ValueError, match="got a module without trainable parameters"):
        meta_gradient(ConstantLR().requires_grad_(False), engine(small_task()), torch.arange(2), backend=backend)


class TwoConstants(ConstantLR):
    """Has a meta-parameter that no LR depends on."""

    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("backend", "route"), [("batched", "full"), ("batched", "segments"), ("batched", "truncated"), ("higher", "full")]
)
def test_a_meta_parameter_without_effect_has_the_gradient_zero(backend, route):
    result = meta_gradient(TwoConstants(), engine(small_task()), torch.arange(2), backend=backend, route=route)
    assert result.gradient["idle"].tolist() == [0.0, 0.0]
    assert result.gradient["log_multiplier"] != 0.0
    assert not any(part.requires_grad for part in result.gradient.values())


def test_torchopt_gives_the_same_gradient():
    torchopt = pytest.importorskip("torchopt")
    runs = engine(small_task(optimizer="sgd", horizon=5), 1)
    learned = ConstantLR()
    mine = meta_gradient(learned, runs, torch.arange(1), meta_loss="final-train")
    runs.init(torch.arange(1))
    module, one = runs.module_of(0), torch.arange(1)
    batches = list(runs.data.batches(one, runs.variants, runs.state.step, 5, 8))
    lr = (learned.log_multiplier.exp() * 0.1).requires_grad_()
    inner = torchopt.MetaSGD(module, lr=lr)
    for x, y in batches:
        inner.step(functional.cross_entropy(module(x[0]), y[0]))
    inputs, targets = (part[0] for part in runs.data.train)
    final = functional.cross_entropy(module(inputs), targets)
    (expected,) = torch.autograd.grad(final, [learned.log_multiplier])
    assert relative(mine.vector(), expected[None]) < 1e-8


def test_adam_agrees_where_eps_matters():
    """higher adds eps before the bias correction; without the correction here this would be off by several percent."""
    runs, seeds = engine(small_task(optimizer=Adam(eps=1e-2), base_lr=0.05)), torch.arange(2)
    results = [meta_gradient(KnotLR(3), runs, seeds, backend=b) for b in ("batched", "higher")]
    assert relative(results[1].vector(), results[0].vector()) < 1e-8
