"""The batched engine against the same run alone and against a plain `torch.optim` loop; purity; divergence."""

import math
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional

from metalr.engine import evaluation
from metalr.engine.runs import BatchedRuns
from metalr.engine.step import DIVERGED_AT, RunState
from metalr.optimizers.classic import OPTIMIZERS, SGD, Adam
from metalr.schedules import Exponential
from metalr.signals import stats
from metalr.tasks.catalog import make_task
from metalr.tasks.models import MLP, ConvNet, GRUClassifier
from metalr.tasks.task import Task
from metalr.trees import leaves

SEEDS = torch.tensor([11, 5, 7, 2])
RATES = {"sgd": 0.2, "momentum": 0.05, "nesterov": 0.05, "rmsprop": 0.005, "adagrad": 0.05, "adam": 0.01, "adamw": 0.01}
NETWORKS = {
    "mlp": (partial(MLP, [12, 6, 3], torch.tanh), (12,)),
    "conv": (partial(ConvNet, 1, 2, [8, 8], 3), (2, 16)),  # two channels in each normalised group
    "gru": (partial(GRUClassifier, 3, 4, 3), (4, 3)),
}


def task_of(network: str = "mlp", optimizer="momentum", **changes) -> Task:
    model, shape = NETWORKS[network]
    model = changes.pop("model", model)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, *shape, generator=generator, dtype=torch.float64)
    labels = inputs.flatten(1)[:, :3].argmax(-1)
    settings = {"base_lr": 0.1, "horizon": 50, "batch_size": 10, **changes}
    return Task(model, (inputs, labels), settings.pop("loss", functional.cross_entropy), optimizer, **settings)


def started(task: Task, seeds=SEEDS, **options) -> BatchedRuns:
    runs = BatchedRuns(task, len(seeds), **{"dtype": torch.float64, **options})
    runs.init(seeds)
    return runs


def full(value: float, num_runs: int = len(SEEDS)) -> torch.Tensor:
    return torch.full((num_runs,), value, dtype=torch.float64)


def bits(state: RunState, run: int) -> list[bytes]:
    return [tensor[run].numpy().tobytes() for tensor in leaves(state)]


def stats_bits(run_stats, run: int) -> list[bytes]:
    return [value[run].numpy().tobytes() for value in run_stats]


def plain_loop(task: Task, seed: torch.Tensor, rates) -> tuple[torch.Tensor, list[float]]:
    """The user's own loop: same initial weights, same minibatches, an LR for each step."""
    engine = started(task, seed.view(1))
    module = engine.module_of(0)
    optimizer = task.optimizer.to_torch(module.parameters(), 0.0)
    zero = torch.zeros(1, dtype=torch.int64)
    batches = engine.data.batches(engine.seeds, engine.variants, zero, len(rates), task.batch_size)
    losses = []
    for (inputs, targets), lr in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = task.loss(module(inputs[0]), targets[0])
        loss.backward()
        if task.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), task.optimizer.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return torch.cat([p.detach().flatten() for p in module.parameters()]), losses


