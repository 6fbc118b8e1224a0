"""The wide family of small tasks that a general controller is trained on, and the other one that it is chosen by.

`draw_recipe` gives the numbers of a task, `draw_task` the task. Both families leave out whatever the controller is
tested on in the end: RMSprop, attention, text and real tables. See `metalr.tasks.meta_test`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from metalr.optimizers.classic import SGD, Adagrad, Adam, AdamW, InnerOptimizer
from metalr.tasks import models
from metalr.tasks.data import Batch
from metalr.tasks.draws import Draws
from metalr.tasks.losses import ScaledLoss, accuracy
from metalr.tasks.synthetic import KINDS, SEQUENCE_FEATURES, Synthetic
from metalr.tasks.task import Loss, Task

MetaSplit = Literal["meta-train", "meta-validation"]
_SPLIT_KEYS = {"meta-train": 1, "meta-validation": 2}

ACTIVATIONS: dict[str, models.Activation] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "elu": functional.elu,
    "leaky-relu": functional.leaky_relu,
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
}
# What each form of example can be read by: network -> forms.
_FORMS = {
    **dict.fromkeys(("linear", "mlp", "residual", "residual-norm"), ("vector", "signal", "image", "sequence")),
    "conv1d": ("signal",),
    "conv2d": ("image",),
    "gru": ("sequence", "signal"),
}
_NETWORKS = {
    "linear": 0.09,
    "mlp": 0.3,
    "residual": 0.17,
    "residual-norm": 0.19,
    "conv1d": 0.08,
    "conv2d": 0.09,
    "gru": 0.08,
}
_OPTIMIZERS = {"sgd": 0.15, "momentum": 0.25, "nesterov": 0.1, "adam": 0.2, "adamw": 0.2, "adagrad": 0.1}
# Updates, examples and steps of the training that a fine-tuned network has behind it.
_PRETRAINING = {"updates": 120, "batch_size": 32, "lr": 5e-3}


class Ranges(NamedTuple):
    """The distribution of a family of tasks, where the two differ.

    Attributes:
        kinds: kind of data -> weight.
        activations: their names.
        width, depth: of the hidden layers; width log-uniform.
        horizon: log-uniform.
        momentum: range of 1 - momentum, log-uniform.
        beta1, beta2: of Adam where they are not the usual ones; 1 - beta2 is log-uniform.
        weight_decay: log-uniform, for decoupled decay; a hundredth of it for an L2 penalty.
        eps: of Adam and Adagrad where it is not the usual one, log-uniform.
        clip_norm: log-uniform, where there is one.
        update_cost: largest multiply-adds of one run's forward pass in an inner step.
        run_cost: largest multiply-adds of the forward passes of one whole run.
    """

    kinds: Mapping[str, float]
    activations: tuple[str, ...]
    width: tuple[int, int]
    depth: tuple[int, int]
    horizon: tuple[int, int]
    momentum: tuple[float, float]
    beta1: tuple[float, float]
    beta2: tuple[float, float]
    weight_decay: tuple[float, float]
    eps: tuple[float, float]
    clip_norm: tuple[float, float]
    update_cost: float
    run_cost: float


# In neither of the two: what only the other one draws.
_HELD_OUT_KINDS = {"rings": 1.0, "first-token": 1.0, "adding": 1.0}
RANGES: dict[str, Ranges] = {
    "meta-train": Ranges(
        kinds={kind: 1.0 for kind in KINDS if kind not in _HELD_OUT_KINDS},
        activations=("relu", "tanh", "gelu", "silu", "elu", "leaky-relu"),
        width=(4, 48),
        depth=(1, 4),
        horizon=(40, 2000),
        momentum=(0.01, 0.5),
        beta1=(0.8, 0.95),
        beta2=(0.001, 0.05),
        weight_decay=(1e-3, 1e-1),
        eps=(1e-8, 1e-5),
        clip_norm=(0.1, 10.0),
        update_cost=1e5,
        run_cost=4e7,
    ),
    "meta-validation": Ranges(
        kinds={kind: 4.0 if kind in _HELD_OUT_KINDS else 1.0 for kind in KINDS},
        activations=("relu", "tanh", "gelu", "silu", "softplus", "sigmoid"),
        width=(8, 128),
        depth=(1, 8),
        horizon=(40, 4000),
        momentum=(0.004, 0.9),
        beta1=(0.5, 0.98),
        beta2=(0.0002, 0.15),
        weight_decay=(1e-2, 0.5),
        eps=(1e-7, 1e-2),
        clip_norm=(0.02, 1.0),
        update_cost=3e5,
        run_cost=1.2e8,
    ),
}


@dataclass(frozen=True)
class Network:
    """A network by its numbers.

    Attributes:
        kind: "linear", "mlp", "residual", "residual-norm", "conv1d", "conv2d" or "gru".
        width: of the hidden layers, or channels of the convolutions.
        depth: hidden layers, residual blocks or convolutions.
        activation: a key of `ACTIVATIONS`; a GRU has its own.
        gain: factor of the initial weights.
    """

    kind: str
    width: int
    depth: int
    activation: str = "relu"
    gain: float = 1.0

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The module for examples of a shape."""
        activation, gain = ACTIVATIONS[self.activation], self.gain
        inputs = int(torch.Size(shape).numel())
        hidden = [self.width] * self.depth
        if self.kind == "linear":
            return models.MLP([inputs, outputs], activation, gain=gain)
        if self.kind == "mlp":
            return models.MLP([inputs, *hidden, outputs], activation, gain=gain)
        if self.kind in ("residual", "residual-norm"):
            sizes = [inputs, self.width, *hidden, outputs]
            return models.ResidualMLP(sizes, activation, norm=self.kind == "residual-norm", gain=gain)
        if self.kind in ("conv1d", "conv2d"):
            return models.ConvNet(len(shape) - 1, shape[0], hidden, outputs, activation, gain=gain)
        return models.GRUClassifier(shape[-1], self.width, outputs, gain=gain)

    def cost(self, shape: tuple[int, ...], outputs: int) -> float:
        """Multiply-adds of one example's forward pass."""
        inputs = int(torch.Size(shape).numel())
        if self.kind == "linear":
            return inputs * outputs
        if self.kind.startswith("conv"):
            dimensions, channels, sides, total = len(shape) - 1, shape[0], shape[1:], 0.0
            for _ in range(self.depth):
                sides = tuple((side + 1) // 2 for side in sides)
                total += torch.Size(sides).numel() * 3**dimensions * channels * self.width
                channels = self.width
            return 2.0 * total  # the gather of the windows takes about as long as their product
        if self.kind == "gru":
            return 2.0 * shape[0] * 3 * self.width * (shape[1] + self.width)  # many small operations
        layers = self.depth - 1 if self.kind == "mlp" else self.depth
        return self.width * (inputs + layers * self.width + outputs)


@dataclass(frozen=True)
class Recipe:
    """A task by its numbers, before anything is built.

    Attributes:
        name: family, index and the main choices.
        data, network, optimizer, base_lr, batch_size, horizon: as in the task.
        loss: "cross-entropy", "mse" or "smooth-l1".
        loss_scale: factor of the loss.
        tuned_from: seed of the training that comes before (fine-tuning); None draws fresh weights for each run.
    """

    name: str
    data: Synthetic
    network: Network
    optimizer: InnerOptimizer
    base_lr: float
    batch_size: int
    horizon: int
    loss: str
    loss_scale: float = 1.0
    tuned_from: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example's inputs."""
        return self.data.shape

    def cost(self) -> float:
        """Multiply-adds of one run's forward pass in an inner step."""
        return self.batch_size * self.network.cost(self.shape, self.data.outputs)

    def task(self) -> Task:
        """Build the task."""
        model = partial(self.network.build, self.shape, self.data.outputs)
        loss = _LOSSES[self.loss]
        settings = {"optimizer": self.optimizer, "base_lr": self.base_lr, "name": self.name}
        return Task(
            model,
            self.data,
            loss if self.loss_scale == 1.0 else ScaledLoss(loss, self.loss_scale),
            horizon=self.horizon,
            batch_size=self.batch_size,
            metric=None if self.data.regression else accuracy,
            initial_weights=None if self.tuned_from is None else pretrained(model(), loss, self.data, self.tuned_from),
            **settings,  # type: ignore[arg-type]
        )


_LOSSES: dict[str, Loss] = {
    "cross-entropy": functional.cross_entropy,
    "mse": functional.mse_loss,
    "smooth-l1": functional.smooth_l1_loss,
}


def draw_task(split: MetaSplit, index: int) -> Task:
    """Draw a task of the wide family, a pure function of its arguments.

    The data are generated when a run first needs them, and fine-tuned weights at once.

    Args:
        split: "meta-train" or "meta-validation", which is another distribution.
        index: not negative.

    Raises:
        ValueError: the split is unknown or the index negative.

    Example:
        >>> draw_task("meta-train", 0).horizon == draw_task("meta-train", 0).horizon
        True
    """
    return draw_recipe(split, index).task()


def draw_recipe(split: MetaSplit, index: int) -> Recipe:
    """Draw the numbers of `draw_task(split, index)`; arguments and errors are the same."""
    if split not in RANGES or index < 0:
        raise ValueError(
            f"got split {split!r} and index {index}, expected one of {', '.join(RANGES)} and an index of at least 0"
        )
    ranges, key = RANGES[split], (_SPLIT_KEYS[split], index)
    draws = Draws(*key)
    network = draws.weighted(_NETWORKS)
    kinds = {kind: w for kind, w in ranges.kinds.items() if KINDS[kind].form in _FORMS[network]}
    kind = draws.weighted(kinds)
    name, optimizer, base_lr = draw_optimizer(draws, ranges)
    regression = KINDS[kind].regression
    recipe = Recipe(
        name=f"{split}-{index}: {kind}, {network}, {name}",
        data=_draw_data(draws, kind),
        network=Network(network, 1, 1, draws.choice(ranges.activations), _scale(draws, 0.5, 0.1, 3.0)),
        optimizer=optimizer,
        base_lr=base_lr,
        batch_size=1,
        horizon=round(draws.log_uniform(*ranges.horizon)),
        loss=("smooth-l1" if draws.chance(0.2) else "mse") if regression else "cross-entropy",
        loss_scale=_scale(draws, 0.25, 0.1, 10.0),
        tuned_from=draws.integer(0, 1 << 30) if draws.chance(0.1) else None,
    )
    for attempt in range(1000):
        sized = _draw_sizes(Draws(*key, attempt), recipe, ranges)
        if sized.cost() <= min(ranges.update_cost, ranges.run_cost / sized.horizon):
            return sized
    raise AssertionError(f"no sizes of {recipe.name} are cheap enough: raise the budget of {split}")


def draw_optimizer(draws: Draws, ranges: Ranges) -> tuple[str, InnerOptimizer, float]:
    """An inner optimizer, its name, and the LR that people would try first with it."""
    name = draws.weighted(_OPTIMIZERS)
    common = {"clip_norm": draws.log_uniform(*ranges.clip_norm) if draws.chance(0.3) else None, "weight_decay": 0.0}
    if draws.chance(0.5):
        penalty = draws.log_uniform(*ranges.weight_decay)
        common["weight_decay"] = penalty if name == "adamw" else penalty / 100.0
    if name == "sgd":
        return name, SGD(**common), 0.1  # type: ignore[arg-type]
    if name in ("momentum", "nesterov"):
        left = 0.1 if draws.chance(0.3) else draws.log_uniform(*ranges.momentum)
        settings = {"momentum": 1.0 - left, "nesterov": name == "nesterov", **common}
        return name, SGD(**settings), 0.3 * left  # type: ignore[arg-type]
    usual_eps = draws.chance(0.7)
    eps = draws.log_uniform(*ranges.eps)
    if name == "adagrad":
        return name, Adagrad(eps=1e-10 if usual_eps else eps, **common), 3e-2  # type: ignore[arg-type]
    if draws.chance(0.5):
        betas = {"beta1": draws.uniform(*ranges.beta1), "beta2": 1.0 - draws.log_uniform(*ranges.beta2)}
    else:
        betas = {"beta1": 0.9, "beta2": 0.999}
    kind = Adam if name == "adam" else AdamW
    return name, kind(**betas, eps=1e-8 if usual_eps else eps, **common), 3e-3  # type: ignore[arg-type]


def _scale(draws: Draws, probability: float, low: float, high: float) -> float:
    """A log-uniform factor with a probability, else 1."""
    factor = draws.log_uniform(low, high)
    return factor if draws.chance(probability) else 1.0


def _draw_data(draws: Draws, kind: str) -> Synthetic:
    """A dataset whose size and shape are left open."""
    regression = KINDS[kind].regression
    noise = draws.log_uniform(0.01, 0.5) if regression else draws.uniform(0.0, 0.4)
    return Synthetic(
        kind,
        seed=draws.integer(0, 1 << 30),
        num_examples=draws.choice((512, 1024, 2048, 4096)),
        noise=noise if draws.chance(0.5) else 0.0,
        input_scale=_scale(draws, 0.3, 0.1, 10.0),
        target_scale=_scale(draws, 0.3, 0.1, 10.0) if regression else 1.0,
    )


def _draw_sizes(draws: Draws, recipe: Recipe, ranges: Ranges) -> Recipe:
    """The recipe with sizes of examples, network and minibatch."""
    data, network = recipe.data, recipe.network
    form, kind = KINDS[data.kind].form, network.kind
    full: tuple[int, ...]
    if data.kind == "digits":
        size, full = 8, (1, 8, 8)
    elif form == "image":
        size = draws.integer(6, 8)
        full = (1, size, size)
    elif form == "sequence":
        size = draws.integer(5, 12)
        full = (size, SEQUENCE_FEATURES)
    elif form == "signal":
        size = 4 * draws.integer(5, 12)
        full = (size // SEQUENCE_FEATURES, SEQUENCE_FEATURES) if kind == "gru" else (1, size)
    else:
        size = round(draws.log_uniform(2, 64))
        full = (size,)
    flat = (int(torch.Size(full).numel()),)
    outputs = draws.integer(1, 4) if data.regression else round(draws.log_uniform(2, 10))
    outputs = {"autoencoding": size}.get(data.kind, outputs)
    by_position = kind.startswith("conv") or kind == "gru"
    width = round(draws.log_uniform(*ranges.width))
    depth = draws.integer(*ranges.depth)
    if kind.startswith("conv"):
        depth = min(depth, 3)
    if kind in ("linear", "gru"):
        depth = 1
    return replace(
        recipe,
        data=replace(data, size=size, outputs=outputs, shape=full if by_position else flat),
        network=replace(network, width=width, depth=depth),
        batch_size=2 ** draws.integer(2, 9),
    )


def pretrained(module: nn.Module, loss: Loss, data: Synthetic, seed: int) -> dict[str, Tensor]:
    """Weights from a short training with Adam on a dataset that is related to `data`, as a fine-tuned network has.

    Args:
        module: the network; it is not changed.
        loss: of the task.
        data: the inputs are mixed and moved, labels renamed and targets turned, to give the related dataset.
        seed: of everything that is random.
    """
    draws = Draws(seed)
    inputs, targets = _related(draws, data)
    weights = models.seeded_parameters(module, torch.tensor([seed]))
    assert weights is not None
    params = {name: weight[0].requires_grad_() for name, weight in weights.items()}
    optimizer = torch.optim.Adam(params.values(), _PRETRAINING["lr"])
    for _ in range(int(_PRETRAINING["updates"])):
        rows = draws.integers(len(inputs), int(_PRETRAINING["batch_size"]))
        optimizer.zero_grad()
        with torch.enable_grad():
            loss(functional_call(module, params, (inputs[rows],)), targets[rows]).backward()
        optimizer.step()
    return {name: param.detach() for name, param in params.items()}


def _related(draws: Draws, data: Synthetic) -> Batch:
    """Training examples seen through other eyes: `data` with inputs mixed and moved, and targets renamed or turned."""
    inputs, targets = (part[0] for part in data.to("cpu", torch.float32).train)
    last = inputs.shape[-1]
    mixing = torch.eye(last) + draws.uniform(0.1, 0.7) * draws.normal(last, last) / last**0.5
    inputs = inputs @ mixing + 0.3 * data.input_scale * draws.normal(last)
    if data.regression:
        return inputs, targets * (1.0 + draws.uniform(0.0, 0.5) * draws.normal(targets.shape[-1]))
    return inputs, draws.permutation(data.outputs)[targets] if draws.chance(0.5) else targets


@dataclass(frozen=True)
class GeneralFamily:
    """The wide family as `metalr.tasks.families.TaskFamily` offers its own.

    Attributes:
        split: "meta-train" or "meta-validation".
        name: shown in cards and records.
        base_lr_range: at each reset the base LR is log-uniform between these factors of the task's default.

    Example:
        >>> len(GeneralFamily().sample(seed=0, num_groups=3))
        3
    """

    split: MetaSplit = "meta-train"
    name: str = "general"
    base_lr_range: tuple[float, float] = (0.1, 10.0)

    def sample(self, seed: int, num_groups: int) -> list[Task]:
        """The tasks of `num_groups` random indices."""
        return [draw_task(self.split, Draws(seed, group).seed) for group in range(num_groups)]
