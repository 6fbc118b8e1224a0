"""`Network`: one of the small networks by its numbers, and what an inner step of it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from metalr.tasks import models

Shape = tuple[int, ...]

ACTIVATIONS: dict[str, models.Activation] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "elu": functional.elu,
    "leaky-relu": functional.leaky_relu,
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
    "mish": functional.mish,
    "selu": functional.selu,
    "sin": torch.sin,
}
VECTOR_NETWORKS = ("linear", "mlp", "residual", "residual-norm")


@dataclass(frozen=True)
class Network:
    """A network by its numbers.

    Attributes:
        kind: "linear", "mlp", "residual", "residual-norm", "conv1d", "conv2d", "gru" or "transformer" (on bytes).
        width: of the hidden layers, or channels of the convolutions.
        depth: hidden layers, residual blocks or convolutions.
        activation: a key of `ACTIVATIONS`; a linear network has none, and a GRU its own.
        gain: factor of the initial weights.

    Example:
        >>> Network("mlp", width=8, depth=2).builder((5,), outputs=3)()(torch.zeros(1, 5)).shape
        torch.Size([1, 3])
    """

    kind: str
    width: int
    depth: int
    activation: str = "relu"
    gain: float = 1.0

    def builder(self, shape: Shape, outputs: int) -> Callable[[], nn.Module]:
        """A factory of the module.

        Args:
            shape: of an example: any for the networks of vectors, else `(channels, *sides)` or `(length, features)`.
            outputs: classes or targets.
        """
        activation, gain, hidden = ACTIVATIONS[self.activation], self.gain, [self.width] * self.depth
        if self.kind in VECTOR_NETWORKS:
            inputs = _numel(shape)
            if self.kind == "linear":
                return partial(models.MLP, [inputs, outputs], activation, gain=gain)
            if self.kind == "mlp":
                return partial(models.MLP, [inputs, *hidden, outputs], activation, gain=gain)
            sizes, norm = [inputs, self.width, *hidden, outputs], self.kind == "residual-norm"
            return partial(models.ResidualMLP, sizes, activation, norm=norm, gain=gain)
        if self.kind == "transformer":
            return partial(models.ByteTransformer, self.width, self.depth, max_length=shape[-1])
        if self.kind == "gru":
            return partial(models.GRUClassifier, shape[-1], self.width, outputs, gain=gain)
        return partial(models.ConvNet, len(shape) - 1, shape[0], hidden, outputs, activation, gain=gain)

    def step_seconds(self, shape: Shape, outputs: int, batch_size: int, num_runs: int = 128) -> float:
        """Time of an inner step of many runs on one busy CPU core, from counts and constants fitted to measurements.

        Nine tenths of the measured steps lie within a quarter of it; it ranks tasks, and promises nothing. Nets so
        small spend their time in elementwise operations and in the interpreter, not in products.

        Raises:
            KeyError: the network is a transformer, which was not measured.
        """
        counts = {**dict.fromkeys(VECTOR_NETWORKS, self._vector), "conv1d": self._conv, "conv2d": self._conv}
        layers, example, num_params = {**counts, "gru": self._gru}[self.kind](shape, outputs)
        return 1e-4 + layers + 1e-9 * num_runs * (batch_size * example + 10.0 * num_params)

    def _vector(self, shape: Shape, outputs: int) -> tuple[float, float, int]:
        """Seconds of interpretation, nanoseconds of an example, and number of parameters."""
        inputs, depth = _numel(shape), 0 if self.kind == "linear" else self.depth
        residual, norms = self.kind.startswith("residual"), self.kind == "residual-norm"
        sizes = [inputs, *[self.width] * (depth + residual), outputs]
        products = sum(a * b for a, b in pairwise(sizes))
        elements = self.width * depth * (1.5 if residual else 1.0) + self.width * residual
        example = 85.0 + 3.2 * elements + 2.8 * (inputs + outputs) + 0.026 * products
        return 1.5e-4 * (1 + depth), example + 110.0 * norms * (1 + depth), products + sum(sizes[1:])

    def _conv(self, shape: Shape, outputs: int) -> tuple[float, float, int]:
        channels, sides, kernel = shape[0], shape[1:], 3 ** (len(shape) - 1)
        windows, made, num_params = 0, 0, (self.width + 1) * outputs
        for _ in range(self.depth):
            sides = tuple((side + 1) // 2 for side in sides)
            windows += _numel(sides) * kernel * channels
            made += _numel(sides) * self.width
            num_params += self.width * (kernel * channels + 3)
            channels = self.width
        return 5e-5 * (1 + self.depth), 560.0 + 6.8 * windows + 7.2 * made, num_params

    def _gru(self, shape: Shape, outputs: int) -> tuple[float, float, int]:
        length, features = shape
        num_params = 3 * self.width * (features + self.width + 2) + (self.width + 1) * outputs
        return 1.5e-4 * length, length * (120.0 + 0.5 * self.width**2), num_params


def _numel(shape: Shape) -> int:
    return int(torch.Size(shape).numel())
