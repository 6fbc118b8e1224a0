"""The controller of the integration tests."""

import torch

from metalr.control.actions import ActionSpec
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.schedules import Cosine
from metalr.signals.observations import NUM_FEATURES

DECISIONS = 5


def moderate_policy() -> PolicyController:
    """Random weights so small that no action is clipped, so that every feature shows in the multiplier."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(12, NUM_FEATURES, generator=generator) * 0.3, torch.randn(1, 12, generator=generator) * 0.2]
    network = PolicyNetwork(weights, [torch.zeros(12), torch.zeros(1)])
    return PolicyController(network, ActionSpec(alpha=1.0), Cosine(floor=0.1), DECISIONS)
