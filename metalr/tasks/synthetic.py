"""Generated datasets of many kinds, each a pure function of an integer seed.

A `Synthetic` holds only the numbers that its examples are made from; the engine makes them when it takes the data to
its device, so that thousands of tasks fit in memory.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from metalr.tasks import datasets
from metalr.tasks.data import Batch, Data, Split, TensorData
from metalr.tasks.draws import Draws

# Features at each position of a generated sequence, and of a signal that is read as one.
SEQUENCE_FEATURES = 4


@dataclass(frozen=True)
class Synthetic(Data):
    """A generated dataset; valid and test have a quarter of the training examples each.

    Attributes:
        kind: a key of `KINDS`.
        seed: gives the examples, and whatever else the kind leaves open, such as how far classes overlap.
        num_examples: training examples. The digits have no more than 1,198.
        size: inputs of an example: features, points of a signal, side of an image, or positions of a sequence.
        outputs: classes, or regression targets.
        noise: share of random labels, or standard deviation of the noise on targets of standard deviation one (of the
            noise on the inputs, where the target is the input).
        input_scale: factor of the inputs, whose standard deviation is about one otherwise.
        target_scale: factor of regression targets.
        shape: of an example's inputs; () leaves them as the kind makes them.

    Example:
        >>> Synthetic("rings", seed=0, size=6).tensors.train[0].shape
        torch.Size([1, 1024, 6])
    """

    kind: str
    seed: int
    num_examples: int = 1024
    size: int = 16
    outputs: int = 3
    noise: float = 0.0
    input_scale: float = 1.0
    target_scale: float = 1.0
    shape: tuple[int, ...] = ()

    @property
    def regression(self) -> bool:
        """Whether the targets are numbers, float32, and not labels."""
        return KINDS[self.kind].regression

    @cached_property
    def tensors(self) -> TensorData:
        """The examples, float32; made once and then kept."""
        return self._make()

    def batches(
        self, seeds: Tensor, variants: Tensor, first_step: Tensor, num_steps: int, batch_size: int
    ) -> Iterator[Batch]:
        return self.tensors.batches(seeds, variants, first_step, num_steps, batch_size)

    def chunks(self, split: Split, variants: Tensor, max_examples: int, chunk_size: int) -> Iterator[Batch]:
        return self.tensors.chunks(split, variants, max_examples, chunk_size)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> TensorData:
        """Resident tensors on a device; this object keeps none."""
        return self._make().to(device, dtype)

    def _make(self) -> TensorData:
        kind, draws = KINDS[self.kind], Draws(self.seed)
        inputs, targets = kind.make(draws, self.num_examples * 3 // 2, self.size, self.outputs)
        if kind.regression:
            inputs, targets = self._noisy_numbers(draws, inputs, targets)
        else:
            wrong = draws.rand(len(targets)) < self.noise
            targets = torch.where(wrong, draws.integers(self.outputs, len(targets)), targets)
        inputs = self.input_scale * inputs
        if self.shape:
            inputs = inputs.reshape(-1, *self.shape)
        train, held = len(inputs) - 2 * (len(inputs) // 6), len(inputs) // 6
        parts = zip(inputs.split([train, held, held]), targets.split([train, held, held]), strict=True)
        return TensorData.of(*parts)

    def _noisy_numbers(self, draws: Draws, inputs: Tensor, targets: Tensor) -> Batch:
        targets = (targets - targets.mean(0)) / targets.std(0).clamp(min=1e-6)
        if self.kind == "autoencoding":
            return inputs + self.noise * draws.normal(*inputs.shape), self.target_scale * targets
        return inputs, self.target_scale * (targets + self.noise * draws.normal(*targets.shape))


def _standard(values: Tensor) -> Tensor:
    """Zero mean and unit variance over all entries."""
    return (values - values.mean()) / values.std()


# Vectors. Each takes draws, the number of examples, inputs and outputs, and returns inputs and targets.


def _clusters(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """Gaussian clusters, one to three a class, from separable to overlapping."""
    modes, gap = draws.integer(1, 3), draws.log_uniform(1.0, 12.0)  # gap: centre to centre, in standard deviations
    centres = draws.normal(classes, modes, size) * gap / math.sqrt(2.0 * size)
    widths = (0.7 * draws.normal(size)).exp() if draws.chance(0.5) else torch.ones(size)
    labels, mode = draws.integers(classes, count), draws.integers(modes, count)
    return _standard(centres[labels, mode] + widths * draws.normal(count, size)), labels


def _embedded(draws: Draws, latent: Tensor, size: int) -> Tensor:
    """A few coordinates `(count, few)` among noise, seen from a random direction: `(count, size)`."""
    latent = (latent - latent.mean(0)) / latent.std(0)
    if size <= latent.shape[1]:
        return latent[:, :size]
    background = draws.uniform(0.0, 1.0) * draws.normal(len(latent), size - latent.shape[1])
    rotation, _ = torch.linalg.qr(draws.normal(size, size))
    return _standard(torch.cat([latent, background], 1) @ rotation)


def _rings(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """Concentric rings, one a class."""
    labels, angle = draws.integers(classes, count), 2.0 * math.pi * draws.rand(count)
    radius = 1.0 + labels + draws.uniform(0.1, 0.4) * draws.normal(count)
    latent = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return _embedded(draws, latent, size), labels


def _spirals(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """Interleaved arms of a spiral, one a class."""
    labels, position = draws.integers(classes, count), draws.rand(count).sqrt()
    angle = 2.0 * math.pi * (labels / classes + draws.uniform(0.4, 1.2) * position)
    latent = position[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return _embedded(draws, latent + draws.uniform(0.01, 0.08) * draws.normal(count, 2), size), labels


def _checkerboard(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """Cells of a grid in two or three dimensions; the class is the sum of a cell's indices, XOR for two classes."""
    dimensions, cells = draws.integer(2, 3), draws.integer(2, 3)
    position = draws.rand(count, dimensions)
    labels = (position * cells).long().sum(1) % classes
    return _embedded(draws, position, size), labels


