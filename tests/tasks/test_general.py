"""The wide family: drawn from an index alone, varied on every axis, affordable, and apart from what tests it."""

from collections import Counter
from dataclasses import fields

import pytest
import torch

from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import SGD, Adagrad, Adam, AdamW
from metalr.tasks.general import RANGES, GeneralFamily, draw_recipe, draw_task
from metalr.tasks.meta_test import META_TEST
from metalr.tasks.networks import VECTOR_NETWORKS
from metalr.tasks.synthetic import KINDS, Synthetic
from metalr.tasks.task import Task

SPLITS = tuple(RANGES)
RECIPES = {
    "meta-train": [draw_recipe("meta-train", index) for index in range(1000)],
    "meta-validation": [draw_recipe("meta-validation", index) for index in range(200)],
}
SEEDS = torch.tensor([0, 1, 2])


def drawn(split: str, index: int) -> Task:
    if RECIPES[split][index].data.kind == "digits":
        pytest.importorskip("sklearn")
    return draw_task(split, index)


def tensors(task: Task) -> list[torch.Tensor]:
    data = task.data.to("cpu", torch.float32)
    batches = data.batches(SEEDS, 0 * SEEDS, 0 * SEEDS, 3, task.batch_size)
    weights = list((task.initial_weights or {}).values())
    return [*data.train, *data.valid, *data.test, *(part for batch in batches for part in batch), *weights]


