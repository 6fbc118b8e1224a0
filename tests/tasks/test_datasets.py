"""Datasets: minibatches are a pure function of seed and step, splits are disjoint, files are read safely."""

import pickle
import resource
import struct

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from metalr.tasks import datasets
from metalr.tasks.data import SPLITS, LoaderData, TensorData

SEEDS = torch.tensor([3, 4, 5])
ZEROS = torch.zeros(3, dtype=torch.int64)


def numbered(num_examples: int = 50, num_variants: int = 1) -> TensorData:
    """Example k of variant v has the input 1000·v + k and the target -k."""
    k = torch.arange(num_examples, dtype=torch.float64)
    inputs = (1000.0 * torch.arange(num_variants)[:, None] + k)[..., None]
    targets = -k.expand(num_variants, -1)
    return TensorData(*([(inputs, targets)] * 3))


def batches(data, seeds=SEEDS, variants=ZEROS, first_step=ZEROS, num_steps=6, batch_size=8):
    return list(data.batches(seeds, variants, first_step, num_steps, batch_size))


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(first, second, strict=True)
    )


# Minibatches


def test_a_minibatch_has_the_leading_axes_runs_and_batch():
    inputs, targets = batches(numbered())[0]
    assert inputs.shape == (3, 8, 1)
    assert targets.shape == (3, 8)


def test_inputs_and_targets_stay_together():
    for inputs, targets in batches(numbered()):
        assert torch.equal(inputs[..., 0], -targets)


def test_minibatches_are_a_pure_function_of_seed_and_step():
    data = numbered()
    whole = batches(data)
    torch.manual_seed(99)
    assert same(whole, batches(data))
    assert same(whole[4:], batches(data, first_step=ZEROS + 4, num_steps=2))
    alone = batches(data, seeds=SEEDS[1:2], variants=ZEROS[:1], first_step=ZEROS[:1])
    assert same([(x[1:2], y[1:2]) for x, y in whole], alone)


def test_each_run_has_its_own_step():
    whole = batches(numbered())
    shifted = batches(numbered(), first_step=torch.tensor([0, 2, 5]), num_steps=1)[0]
    for run, step in enumerate((0, 2, 5)):
        assert torch.equal(shifted[0][run], whole[step][0][run])


def test_seeds_and_steps_draw_different_minibatches():
    drawn = [tuple(row.flatten().tolist()) for inputs, _ in batches(numbered()) for row in inputs]
    assert len(set(drawn)) == len(drawn) == 18


def test_a_larger_minibatch_begins_with_the_smaller_one():
    small, large = batches(numbered(), batch_size=4)[0][0], batches(numbered(), batch_size=9)[0][0]
    assert torch.equal(small, large[:, :4])


def test_every_training_example_is_drawn_about_equally_often():
    inputs = torch.cat([x for x, _ in batches(numbered(), num_steps=500, batch_size=20)])
    counts = torch.bincount(inputs.flatten().long(), minlength=50)
    assert len(counts) == 50
    # Poisson-like with mean 600 and standard deviation 24.
    assert (counts - 600).abs().max() < 120


