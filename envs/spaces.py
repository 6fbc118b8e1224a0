"""Gymnasium spaces of observations and actions."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metalr.control.actions import ActionSpec
from metalr.signals.observations import FEATURES


def observation_space(num_groups: int) -> spaces.Box:
    """Box `(NUM_FEATURES,)`, or `(num_groups, NUM_FEATURES)` for several groups, with the bounds of each feature."""
    low, high = (np.array([getattr(f, side) for f in FEATURES], dtype=np.float32) for side in ("low", "high"))
    if num_groups > 1:
        low, high = np.tile(low, (num_groups, 1)), np.tile(high, (num_groups, 1))
    return spaces.Box(low, high, dtype=np.float32)


def action_space(spec: ActionSpec, num_groups: int) -> spaces.Space:
    """Box [-1, 1] `(num_groups,)` for continuous actions, (Multi)Discrete for levels."""
    if not spec.levels:
        return spaces.Box(-1.0, 1.0, (num_groups,), dtype=np.float32)
    if num_groups == 1:
        return spaces.Discrete(spec.levels)
    return spaces.MultiDiscrete([spec.levels] * num_groups)


def checked_actions(spec: ActionSpec, actions: Any, shape: tuple[int, ...]) -> Tensor:
    """Actions as a tensor of a shape.

    Args:
        spec: of the actions.
        actions: numbers, or indices of levels; the last axis may be missing if it has length 1. Numbers beyond [-1, 1]
            are cut off where they act.
        shape: of the result.

    Raises:
        ValueError: another shape, something that is no number, or no index of a level.
    """
    array = np.asarray(actions)
    if array.shape != shape and not (shape[-1] == 1 and array.shape == shape[:-1]):
        raise ValueError(f"got actions of shape {array.shape}, expected {shape}: one for each run and LR group")
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(f"got actions of {array.dtype} that are not all finite numbers, expected numbers in [-1, 1]")
    if spec.levels and not ((array == np.floor(array)) & (array >= 0) & (array < spec.levels)).all():
        raise ValueError(f"got actions that are no levels, expected whole numbers from 0 to {spec.levels - 1}")
    return torch.as_tensor(array).reshape(shape)


def checked_base_lr(value: Any, num_envs: int) -> Tensor:
    """Base LRs `(num_envs,)` float64 from one number or one for each environment.

    Raises:
        ValueError: another shape, or a number that is not positive and finite.
    """
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in ((), (num_envs,)) or not (np.isfinite(array) & (array > 0.0)).all():
        raise ValueError(f"got base_lr {value}, expected a positive finite number, or one for each environment")
    return torch.as_tensor(array).expand(num_envs).clone()


def checked_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """The options of a reset.

    Raises:
        ValueError: one is unknown.
    """
    unknown = sorted(set(options or ()) - set(known))
    if unknown:
        raise ValueError(f"got options {unknown} for reset, expected {' or '.join(known)}: leave out the others")
    return options or {}