# Three implementations of one run


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_run_of_a_batch_equals_the_run_alone_and_a_plain_loop(name, clip_norm, network):
    task = task_of(network, replace(OPTIMIZERS[name], clip_norm=clip_norm))
    rates = RATES[name] * torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=torch.float64)
    runs = started(task)
    runs.unroll(rates, 25)
    run_stats = runs.unroll(rates, 15)
    for run in range(0, 4, 3):
        alone = started(task, SEEDS[run : run + 1])
        alone.unroll(rates[run : run + 1], 25)
        stats_alone = alone.unroll(rates[run : run + 1], 15)
        plain, losses = plain_loop(task, SEEDS[run], [rates[run].item()] * 40)
        torch.testing.assert_close(runs.state.params[run], alone.state.params[0], rtol=0.0, atol=1e-10)
        torch.testing.assert_close(runs.state.params[run], plain, rtol=0.0, atol=1e-10)
        for together, single in zip(run_stats, stats_alone, strict=True):
            torch.testing.assert_close(together[run], single[0], rtol=1e-7, atol=1e-10)
        expected = torch.tensor(losses[25:], dtype=torch.float64).log().mean()
        torch.testing.assert_close(run_stats.log_loss[run], expected, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_interval_length_does_not_matter(name):
    task = task_of(optimizer=name)
    once, often = started(task), started(task)
    once.unroll(full(RATES[name]), 12)
    for num_steps in (2, 5, 3, 2):
        often.unroll(full(RATES[name]), num_steps)
    assert all(bits(once.state, run) == bits(often.state, run) for run in range(4))


def test_an_lr_for_every_step():
    task = task_of(optimizer="adam")
    rates = 0.02 * torch.linspace(1.0, 0.0, 20, dtype=torch.float64)
    runs = started(task)
    runs.unroll(rates[:, None, None].expand(20, 4, 1), 20)
    plain, _ = plain_loop(task, SEEDS[1], rates.tolist())
    torch.testing.assert_close(runs.state.params[1], plain, rtol=0.0, atol=1e-10)


def test_statistics_of_an_interval_are_those_of_a_plain_loop():
    task = task_of(optimizer="sgd")
    # One interval of four steps, measured by hand on its last two.
    runs = started(task)
    measured = runs.unroll(full(0.1), 4)
    before = [plain_loop(task, SEEDS[0], [0.1] * n)[0] for n in (2, 3, 4)]
    second_last, last = (before[0] - before[1]) / 0.1, (before[1] - before[2]) / 0.1
    norm = (0.5 * (second_last.square().sum() + last.square().sum())).sqrt()
    assert measured.gradient_norm[0].item() == pytest.approx(norm.item(), rel=1e-9)
    cosine = functional.cosine_similarity(second_last, last, 0)
    assert measured.gradient_cosine[0].item() == pytest.approx(cosine.item(), rel=1e-9)
    ratio = (before[1] - before[0]).norm() / before[1].norm()
    assert measured.update_ratio[0].item() == pytest.approx(ratio.item(), rel=1e-9)
    assert measured.num_losses.tolist() == [4.0] * 4


def test_gradient_statistics_are_of_the_clipped_gradient():
    runs = started(task_of(optimizer=SGD(clip_norm=1e-3)))
    assert runs.unroll(full(0.1), 4).gradient_norm.flatten().tolist() == pytest.approx([1e-3] * 4, rel=1e-2)


def test_evaluate_is_the_mean_over_the_split():
    task = task_of(metric=lambda outputs, targets: (outputs.argmax(-1) == targets).double().mean())
    runs = started(task)
    runs.unroll(full(0.1), 3)
    loss, metric = runs.evaluate("valid")
    inputs, targets = task.data.valid
    for run in range(4):
        outputs = runs.module_of(run)(inputs[0])
        assert loss[run].item() == pytest.approx(functional.cross_entropy(outputs, targets[0]).item(), rel=1e-12)
        assert metric[run].item() == pytest.approx((outputs.argmax(-1) == targets[0]).double().mean().item())
    first = runs.evaluate("valid", 7).loss[2].item()
    outputs = runs.module_of(2)(inputs[0][:7])
    assert first == pytest.approx(functional.cross_entropy(outputs, targets[0][:7]).item(), rel=1e-12)


def test_evaluate_in_chunks_is_evaluate_at_once(monkeypatch):
    runs = started(task_of())
    whole = runs.evaluate("train").loss
    monkeypatch.setattr(evaluation, "EVALUATION_CHUNK", 7)
    torch.testing.assert_close(runs.evaluate("train").loss, whole, rtol=1e-12, atol=0.0)


def test_evaluate_of_some_runs_is_that_of_all():
    runs = started(task_of())
    runs.unroll(torch.tensor([0.1, 0.1, 1e30, 0.1], dtype=torch.float64), 3)
    some = runs.evaluate("valid", which=torch.tensor([3, 2]))
    assert some.loss.shape == (2,)
    torch.testing.assert_close(some.loss, runs.evaluate("valid").loss[[3, 2]], rtol=1e-12, atol=0.0)


# Bits


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_seed_gives_the_same_bits_twice(name):
    task = task_of(optimizer=name)
    first, second = started(task), started(task)
    assert stats_bits(first.unroll(full(0.01), 6), 2) == stats_bits(second.unroll(full(0.01), 6), 2)
    torch.manual_seed(5)
    second.init(SEEDS)
    second.unroll(full(0.01), 6)
    assert all(bits(first.state, run) == bits(second.state, run) for run in range(4))


def test_runs_with_other_seeds_differ():
    runs = started(task_of())
    assert len({row.numpy().tobytes() for row in runs.state.params}) == 4


def test_a_run_is_the_same_in_another_place_of_the_batch():
    task = task_of(optimizer="adam")
    first, turned = started(task), started(task, SEEDS.flip(0))
    first.unroll(full(0.01), 6)
    turned.unroll(full(0.01), 6)
    torch.testing.assert_close(first.state.params, turned.state.params.flip(0), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "rmsprop"])
