"""Tasks: one contract over the registry, the user's own networks and data, errors that say what to do."""

import re
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from metalr.control.reference import ScheduleController
from metalr.engine.episodes import run_episode
from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import AdamW
from metalr.schedules import Cosine
from metalr.tasks import datasets, losses
from metalr.tasks.catalog import TASKS, make_task
from metalr.tasks.families import FAMILIES, TaskFamily, draw_base_lr
from metalr.tasks.models import MLP
from metalr.tasks.task import Task
from tests.tasks.test_datasets import cifar_folder  # noqa: F401 - a fixture

SEEDS = torch.tensor([0, 1, 2])
INPUTS = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > INPUTS[:, 1]).long()


def own_task(model=partial(MLP, [4, 8, 2]), **changes) -> Task:  # noqa: B008 - not mutated
    settings = {"base_lr": 0.1, "horizon": 40, "batch_size": 16, **changes}
    return Task(model, settings.pop("data", (INPUTS, LABELS)), functional.cross_entropy, **settings)


def train(task: Task, num_steps: int, lr: float | None = None, dtype=torch.float32, num_runs: int = 3) -> BatchedRuns:
    runs = BatchedRuns(task, num_runs, dtype=dtype)
    runs.init(SEEDS[:num_runs])
    rates = torch.full((num_runs,), task.base_lr if lr is None else lr, dtype=torch.float64)
    runs.unroll(rates, num_steps)
    return runs


# The registry


@pytest.fixture(params=TASKS)
def shipped(request, cifar_folder):  # noqa: F811 - the fixture
    package = {"digits": "sklearn", "mnist1d": "mnist1d"}.get(request.param.partition("-")[0])
    if package:
        pytest.importorskip(package)
    folder = {"folder": str(cifar_folder)} if request.param == "cifar10-cnn" else {}
    return partial(make_task, request.param, **folder)


def test_every_task_trains_and_evaluates(shipped):
    task = shipped(horizon=20)
    runs = BatchedRuns(task, 3)
    runs.init(SEEDS)
    before = runs.evaluate("train", 256).loss
    stats = runs.unroll(torch.full((3,), task.base_lr), 4)
    assert all(value.isfinite().all() for value in stats)
    assert runs.state.step.tolist() == [4, 4, 4]
    for split in datasets.SPLITS:
        loss, metric = runs.evaluate(split, 256)
        assert loss.shape == metric.shape == (3,)
        assert loss.isfinite().all()
        assert metric.isnan().all() if task.metric is None else ((metric >= 0) & (metric <= 1)).all()
    runs.unroll(torch.full((3,), task.base_lr), 16)
    assert (runs.evaluate("train", 256).loss < before).sum() >= 2
    assert not runs.state.diverged.any()


def test_every_task_refuses_a_horizon_of_zero(shipped):
    with pytest.raises(ValueError, match="got horizon 0, expected a whole number of at least 1"):
        shipped(horizon=0)


@pytest.mark.parametrize("base_lr", [0.0, -0.1, float("nan"), float("inf")])
def test_every_task_refuses_a_base_lr_that_is_not_positive(shipped, base_lr):
    with pytest.raises(ValueError, match=f"got base_lr {base_lr}, expected a positive finite number: pass"):
        shipped(base_lr=base_lr)


def test_every_task_takes_any_argument_of_task(shipped):
    def metric(outputs, targets):
        return outputs.sum() * 0.0 + 7.0

    task = shipped(metric=metric, batch_size=2, schedule=Cosine(), optimizer=AdamW(), base_lr=0.01)
    assert task.metric is metric
    assert (task.batch_size, task.schedule, task.optimizer, task.base_lr) == (2, Cosine(), AdamW(), 0.01)


def test_every_task_has_its_registered_name(shipped):
    assert shipped().name == shipped.args[0]


def test_width_and_depth_change_the_network():
    sizes = {make_task("teacher-student", width=w, depth=d).num_params for w in (8, 16) for d in (1, 2)}
    assert sizes == {8 * 21 + 9, 16 * 21 + 17, 8 * 21 + 72 + 9, 16 * 21 + 272 + 17}