# Purity


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_index_gives_the_same_task_to_the_bit(split):
    tuned = next(i for i, recipe in enumerate(RECIPES[split]) if recipe.tuned_from and recipe.data.kind != "digits")
    for index in (0, 1, 2, 3, tuned):
        results = []
        for noise in (1, 2):
            torch.manual_seed(noise)
            assert draw_recipe(split, index) == RECIPES[split][index]
            results.append(tensors(drawn(split, index)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    tuned = next(i for i, recipe in enumerate(RECIPES["meta-train"]) if recipe.tuned_from is not None)
    drawn("meta-train", tuned)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_fine_tuning_needs_the_data_of_a_drawn_task(monkeypatch):
    def made(self):
        raise AssertionError("made its examples")

    monkeypatch.setattr(Synthetic, "_make", made)
    for index in range(100):
        if RECIPES["meta-train"][index].tuned_from is None:
            draw_task("meta-train", index)
    tuned = next(i for i, recipe in enumerate(RECIPES["meta-train"]) if recipe.tuned_from is not None)
    with pytest.raises(AssertionError, match="made its examples"):
        draw_task("meta-train", tuned)


@pytest.mark.parametrize(("split", "index"), [("meta-test", 0), ("meta-train", -1)])
def test_errors_say_what_to_pass(split, index):
    with pytest.raises(ValueError, match="expected one of meta-train, meta-validation and an index of at least 0"):
        draw_task(split, index)


# Training


@pytest.mark.parametrize(("split", "index"), [(split, index) for split in SPLITS for index in range(40)])
def test_a_drawn_task_trains(split, index):
    task, recipe = drawn(split, index), RECIPES[split][index]
    runs = BatchedRuns(task, 3)
    assert runs.step.losses.takes_runs  # the fast route
    runs.init(SEEDS)
    stats = runs.unroll(torch.full((3,), 0.01 * task.base_lr), 10)
    assert stats.log_loss.isfinite().all()
    assert not runs.state.diverged.any()
    assert runs.evaluate("valid").metric.isnan().all() == recipe.data.regression
    assert (task.horizon, task.batch_size, task.name) == (recipe.horizon, recipe.batch_size, recipe.name)
    if recipe.tuned_from is None:
        assert not torch.equal(runs.state.params[0], runs.state.params[1])


@pytest.mark.parametrize("split", SPLITS)
def test_fine_tuned_weights_are_better_than_none(split):
    """On the median of the tasks: a related dataset may have its labels the other way round."""
    gains = []
    indices = [i for i, recipe in enumerate(RECIPES[split]) if recipe.tuned_from and recipe.data.kind != "digits"]
    for index in indices[:12]:
        task = drawn(split, index)
        assert all(weight.isfinite().all() for weight in task.initial_weights.values())
        losses = []
        for start in (task, task.with_(initial_weights=None)):
            runs = BatchedRuns(start, 1)
            runs.init(SEEDS[:1])
            losses.append(runs.evaluate("train").loss.item())
        gains.append(losses[1] / losses[0])
    assert sorted(gains)[len(gains) // 2] > 1.0


# The distribution


def test_every_axis_takes_all_its_values():
    recipes = RECIPES["meta-train"][:500]
    ranges = RANGES["meta-train"]
    networks = Counter(recipe.network.kind for recipe in recipes)
    assert set(networks) == {*VECTOR_NETWORKS, "conv1d", "conv2d", "gru"}
    assert 0.68 < sum(networks[kind] for kind in VECTOR_NETWORKS) / 500 < 0.82
    assert {recipe.data.kind for recipe in recipes} == set(ranges.kinds)
    assert {recipe.network.activation for recipe in recipes} == set(ranges.activations)
    assert {recipe.network.depth for recipe in recipes} == {1, 2, 3, 4}
    assert {recipe.batch_size for recipe in recipes} == {4, 8, 16, 32, 64, 128, 256, 512}
    assert {recipe.loss for recipe in recipes} == {"cross-entropy", "mse", "smooth-l1"}
    assert {type(recipe.optimizer) for recipe in recipes} == {SGD, Adagrad, Adam, AdamW}
    assert {recipe.data.num_examples for recipe in recipes} == {128, 256, 512, 1024, 2048, 4096}
    assert 0.06 < sum(recipe.tuned_from is not None for recipe in recipes) / 500 < 0.14


def test_every_number_fills_its_range():
    recipes = RECIPES["meta-train"]
    momenta = [r.optimizer.momentum for r in recipes if isinstance(r.optimizer, SGD)]
    adams = [r.optimizer for r in recipes if isinstance(r.optimizer, Adam)]
    seen = {
        "horizon": ([r.horizon for r in recipes], 40, 2000),
        "width": ([r.network.width for r in recipes], 4, 48),
        "gain": ([r.network.gain for r in recipes], 0.1, 3.0),
        "input scale": ([r.data.input_scale for r in recipes], 0.1, 10.0),
        "target scale": ([r.data.target_scale for r in recipes], 0.1, 10.0),
        "loss scale": ([r.loss_scale for r in recipes], 0.1, 10.0),
        "label noise": ([0.01 + r.data.noise for r in recipes if not r.data.regression], 0.01, 0.41),
        "1 - momentum": ([1.0 - m for m in momenta if m], 0.01, 0.5),
        "1 - beta1": ([1.0 - adam.beta1 for adam in adams], 0.05, 0.2),
        "1 - beta2": ([1.0 - adam.beta2 for adam in adams], 0.001, 0.05),
        "clip norm": ([r.optimizer.clip_norm for r in recipes if r.optimizer.clip_norm], 0.1, 10.0),
        "weight decay": ([r.optimizer.weight_decay for r in recipes if r.optimizer.weight_decay], 1e-5, 0.1),
    }
    for name, (values, low, high) in seen.items():
        assert low * 0.999 <= min(values) < low * (high / low) ** 0.15, name
        assert low * (high / low) ** 0.85 < max(values) <= high * 1.001, name
    assert 0.0 in momenta
    assert {nesterov.nesterov for nesterov in (r.optimizer for r in recipes) if isinstance(nesterov, SGD)} == {0, 1}
    assert {bool(r.optimizer.weight_decay) for r in recipes} == {bool(r.optimizer.clip_norm) for r in recipes} == {0, 1}


@pytest.mark.parametrize("split", SPLITS)
def test_every_task_is_affordable(split):
    for recipe in RECIPES[split]:
        assert recipe.step_seconds() <= RANGES[split].step_seconds, recipe.name
        assert recipe.step_seconds() * recipe.horizon <= RANGES[split].run_seconds, recipe.name


def test_the_estimate_of_cost_counts_the_parameters():
    for recipe in RECIPES["meta-train"][:100]:
        network, data = recipe.network, recipe.data
        count = network._gru if network.kind == "gru" else network._vector
        count = network._conv if network.kind.startswith("conv") else count
        module = network.builder(data.shape, data.outputs)()
        norms = sum(p.numel() for name, p in module.named_parameters() if "norm" in name)
        expected = sum(p.numel() for p in module.parameters()) - (norms if network.kind == "residual-norm" else 0)
        assert count(data.shape, data.outputs)[2] == expected, recipe.name


def test_validation_is_another_distribution():
    train, validation = RECIPES["meta-train"], RECIPES["meta-validation"]
    assert {r.data.kind for r in validation} - {r.data.kind for r in train} == {"rings", "first-token", "adding"}
    assert {r.network.activation for r in validation} > {"softplus", "sigmoid"}
    assert max(r.network.width for r in validation) > 1.5 * max(r.network.width for r in train)
    assert max(r.network.depth for r in validation) > 4
    assert max(r.horizon for r in validation) > 3000
    seeds = [{r.data.seed for r in recipes} for recipes in (train, validation)]
    assert not seeds[0] & seeds[1]
    assert len(seeds[0]) == 1000


# No leak


@pytest.mark.parametrize("split", SPLITS)
def test_what_tests_a_controller_is_never_drawn(split):
    for recipe in RECIPES[split]:
        assert type(recipe.optimizer) in (SGD, Adagrad, Adam, AdamW), recipe.name
        # Without its first moment, Adam would be RMSprop but for the bias correction.
        assert getattr(recipe.optimizer, "beta1", 1.0) >= 0.5, recipe.name
        assert recipe.network.kind in (*VECTOR_NETWORKS, "conv1d", "conv2d", "gru"), recipe.name
        assert type(recipe.data) is Synthetic
        assert recipe.data.kind in KINDS
    modules = {type(recipe.task().build()).__name__ for recipe in RECIPES[split][:200] if recipe.tuned_from is None}
    assert modules == {"MLP", "ResidualMLP", "ConvNet", "GRUClassifier"}


def test_no_generated_data_read_a_table_or_a_text(monkeypatch):
    from metalr.tasks import datasets

    def refuse(*_, **__):
        raise AssertionError("read what tests a controller")

    for name in ("table", "standard_library_bytes", "mnist1d"):
        monkeypatch.setattr(datasets, name, refuse)
    for kind in KINDS:
        if kind == "digits":
            pytest.importorskip("sklearn")
        Synthetic(kind, seed=0, size=8, outputs=8 if kind == "autoencoding" else 2).to("cpu", torch.float32)


def test_the_generated_data_of_the_meta_test_set_have_seeds_of_their_own():
    tested = {entry.source.seed for entry in META_TEST.values() if isinstance(entry.source, Synthetic)}
    assert min(tested) > 1 << 30
    assert all(recipe.data.seed <= 1 << 30 for recipes in RECIPES.values() for recipe in recipes)


# The family


def test_a_family_samples_tasks_from_its_split():
    family = GeneralFamily()
    names = [task.name for task in family.sample(seed=0, num_groups=4)]
    assert names == [task.name for task in family.sample(seed=0, num_groups=4)]
    assert len(set(names)) == 4
    assert set(names).isdisjoint(task.name for task in family.sample(seed=1, num_groups=4))
    assert all(name.startswith("meta-train-") for name in names)
    assert GeneralFamily("meta-validation").sample(0, 1)[0].name.startswith("meta-validation-")
    assert {field.name for field in fields(family)} >= {"name", "base_lr_range"}