def test_a_diverged_neighbour_changes_no_bit(name, network):
    task = task_of(network, name)
    healthy, beside = started(task), started(task)
    beside.state.params[1] = float("nan")
    beside.state.params[3] = 1e200
    rates = full(RATES[name])
    wild = rates.clone()
    wild[1] = 1e30
    for _ in range(3):
        expected, got = healthy.unroll(rates, 5), beside.unroll(wild, 5)
        for run in (0, 2):
            assert stats_bits(expected, run) == stats_bits(got, run)
            assert bits(healthy.state, run) == bits(beside.state, run)
    assert beside.state.diverged[1]
    assert not beside.state.diverged[[0, 2]].any()
    assert healthy.evaluate("valid").loss[2] == beside.evaluate("valid").loss[2]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_probe_changes_no_bit(name, network):
    task = task_of(network, name)
    plain, probed = started(task), started(task)
    for _ in range(3):
        before = [tensor.clone() for tensor in leaves(probed.state)]
        generator = torch.get_rng_state()
        probed.probe(full(3.0))
        assert all(torch.equal(a, b) for a, b in zip(before[:-2], leaves(probed.state)[:-2], strict=True))
        assert torch.equal(torch.get_rng_state(), generator)
        assert stats_bits(plain.unroll(full(0.01), 4), 0) == stats_bits(probed.unroll(full(0.01), 4), 0)
    assert all(bits(plain.state, run) == bits(probed.state, run) for run in range(4))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_probe_foresees_the_update_that_is_then_made(name):
    runs = started(task_of(optimizer=name))
    for _ in range(2):
        foreseen = runs.probe(full(0.01)).update_ratio
        before = runs.state.params
        runs.unroll(torch.tensor([0.01, 0.0], dtype=torch.float64)[:, None, None].expand(2, 4, 1), 2)
        # An LR of zero leaves the weights alone, decay included.
        made = (runs.state.params - before).norm(dim=-1) / before.norm(dim=-1)
        torch.testing.assert_close(foreseen[:, 0], made, rtol=1e-9, atol=0.0)