def test_a_run_sees_its_own_variant_only():
    variants = torch.tensor([2, 0, 1])
    data = numbered(num_variants=3)
    for inputs, _ in batches(data, variants=variants):
        assert torch.equal((inputs[..., 0] // 1000).long(), variants[:, None].expand(-1, 8))
    for inputs, _ in data.chunks("valid", variants, 10, 4):
        assert torch.equal((inputs[..., 0] // 1000).long(), variants[:, None].expand(-1, inputs.shape[1]))


@pytest.mark.parametrize("num_variants", [1, 2])
@pytest.mark.parametrize(("max_examples", "chunk_size"), [(10, 3), (10, 10), (50, 7), (1000, 64), (1, 5)])
def test_chunks_are_the_first_examples_in_order(num_variants, max_examples, chunk_size):
    data = numbered(num_variants=num_variants)
    parts = [x for x, _ in data.chunks("test", ZEROS, max_examples, chunk_size)]
    assert all(part.shape[1] <= chunk_size for part in parts)
    seen = torch.cat(parts, 1)[..., 0]
    assert torch.equal(seen, torch.arange(float(min(max_examples, 50)), dtype=torch.float64).expand(3, -1))


def test_to_changes_the_dtype_of_floating_tensors_alone():
    data = TensorData.of((torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))).to("cpu", torch.float64)
    assert data.train[0].dtype == torch.float64
    assert data.train[1].dtype == torch.int64


def test_a_missing_split_is_the_split_before_it():
    train, valid = (torch.zeros(4, 1), torch.zeros(4)), (torch.ones(2, 1), torch.ones(2))
    assert TensorData.of(train).test[0].shape[1] == 4
    assert torch.equal(TensorData.of(train, valid).test[0][0], valid[0])


@pytest.mark.parametrize(("num_inputs", "num_targets"), [(4, 3), (0, 0)])
def test_a_split_that_does_not_fit_is_an_error(num_inputs, num_targets):
    with pytest.raises(ValueError, match=f"got a train split of {num_inputs} inputs and {num_targets} targets, exp"):
        TensorData.of((torch.zeros(num_inputs, 2), torch.zeros(num_targets)))


# A user's own loader


def loader(num_examples: int = 10, batch_size: int = 4, **options) -> DataLoader:
    k = torch.arange(float(num_examples))
    return DataLoader(TensorDataset(k[:, None], -k), batch_size=batch_size, **options)


ONE = torch.zeros(1, dtype=torch.int64)


def from_loader(data: LoaderData, first_step: int, num_steps: int) -> list[list[float]]:
    drawn = data.batches(ONE, ONE, ONE + first_step, num_steps, 999)
    return [x[0, :, 0].tolist() for x, _ in drawn]


def test_a_loader_gives_its_own_batches_and_starts_again_when_it_ends():
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    assert from_loader(LoaderData(loader()), 0, 4) == expected


def test_a_loader_goes_on_where_the_last_interval_stopped():
    data = LoaderData(loader())
    assert from_loader(data, 0, 2) + from_loader(data, 2, 2) == from_loader(LoaderData(loader()), 0, 4)


def test_a_probe_does_not_consume_a_batch_of_a_loader():
    data = LoaderData(loader())
    assert from_loader(data, 0, 1) == [[0, 1, 2, 3]]  # the probe: one batch of a step that has not been made
    assert from_loader(data, 0, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert from_loader(data, 2, 1) == from_loader(data, 2, 1) == [[8, 9]]


def test_a_loader_is_converted_as_it_is_read():
    data = LoaderData(loader()).to("cpu", torch.float64)
    inputs, targets = next(iter(data.batches(ONE, ONE, ONE, 1, 4)))
    assert inputs.shape == (1, 4, 1)
    assert inputs.dtype == targets.dtype == torch.float64


def test_a_loader_evaluates_the_first_examples_only():
    data = LoaderData(loader(), valid=loader(20))
    seen = torch.cat([x for x, _ in data.chunks("valid", ONE, 6, 999)], 1)
    assert seen.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert sum(x.shape[1] for x, _ in data.chunks("test", ONE, 1 << 62, 999)) == 20


def test_evaluating_does_not_move_the_training_order():
    data = LoaderData(loader())
    from_loader(data, 0, 1)
    list(data.chunks("train", ONE, 100, 4))
    assert from_loader(data, 1, 1) == [[4, 5, 6, 7]]


def test_a_loader_serves_one_run():
    with pytest.raises(ValueError, match="got 3 runs on a data loader, expected 1"):
        batches(LoaderData(loader()))
    with pytest.raises(ValueError, match="got 3 runs on a data loader, expected 1"):
        list(LoaderData(loader()).chunks("train", ZEROS, 10, 10))


def test_an_empty_loader_is_an_error():
    with pytest.raises(ValueError, match="got a data loader that yields nothing, expected"):
        from_loader(LoaderData([]), 0, 1)


# Shipped datasets


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return datasets.digits()


def rows_of(part) -> list[bytes]:
    inputs, targets = part
    return [x.numpy().tobytes() + bytes([y]) for x, y in zip(inputs[0], targets[0].tolist(), strict=True)]


def test_digits_sizes(digits):
    assert [len(getattr(digits, split)[0][0]) for split in SPLITS] == [1197, 300, 300]
    assert digits.train[0].shape == (1, 1197, 64)
    assert digits.train[0].min() == -1.0
    assert digits.train[0].max() == 1.0
    assert digits.train[1].unique().tolist() == list(range(10))


def test_digits_splits_are_disjoint_and_cover_the_set(digits):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    published = rows_of((torch.as_tensor(images / 8.0 - 1.0).float()[None], torch.as_tensor(labels)[None]))
    ours = [row for split in SPLITS for row in rows_of(getattr(digits, split))]
    assert sorted(ours) == sorted(published)  # every published image once, so no image twice


def test_digits_as_images_are_the_same_digits(digits):
    images = datasets.digits(flat=False)
    assert images.train[0].shape == (1, 1197, 1, 8, 8)
    assert torch.equal(images.valid[0].flatten(2), digits.valid[0])


def test_mnist1d_is_the_published_dataset_and_variants_differ():
    data = pytest.importorskip("mnist1d.data")
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    ours = datasets.mnist1d(2)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert [getattr(ours, split)[0].shape for split in SPLITS] == [(2, 3200, 40), (2, 800, 40), (2, 1000, 40)]
    state = np.random.get_state()  # noqa: NPY002
    published = data.make_dataset(data.get_dataset_args())
    np.random.set_state(state)  # noqa: NPY002
    torch.testing.assert_close(ours.train[0][0].double(), torch.as_tensor(published["x"][:3200]), rtol=0, atol=1e-6)
    assert ours.test[1][0].tolist() == published["y_test"].tolist()
    assert not torch.equal(ours.train[0][0], ours.train[0][1])
    assert len(set(rows_of(ours.train)) & set(rows_of(ours.test))) == 0


def test_teacher_student_targets_have_unit_variance_and_every_teacher_differs():
    data = datasets.teacher_student(num_variants=3)
    assert [getattr(data, split)[0].shape for split in SPLITS] == [(3, 2048, 20), (3, 512, 20), (3, 512, 20)]
    for variant in range(3):
        assert data.train[1][variant].var().item() == pytest.approx(1.01, abs=0.1)
    assert not torch.equal(data.train[1][0], data.train[1][1])
    assert torch.equal(data.train[0][0], datasets.teacher_student(num_variants=1).train[0][0])
    train, test = ({row.numpy().tobytes() for row in part[0][0]} for part in (data.train, data.test))
    assert not train & test


def test_standard_library_bytes_are_text_moved_on_by_one():
    data = datasets.standard_library_bytes(length=16, num_examples=256)
    assert [getattr(data, split)[0].shape for split in SPLITS] == [(1, 256, 16), (1, 32, 16), (1, 32, 16)]
    for split in SPLITS:
        inputs, targets = getattr(data, split)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs[..., 1:], targets[..., :-1])
        assert inputs.min() >= 0
        assert inputs.max() < 256
    text = bytes(data.train[0].flatten().tolist())
    assert b"self" in text
    again = datasets.standard_library_bytes.__wrapped__(16, 256)
    assert torch.equal(again.train[0], data.train[0])


# CIFAR-10


def short(text: str) -> bytes:
    """Python 2's `str` as the published files hold it: opcode SHORT_BINSTRING."""
    return b"U" + bytes([len(text)]) + text.encode("latin-1")


def published_format(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A pickle with the opcodes of the published files: protocol 2, written by Python 2 with its numpy."""
    shape = b"K" + bytes([pixels.shape[0]]) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + short("u1") + b"K\x00K\x01\x87R" + b"(K\x03" + short("|") + b"NNN"
    dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short("b") + b"\x87R"
    content = pixels.tobytes()
    array += b"(K\x01" + shape + dtype + b"\x89" + b"T" + struct.pack("<I", len(content)) + content + b"tb"
    batch_label = short("batch_label") + short("training batch 1 of 5")
    label_list = short("labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + batch_label + label_list + short("data") + array + b"u."


@pytest.fixture
def cifar_folder(tmp_path):
    generator = np.random.default_rng(0)
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        pixels[0, :2] = 0, 255
        (tmp_path / name).write_bytes(published_format(pixels, [index, 9, 0, 3]))
    return tmp_path


def test_cifar10_reads_files_of_the_published_format(cifar_folder):
    data = datasets.cifar10(cifar_folder)
    assert [getattr(data, split)[0].shape for split in SPLITS] == [(1, n, 3, 32, 32) for n in (18, 2, 4)]
    assert data.train[0][0, 0].flatten()[:2].tolist() == [-1.0, 1.0]
    assert data.train[1][0, :8].tolist() == [0, 9, 0, 3, 1, 9, 0, 3]
    assert data.test[1][0].tolist() == [5, 9, 0, 3]


def test_cifar10_reads_the_same_as_plain_pickle_does(cifar_folder):
    with (cifar_folder / "test_batch").open("rb") as file:
        raw = pickle.load(file, encoding="bytes")
    pixels = torch.as_tensor(raw[b"data"]).view(4, 3, 32, 32)
    inputs = datasets.cifar10(cifar_folder).test[0][0]
    assert torch.equal(((inputs + 1.0) * 127.5).round().to(torch.uint8), pixels)


def test_cifar10_names_the_missing_files(cifar_folder):
    (cifar_folder / "data_batch_3").unlink()
    (cifar_folder / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match=r"without data_batch_3, test_batch, expected .* unpack"):
        datasets.cifar10(cifar_folder)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_unrun(cifar_folder, protocol):
    target = cifar_folder / "executed"
    content = {b"data": [[0] * 3072], b"labels": [0], b"more": Malicious(target)}
    (cifar_folder / "data_batch_1").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match=r"data_batch_1, which is not a CIFAR-10 batch \(.*system"):
        datasets.cifar10(cifar_folder)
    assert not target.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "eval"), ("numpy", "load"), ("numpy.lib._npyio_impl", "load"), ("torch", "load"), ("io", "open")],
)
def test_no_other_function_is_looked_up(cifar_folder, module, name):
    (cifar_folder / "data_batch_1").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(ValueError, match="not a CIFAR-10 batch"):
        datasets.cifar10(cifar_folder)


FOREIGN = {
    "empty": b"",
    "text": b"hello, I am not a pickle\n",
    "list": pickle.dumps([1, 2]),
    "number": pickle.dumps(3),
    "none": pickle.dumps(None),
    "other keys": pickle.dumps({b"images": 1}),
    "wrong size": pickle.dumps({b"data": [[1, 2, 3]], b"labels": [0]}),
    "labels of another length": published_format(np.zeros((4, 3072), np.uint8), [1, 2]),
    "labels that are no classes": published_format(np.zeros((4, 3072), np.uint8), [1, 2, 3, 77]),
    "truncated": published_format(np.zeros((4, 3072), np.uint8), [1, 2, 3, 4])[:-40],
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_or_broken_file_is_an_error_that_says_what_to_do(cifar_folder, content):
    (cifar_folder / "data_batch_2").write_bytes(content)
    with pytest.raises(ValueError, match=r"got .*data_batch_2, which is not a CIFAR-10 batch .*, expected .*: take"):
        datasets.cifar10(cifar_folder)


@pytest.fixture(scope="module")
def broken_file(tmp_path_factory):
    return tmp_path_factory.mktemp("cifar") / "data_batch_1"


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=40))
@example(b"\x95\x00\x00\x00\x00\x00\x00\x00\x80")  # a frame of 2**63 bytes
@example(b"\x95\x00\x00\x00\x00\x00\x00\x00\x01")  # a frame of 2**56 bytes
def test_random_bytes_never_give_another_error(broken_file, content):
    broken_file.write_bytes(content)
    with pytest.raises(ValueError, match="not a CIFAR-10 batch"):
        datasets._cifar10_file(broken_file)


@pytest.mark.filterwarnings("ignore::numpy.exceptions.VisibleDeprecationWarning")
def test_a_damaged_index_asks_for_no_memory(broken_file):
    broken_file.write_bytes(b"\x80\x02)r" + (1 << 27).to_bytes(4, "little") + b".")  # keeps () as entry 134,217,728
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="not a CIFAR-10 batch"):
        datasets._cifar10_file(broken_file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@settings(max_examples=100, deadline=None)
@given(where=st.integers(0, 250), bit=st.integers(0, 7))
@example(65, 0)  # names a module "numpy/core"
def test_one_flipped_bit_never_gives_another_error(broken_file, where, bit):
    content = bytearray(published_format(np.zeros((1, 3072), np.uint8), [1]))
    content[where] ^= 1 << bit
    broken_file.write_bytes(content)
    try:
        inputs, _ = datasets._cifar10_file(broken_file)
    except ValueError as error:
        assert "not a CIFAR-10 batch" in str(error)  # noqa: PT017
    else:
        assert inputs.shape[1:] == (3, 32, 32)
