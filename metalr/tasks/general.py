"""The wide family of small tasks that a general controller is trained on, and the other one that it is chosen by.

`draw_recipe` gives the numbers of a task, `draw_task` the task. Both families leave out whatever the controller is
tested on in the end: RMSprop, attention, text and real tables. See `metalr.tasks.meta_test`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from metalr.optimizers.classic import SGD, Adagrad, Adam, AdamW, InnerOptimizer
from metalr.tasks.draws import Draws
from metalr.tasks.networks import VECTOR_NETWORKS, Network
from metalr.tasks.recipes import Recipe
from metalr.tasks.synthetic import KINDS, SEQUENCE_FEATURES, Synthetic
from metalr.tasks.task import Task

MetaSplit = Literal["meta-train", "meta-validation"]
_SPLIT_KEYS = {"meta-train": 1, "meta-validation": 2}

# What each form of example can be read by: network -> forms.
_FORMS = {
    **dict.fromkeys(VECTOR_NETWORKS, ("vector", "signal", "image", "sequence")),
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


class Ranges(NamedTuple):
    """The distribution of a family of tasks, where the two differ.

    Attributes:
        kinds: kind of data -> weight.
        activations: their names.
        width, depth: of the hidden layers; width log-uniform.
        horizon: log-uniform.
        batch_size: powers of two.
        momentum: range of 1 - momentum, log-uniform.
        beta1, beta2: of Adam where they are not the usual ones; 1 - beta2 is log-uniform.
        weight_decay: log-uniform, for decoupled decay; a hundredth of it for an L2 penalty.
        eps: of Adam and Adagrad where it is not the usual one, log-uniform.
        clip_norm: log-uniform, where there is one.
        step_seconds: the longest inner step of 128 runs on one CPU core, by estimate.
        run_seconds: the longest sum of them over the horizon.
    """

    kinds: Mapping[str, float]
    activations: tuple[str, ...]
    width: tuple[int, int]
    depth: tuple[int, int]
    horizon: tuple[int, int]
    batch_size: tuple[int, int]
    momentum: tuple[float, float]
    beta1: tuple[float, float]
    beta2: tuple[float, float]
    weight_decay: tuple[float, float]
    eps: tuple[float, float]
    clip_norm: tuple[float, float]
    step_seconds: float
    run_seconds: float


# Kinds of data that only meta-validation draws.
_HELD_OUT_KINDS = {"rings": 1.0, "first-token": 1.0, "adding": 1.0}
RANGES: dict[str, Ranges] = {
    "meta-train": Ranges(
        kinds={kind: 1.5 if KINDS[kind].regression else 1.0 for kind in KINDS if kind not in _HELD_OUT_KINDS},
        activations=("relu", "tanh", "gelu", "silu", "elu", "leaky-relu"),
        width=(4, 48),
        depth=(1, 4),
        horizon=(40, 2000),
        batch_size=(4, 512),
        momentum=(0.01, 0.5),
        beta1=(0.8, 0.95),
        beta2=(0.001, 0.05),
        weight_decay=(1e-3, 1e-1),
        eps=(1e-8, 1e-5),
        clip_norm=(0.1, 10.0),
        step_seconds=0.009,
        run_seconds=3.0,
    ),
    "meta-validation": Ranges(
        kinds={kind: 4.0 if kind in _HELD_OUT_KINDS else 1.0 for kind in KINDS},
        activations=("relu", "tanh", "gelu", "silu", "softplus", "sigmoid"),
        width=(8, 128),
        depth=(1, 8),
        horizon=(40, 4000),
        batch_size=(4, 1024),
        momentum=(0.004, 0.9),
        beta1=(0.5, 0.98),
        beta2=(0.0002, 0.15),
        weight_decay=(1e-2, 0.5),
        eps=(1e-7, 1e-2),
        clip_norm=(0.02, 1.0),
        step_seconds=0.02,
        run_seconds=10.0,
    ),
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
    kind = draws.weighted(_kinds_for(network, ranges))
    name, optimizer, base_lr = _draw_optimizer(draws, ranges)
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
    return _affordable(recipe, ranges, key)


def _affordable(recipe: Recipe, ranges: Ranges, key: tuple[int, int]) -> Recipe:
    """The first draw of sizes within the budget, or the cheapest of many with as long a horizon as that allows."""
    drawn = []
    for attempt in range(300):
        sized = _draw_sizes(Draws(*key, attempt), recipe, ranges)
        if sized.step_seconds() <= min(ranges.step_seconds, ranges.run_seconds / sized.horizon):
            return sized
        drawn.append(sized)
    cheapest = min(drawn, key=Recipe.step_seconds)
    return replace(cheapest, horizon=min(cheapest.horizon, int(ranges.run_seconds / cheapest.step_seconds())))


def _kinds_for(network: str, ranges: Ranges) -> dict[str, float]:
    """Kind of data -> weight, of those that a network reads; half for data with a network of their own."""
    vectors = network in VECTOR_NETWORKS
    return {
        kind: 0.5 * weight if vectors and KINDS[kind].form != "vector" else weight
        for kind, weight in ranges.kinds.items()
        if KINDS[kind].form in _FORMS[network]
    }


def _draw_optimizer(draws: Draws, ranges: Ranges) -> tuple[str, InnerOptimizer, float]:
    """An inner optimizer, its name, and a usual LR: about the middle of those that are best for nets so small."""
    name = draws.weighted(_OPTIMIZERS)
    common = {"clip_norm": draws.log_uniform(*ranges.clip_norm) if draws.chance(0.3) else None, "weight_decay": 0.0}
    if draws.chance(0.5):
        penalty = draws.log_uniform(*ranges.weight_decay)
        common["weight_decay"] = penalty if name == "adamw" else penalty / 100.0
    if name == "sgd":
        return name, SGD(**common), 0.3  # type: ignore[arg-type]
    if name in ("momentum", "nesterov"):
        left = 0.1 if draws.chance(0.3) else draws.log_uniform(*ranges.momentum)
        settings = {"momentum": 1.0 - left, "nesterov": name == "nesterov", **common}
        return name, SGD(**settings), left  # type: ignore[arg-type]
    usual_eps = draws.chance(0.7)
    eps = draws.log_uniform(*ranges.eps)
    if name == "adagrad":
        return name, Adagrad(eps=1e-10 if usual_eps else eps, **common), 0.1  # type: ignore[arg-type]
    if draws.chance(0.5):
        betas = {"beta1": draws.uniform(*ranges.beta1), "beta2": 1.0 - draws.log_uniform(*ranges.beta2)}
    else:
        betas = {"beta1": 0.9, "beta2": 0.999}
    kind = Adam if name == "adam" else AdamW
    return name, kind(**betas, eps=1e-8 if usual_eps else eps, **common), 1e-2  # type: ignore[arg-type]


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
        num_examples=draws.choice((128, 256, 512, 1024, 2048, 4096)),
        noise=noise if draws.chance(0.3) else 0.0,
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
        batch_size=2 ** draws.integer(*(size.bit_length() - 1 for size in ranges.batch_size)),
    )


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