def test_probe_of_a_quadratic_in_closed_form():
    runs = started(make_task("quadratic"), SEEDS[:2])
    # The gradient at 5 is 12, so an LR of 0.1 moves the weight by 1.2, which is 0.24 of it.
    probe = runs.probe(full(0.1, 2))
    assert probe.update_ratio.flatten().tolist() == pytest.approx([0.24, 0.24], rel=1e-12)
    assert probe.log_loss.tolist() == pytest.approx([math.log(36.0)] * 2, rel=1e-12)
    assert probe.log_descent.flatten().tolist() == pytest.approx([math.log(12.0 * 1.2)] * 2, rel=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_runs_leaves_every_bit_of_the_others(name):
    task = task_of(optimizer=name)
    runs, undisturbed = started(task), started(task)
    runs.unroll(full(0.01), 5)
    undisturbed.unroll(full(0.01), 5)
    runs.reset_runs(torch.tensor([False, True, False, True]), torch.tensor([0, 31, 0, 32]))
    fresh = started(task, torch.tensor([11, 31, 7, 32]))
    for _ in range(2):
        for run in (0, 2):
            assert bits(runs.state, run) == bits(undisturbed.state, run)
        for run in (1, 3):
            assert bits(runs.state, run) == bits(fresh.state, run)
        for each in (runs, undisturbed, fresh):
            each.unroll(full(0.01), 3)


def test_reset_runs_revives_a_diverged_run():
    runs = started(task_of())
    runs.unroll(torch.tensor([0.01, 1e30, 0.01, 0.01], dtype=torch.float64), 4)
    assert runs.state.diverged.tolist() == [False, True, False, False]
    runs.reset_runs(runs.state.diverged, torch.tensor([0, 99, 0, 0]))
    assert not runs.state.diverged.any()
    assert runs.unroll(full(0.01), 4).log_loss.isfinite().all()


def test_reset_of_no_run_changes_nothing():
    runs = started(task_of(optimizer="adam"))
    runs.unroll(full(0.01), 2)
    before = [bits(runs.state, run) for run in range(4)]
    runs.reset_runs(torch.zeros(4, dtype=torch.bool), SEEDS + 1)
    assert [bits(runs.state, run) for run in range(4)] == before


def test_reset_draws_the_data_variant_anew():
    task = make_task("teacher-student", num_variants=8)
    runs = started(task, torch.arange(4))
    assert len(set(started(task, torch.arange(40)).variants.tolist())) == 8
    kept = runs.variants.clone()
    runs.reset_runs(torch.tensor([True, False, False, False]), torch.tensor([17, 0, 0, 0]))
    assert torch.equal(runs.variants[1:], kept[1:])
    assert runs.variants[0] == started(task, torch.tensor([17])).variants[0]


# Divergence


def test_a_quadratic_diverges_when_its_loss_passes_the_limit_and_is_frozen_there():
    # w + 1 doubles at every step with lr = 1.5: the loss is 36·4^t, so it exceeds 100 times 36 at t = 4.
    runs = started(make_task("quadratic"), SEEDS[:2])
    rates = torch.tensor([1.5, 0.1], dtype=torch.float64)
    assert DIVERGED_AT == 100.0
    runs.unroll(rates, 4)
    assert runs.state.diverged.tolist() == [False, False]
    frozen = 6.0 * 2.0**4 - 1.0
    for _ in range(3):
        run_stats = runs.unroll(rates, 4)
        assert runs.state.diverged.tolist() == [True, False]
        assert runs.state.params[0].item() == pytest.approx(frozen, rel=1e-12)
    assert runs.state.step.tolist() == [4, 16]
    assert run_stats.exploded.tolist() == [1.0, 0.0]
    assert run_stats.log_loss.isnan().tolist() == [True, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_without_a_finite_loss_has_diverged(value):
    runs = started(task_of())
    runs.state.params[2] = value
    run_stats = runs.unroll(full(0.01), 3)
    assert runs.state.diverged.tolist() == [False, False, True, False]
    assert run_stats.exploded.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_evaluate_gives_a_diverged_run_an_infinite_loss():
    runs = started(task_of())
    runs.unroll(torch.tensor([0.01, 1e30, 0.01, 0.01], dtype=torch.float64), 4)
    loss = runs.evaluate("test").loss
    assert loss[1].item() == float("inf")
    assert loss[[0, 2, 3]].isfinite().all()


def test_evaluate_gives_a_run_with_nan_weights_an_infinite_loss():
    runs = started(task_of())
    runs.state.params[0] = float("nan")
    assert runs.evaluate("test").loss[0].item() == float("inf")


def meta_gradient(rates: torch.Tensor, num_steps: int, **changes) -> torch.Tensor:
    """Derivative of the last loss of runs 0 and 2 with respect to one factor of all runs' LRs."""
    runs = started(task_of(optimizer="momentum", **changes))
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    state, loss = runs.state, None
    for batch in runs.data.batches(runs.seeds, runs.variants, runs.state.step, num_steps, 10):
        state, loss, _ = runs.step(state, batch, (rates * factor)[:, None])
    return torch.autograd.grad(loss[[0, 2]].sum(), factor)[0]


def test_a_meta_gradient_is_that_of_finite_differences():
    rates = full(0.05)
    runs = started(task_of(optimizer="momentum"))
    batches = list(runs.data.batches(runs.seeds, runs.variants, runs.state.step, 5, 10))

    def loss(factor):
        state = runs.state
        for batch in batches:
            state, last, _ = runs.step(state, batch, (rates * factor)[:, None])
        return last[[0, 2]].sum().item()

    expected = (loss(1.0 + 1e-5) - loss(1.0 - 1e-5)) / 2e-5
    assert meta_gradient(rates, 5).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("activation", [torch.tanh, functional.softplus], ids=["tanh", "softplus"])
@pytest.mark.parametrize("lr", [1e200, 1e308])
@pytest.mark.parametrize("num_steps", [2, 3, 4, 6])
def test_a_diverged_neighbour_leaves_the_meta_gradient_alone(num_steps, lr, activation):
    model = partial(MLP, [12, 6, 6, 3], activation)
    healthy = full(0.05)
    wild = healthy.clone()
    wild[1] = lr
    expected = meta_gradient(healthy, num_steps, model=model)
    assert meta_gradient(wild, num_steps, model=model).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), 1e300])