def test_an_unknown_task_names_the_near_match():
    with pytest.raises(ValueError, match=r"got task 'digit-mlp', expected .*did you mean 'digits-mlp'"):
        make_task("digit-mlp")


def test_cifar10_without_a_folder_says_what_to_do():
    with pytest.raises(ValueError, match=r"got no folder, expected .*: unpack"):
        make_task("cifar10-cnn")


# Closed forms


def test_quadratic_with_a_constant_lr():
    # w + 1 shrinks by (1 - 2 lr) at every step.
    runs = train(make_task("quadratic"), 10, lr=0.1, dtype=torch.float64)
    torch.testing.assert_close(
        runs.state.params[:, 0], torch.full((3,), 6.0 * 0.8**10 - 1.0, dtype=torch.float64), rtol=1e-13, atol=0.0
    )


def test_quadratic_with_its_own_schedule_is_the_run_of_the_literature():
    task = make_task("quadratic", horizon=400)
    runs = BatchedRuns(task, 1, dtype=torch.float64)
    controller = ScheduleController(task.schedule, decisions=40)
    episode = run_episode(controller, runs, SEEDS[:1], torch.tensor([task.base_lr], dtype=torch.float64))
    step = torch.arange(400, dtype=torch.float64)
    rates = 0.2 * 0.95**step
    torch.testing.assert_close(episode.lr.flatten(), rates, rtol=1e-9, atol=0.0)
    assert episode.lr[-1].item() == pytest.approx(2.6e-10, rel=0.02)  # the underflow: 0.2 · 0.95^399
    distance = 6.0 * torch.prod(1.0 - 2.0 * rates)
    assert runs.state.params.item() == pytest.approx(distance.item() - 1.0, abs=1e-9)
    assert episode.final["train"][0].item() == pytest.approx(distance.item() ** 2, rel=1e-6)


@pytest.mark.parametrize("horizon", [50, 400])
def test_the_quadratic_decays_by_five_percent_a_step_at_every_horizon(horizon):
    task = make_task("quadratic", horizon=horizon)
    assert task.schedule(1.0 / horizon) == pytest.approx(0.95, rel=1e-9)
    # A copy keeps its schedule, which is a function of progress and so stretches with the horizon.
    stretched = task.with_(horizon=2 * horizon)
    assert stretched.schedule(1.0 / stretched.horizon) == pytest.approx(0.95**0.5, rel=1e-9)


def test_noisy_quadratic_is_the_expected_loss_in_closed_form():
    # Two coordinates, h = 1 and 1/2, from A = 1, two steps at lr 1 with noise 0.01.
    first = 0.01  # 0²·1 + 0.01, and again 0²·0.01 + 0.01
    second = 0.25 * (0.25 * 1.0 + 0.005) + 0.005
    task = make_task("noisy-quadratic", dimensions=2)
    runs = train(task, 2, lr=1.0, dtype=torch.float64)
    assert runs.evaluate("test").loss[0].item() == pytest.approx(0.5 * (first + 0.5 * second), rel=1e-12)


def test_noisy_quadratic_of_the_design_has_its_best_constant_lr_at_1_22():
    task = make_task("noisy-quadratic")
    runs = BatchedRuns(task, 3, dtype=torch.float64)
    runs.init(SEEDS)
    for _ in range(10):
        runs.unroll(torch.tensor([1.18, 1.22, 1.26], dtype=torch.float64), 100)
    loss = runs.evaluate("train").loss
    assert loss.argmin() == 1
    assert loss[1].item() == pytest.approx(0.0425, abs=5e-5)


# The user's own network and data


class Scale(nn.Module):
    """A layer type that the seeded initialiser cannot know."""

    def __init__(self, width):
        super().__init__()
        self.factor = nn.Parameter(torch.randn(width))

    def forward(self, inputs):
        return inputs * self.factor


def test_own_module_and_tensors_in_a_few_lines():
    task = own_task(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)))
    runs = train(task, 40)
    assert (runs.evaluate("train").loss < 0.5).all()


