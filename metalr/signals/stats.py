"""Raw statistics of a run over one decision interval, as pure tensor functions.

The batched engine and the exported scheduler both call these functions, so that training and use measure the same
thing. Nothing here is scaled or clipped for a network: see `metalr.signals.observations`.

In a user's loop the tensors are tiny, and the cost of a decision grows with the *kinds* of operations in it, because
the code of each must be loaded into the processor's cache again after a training step: hence `where` instead of `&`,
`any` and casts.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_TINY = 1e-30


class RunStats(NamedTuple):
    """Statistics of one decision interval. Those of the loss are `(num_runs,)`, the rest `(num_runs, num_groups)`.

    Attributes:
        log_loss: mean of log(loss) over the interval; NaN where no loss is known.
        log_loss_slope: least-squares slope of log(loss), in 1/inner step.
        log_loss_noise: standard deviation of log(loss) around that line.
        num_losses: number of losses behind the three statistics above.
        exploded: 1.0 where a loss of the interval was NaN or infinite, else 0.0.
        gradient_norm: root mean square over the last two inner steps of the gradient's Euclidean norm.
        gradient_cosine: cosine between the gradients of the last two inner steps, in [-1, 1].
        update_ratio: norm of the update between these two gradients over the norm of the weights after it.
        log_descent: log of the fall of the loss that this update promises to first order, |gradient · update|.
        overshoot: cosine between the gradient after the update and the update; positive where it went too far.
        edge_ratio: 1 - (gradient after · update) / (gradient before · update), which is 1 where the update reaches the
            minimum along its line and 2 where it lands as high on the other side.
    """

    log_loss: Tensor
    log_loss_slope: Tensor
    log_loss_noise: Tensor
    num_losses: Tensor
    exploded: Tensor
    gradient_norm: Tensor
    gradient_cosine: Tensor
    update_ratio: Tensor
    log_descent: Tensor
    overshoot: Tensor
    edge_ratio: Tensor


class UpdateSums(NamedTuple):
    """Sums over the parameters of a group around one update, each `(num_runs, num_groups)`.

    Attributes:
        square_before, square_after: squared norms of the gradients before and after the update.
        product: their scalar product.
        slope_before, slope_after: scalar products of these gradients with the update.
        square_update: squared norm of the update.
        square_params: squared norm of the weights after it.
    """

    square_before: Tensor
    square_after: Tensor
    product: Tensor
    slope_before: Tensor
    slope_after: Tensor
    square_update: Tensor
    square_params: Tensor


class Prospect(NamedTuple):
    """The first update as it would be at a multiplier of 1; NaN where it cannot be predicted.

    Attributes:
        update_ratio: norm of the update over the norm of the weights, `(num_runs, num_groups)`.
        log_descent: log of the fall of the loss that it promises to first order, `(num_runs, num_groups)`.
        log_loss: log of the loss before it, `(num_runs,)`; NaN if no loss is known.
    """

    update_ratio: Tensor
    log_descent: Tensor
    log_loss: Tensor


def loss_stats(losses: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the five loss statistics of `RunStats` from the losses of an interval.

    Non-finite losses are left out of the means and reported as exploded; a loss that is zero or negative has no
    logarithm and is left out too.

    Args:
        losses: `(num_steps, num_runs)`, in the order of the inner steps.

    Returns:
        log_loss, log_loss_slope, log_loss_noise, num_losses and exploded, each `(num_runs,)`.

    Example:
        Losses 4, 2, 1 give log_loss = log 2, a slope of -log 2 per inner step and no noise.

        >>> loss_stats(torch.tensor([[4.0], [2.0], [1.0]]))[1].item()
        -0.6931471824645996
    """
    zero, one = torch.full_like(losses, 0.0), torch.full_like(losses, 1.0)
    finite = losses.abs() < math.inf
    usable = torch.where(finite, losses, zero) > 0.0
    weight = torch.where(usable, one, zero)
    # The inputs of the logarithm are replaced too: a masked NaN would still poison the gradient.
    log_losses = torch.where(usable, losses, one).log()
    count = weight.sum(0)
    safe_count = count.clamp(min=1.0)
    step = torch.arange(len(losses), dtype=losses.dtype, device=losses.device)[:, None]
    mean = log_losses.sum(0) / safe_count  # log(1) = 0 where the loss is left out
    mean_step = (weight * step).sum(0) / safe_count
    centred_step, centred_loss = weight * (step - mean_step), weight * (log_losses - mean)
    step_square = (centred_step * centred_step).sum(0)
    slope = (centred_step * centred_loss).sum(0) / step_square.clamp(min=_TINY)
    residual = ((centred_loss * centred_loss).sum(0) - slope * slope * step_square).clamp(min=0.0)
    noise = _root(residual / (count - 2.0).clamp(min=1.0))
    mean = torch.where(count > 0.0, mean, torch.full_like(mean, torch.nan))
    exploded = torch.where(finite, zero, one).sum(0).clamp(max=1.0)
    return mean, slope, noise, count, exploded


