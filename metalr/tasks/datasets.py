"""The shipped datasets: generated, read from a folder that the user names, or loaded from an installed package.

Each is a `TensorData`, with float32 inputs and int64 labels unless its docstring says otherwise.
"""

import pickle
import sys
import sysconfig
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from metalr import seeding
from metalr.tasks.data import SPLITS, Batch, TensorData


def empty() -> TensorData:
    """Placeholder data for a loss that needs none: one example, an empty vector."""
    nothing = torch.zeros(1, 0)
    return TensorData.of((nothing, nothing))


def _split(inputs: Tensor, targets: Tensor, valid: int, test: int, seed: int = 0) -> TensorData:
    """Shuffle with a fixed seed, and set `valid` and `test` examples aside."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    inputs, targets = inputs[order], targets[order]
    cuts = [len(inputs) - valid - test, valid, test]
    parts = list(zip(inputs.split(cuts), targets.split(cuts), strict=True))
    return TensorData.of(*parts)


def _missing(package: str) -> ImportError:
    return ImportError(f"this dataset needs the package {package!r}: pip install {package}")


@lru_cache
def digits(flat: bool = True) -> TensorData:
    """Handwritten digits of scikit-learn, 8×8: 1,197 train, 300 valid, 300 test, 10 classes, values in [-1, 1].

    Args:
        flat: inputs are `(1, num_examples, 64)`, else `(1, num_examples, 1, 8, 8)`.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing("scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    inputs = torch.as_tensor(images, dtype=torch.float32) / 8.0 - 1.0
    data = _split(inputs, torch.as_tensor(labels, dtype=torch.int64), valid=300, test=300)
    if flat:
        return data
    shaped = [(x.unflatten(-1, (1, 8, 8)), y) for x, y in (data.train, data.valid, data.test)]
    return replace(data, train=shaped[0], valid=shaped[1], test=shaped[2])


TABLES = ("iris", "wine", "breast_cancer", "diabetes")


@lru_cache
def table(name: str) -> TensorData:
    """A real table of scikit-learn, each column with zero mean and unit variance; valid and test have a fifth each.

    iris (150 rows, 4 columns, 3 classes), wine (178, 13, 3), breast_cancer (569, 30, 2), or diabetes (442, 10), whose
    targets are numbers, `(1, num_examples, 1)` float32, of zero mean and unit variance.

    Args:
        name: one of `TABLES`.

    Raises:
        ValueError: the name is unknown.
        ImportError: scikit-learn is not installed.
    """
    if name not in TABLES:
        raise ValueError(f"got table {name!r}, expected a known one: choose from {', '.join(TABLES)}")
    try:
        import sklearn.datasets
    except ImportError as error:
        raise _missing("scikit-learn") from error
    columns, answers = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    inputs, targets = _standardised(torch.as_tensor(columns)), torch.as_tensor(answers)
    targets = _standardised(targets[:, None]) if name == "diabetes" else targets.to(torch.int64)
    return _split(inputs, targets, valid=len(inputs) // 5, test=len(inputs) // 5)


def _standardised(columns: Tensor) -> Tensor:
    """Float32 columns of zero mean and unit variance."""
    columns = columns.double()
    return ((columns - columns.mean(0)) / columns.std(0)).float()


@lru_cache
def mnist1d(num_variants: int = 1, flat: bool = True) -> TensorData:
    """MNIST-1D (Greydanus and Kobak 2020): 3,200 train, 800 valid, 1,000 test signals of length 40, 10 classes.

    Variant 0 is the published default dataset (seed 42); the others are generated with other seeds.

    Args:
        num_variants: how many datasets to generate.
        flat: inputs are `(num_variants, num_examples, 40)`, else `(num_variants, num_examples, 1, 40)`.

    Raises:
        ImportError: the package mnist1d is not installed.
    """
    import numpy as np  # imported here because a scheduler in a user's loop needs no numpy

    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise _missing("mnist1d") from error
    splits: dict[str, list[Batch]] = {name: [] for name in SPLITS}
    for variant in range(num_variants):
        arguments = get_dataset_args()
        arguments.seed = 42 + variant
        generator_state = np.random.get_state()  # noqa: NPY002 -- the package seeds numpy's global generator
        raw = make_dataset(arguments)
        np.random.set_state(generator_state)  # noqa: NPY002
        x, y = (torch.as_tensor(np.array(raw[name])) for name in ("x", "y"))
        x_test, y_test = (torch.as_tensor(np.array(raw[name])) for name in ("x_test", "y_test"))
        shape = (-1, 40) if flat else (-1, 1, 40)
        x, x_test = x.float().view(shape), x_test.float().view(shape)
        y, y_test = y.long(), y_test.long()
        splits["train"].append((x[:3200], y[:3200]))
        splits["valid"].append((x[3200:], y[3200:]))
        splits["test"].append((x_test, y_test))
    return TensorData(*((torch.stack([x for x, _ in s]), torch.stack([y for _, y in s])) for s in splits.values()))


def teacher_student(num_variants: int = 16, num_inputs: int = 20, teacher_width: int = 8) -> TensorData:
    """Regression on random tanh networks: 2,048 train, 512 valid, 512 test; each variant has its own teacher.

    The targets have unit variance before Gaussian noise of standard deviation 0.1 is added.

    Args:
        num_variants: how many teachers there are.
        num_inputs: standard normal inputs of each example; targets are `(num_variants, num_examples, 1)` float32.
        teacher_width: tanh units of a teacher.
    """
    sizes = {"train": 2048, "valid": 512, "test": 512}
    total = sum(sizes.values())
    variant = torch.arange(num_variants)[:, None, None]

    def noise(purpose: int, rows: int, columns: int) -> Tensor:
        row, column = torch.arange(rows)[:, None], torch.arange(columns)
        return seeding.normal(variant, purpose, row, column, dtype=torch.float32)

    inputs = noise(1, total, num_inputs)
    hidden = torch.tanh(inputs @ noise(2, num_inputs, teacher_width) * 2.0 / num_inputs**0.5)
    targets = hidden @ noise(3, teacher_width, 1)
    targets = (targets - targets.mean(1, keepdim=True)) / targets.std(1, keepdim=True) + 0.1 * noise(4, total, 1)
    parts = zip(inputs.split(list(sizes.values()), 1), targets.split(list(sizes.values()), 1), strict=True)
    return TensorData(*parts)


def cifar10(folder: str | Path) -> TensorData:
    """CIFAR-10 from its published "python version" files: 45,000 train, 5,000 valid, 10,000 test images.

    Inputs are `(1, num_examples, 3, 32, 32)` with values in [-1, 1].

    Args:
        folder: holds `data_batch_1` … `data_batch_5` and `test_batch`. Nothing is downloaded.

    Raises:
        FileNotFoundError: a file is missing; the message says which, and where to get it.
        ValueError: a file is not in the published format.
    """
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    folder = Path(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"got folder {folder} without {', '.join(missing)}, expected the six files of "
            "cifar-10-python.tar.gz: unpack that archive and pass its cifar-10-batches-py folder"
        )
    parts = [_cifar10_file(folder / name) for name in names]
    inputs = torch.cat([x for x, _ in parts[:5]])
    targets = torch.cat([y for _, y in parts[:5]])
    cut = len(inputs) - len(inputs) // 10
    return TensorData.of((inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:]), parts[5])


class _ArraysOnly(pickle._Unpickler):  # type: ignore[name-defined]
    """Unpickler for the published files, which hold byte strings, lists and numpy arrays; it refuses all else.

    The one written in Python: the one in C allocates a table as long as the largest index that a file names, so that
    nine damaged bytes could ask for gigabytes.
    """

    _allowed = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in self._allowed:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of the published format")


def _cifar10_file(path: Path) -> Batch:
    import numpy as np  # imported here because a scheduler in a user's loop needs no numpy

    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        pixels = torch.as_tensor(np.asarray(content[b"data"], dtype=np.uint8))
        labels = torch.as_tensor(content[b"labels"], dtype=torch.int64)
        inputs = pixels.view(-1, 3, 32, 32).float() / 127.5 - 1.0
        if len(labels) != len(inputs) or len(labels) == 0 or not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
            raise ValueError(f"{len(inputs)} images and {len(labels)} labels, not one label from 0 to 9 per image")
    except Exception as error:  # a foreign pickle can fail in any way; none of them runs code
        raise ValueError(
            f"got {path}, which is not a CIFAR-10 batch ({error}), expected a pickled dict with b'data' "
            "(n, 3072) uint8 and b'labels': take the files of cifar-10-python.tar.gz unchanged"
        ) from error
    return inputs, labels


@lru_cache
def standard_library_bytes(length: int = 32, num_examples: int = 2048) -> TensorData:
    """Next-byte prediction on the source text of Python's own standard library.

    Inputs are `(1, num_examples, length)` bytes as int64; targets are the same text shifted by one byte. Files are
    taken in the order of their names, and no file serves two splits. valid and test have an eighth of
    `num_examples` each.

    The text differs between Python versions, so compare numbers of this task within one version only.

    Args:
        length: bytes in an example.
        num_examples: examples in the train split.

    Raises:
        FileNotFoundError: Python was installed without the source text of its library.
    """
    import numpy as np  # imported here because a scheduler in a user's loop needs no numpy

    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py"))
    if len(files) < 3:
        raise FileNotFoundError(
            f"got no source text of the standard library in {folder}, expected its .py files: "
            f"use a Python that ships them (this is {sys.version.split()[0]})"
        )
    sizes = {"train": num_examples, "valid": num_examples // 8, "test": num_examples // 8}
    by_split = {"train": files[0::2], "valid": files[1::4], "test": files[3::4]}
    parts = []
    for index, name in enumerate(SPLITS):
        text = np.frombuffer(b"".join(path.read_bytes() for path in by_split[name]), dtype=np.uint8)
        example = torch.arange(sizes[name])
        starts = seeding.integers(len(text) - length - 1, index, example).numpy()
        windows = torch.as_tensor(text[starts[:, None] + np.arange(length + 1)].astype(np.int64))
        parts.append((windows[:, :-1], windows[:, 1:]))
    return TensorData.of(*parts)
