"""A decision as one row of numbers for each group: what a scheduler keeps of it, and how to read it."""

from typing import Any

import torch
from torch import Tensor

from metalr.signals.observations import FEATURE_NAMES


def decision_row(updates: int, multiplier: Tensor, observation: Tensor) -> Tensor:
    """One decision, `(num_groups, 2 + NUM_FEATURES)`.

    Args:
        updates: made before it.
        multiplier: `(num_groups,)`.
        observation: `(num_groups, NUM_FEATURES)`.
    """
    column = multiplier[:, None]
    return torch.cat([torch.full_like(column, updates), column, observation], 1)


def explain_row(row: Tensor) -> dict[str, Any]:
    """`updates`, `features` by name and `lr_multiplier` of a decision; one number for each group in the last two."""
    updates, multiplier, *features = row.T.tolist()
    return {
        "updates": int(updates[0]),
        "features": dict(zip(FEATURE_NAMES, features, strict=True)),
        "lr_multiplier": multiplier,
    }