def test_own_layer_type_starts_from_its_own_constructor():
    runs = BatchedRuns(own_task(lambda: nn.Sequential(Scale(4), nn.Linear(4, 2))), 3)
    runs.init(torch.tensor([0, 0, 1]))
    factors = runs.state.params[:, :4]
    assert torch.equal(factors[0], factors[1])  # the same seed, the same weights
    assert not torch.equal(factors[0], factors[2])
    many = BatchedRuns(runs.task, 200)
    many.init(torch.arange(200))
    # Standard normal, as the constructor draws it; the bank holds fewer than 200 different ones.
    assert abs(many.state.params[:, :4].std() - 1.0) < 0.2


def test_own_initialisation_of_a_known_layer_type_is_kept():
    def model():
        layer = nn.Linear(4, 2)
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, 3.0)
        return layer

    runs = BatchedRuns(own_task(model), 3)
    runs.init(SEEDS)
    weights = runs.module_of(1)
    assert weights.weight.tolist() == [[0.0] * 4] * 2
    assert weights.bias.tolist() == [3.0, 3.0]


def test_building_a_task_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    runs = BatchedRuns(own_task(lambda: nn.Sequential(Scale(4), nn.Linear(4, 2))), 2)
    runs.init(SEEDS[:2])
    assert torch.equal(torch.get_rng_state(), before)


def test_runs_do_not_depend_on_the_global_generator():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(train(own_task(lambda: nn.Sequential(Scale(4), nn.Linear(4, 2))), 5).state.params)
    assert torch.equal(*results)


def test_own_initial_weights_start_every_run():
    weights = MLP([4, 8, 2]).state_dict()
    runs = BatchedRuns(own_task(initial_weights=weights), 3)
    runs.init(SEEDS)
    for run in range(3):
        started = runs.module_of(run).state_dict()
        assert all(torch.equal(started[name], weights[name]) for name in weights)
    kept = {name: value.clone() for name, value in weights.items()}
    runs.unroll(torch.full((3,), 0.1), 4)
    assert all(torch.equal(weights[name], kept[name]) for name in weights)
    assert not torch.equal(runs.state.params[0], runs.state.params[1])  # the data order is still the seed's


def test_a_frozen_layer_stays_as_it_is():
    def model():
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        network[0].requires_grad_(False)
        return network

    weights = model().state_dict()
    runs = train(own_task(model, initial_weights=weights), 4)
    assert torch.equal(runs.module_of(0)[0].weight, weights["0.weight"])
    assert not torch.equal(runs.module_of(0)[2].weight, weights["2.weight"])


def test_own_data_loader():
    dataset = TensorDataset(INPUTS, LABELS)
    data = DataLoader(dataset, batch_size=20)
    runs = BatchedRuns(own_task(data=data, initial_weights=MLP([4, 8, 2]).state_dict()), 1)
    runs.init(SEEDS[:1])
    before = runs.evaluate("train").loss
    runs.unroll(torch.tensor([0.1]), 14)  # six batches an epoch: the loader starts again twice
    assert (runs.evaluate("train").loss < before).all()
    assert runs.evaluate("train").loss == runs.evaluate("valid").loss


def test_own_data_loader_gives_the_same_run_twice():
    runs = BatchedRuns(own_task(data=DataLoader(TensorDataset(INPUTS, LABELS), batch_size=20)), 1)
    results = []
    for _ in range(2):
        runs.init(SEEDS[:1])
        runs.unroll(torch.tensor([0.1]), 4)
        results.append(runs.state.params)
    assert torch.equal(*results)


def test_own_data_loader_serves_one_run():
    with pytest.raises(ValueError, match="got 3 runs on a data loader, expected 1"):
        train(own_task(data=DataLoader(TensorDataset(INPUTS, LABELS))), 2)


# Errors


@pytest.mark.parametrize(
    ("layer", "kind", "instead"),
    [
        (partial(nn.BatchNorm1d, 4), "BatchNorm1d", "nn.GroupNorm or nn.LayerNorm"),
        (partial(nn.InstanceNorm1d, 4, track_running_stats=True), "InstanceNorm1d", "nn.GroupNorm(num_channels"),
        (partial(nn.Dropout, 0.5), "Dropout", "no dropout, or weight decay"),
        (partial(nn.AlphaDropout, 0.5), "AlphaDropout", "no dropout, or weight decay"),
        (partial(nn.TransformerEncoderLayer, 4, 1, 8), "Dropout", "no dropout, or weight decay"),
    ],
)
def test_a_layer_that_cannot_be_batched_is_refused_with_its_replacement(layer, kind, instead):
    expected = f"got a network with {kind} at .*, expected .*: use {re.escape(instead)}.* instead"
    with pytest.raises(ValueError, match=expected):
        own_task(lambda: nn.Sequential(layer(), nn.Linear(4, 2)))