def _root(square: Tensor) -> Tensor:
    """Square root with a derivative of zero at zero, which every interval of two losses has."""
    known = square > 0.0
    root = torch.where(known, square, torch.full_like(square, 1.0)).sqrt()
    return torch.where(known, root, torch.full_like(root, 0.0))


def norm(square: Tensor) -> Tensor:
    """Square root with a finite derivative at zero."""
    return (square + _TINY).sqrt()


def update_stats(sums: UpdateSums) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the six statistics of `RunStats` that describe gradients and the update between them.

    Args:
        sums: around the update between the last two gradients of an interval.

    Returns:
        gradient_norm, gradient_cosine, update_ratio, log_descent, overshoot and edge_ratio, `(num_runs, num_groups)`
        each.

    Example:
        Gradient descent with LR 0.5 on ½·w² from w = 2: the gradients are 2 and 1, and the update between them is -1.
        The cosine is 1, the update ratio 1, the log descent log 2, the overshoot -1 and the edge ratio 0.5.
    """
    return (
        norm(0.5 * (sums.square_before + sums.square_after)),
        cosine(sums.product, sums.square_before, sums.square_after),
        ratio(sums.square_update, sums.square_params),
        log_size(sums.slope_before),
        cosine(sums.slope_after, sums.square_after, sums.square_update),
        _edge_ratio(sums.slope_before, sums.slope_after),
    )


def log_size(value: Tensor) -> Tensor:
    """Logarithm of the absolute value; NaN at zero.

    Example:
        >>> log_size(torch.tensor([-1.0, 0.0])).tolist()
        [0.0, nan]
    """
    size = value.abs()
    # The input of the logarithm is replaced too: the derivative of a masked infinity would still be NaN.
    return torch.where(size > _TINY, size.clamp(min=_TINY).log(), torch.full_like(size, torch.nan))


def _edge_ratio(slope_before: Tensor, slope_after: Tensor) -> Tensor:
    known = slope_before.abs() > _TINY
    quotient = slope_after / torch.where(known, slope_before, torch.full_like(slope_before, 1.0))
    return torch.where(known, 1.0 - quotient, torch.full_like(quotient, torch.nan))


def cosine(product: Tensor, square_before: Tensor, square_last: Tensor) -> Tensor:
    """Cosine of two vectors from their inner product and squared norms; 0 where one of them vanishes.

    Example:
        >>> cosine(torch.tensor(3.0), torch.tensor(4.0), torch.tensor(9.0)).item()
        0.5
    """
    # Each norm on its own, because the product of two small squares underflows in float32.
    return (product / (norm(square_before) * norm(square_last)).clamp(min=_TINY)).clamp(-1.0, 1.0)


def ratio(square_update: Tensor, square_params: Tensor) -> Tensor:
    """Norm of an update over the norm of the weights, from their squares.

    Example:
        >>> ratio(torch.tensor(1.0), torch.tensor(4.0)).item()
        0.5
    """
    return norm(square_update) / norm(square_params)
