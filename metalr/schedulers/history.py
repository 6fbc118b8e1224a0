"""The features and the multiplier of each decision of a run, kept as rows of numbers on the host."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from metalr.control.loop import LoopState
from metalr.signals.observations import FEATURE_NAMES

# Decisions that are kept.
_LENGTH = 1000


class History:
    """The latest thousand decisions of a run.

    Args:
        rows: from `state`, to continue a history.
    """

    def __init__(self, rows: Iterable[Tensor] = ()) -> None:
        self._rows: deque[Tensor] = deque(rows, maxlen=_LENGTH)

    def add(self, updates: int, state: LoopState) -> None:
        """Record a decision, taken after `updates` updates of a single run."""
        self._rows.append(_row(updates, state))

    def entries(self) -> list[dict[str, Any]]:
        """The decisions in order.

        Returns:
            One dict for each: `updates` made before it; `features`, name -> one number for each controlled group;
            `lr_multiplier`, one number for each controlled group.
        """
        return [_entry(row) for row in self._rows]

    def latest(self, updates: int, state: LoopState) -> dict[str, Any]:
        """The last decision, as in `entries`; before any, the entry that `updates` and `state` would make."""
        return _entry(self._rows[-1] if self._rows else _row(updates, state))

    def multipliers(self, count: int = 32) -> list[tuple[float, list[float]]]:
        """Updates made and multiplier of each controlled group, for the latest decisions."""
        rows = list(self._rows)[-count:]
        return [(row[0, 0].item(), row[:, 1].tolist()) for row in rows]

    def state(self) -> list[Tensor]:
        """One tensor `(num_groups, 2 + NUM_FEATURES)` for each decision."""
        return list(self._rows)


def _row(updates: int, state: LoopState) -> Tensor:
    column = state.multiplier[0, :, None]
    return torch.cat([torch.full_like(column, updates), column, state.observation[0]], 1)


def _entry(row: Tensor) -> dict[str, Any]:
    updates, multiplier, *features = row.T.tolist()
    return {
        "updates": int(updates[0]),
        "features": dict(zip(FEATURE_NAMES, features, strict=True)),
        "lr_multiplier": multiplier,
    }