@pytest.mark.parametrize("layer", [partial(nn.Dropout, 0.0), partial(nn.GroupNorm, 2, 4), partial(nn.LayerNorm, 4)])
def test_a_layer_without_hidden_state_is_accepted(layer):
    train(own_task(lambda: nn.Sequential(layer(), nn.Linear(4, 2))), 2)


class OwnNorm(nn.BatchNorm1d):
    """A subclass under a name that does not give it away."""


class Masking(nn.Linear):
    """Random in the forward pass, without a layer that shows it."""

    def forward(self, inputs):
        return super().forward(functional.dropout(inputs, 0.5, training=True))


class RunningMean(nn.Linear):
    """A buffer that the forward pass replaces."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mean", torch.zeros(sizes[0]))

    def forward(self, inputs):
        self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0).detach()
        return super().forward(inputs - self.mean)


class Counting(nn.Linear):
    """A buffer that the forward pass changes in place."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1.0
        return super().forward(inputs)


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(OwnNorm(4), nn.Linear(4, 2)),
        lambda: Masking(4, 2),
        lambda: RunningMean(4, 2),
        lambda: Counting(4, 2),
    ],
    ids=["subclass", "functional dropout", "replaced buffer", "buffer in place"],
)
def test_hidden_state_that_has_no_telling_name_is_refused_too(model):
    with pytest.raises(ValueError, match=r"got .*, expected .*"):
        train(own_task(model), 2)


def test_a_network_without_parameters_is_refused():
    with pytest.raises(ValueError, match="got a network without parameters, expected at least one"):
        own_task(nn.Tanh)


@pytest.mark.parametrize(
    "weights",
    [
        MLP([4, 9, 2]).state_dict(),
        {f"module.{name}": value for name, value in MLP([4, 8, 2]).state_dict().items()},
        {},
    ],
    ids=["other width", "other names", "empty"],
)
def test_initial_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(
        ValueError, match=r"got initial weights that do not fit .*layers\.0\.weight.*, expected .*: pass"
    ):
        own_task(initial_weights=weights)


@pytest.mark.parametrize("value", [0, -3, 2.5, float("nan")])
@pytest.mark.parametrize("name", ["horizon", "batch_size"])
def test_counts_are_whole_and_positive(name, value):
    with pytest.raises(ValueError, match=f"got {name} {value}, expected"):
        own_task(**{name: value})


def test_an_unknown_optimizer_names_the_near_match():
    with pytest.raises(ValueError, match=r"got optimizer 'adm', expected .*did you mean 'adam'"):
        own_task(optimizer="adm")


@pytest.mark.parametrize(
    "data",
    [[INPUTS, LABELS], (INPUTS, LABELS, LABELS), (INPUTS.numpy(), LABELS.numpy()), (INPUTS, LABELS[:7])],
    ids=["list", "three tensors", "numpy", "lengths"],
)
def test_data_that_does_not_fit_is_refused(data):
    with pytest.raises(ValueError, match=r"got .*, expected .*"):
        train(own_task(data=data), 2, num_runs=1)


# Every argument changes the run


CHANGED = {
    "model": partial(MLP, [4, 8, 2], torch.tanh),
    "data": (INPUTS.flip(0), LABELS.flip(0)),
    "loss": lambda outputs, targets: functional.cross_entropy(outputs, targets, label_smoothing=0.1),
    "optimizer": "sgd",
    "base_lr": 0.2,
    "horizon": 41,
    "batch_size": 17,
    "initial_weights": MLP([4, 8, 2]).state_dict(),
    "schedule": Cosine(),
}
# A name is a label, a metric is only reported, and both paths give the same numbers (tests/schedulers/test_plain_runs).
INERT = {"name", "metric", "plain"}


