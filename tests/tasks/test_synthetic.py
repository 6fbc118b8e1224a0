"""Generated data: a function of the seed, in the shapes and units asked for, and something that can be learned."""

import pickle
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from metalr.engine.runs import BatchedRuns
from metalr.tasks.data import SPLITS, TensorData
from metalr.tasks.networks import Network
from metalr.tasks.synthetic import KINDS, SEQUENCE_FEATURES, Synthetic
from metalr.tasks.task import Task

SIZES = {"vector": 6, "signal": 24, "image": 8, "sequence": 6}
CLASSIFICATION = [kind for kind in KINDS if not KINDS[kind].regression]
REGRESSION = [kind for kind in KINDS if KINDS[kind].regression]


def data_of(kind: str, **changes) -> Synthetic:
    if kind == "digits":
        pytest.importorskip("sklearn")
    size = SIZES[KINDS[kind].form]
    outputs = size if kind == "autoencoding" else 2
    return Synthetic(kind, **{"seed": 3, "num_examples": 400, "size": size, "outputs": outputs, **changes})


def parts(data: Synthetic) -> list[torch.Tensor]:
    return [tensor for split in SPLITS for tensor in getattr(data.to("cpu", torch.float32), split)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_other_data(kind):
    torch.manual_seed(1)
    first = parts(data_of(kind))
    torch.manual_seed(2)
    again, other = parts(data_of(kind)), parts(data_of(kind, seed=4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][:, :50], other[0][:, :50])


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_types_and_units(kind):
    data = data_of(kind)
    x, y, *held_out = parts(data)
    shape = {"sequence": (6, SEQUENCE_FEATURES), "image": (8, 8)}.get(KINDS[kind].form, (data.size,))
    shape = (64,) if kind == "digits" else shape
    few = kind == "digits"  # no more than there are of two digits
    assert few or x.shape == (1, 400, *shape)
    assert x.shape[2:] == shape
    for tensor in held_out:
        assert tensor.shape[1] == x.shape[1] // 4 or (few and tensor.shape[1] > 50)
    assert x.isfinite().all()
    assert x.dtype == torch.float32
    assert 0.5 < x.std() < 8.0  # a table that nobody has scaled may be larger than one
    if data.regression:
        assert y.shape == (1, 400, data.outputs)
        assert y.dtype == torch.float32
        assert 0.7 < y.std() < 1.3
    else:
        assert y.dtype == torch.int64
        assert y.unique().tolist() == [0, 1]


@pytest.mark.parametrize("kind", CLASSIFICATION)
def test_noise_renames_that_share_of_labels(kind):
    clean, noisy = (parts(data_of(kind, noise=noise))[1] for noise in (0.0, 0.4))
    assert (clean != noisy).double().mean().item() == pytest.approx(0.2, abs=0.07)  # half of the 0.4 keep theirs


@pytest.mark.parametrize("kind", REGRESSION)
def test_noise_moves_numbers_by_that_much(kind):
    clean, noisy = (parts(data_of(kind, noise=noise)) for noise in (0.0, 0.3))
    moved = 0 if kind == "autoencoding" else 1
    assert (noisy[moved] - clean[moved]).std().item() == pytest.approx(0.3, rel=0.1)
    assert torch.equal(noisy[1 - moved], clean[1 - moved])


@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_factors(kind):
    plain, scaled = parts(data_of(kind)), parts(data_of(kind, input_scale=10.0, target_scale=3.0))
    torch.testing.assert_close(scaled[0], 10.0 * plain[0])
    torch.testing.assert_close(scaled[1], 3.0 * plain[1] if KINDS[kind].regression else plain[1])


def test_every_field_changes_the_data():
    base = Synthetic("signals", seed=0, size=16, noise=0.1)
    changes = {"kind": "frequency", "seed": 1, "num_examples": 600, "size": 20, "outputs": 4, "noise": 0.3}
    changes |= {"input_scale": 2.0, "shape": (1, 16)}
    for name, value in changes.items():
        before, after = parts(base), parts(replace(base, **{name: value}))
        assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(before, after, strict=True)), name


def test_a_task_holds_no_examples_until_a_run_asks_for_them():
    data = Synthetic("clusters", seed=0, num_examples=4096, size=64)
    assert isinstance(data.to("cpu", torch.float64), TensorData)
    assert data.to("cpu", torch.float64).train[0].dtype == torch.float64
    assert len(pickle.dumps(data)) < 1000


def test_minibatches_are_those_of_the_resident_tensors():
    data, seeds, zero = Synthetic("rings", seed=0, size=4), torch.tensor([1, 2]), torch.zeros(2, dtype=torch.int64)
    resident = data.to("cpu", torch.float32)
    for lazy, plain in zip(
        data.batches(seeds, zero, zero, 3, 8), resident.batches(seeds, zero, zero, 3, 8), strict=True
    ):
        assert torch.equal(lazy[0], plain[0])
    lazy, plain = (next(iter(source.chunks("valid", zero, 100, 64))) for source in (data, resident))
    assert torch.equal(lazy[0], plain[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_learned(kind):
    data = data_of(kind, seed=1, num_examples=1024)
    loss = functional.mse_loss if data.regression else functional.cross_entropy
    inputs = data.to("cpu", torch.float32).train[0].shape[2:]
    network = Network("gru", 12, 1) if KINDS[kind].form == "sequence" else Network("mlp", 24, 2)
    task = Task(network.builder(tuple(inputs), data.outputs), data, loss, "adam", batch_size=64)
    runs = BatchedRuns(task, 2)
    runs.init(torch.tensor([0, 1]))
    before = runs.evaluate("valid").loss
    runs.unroll(torch.full((2,), 0.01), 400)
    assert (runs.evaluate("valid").loss < 0.9 * before).all()
