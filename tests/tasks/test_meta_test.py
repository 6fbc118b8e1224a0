"""The meta-test set: every task trains, and lies outside the family on the axes that its entry names and no other."""

from collections import Counter

import pytest
import torch

from metalr.engine.runs import BatchedRuns
from metalr.optimizers.classic import RMSprop
from metalr.tasks import datasets
from metalr.tasks.general import RANGES
from metalr.tasks.meta_test import AXES, META_TEST, MetaTest, meta_test_tasks
from metalr.tasks.synthetic import Synthetic

TRAIN = RANGES["meta-train"]


def within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


def held_out(entry: MetaTest) -> set[str]:
    """The axes on which an entry lies outside the meta-train family."""
    network, source = entry.network, entry.source
    usual_network = network.kind in ("linear", "gru") or (
        network.kind != "transformer"
        and within(network.width, TRAIN.width)
        and within(network.depth, TRAIN.depth)
        and network.activation in TRAIN.activations
    )
    scales = [entry.input_scale, entry.loss_scale]
    scales += [source.input_scale, source.target_scale] if isinstance(source, Synthetic) else []
    outside = {
        "data": not (isinstance(source, Synthetic) and source.kind in TRAIN.kinds),
        "network": not usual_network,
        "optimizer": isinstance(entry.optimizer, RMSprop),
        "horizon": not within(entry.horizon, TRAIN.horizon),
        "batch": not within(entry.batch_size, TRAIN.batch_size),
        "scale": not all(within(scale, (0.1, 10.0)) for scale in scales),
    }
    return {axis for axis, out in outside.items() if out}


@pytest.mark.parametrize("name", META_TEST)
def test_the_axes_of_an_entry_are_those_that_are_held_out(name):
    assert set(META_TEST[name].axes) == held_out(META_TEST[name])
    assert META_TEST[name].description
    assert "\n" not in META_TEST[name].description


def test_every_axis_is_held_out_alone_and_all_together():
    combinations = Counter(entry.axes for entry in META_TEST.values())
    assert set(AXES) == {axes[0] for axes in combinations if len(axes) == 1}
    assert combinations[AXES] >= 1
    assert len(META_TEST) >= 40


def test_the_set_has_what_it_promises():
    entries = META_TEST.values()
    assert {*datasets.TABLES, "bytes", "characters", "mnist1d"} <= {entry.source for entry in entries}
    assert {"transformer", "gru", "conv1d", "conv2d"} <= {entry.network.kind for entry in entries}
    assert (min(e.horizon for e in entries), max(e.horizon for e in entries)) == (20, 10_000)
    assert (min(e.batch_size for e in entries), max(e.batch_size for e in entries)) == (1, 1024)
    assert sum(entry.fine_tuned for entry in entries) >= 4
    assert sum(entry.horizon for entry in entries) < 100_000


@pytest.mark.parametrize("name", META_TEST)
def test_every_task_of_the_set_trains(name):
    entry = META_TEST[name]
    if entry.source in datasets.TABLES:
        pytest.importorskip("sklearn")
    if entry.source == "mnist1d":
        pytest.importorskip("mnist1d")
    task = meta_test_tasks([name])[name]
    assert (task.name, task.horizon, task.batch_size, task.optimizer) == (
        *(name, entry.horizon, entry.batch_size),
        entry.optimizer,
    )
    runs = BatchedRuns(task, 2)
    runs.init(torch.tensor([0, 1]))
    before = runs.evaluate("train", 256).loss
    runs.unroll(torch.full((2,), 0.1 * task.base_lr), 20)
    after = runs.evaluate("train", 256).loss
    assert after.isfinite().all()
    assert (after < before).any()
    assert (task.initial_weights is not None) == entry.fine_tuned


@pytest.mark.parametrize("name", datasets.TABLES)
def test_a_real_table_has_standardised_columns_and_distinct_splits(name):
    pytest.importorskip("sklearn")
    data = datasets.table(name)
    columns, answers = (torch.cat([split[part][0] for split in (data.train, data.valid, data.test)]) for part in (0, 1))
    rows, width = {"iris": (150, 4), "wine": (178, 13), "breast_cancer": (569, 30), "diabetes": (442, 10)}[name]
    assert columns.shape == (rows, width)
    torch.testing.assert_close(columns.mean(0), torch.zeros(width), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(columns.std(0), torch.ones(width))
    assert answers.is_floating_point() == (name == "diabetes")
    assert len(data.valid[0][0]) == len(data.test[0][0]) == rows // 5


def test_an_unknown_table_names_the_known_ones():
    with pytest.raises(ValueError, match="got table 'titanic', expected a known one: choose from iris, wine"):
        datasets.table("titanic")