def test_a_run_that_diverged_before_the_unroll_leaves_the_meta_gradient_alone(value):
    runs = started(task_of(model=partial(MLP, [12, 6, 6, 3], functional.softplus)))
    dead = runs.state.params.clone()
    dead[1] = value
    state = runs.state._replace(params=dead, diverged=torch.tensor([False, True, False, False]))
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    for batch in runs.data.batches(runs.seeds, runs.variants, state.step, 3, 10):
        state, loss, _ = runs.step(state, batch, (full(0.05) * factor)[:, None])
    assert torch.autograd.grad(loss[[0, 2]].sum(), factor)[0].isfinite()


# Groups


def test_equal_lrs_for_every_layer_are_one_global_lr():
    for name in OPTIMIZERS:
        task = task_of(optimizer=name)
        whole, layers = started(task), started(task, groups="module")
        assert layers.layout.num_groups == 2
        whole.unroll(full(RATES[name]), 10)
        layers.unroll(full(RATES[name])[:, None].expand(4, 2), 10)
        for run in range(4):
            first, second = (list(runs.module_of(run).parameters()) for runs in (whole, layers))
            for a, b in zip(first, second, strict=True):
                torch.testing.assert_close(a, b, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_lr_of_zero_freezes_its_layer_only(name):
    runs = started(task_of(optimizer=name), groups="module")
    before = runs.module_of(1)
    runs.unroll(torch.tensor([0.0, 0.01], dtype=torch.float64).expand(4, 2), 5)
    after = runs.module_of(1)
    assert torch.equal(before.layers[0].weight, after.layers[0].weight)
    assert torch.equal(before.layers[0].bias, after.layers[0].bias)
    assert not torch.equal(before.layers[1].weight, after.layers[1].weight)
    assert not torch.equal(before.layers[1].bias, after.layers[1].bias)


def test_named_groups_have_their_own_lrs_and_statistics():
    task = task_of(optimizer="sgd")
    names = [["layers.1.bias", "layers.0.weight"], ["layers.0.bias", "layers.1.weight"]]
    runs, whole = started(task, groups=names), started(task)
    grouped, together = runs.unroll(full(0.1)[:, None].expand(4, 2), 3), whole.unroll(full(0.1), 3)
    assert grouped.gradient_norm.shape == grouped.gradient_cosine.shape == grouped.update_ratio.shape == (4, 2)
    square = grouped.gradient_norm.square().sum(-1, keepdim=True)
    torch.testing.assert_close(square, together.gradient_norm.square(), rtol=1e-12, atol=0.0)
    for a, b in zip(runs.module_of(0).parameters(), whole.module_of(0).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-12)


# Bad input


@pytest.mark.parametrize("num_runs", [0, -1])
def test_too_few_runs(num_runs):
    with pytest.raises(ValueError, match=f"got num_runs {num_runs}, expected at least 1"):
        BatchedRuns(task_of(), num_runs)


def test_seeds_of_another_shape():
    with pytest.raises(ValueError, match=r"got seeds of shape \(3,\), expected \(4,\)"):
        BatchedRuns(task_of(), 4).init(SEEDS[:3])
    with pytest.raises(ValueError, match=r"got .*, expected"):
        started(task_of()).reset_runs(torch.ones(3, dtype=torch.bool), SEEDS[:3])


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_an_lr_that_is_no_lr(value):
    runs = started(task_of())
    rates = full(0.1)
    rates[3] = value
    for call in (lambda: runs.unroll(rates, 2), lambda: runs.probe(rates)):
        with pytest.raises(ValueError, match=r"got LRs between .*, expected finite numbers .*: check"):
            call()
    assert runs.state.step.tolist() == [0] * 4  # nothing was lost


@pytest.mark.parametrize("shape", [(3,), (4, 2), (3, 4, 1), (2, 4, 2), ()])
def test_an_lr_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"got an LR of shape .*, expected .*\(4, 1\) or .*\(2, 4, 1\)"):
        started(task_of()).unroll(torch.full(shape, 0.1), 2)


@pytest.mark.parametrize("num_steps", [1, 0, -2])
def test_an_interval_that_is_too_short(num_steps):
    with pytest.raises(ValueError, match=f"got num_steps {num_steps}, expected at least 2"):
        started(task_of()).unroll(full(0.1), num_steps)


