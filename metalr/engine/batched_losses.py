"""Losses and metrics of many runs at once: `(num_runs, batch, …)` outputs and targets to `(num_runs,)`.

The known ones are written out; any other function of one run's outputs goes through `vmap`, which gives the same
numbers and takes more of the interpreter's time.
"""

from collections.abc import Callable

from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from metalr.tasks import losses

RunLoss = Callable[[Tensor, Tensor], Tensor]

# torch's own: a target that is left out of the mean.
_IGNORED = -100


def over_runs(function: Callable[[Tensor, Tensor], Tensor]) -> RunLoss:
    """A loss or metric of one run's `(outputs, targets)`, for all runs.

    Args:
        function: `(batch, …)` outputs and targets to a scalar.

    Returns:
        `(num_runs, batch, …)` outputs and targets to `(num_runs,)`.

    Example:
        >>> over_runs(torch.nn.functional.mse_loss)(torch.zeros(2, 3, 1), torch.ones(2, 3, 1)).tolist()
        [1.0, 1.0]
    """
    if isinstance(function, losses.ScaledLoss):
        inner, factor = over_runs(function.loss), function.factor
        return lambda outputs, targets: factor * inner(outputs, targets)
    return KNOWN.get(function) or vmap(function)


def _token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return vmap(losses.token_cross_entropy)(outputs, targets)
    each = functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return each.view(len(outputs), -1).sum(1) / (targets.flatten(1) != _IGNORED).sum(1)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.dim() != 3:  # torch has the classes on the axis after the batch, which is the last one only here
        return vmap(functional.cross_entropy)(outputs, targets)
    if targets.is_floating_point():
        return vmap(functional.cross_entropy)(outputs, targets)
    return _token_cross_entropy(outputs, targets)


def _mse_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape != targets.shape:  # torch broadcasts them, with a warning
        return vmap(functional.mse_loss)(outputs, targets)
    return (outputs - targets).square().flatten(1).mean(1)


def _smooth_l1_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape != targets.shape:
        return vmap(functional.smooth_l1_loss)(outputs, targets)
    return functional.smooth_l1_loss(outputs, targets, reduction="none").flatten(1).mean(1)


def _squared_distance(outputs: Tensor, _: Tensor) -> Tensor:
    return (outputs + 1.0).square().flatten(1).sum(1)


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).flatten(1).double().mean(1)


# Function of one run -> the same of many runs.
KNOWN: dict[Callable, RunLoss] = {
    functional.cross_entropy: _cross_entropy,
    functional.mse_loss: _mse_loss,
    functional.smooth_l1_loss: _smooth_l1_loss,
    losses.token_cross_entropy: _token_cross_entropy,
    losses.noisy_quadratic_loss: losses.noisy_quadratic_loss,
    losses.squared_distance: _squared_distance,
    losses.accuracy: _accuracy,
}