_TEACHERS = (torch.tanh, torch.relu, torch.sin)


def _teacher(draws: Draws, count: int, size: int, outputs: int) -> Batch:
    """Inputs, correlated or not, and the standardised outputs of a random network of varied depth and width."""
    inputs = draws.normal(count, size)
    if draws.chance(0.5):
        spectrum = torch.arange(1, size + 1) ** -draws.uniform(0.2, 1.0)
        rotation, _ = torch.linalg.qr(draws.normal(size, size))
        inputs = _standard(inputs * spectrum @ rotation)
    activation, slope, hidden = draws.choice(_TEACHERS), draws.uniform(1.0, 2.5), inputs
    width = draws.integer(4, 32)
    for _ in range(draws.integer(1, 3)):
        hidden = activation(slope / math.sqrt(hidden.shape[1]) * hidden @ draws.normal(hidden.shape[1], width))
    made = hidden @ draws.normal(width, outputs)
    return inputs, (made - made.mean(0)) / made.std(0).clamp(min=1e-6)


def _teacher_classes(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """Classes drawn from a random network's outputs at a random temperature."""
    inputs, logits = _teacher(draws, count, size, classes)
    temperature = draws.log_uniform(0.01, 1.0)
    gumbel = -(-draws.rand(count, classes).clamp(1e-6, 1.0 - 1e-6).log()).log()
    return inputs, (logits + temperature * gumbel).argmax(1)


def _autoencoding(draws: Draws, count: int, size: int, _: int) -> Batch:
    """Points near a curved surface of few dimensions; the target is the input."""
    rank = draws.integer(2, min(8, size))
    latent = draws.normal(count, rank)
    surface = latent @ draws.normal(rank, size)
    if draws.chance(0.7):
        surface = torch.tanh(draws.uniform(0.5, 2.0) / math.sqrt(rank) * surface) @ draws.normal(size, size)
    inputs = _standard(_standard(surface) + draws.uniform(0.0, 0.3) * draws.normal(count, size))
    return inputs, inputs


# Tables


def _columns(draws: Draws, count: int, size: int) -> Tensor:
    """Columns as tables have them: correlated, skewed, heavy-tailed, counted, and one-hot categories."""
    blocks: list[Tensor] = []
    left = size
    shared = draws.normal(count, 1)
    while left:
        kind = draws.weighted({"normal": 0.4, "lognormal": 0.15, "heavy": 0.15, "count": 0.1, "category": 0.2})
        share = draws.uniform(0.0, 0.9)
        column = math.sqrt(1.0 - share**2) * draws.normal(count, 1) + share * shared
        if kind == "lognormal":
            column = (draws.uniform(0.3, 1.2) * column).exp()
        elif kind == "heavy":  # Student's t with three degrees of freedom
            column = column / draws.normal(count, 3).square().mean(1, keepdim=True).sqrt()
        elif kind == "count":
            column = (draws.uniform(1.0, 4.0) * column.abs()).round()
        elif kind == "category":
            levels = draws.integer(2, 6)
            skewed = (draws.rand(count) ** draws.uniform(0.5, 2.0) * levels).long().clamp(max=levels - 1)
            column = functional.one_hot(skewed, levels)[:, :left].float()
        blocks.append(column)
        left -= column.shape[1]
    return torch.cat(blocks, 1)


def _table(draws: Draws, count: int, size: int) -> Batch:
    """A table and a score that depends on some columns: linearly, by thresholds and by products."""
    columns = _columns(draws, count, size)
    standard = ((columns - columns.mean(0)) / columns.std(0).clamp(min=0.05)).clamp(-20.0, 20.0)
    relevant = draws.rand(size) < draws.uniform(0.3, 1.0)
    relevant[0] = True
    weights = draws.normal(size) * relevant
    above = (standard > draws.normal(size)).float()
    pairs = standard.clamp(-3.0, 3.0) * standard.roll(1, 1).clamp(-3.0, 3.0)
    parts = (standard @ weights, above @ (weights * draws.normal(size)), pairs @ (weights * draws.normal(size)))
    score = sum(draws.uniform(0.0, 1.0) * _standard(part + 1e-6 * draws.normal(count)) for part in parts)
    if draws.chance(0.3):  # as a table comes whose owner has not scaled it
        standard = standard * 10.0 ** (2.0 * draws.rand(size) - 1.0)
    return standard, torch.as_tensor(score)


def _table_numbers(draws: Draws, count: int, size: int, outputs: int) -> Batch:
    """Regression on a table; several targets are powers of one score."""
    inputs, score = _table(draws, count, size)
    score = _standard(score).clamp(-4.0, 4.0)
    return inputs, torch.stack([score ** (1 + i) for i in range(outputs)], 1)


def _table_classes(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """Classes are ranges of a table's score, with a blurred border; the first may be several times the others."""
    inputs, score = _table(draws, count, size)
    score = _standard(score) + draws.uniform(0.0, 0.5) * draws.normal(count)
    shares = torch.ones(classes)
    shares[0] = draws.uniform(1.0, 4.0)
    borders = score.quantile((shares.cumsum(0) / shares.sum())[:-1])
    return inputs, torch.bucketize(score, borders)


# Signals and images


def _signals(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """A random curve for each class, moved, stretched, tilted and noisy: MNIST-1D's recipe with its numbers drawn."""
    knots = draws.integer(6, 14)
    templates = draws.normal(classes, knots)
    labels, grid = draws.integers(classes, count), torch.linspace(0.0, 1.0, size)
    low = draws.uniform(0.3, 0.8)
    width = low + (1.0 - low) * draws.rand(count, 1)
    offset = draws.uniform(0.1, 1.0) * (1.0 - width) * draws.rand(count, 1)
    place = ((grid - offset) / width).clamp(0.0, 1.0) * (knots - 1)
    left = place.long().clamp(max=knots - 2)
    weight = place - left
    of_class = labels[:, None]
    curve = (1.0 - weight) * templates[of_class, left] + weight * templates[of_class, left + 1]
    curve = curve * (1.0 + draws.uniform(0.0, 0.4) * draws.normal(count, 1))
    tilt = draws.uniform(0.0, 1.0) * draws.normal(count, 1) * (grid - 0.5)
    smooth = functional.avg_pool1d(draws.normal(count, 1, size + 4), 5, stride=1)[:, 0]
    noise = draws.uniform(0.0, 1.0) * smooth + draws.uniform(0.0, 0.3) * draws.normal(count, size)
    return _standard(curve + tilt + noise), labels


def _images(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """A random smooth picture for each class, shifted around the edges and noisy: `(count, size, size)`."""
    coarse = draws.normal(classes, 1, 4, 4)
    templates = functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    labels, reach = draws.integers(classes, count), draws.integer(0, 2)
    shift = draws.integers(2 * reach + 1, count, 2) - reach
    side = torch.arange(size)
    rows, columns = ((side + shift[:, i, None]) % size for i in range(2))
    pictures = templates[labels[:, None, None], rows[:, :, None], columns[:, None, :]]
    contrast = 1.0 + draws.uniform(0.0, 0.4) * draws.normal(count, 1, 1)
    return _standard(contrast * pictures + draws.uniform(0.1, 1.0) * draws.normal(count, size, size)), labels


def _digits(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """Some classes of the handwritten digits of scikit-learn, 8×8: `(count or fewer, 64)`."""
    data = datasets.digits()
    splits = (data.train, data.valid, data.test)
    images, labels = (torch.cat([split[part][0] for split in splits]) for part in range(2))
    chosen = draws.permutation(10)[:classes]
    label_of = torch.full((10,), -1)
    label_of[chosen] = torch.arange(classes)
    order = draws.permutation(len(labels))
    order = order[label_of[labels[order]] >= 0][:count]
    return images[order], label_of[labels[order]]


# Sequences, `(count, size, SEQUENCE_FEATURES)`


def _features(draws: Draws, values: Tensor) -> Tensor:
    """A random linear map of `(count, size, few)`, with a little noise."""
    mixed = values @ draws.normal(values.shape[-1], SEQUENCE_FEATURES)
    return _standard(mixed + draws.uniform(0.0, 0.3) * draws.normal(*mixed.shape))


def _frequency(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """Waves of a frequency for each class and any phase."""
    labels, phase = draws.integers(classes, count), 2.0 * math.pi * draws.rand(count, 1)
    cycles = 0.5 + (size / 2.5 - 0.5) * (labels[:, None] + draws.uniform(0.0, 0.3) * draws.rand(count, 1)) / classes
    angle = 2.0 * math.pi * cycles * torch.arange(size) / size + phase
    return _features(draws, torch.stack([angle.sin(), angle.cos()], -1)), labels


def _parity(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """Bits, of which the first few are added modulo the number of classes."""
    bits = draws.integers(2, count, size)
    labels = bits[:, : draws.integer(2, 4)].sum(1) % classes
    return _features(draws, 2.0 * bits[..., None] - 1.0), labels


def _first_token(draws: Draws, count: int, size: int, classes: int) -> Batch:
    """Random tokens; the label is the first one, which must be kept to the end."""
    tokens = draws.integers(classes, count, size)
    return _features(draws, functional.one_hot(tokens, classes).float()), tokens[:, 0]


def _adding(draws: Draws, count: int, size: int, outputs: int) -> Batch:
    """Numbers, two of them marked; the target is their sum (Hochreiter and Schmidhuber 1997), and its powers."""
    values = 2.0 * draws.rand(count, size) - 1.0
    marks = functional.one_hot(draws.rand(count, size).topk(2, dim=1).indices, size).sum(1).float()
    total = (values * marks).sum(1)
    return _features(draws, torch.stack([values, marks], -1)), torch.stack(
        [total ** (1 + i) for i in range(outputs)], 1
    )


class Kind(NamedTuple):
    """A kind of generated data.

    Attributes:
        make: draws, examples, size and outputs -> inputs and targets.
        form: of an example: "vector", "signal", "image" or "sequence".
        regression: the targets are numbers.
    """

    make: Callable[[Draws, int, int, int], Batch]
    form: Literal["vector", "signal", "image", "sequence"]
    regression: bool = False


KINDS: dict[str, Kind] = {
    "clusters": Kind(_clusters, "vector"),
    "rings": Kind(_rings, "vector"),
    "spirals": Kind(_spirals, "vector"),
    "checkerboard": Kind(_checkerboard, "vector"),
    "teacher": Kind(_teacher, "vector", regression=True),
    "teacher-classes": Kind(_teacher_classes, "vector"),
    "autoencoding": Kind(_autoencoding, "vector", regression=True),
    "table": Kind(_table_numbers, "vector", regression=True),
    "table-classes": Kind(_table_classes, "vector"),
    "signals": Kind(_signals, "signal"),
    "images": Kind(_images, "image"),
    "digits": Kind(_digits, "image"),
    "frequency": Kind(_frequency, "sequence"),
    "parity": Kind(_parity, "sequence"),
    "first-token": Kind(_first_token, "sequence"),
    "adding": Kind(_adding, "sequence", regression=True),
}
