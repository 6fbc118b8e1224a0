"""Weights for fine-tuning: a short training on a dataset that is related to the one of the task."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalr.tasks.data import Batch, Data
from metalr.tasks.draws import Draws
from metalr.tasks.models import seeded_parameters
from metalr.tasks.task import Loss

_UPDATES, _BATCH_SIZE, _LR = 120, 32, 5e-3


def pretrained(model: Callable[[], nn.Module], loss: Loss, data: Data, seed: int) -> dict[str, Tensor]:
    """Weights from a short training with Adam on a dataset that is related to `data`.

    Args:
        model: builds a network of `metalr.tasks.models`.
        loss: of the task.
        data: of the task.
        seed: of everything that is random.

    Returns:
        A state dict.
    """
    draws = Draws(seed)
    with torch.random.fork_rng(devices=[]):
        module = model()
    inputs, targets = _related(draws, data.to("cpu", torch.float32))
    drawn = seeded_parameters(module, torch.tensor([draws.seed]))
    assert drawn is not None, f"{type(module).__name__} is no network of metalr.tasks.models"
    weights = {name: weight[0].requires_grad_() for name, weight in drawn.items()}
    optimizer = torch.optim.Adam(weights.values(), _LR)
    for _ in range(_UPDATES):
        rows = draws.integers(len(inputs), _BATCH_SIZE)
        with torch.enable_grad():
            value = loss(functional_call(module, weights, (inputs[rows],)), targets[rows])
            gradients = torch.autograd.grad(value, list(weights.values()))
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


def _related(draws: Draws, data: Data) -> Batch:
    """Training examples with inputs mixed and moved, targets stretched, labels blurred and half the time renamed.

    Text is read backwards instead.
    """
    inputs, targets = next(iter(data.chunks("train", torch.zeros(1, dtype=torch.int64), 4096, 4096)))
    inputs, targets = inputs[0], targets[0]
    if not inputs.is_floating_point():
        return targets.flip(-1), inputs.flip(-1)
    width = inputs.shape[-1]
    mixing = torch.eye(width) + draws.uniform(0.1, 0.7) * draws.normal(width, width) / width**0.5
    inputs = inputs @ mixing + 0.3 * inputs.std() * draws.normal(width)
    if targets.is_floating_point():
        return inputs, targets * (1.0 + draws.uniform(0.0, 0.5) * draws.normal(targets.shape[-1]))
    classes = int(targets.max()) + 1
    # Some wrong labels keep the weights from being sure: a first loss near zero makes any later one an explosion.
    wrong = draws.rand(len(targets)) < 0.2
    targets = torch.where(wrong, draws.integers(classes, len(targets)), targets)
    return inputs, draws.permutation(classes)[targets] if draws.chance(0.5) else targets