@pytest.mark.parametrize(
    "groups", [[["layers.0.weight"]], [["layers.0.weight"] * 2, ["nothing"]], "layers", [], [["layers.0.weight"], []]]
)
def test_groups_that_do_not_name_every_parameter_once(groups):
    with pytest.raises(ValueError, match=r"got groups .*, expected"):
        BatchedRuns(task_of(), 2, groups=groups)


def test_an_unroll_before_init():
    with pytest.raises((ValueError, RuntimeError), match=r"got .*, expected"):
        BatchedRuns(task_of(), 4).unroll(full(0.1), 2)


# Compilation


def refuse(*_, **__):
    raise RuntimeError("no compiler here")


@pytest.mark.parametrize("compiler", [lambda step: refuse, refuse], ids=["at-the-first-step", "at-once"])
def test_a_failed_compilation_warns_once_and_trains_on(monkeypatch, compiler):
    monkeypatch.setattr(torch, "compile", compiler)
    task = task_of(optimizer="adam")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = started(task, compile=True)
        runs.unroll(full(0.01), 5)
        runs.unroll(full(0.01), 5)
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "no compiler here" in str(caught[0].message)
    eager = started(task)
    eager.unroll(full(0.01), 5)
    eager.unroll(full(0.01), 5)
    assert all(bits(runs.state, run) == bits(eager.state, run) for run in range(4))


def test_an_error_of_the_network_is_not_swallowed():
    with pytest.raises(ValueError, match=r"cannot be batched \(Dimension out of range"):
        task_of(loss=lambda outputs, targets: outputs.sum(dim=99))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch warns of itself
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_compiled_step_trains_like_the_eager_one(name):
    task = task_of(optimizer=name)
    compiled, eager = started(task, compile=True), started(task)
    for runs in (compiled, eager):
        runs.unroll(full(0.01), 10)
    torch.testing.assert_close(compiled.state.params, eager.state.params, rtol=0.0, atol=1e-10)


# Smaller things


def test_module_of_is_the_run():
    runs = started(task_of())
    runs.unroll(full(0.1), 3)
    module = runs.module_of(2)
    row = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert torch.equal(row, runs.state.params[2])
    with torch.no_grad():
        module.layers[0].weight.zero_()
    assert not torch.equal(runs.state.params[2, :5], torch.zeros(5, dtype=torch.float64))


def test_weights_are_drawn_as_torch_draws_them():
    runs = started(task_of(), torch.arange(500))
    weights = runs.state.params[:, : 12 * 6]
    bound = 12.0**-0.5
    assert weights.abs().max() < bound
    assert weights.std().item() == pytest.approx(bound / 3.0**0.5, rel=0.02)
    assert abs(weights.mean()) < 0.01


def test_float32_follows_float64():
    task = task_of()
    single, double = started(task, dtype=torch.float32), started(task)
    for runs in (single, double):
        runs.unroll(full(0.05), 10)
    assert single.state.params.dtype == torch.float32
    torch.testing.assert_close(single.state.params.double(), double.state.params, rtol=0.0, atol=1e-4)


def test_ratios_of_nothing_are_finite():
    zero = torch.zeros(2, 1)
    assert stats.cosine(zero, zero, zero).tolist() == [[0.0], [0.0]]
    assert stats.ratio(zero, zero).isfinite().all()


def test_adam_counts_its_own_steps_after_a_reset():
    task = task_of(optimizer=Adam())
    runs = started(task)
    runs.unroll(full(0.01), 4)
    runs.reset_runs(torch.tensor([True, False, False, False]), torch.tensor([11, 0, 0, 0]))
    runs.unroll(full(0.01), 4)
    again = started(task)
    again.unroll(full(0.01), 4)
    assert torch.equal(runs.state.params[0], again.state.params[0])


def test_an_exponential_table_of_lrs_on_the_quadratic():
    runs = started(make_task("quadratic"), SEEDS[:1])
    rates = 0.2 * Exponential(rate=0.95, every=1 / 400)(torch.arange(30, dtype=torch.float64) / 400)
    runs.unroll(rates[:, None, None], 30)
    expected = 6.0 * torch.prod(1.0 - 0.4 * 0.95 ** torch.arange(30, dtype=torch.float64)) - 1.0
    assert runs.state.params.item() == pytest.approx(expected.item(), rel=1e-12)
