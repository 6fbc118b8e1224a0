"""Gymnasium spaces of observations and actions."""

import numpy as np
from gymnasium import spaces

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
