"""The losses that a user's loop passes between two decisions, left on their device."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Loss = Tensor | float | Mapping[str, Tensor | float]


class LossLog:
    """Losses, each with the update to which it belongs."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, Tensor | float]] = []

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, loss: Loss, update: int) -> None:
        """Record a loss.

        Args:
            loss: one number; a dict of losses counts as their sum.
            update: count of the updates before the one to which the loss belongs.

        Raises:
            TypeError: the loss is not a number at all.
            ValueError: the loss is not one number.
        """
        self._entries.append((update, one_number(loss)))

    def mean(self) -> float:
        """The mean of all the losses; NaN if there are none. It reads the device."""
        return sum(float(loss) for _, loss in self._entries) / len(self._entries) if self._entries else math.nan

    def take(self, before: int) -> tuple[list[int], list[float] | Tensor]:
        """Remove and return the losses of the updates below `before`.

        Returns:
            Their updates, and their values: a list of numbers, or a float64 vector on their device if they are tensors.
        """
        taken = [entry for entry in self._entries if entry[0] < before]
        self._entries = [entry for entry in self._entries if entry[0] >= before]
        return [update for update, _ in taken], _join([loss for _, loss in taken])

    def shift(self, skipped: list[int]) -> None:
        """Move losses to earlier updates, once it is known which updates before them were skipped."""
        self._entries = [(update - sum(s < update for s in skipped), loss) for update, loss in self._entries]

    def state(self) -> list[list[float]]:
        """Pairs of update and loss as plain numbers."""
        return [[update, float(loss)] for update, loss in self._entries]

    def load_state(self, state: list[list[float]]) -> None:
        """Continue from the result of `state`."""
        self._entries = [(int(update), float(loss)) for update, loss in state]


def one_number(loss: Any) -> Tensor | float:
    """A loss as a number, or as a copy on its device.

    Args:
        loss: a number, an array or tensor of one element, or a dict of them, which counts as their sum.

    Raises:
        TypeError: it is none of these.
        ValueError: it has more than one element, or the dict is empty.
    """
    if isinstance(loss, Tensor):
        # A copy: a captured graph writes every loss to the same place, and `loss /= n` changes one afterwards. A number
        # is the quickest copy on a CPU.
        if loss.numel() == 1 and not loss.is_complex():
            return float(loss.item()) if loss.is_cpu else loss.detach().reshape(()).clone()
    elif isinstance(loss, Mapping):
        if not loss:
            raise ValueError("got an empty dict of losses, expected at least one: pass the losses of this update")
        for part in loss.values():
            one_number(part)
        return one_number(sum(loss.values()))
    elif isinstance(loss, numbers.Real) and not isinstance(loss, bool):
        return float(loss)
    elif hasattr(loss, "__array__") and math.prod(loss.shape) == 1 and isinstance(loss.item(), float | int):
        return float(loss.item())
    if math.prod(getattr(loss, "shape", ())) != 1:
        raise ValueError(f"got a loss of shape {tuple(loss.shape)}, expected one number: pass loss.mean()")
    raise TypeError(
        f"got a loss of type {type(loss).__name__}, expected a real number, a tensor of one element, or a dict of "
        "them: pass the loss of this update, or do not call observe"
    )


def _join(losses: list[Tensor | float]) -> list[float] | Tensor:
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    if not tensors:
        return losses  # type: ignore[return-value]
    if len({(loss.dtype, loss.device) for loss in tensors}) == 1 and len(tensors) == len(losses):
        return torch.stack(tensors).double()
    device = max((loss.device for loss in tensors), key=lambda d: d.type != "cpu")
    return torch.stack([torch.as_tensor(loss, dtype=torch.float64, device=device) for loss in losses])


def mean_by_update(updates: list[int], losses: list[float] | Tensor) -> dict[int, float]:
    """One loss for each update, in the order of `updates`: the mean, if it has several.

    Example:
        >>> mean_by_update([0, 0, 1], [1.0, 3.0, 5.0])
        {0: 2.0, 1: 5.0}
    """
    parts: dict[int, list[float]] = {}
    for update, loss in zip(updates, losses.tolist() if isinstance(losses, Tensor) else losses, strict=True):
        parts.setdefault(update, []).append(loss)
    return {update: sum(group) / len(group) for update, group in parts.items()}