def outcome(task: Task) -> bytes:
    """Everything that a run under the task's own schedule and base LR produces."""
    runs = BatchedRuns(task, 2)
    base_lr = torch.full((2,), task.base_lr)
    episode = run_episode(ScheduleController(task.schedule, decisions=4), runs, SEEDS[:2], base_lr)
    return episode.log_loss.numpy().tobytes() + runs.state.params.numpy().tobytes()


def test_every_argument_is_either_changed_below_or_inert():
    assert {field.name for field in fields(Task)} == set(CHANGED) | INERT


@pytest.mark.parametrize("name", CHANGED)
def test_every_argument_changes_the_run(name):
    assert outcome(own_task()) == outcome(own_task())
    assert outcome(own_task().with_(**{name: CHANGED[name]})) != outcome(own_task())


def test_name_and_metric_change_the_report_only():
    changed = own_task(name="other", metric=losses.accuracy)
    assert outcome(changed) == outcome(own_task())
    assert train(changed, 2).evaluate("train").metric.isfinite().all()
    assert train(own_task(), 2).evaluate("train").metric.isnan().all()


# Metrics and families


def test_accuracy_counts_the_largest_output():
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert losses.accuracy(outputs, torch.tensor([1, 0, 0, 0])).item() == 0.75


def test_token_cross_entropy_is_the_mean_over_all_positions():
    outputs = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = -outputs.log_softmax(-1).gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(losses.token_cross_entropy(outputs, targets), expected)


FAMILY = TaskFamily(
    "test",
    {
        "quadratic": {"horizon": (20, 40)},
        "teacher-student": {"width": (4, 8), "optimizer": ("sgd", "adam"), "num_variants": (2,)},
    },
    base_lr={"sgd": 0.5, "adam": 0.004},
)


def described(task: Task) -> tuple:
    return task.name, task.num_params, task.horizon, task.batch_size, task.optimizer, task.base_lr


def test_a_family_is_a_function_of_its_seed():
    first, again, other = (list(map(described, FAMILY.sample(seed, 12))) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_family_draws_the_same_first_groups_however_many_are_asked_for():
    assert list(map(described, FAMILY.sample(3, 4))) == list(map(described, FAMILY.sample(3, 9)))[:4]


def test_a_family_covers_every_value_of_every_axis():
    drawn = FAMILY.sample(0, 60)
    assert {task.horizon for task in drawn if task.name == "quadratic"} == {20, 40}
    students = [task for task in drawn if task.name == "teacher-student"]
    assert len(students) == 30
    kinds = {(type(task.optimizer).__name__, task.num_params) for task in students}
    assert kinds == {(kind, size) for kind in ("SGD", "Adam") for size in (4 * 21 + 5, 8 * 21 + 9)}
    assert {task.base_lr for task in students} == {0.5, 0.004}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_shipped_family_draws(name, monkeypatch):
    pytest.importorskip("mnist1d")
    one_variant = datasets.mnist1d  # generating eight takes seconds
    monkeypatch.setattr(datasets, "mnist1d", lambda _, flat=True: one_variant(1, flat=flat))
    drawn = FAMILIES[name].sample(0, 6)
    assert [task.name for task in drawn[:2]] == [
        list(FAMILIES[name].tasks)[i % len(FAMILIES[name].tasks)] for i in (0, 1)
    ]


def test_base_lrs_are_log_uniform_around_the_default():
    task = make_task("quadratic")
    drawn = draw_base_lr(task, torch.arange(20_000), (0.1, 10.0))
    position = (drawn / task.base_lr).log10()
    assert drawn.dtype == torch.float64
    assert position.min() >= -1.0
    assert position.max() <= 1.0
    counts = np.histogram(position.numpy(), bins=10, range=(-1, 1))[0]
    assert abs(counts - 2000).max() < 200
    assert torch.equal(drawn[5:6], draw_base_lr(task, torch.tensor([5]), (0.1, 10.0)))


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (0.1, float("inf")), (-1.0, 1.0)])
def test_bounds_of_the_base_lr_are_checked(bounds):
    with pytest.raises(ValueError, match=r"got base_lr_range .*, expected 0 < low <= high: pass"):
        draw_base_lr(make_task("quadratic"), SEEDS, bounds)
