"""Losses and metrics that torch lacks, each of one run: `(outputs, targets) -> scalar`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction of examples whose largest output is the target, in [0, 1].

    Args:
        outputs: `(…, classes)`.
        targets: `(…)` int64.

    Returns:
        A float64 scalar.

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).item()
        0.5
    """
    return (outputs.argmax(-1) == targets).double().mean()


def token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats per token.

    Args:
        outputs: logits `(batch, length, classes)`.
        targets: `(batch, length)` int64.

    Example:
        >>> round(token_cross_entropy(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64)).item(), 4)
        1.3863
    """
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def squared_distance(outputs: Tensor, _: Tensor) -> Tensor:
    """Sum of (w + 1)², the loss of the quadratic.

    Example:
        >>> squared_distance(torch.tensor([5.0]), torch.zeros(0)).item()
        36.0
    """
    return (outputs + 1.0).square().sum()


def noisy_quadratic_loss(second_moments: Tensor, _: Tensor) -> Tensor:
    """½ Σ hᵢ Aᵢ with hᵢ = 1/i over the last axis: the expected loss of the noisy quadratic.

    Example:
        >>> noisy_quadratic_loss(torch.ones(2), torch.zeros(0)).item()
        0.75
    """
    index = torch.arange(1, second_moments.shape[-1] + 1, dtype=second_moments.dtype, device=second_moments.device)
    return 0.5 * (second_moments / index).sum(-1)


@dataclass(frozen=True)
class ScaledLoss:
    """A loss times a constant, as in a user's loop that sums where others take a mean.

    Attributes:
        loss: `(outputs, targets) -> scalar`.
        factor: a positive number.

    Example:
        >>> ScaledLoss(torch.nn.functional.mse_loss, 3.0)(torch.zeros(2), torch.ones(2)).item()
        3.0
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    factor: float

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scaled loss of one run."""
        return self.factor * self.loss(outputs, targets)
