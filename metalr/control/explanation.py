"""The reasons of a decision: which features moved the multiplier, by how much, and the same in words.

A feature's contribution is found by occlusion: the decision is taken again with that feature at 0, which is what a
controller sees of a feature that is not known. The method needs no derivative, so it serves every controller.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalr.signals.observations import FEATURE_NAMES

# What a feature stands for, in the sentence "raised by …".
MEANINGS = {
    "progress": "how much of the run is done",
    "log_progress": "how early in the run it is",
    "lr_multiplier": "the multiplier in force",
    "update_ratio": "the size of an update against the weights",
    "polyak": "how many such updates would use up the loss",
    "polyak_left": "how many such updates would use up the loss, against those left",
    "overshoot": "how the gradient turned at the last update",
    "overshoot_mean": "how the gradient has turned at updates lately",
    "edge": "the curvature that the last update met",
    "edge_mean": "the curvature that updates have met lately",
    "gradient_cosine": "how alike two gradients in a row are",
    "signal_to_noise": "the share of signal in the gradient",
    "gradient_total": "the change of the gradient since the start",
    "gradient_change": "the change of the gradient since the last decision",
    "loss_total": "the change of the loss since the start",
    "loss_change": "the change of the loss since the last decision",
    "loss_trend": "the loss against its recent mean",
    "loss_over_best": "the loss against its lowest so far",
    "loss_slope": "how surely the loss falls",
    "loss_slope_left": "the fall of the loss that its slope promises for the rest of the run",
    "loss_noise": "the noise of the loss",
    "loss_exploded": "the explosion of the loss",
    "over_lowest_overshot": "the multiplier against the lowest that overshot",
    "over_steepest": "the multiplier against that of the steepest fall of the loss",
    "has_history": "having seen an interval",
    "has_loss": "seeing losses",
    "has_horizon": "knowing the horizon",
    "has_gradient": "seeing gradients",
    "memory": "its memory of earlier decisions",
}
# Facts about the run and no reasons: they are the same at every decision.
_FACTS = ("has_history", "has_loss", "has_horizon", "has_gradient")
# A factor below this, up or down, goes without saying, and so do reasons beyond the first few each way.
_LEAST, _MOST_REASONS = math.log(1.1), 2


class Reasons(NamedTuple):
    """The reasons of one decision.

    Attributes:
        before: multiplier in force before it, `(num_runs, num_groups)`.
        after: the multiplier decided.
        contributions: feature -> log of the multiplier decided over the one that would have been decided with the
            feature at 0, `(num_runs, num_groups)`. "memory" is among them for a controller that has one. They need not
            sum up to the whole change.
        features: name -> value, `(num_runs, num_groups)`.
    """

    before: Tensor
    after: Tensor
    contributions: dict[str, Tensor]
    features: dict[str, Tensor]

    def numbers(self) -> dict[str, list[float]]:
        """The contributions to the first run's multiplier: feature -> one number for each group."""
        return {name: value[0].tolist() for name, value in self.contributions.items()}

    def in_words(self, bounds: tuple[float, float], group: int = 0) -> str:
        """One or two sentences on the first run's decision.

        Args:
            bounds: of the controller.
            group: which of its groups.
        """
        before, after = self.before[0, group].item(), self.after[0, group].item()
        logs = {name: value[0, group].item() for name, value in self.contributions.items() if name not in _FACTS}
        told = [name for name in sorted(logs, key=lambda name: -abs(logs[name])) if abs(logs[name]) >= _LEAST]
        parts = []
        for verb, sign in (("raised", 1.0), ("lowered", -1.0)):
            names = [name for name in told if sign * logs[name] > 0.0][:_MOST_REASONS]
            if names:
                parts.append(f"{verb} by {' and '.join(self._named(name, logs[name], group) for name in names)}")
        why = "; ".join(parts) or "no single feature made much of a difference"
        return f"{_change(before, after)}: {why}.{self._limits(after, bounds, group)}"

    def _named(self, name: str, log_factor: float, group: int) -> str:
        value = f"{name} {self.features[name][0, group].item():+.2f}: " if name in self.features else ""
        return f"{MEANINGS[name]} ({value}x{math.exp(log_factor):.2g})"

    def _limits(self, after: float, bounds: tuple[float, float], group: int) -> str:
        if self.features["loss_exploded"][0, group].item() > 0.0:
            return " The loss had exploded, and the breaker holds the multiplier down."
        for bound, name in zip(bounds, ("lower", "upper"), strict=True):
            if abs(after - bound) <= 1e-6 * bound:
                return f" That is its {name} bound."
        return ""


def _change(before: float, after: float) -> str:
    factor = after / before if before > 0.0 else 1.0
    if max(factor, 1.0 / max(factor, 1e-30)) < 1.005:
        return f"Multiplier stays at {after:.3g}"
    return f"Multiplier {before:.3g} -> {after:.3g}"


def reasons_for(controller: Callable[[Tensor, Any], tuple[Tensor, Any]], observation: Tensor, state: Any) -> Reasons:
    """The reasons of a decision.

    Args:
        controller: a controller.
        observation: behind the decision, `(num_runs, num_groups, NUM_FEATURES)`.
        state: of the controller before it.
    """

    def decided(seen: Tensor, remembered: Any) -> Tensor:
        return controller(seen, remembered)[0].clamp(min=1e-30).log()

    whole = decided(observation, state)
    contributions = {}
    for index, name in enumerate(FEATURE_NAMES):
        hidden = observation.clone()
        hidden[..., index] = 0.0
        contributions[name] = whole - decided(hidden, state)
    memory = getattr(state, "memory", None)
    if isinstance(memory, Tensor):
        contributions["memory"] = whole - decided(observation, state._replace(memory=torch.zeros_like(memory)))
    in_force = getattr(getattr(state, "action", state), "multiplier", torch.ones_like(whole))
    features = {name: observation[..., index] for index, name in enumerate(FEATURE_NAMES)}
    return Reasons(in_force, whole.exp(), contributions, features)


def reasons_of_episode(controller: Any, observations: Tensor) -> Iterator[Reasons]:
    """The reasons of every decision of an episode.

    Args:
        controller: that took them.
        observations: `(decisions, num_runs, num_groups, NUM_FEATURES)`, as in `metalr.engine.episodes.Episode`.
    """
    state = controller.init(torch.ones_like(observations[0, ..., 0]))
    for observation in observations:
        yield reasons_for(controller, observation, state)
        _, state = controller(observation, state)
