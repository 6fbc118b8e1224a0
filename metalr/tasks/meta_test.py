"""The fixed tasks that a general controller is tested on: what its families leave out, one axis at a time and together.

Nothing here may serve to train or to choose a controller. `metalr.tasks.general` has the tasks for that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch.nn import functional

from metalr.optimizers.classic import SGD, Adagrad, Adam, AdamW, InnerOptimizer, RMSprop
from metalr.tasks import datasets
from metalr.tasks.data import Batch, TensorData
from metalr.tasks.losses import ScaledLoss, accuracy, token_cross_entropy
from metalr.tasks.networks import Network
from metalr.tasks.pretraining import pretrained
from metalr.tasks.synthetic import Synthetic
from metalr.tasks.task import Loss, Task

AXES = ("data", "network", "optimizer", "horizon", "batch", "scale")
# A recurrent network reads text one-hot, in these symbols; all others are one more.
_SYMBOLS = b"abcdefghijklmnopqrstuvwxyz0123456789_ \n()[]{}.,:=+-*/<>'\"#@"


@dataclass(frozen=True)
class MetaTest:
    """A task of the meta-test set by its numbers.

    Attributes:
        description: one line.
        source: the data: a table of `metalr.tasks.datasets.TABLES`, "mnist1d", "characters", "bytes", or generated.
        network, optimizer, base_lr, horizon, batch_size: of the task; the base LR is the middle of a grid.
        input_scale, loss_scale: factors of inputs and loss.
        fine_tuned: the weights come from a related dataset.
        axes: on which the task lies outside the meta-train family of `metalr.tasks.general`, of `AXES`.
    """

    description: str
    source: str | Synthetic
    network: Network
    optimizer: InnerOptimizer
    base_lr: float
    horizon: int
    batch_size: int
    input_scale: float = 1.0
    loss_scale: float = 1.0
    fine_tuned: bool = False
    axes: tuple[str, ...] = ()

    def task(self, name: str) -> Task:
        """Build the task.

        Raises:
            ImportError: scikit-learn or mnist1d is not installed, and the data come from it.
        """
        data = _data(self.source, self.network.kind)
        if self.input_scale != 1.0:
            splits = ((self.input_scale * x, y) for x, y in (data.train, data.valid, data.test))
            data = TensorData(*splits)
        inputs, targets = data.train
        numbers = targets.is_floating_point()
        loss: Loss = functional.mse_loss if numbers else functional.cross_entropy
        if self.source == "bytes":
            loss = token_cross_entropy
        outputs = targets.shape[-1] if numbers else int(targets.max()) + 1
        model = self.network.builder(tuple(inputs.shape[2:]), outputs)
        return Task(
            model,
            self.source if isinstance(self.source, Synthetic) else data,
            loss if self.loss_scale == 1.0 else ScaledLoss(loss, self.loss_scale),
            self.optimizer,
            self.base_lr,
            self.horizon,
            self.batch_size,
            metric=None if numbers else accuracy,
            initial_weights=pretrained(model, loss, data, seed=7) if self.fine_tuned else None,
            name=name,
        )


def meta_test_tasks(names: Iterable[str] | None = None) -> dict[str, Task]:
    """Build tasks of the meta-test set.

    Args:
        names: keys of `META_TEST`; None for all.

    Raises:
        ImportError: scikit-learn or mnist1d is not installed.
    """
    return {name: META_TEST[name].task(name) for name in (META_TEST if names is None else names)}


def _data(source: str | Synthetic, network: str) -> TensorData:
    if isinstance(source, Synthetic):
        return source.to("cpu", torch.float32)
    if source == "mnist1d":
        return datasets.mnist1d(flat=not network.startswith("conv"))
    if source == "characters":
        return _characters(12)
    return datasets.standard_library_bytes(16) if source == "bytes" else datasets.table(source)


@lru_cache
def _characters(length: int) -> TensorData:
    """The next character of Python's own source text after `length` others, in one case.

    Inputs are one-hot, `(1, num_examples, length, symbols)` float32.
    """
    text = datasets.standard_library_bytes(length)
    symbol_of = torch.full((256,), len(_SYMBOLS))
    symbol_of[torch.tensor(list(_SYMBOLS))] = torch.arange(len(_SYMBOLS))
    symbol_of[65:91] = torch.arange(26)

    def read(split: Batch) -> Batch:
        inputs, targets = (symbol_of[part] for part in split)
        return functional.one_hot(inputs, len(_SYMBOLS) + 1).float(), targets[..., -1]

    return TensorData(read(text.train), read(text.valid), read(text.test))


_LINEAR, _SMALL, _MLP = Network("linear", 1, 1), Network("mlp", 16, 1), Network("mlp", 24, 2)
_NORMED, _DEEP = Network("residual-norm", 16, 2, "gelu"), Network("residual-norm", 32, 10, "gelu")
_CONV, _GRU, _TRANSFORMER = Network("conv1d", 12, 2), Network("gru", 24, 1), Network("transformer", 32, 1)
_SIN = Network("mlp", 32, 2, "sin")
_MOMENTUM, _NESTEROV = SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True)
_CLIPPED = SGD(momentum=0.9, clip_norm=1.0)

# Seeds from 2**31 on, which no family draws.
_TEACHER = Synthetic("teacher", (1 << 31) + 1, size=12, outputs=2, noise=0.1)
_CLUSTERS = Synthetic("clusters", (1 << 31) + 2, size=16, outputs=5, noise=0.1)
_SIGNALS = Synthetic("signals", (1 << 31) + 3, size=40, outputs=6, shape=(1, 40))
_IMAGES = Synthetic("images", (1 << 31) + 4, size=8, outputs=6, shape=(1, 8, 8))
_WAVES = Synthetic("frequency", (1 << 31) + 5, size=10, outputs=5, shape=(10, 4))

# Axes that are held out -> name -> description, data, network, optimizer, base LR, horizon, batch size.
_BY_AXES: dict[str, dict[str, MetaTest]] = {
    "data": {
        "iris-linear-sgd": MetaTest("logistic regression on iris", "iris", _LINEAR, SGD(), 0.1, 200, 16),
        "wine-mlp-adam": MetaTest("an MLP on wine", "wine", _MLP, Adam(), 3e-3, 300, 16),
        "cancer-mlp-momentum": MetaTest("an MLP on breast cancer", "breast_cancer", _MLP, _MOMENTUM, 0.03, 500, 32),
        "cancer-normed-adamw": MetaTest("a normalised residual net", "breast_cancer", _NORMED, AdamW(), 3e-3, 400, 32),
        "cancer-fine-tuned-sgd": MetaTest(
            "fine-tuning of an MLP", "breast_cancer", _MLP, SGD(), 0.1, 200, 32, fine_tuned=True
        ),
        "diabetes-mlp-adamw": MetaTest("regression on diabetes", "diabetes", _MLP, AdamW(), 3e-3, 600, 32),
        "diabetes-linear-momentum": MetaTest("linear regression", "diabetes", _LINEAR, _MOMENTUM, 0.01, 150, 32),
        "diabetes-normed-adagrad": MetaTest("a normalised net", "diabetes", _NORMED, Adagrad(), 0.03, 300, 16),
        "diabetes-fine-tuned-adam": MetaTest(
            "fine-tuning of a normalised net", "diabetes", _NORMED, Adam(), 3e-3, 250, 16, fine_tuned=True
        ),
        "mnist1d-mlp-momentum": MetaTest("MNIST-1D", "mnist1d", Network("mlp", 32, 2), _MOMENTUM, 0.05, 1000, 64),
        "mnist1d-conv-adam": MetaTest("a convolutional net", "mnist1d", _CONV, Adam(), 3e-3, 600, 32),
        "characters-gru-adam": MetaTest("a GRU on text", "characters", _GRU, Adam(), 3e-3, 800, 32),
        "characters-gru-momentum": MetaTest("a GRU on text, clipped", "characters", _GRU, _CLIPPED, 0.1, 500, 32),
    },
    "network": {
        "teacher-sin-adam": MetaTest("sine activations", _TEACHER, _SIN, Adam(), 3e-3, 500, 32),
        "clusters-mish-momentum": MetaTest(
            "mish activations", _CLUSTERS, Network("residual", 24, 3, "mish"), _MOMENTUM, 0.03, 400, 32
        ),
        "signals-selu-nesterov": MetaTest(
            "selu activations", _SIGNALS, Network("mlp", 32, 3, "selu"), _NESTEROV, 0.02, 600, 32
        ),
        "teacher-deep-momentum": MetaTest("a deep normalised net", _TEACHER, _DEEP, _MOMENTUM, 0.03, 1000, 32),
        "clusters-deep-adam": MetaTest(
            "ten tanh layers", _CLUSTERS, Network("mlp", 24, 10, "tanh", 1.7), Adam(), 1e-3, 600, 32
        ),
        "images-wide-adamw": MetaTest("an MLP of width 256", _IMAGES, Network("mlp", 256, 2), AdamW(), 1e-3, 500, 32),
        "images-wide-conv-momentum": MetaTest(
            "64 channels", _IMAGES, Network("conv2d", 64, 2), _MOMENTUM, 0.05, 400, 32
        ),
    },
    "optimizer": {
        "teacher-mlp-rmsprop": MetaTest("regression, RMSprop", _TEACHER, _MLP, RMSprop(), 3e-3, 400, 32),
        "clusters-linear-rmsprop": MetaTest(
            "logistic regression, RMSprop", _CLUSTERS, _LINEAR, RMSprop(decay=0.95, eps=1e-4), 0.01, 200, 64
        ),
        "clusters-normed-rmsprop": MetaTest(
            "a normalised net, RMSprop", _CLUSTERS, _NORMED, RMSprop(decay=0.9), 1e-3, 600, 16
        ),
        "signals-conv-rmsprop": MetaTest(
            "a convolutional net, RMSprop", _SIGNALS, _CONV, RMSprop(weight_decay=1e-4), 3e-3, 400, 32
        ),
        "waves-gru-rmsprop": MetaTest("a clipped GRU, RMSprop", _WAVES, _GRU, RMSprop(clip_norm=1.0), 3e-3, 300, 32),
    },
    "horizon": {
        "clusters-mlp-20": MetaTest("twenty updates", _CLUSTERS, _MLP, Adam(), 3e-3, 20, 64),
        "clusters-mlp-5000": MetaTest("5,000 updates, momentum", _CLUSTERS, _SMALL, _MOMENTUM, 0.03, 5000, 16),
        "teacher-mlp-10000": MetaTest("10,000 updates, Adam", _TEACHER, _SMALL, Adam(), 3e-3, 10000, 16),
        "teacher-normed-8000": MetaTest("8,000 updates, normalised", _TEACHER, _NORMED, _MOMENTUM, 0.03, 8000, 16),
    },
    "batch": {
        "clusters-mlp-batch-1": MetaTest("one example at a time", _CLUSTERS, _MLP, SGD(), 0.01, 1500, 1),
        "clusters-mlp-batch-2": MetaTest("two examples at a time", _CLUSTERS, _MLP, AdamW(), 1e-3, 1000, 2),
        "images-mlp-batch-1024": MetaTest("1,024 at a time", _IMAGES, Network("mlp", 48, 2), _NESTEROV, 0.1, 200, 1024),
        "signals-normed-batch-1024": MetaTest("1,024 at a time", _SIGNALS, _NORMED, AdamW(), 0.01, 150, 1024),
    },
    "scale": {
        "teacher-scaled-momentum": MetaTest("large inputs", _TEACHER, _MLP, _MOMENTUM, 1e-3, 500, 32, input_scale=30.0),
        "clusters-scaled-loss-sgd": MetaTest("a large loss", _CLUSTERS, _MLP, SGD(), 3e-3, 400, 32, loss_scale=100.0),
        "teacher-scaled-targets-adam": MetaTest(
            "large targets", replace(_TEACHER, target_scale=50.0), _MLP, Adam(), 0.01, 800, 32
        ),
    },
    "data network": {
        "bytes-transformer-adamw": MetaTest("a transformer on text", "bytes", _TRANSFORMER, AdamW(), 3e-3, 600, 16),
        "bytes-transformer-momentum": MetaTest(
            "a transformer on text, clipped", "bytes", _TRANSFORMER, _CLIPPED, 0.1, 500, 16
        ),
        "bytes-transformer-adagrad": MetaTest(
            "a transformer on text, Adagrad", "bytes", _TRANSFORMER, Adagrad(), 0.03, 400, 16
        ),
        "bytes-transformer-fine-tuned": MetaTest(
            "fine-tuning of a transformer that has read backwards",
            "bytes",
            _TRANSFORMER,
            AdamW(),
            1e-3,
            300,
            16,
            fine_tuned=True,
        ),
    },
    "data optimizer": {
        "characters-gru-rmsprop": MetaTest("a GRU on text, RMSprop", "characters", _GRU, RMSprop(), 3e-3, 800, 32),
        "diabetes-fine-tuned-rmsprop": MetaTest(
            "fine-tuning of an MLP, RMSprop", "diabetes", _MLP, RMSprop(), 1e-3, 200, 16, fine_tuned=True
        ),
    },
    "data horizon": {
        "iris-linear-10000": MetaTest("10,000 updates, logistic", "iris", _LINEAR, SGD(), 0.1, 10000, 8),
    },
    "data network optimizer": {
        "bytes-transformer-rmsprop": MetaTest("a transformer, RMSprop", "bytes", _TRANSFORMER, RMSprop(), 1e-3, 500, 8),
        "wine-sin-rmsprop": MetaTest("sine activations, RMSprop", "wine", _SIN, RMSprop(), 1e-3, 300, 8),
        "diabetes-deep-rmsprop": MetaTest("a deep net, RMSprop", "diabetes", _DEEP, RMSprop(), 1e-3, 400, 32),
    },
    "data network horizon": {
        "bytes-transformer-3000": MetaTest(
            "3,000 updates of a transformer", "bytes", Network("transformer", 16, 1), AdamW(), 3e-3, 3000, 8
        ),
        "cancer-deep-momentum-4000": MetaTest(
            "4,000 updates of a deep net", "breast_cancer", replace(_DEEP, width=16), _MOMENTUM, 0.03, 4000, 16
        ),
    },
    "data horizon batch": {
        "cancer-mlp-6000-batch-2": MetaTest(
            "6,000 updates on pairs", "breast_cancer", _SMALL, _MOMENTUM, 0.01, 6000, 2
        ),
    },
    "data network optimizer batch": {
        "mnist1d-wide-rmsprop-batch-1024": MetaTest(
            "a wide MLP, RMSprop, 1,024 examples at a time",
            "mnist1d",
            Network("mlp", 128, 2, "mish"),
            RMSprop(),
            3e-3,
            150,
            1024,
        ),
    },
    "data network optimizer horizon batch scale": {
        "wine-everything": MetaTest(
            "all axes at once",
            "wine",
            Network("residual-norm", 24, 6, "selu"),
            RMSprop(decay=0.95),
            1e-3,
            3000,
            2,
            input_scale=20.0,
        ),
    },
}
META_TEST: dict[str, MetaTest] = {
    name: replace(entry, axes=tuple(axes.split()))
    for axes, entries in _BY_AXES.items()
    for name, entry in entries.items()
}
