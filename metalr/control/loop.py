"""The loop around a controller: statistics in, multiplier out, with everything that must be remembered between.

Evaluation in the batched engine and `LearnedLR` in a user's loop both drive this one object, which is why they
set the same LRs.
"""

from typing import Any

import torch
from torch import Tensor

from metalr.control.controller import Controller
from metalr.signals import observations
from metalr.signals.observations import Context, ObservationState
from metalr.signals.stats import RunStats


class ControlLoop:
    """One controller over `num_runs` runs of `num_groups` learning rates.

    Args:
        controller: decides.
        num_runs, num_groups: leading axes of everything.
        dtype, device: of features and multipliers.

    Attributes:
        multiplier: in force, `(num_runs, num_groups)`; ones before the first decision.
        observation: what the last decision was taken on, `(num_runs, num_groups, NUM_FEATURES)`.
    """

    def __init__(
        self,
        controller: Controller,
        num_runs: int,
        num_groups: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.controller = controller
        self.shape = (num_runs, num_groups)
        self._like = torch.ones(self.shape, dtype=dtype, device=device)
        self.reset()

    def reset(self) -> None:
        """Forget the run."""
        self.multiplier = self._like
        self.memory = observations.initial_state(*self.shape, self._like)
        self.controller_state = self.controller.init(*self.shape, self._like)
        self.observation = self._like.new_zeros(*self.shape, observations.NUM_FEATURES)

    def start(self, prospective_ratio: Tensor, *, has_loss: float = 1.0, has_horizon: float = 1.0) -> Tensor:
        """The first decision, before the first update.

        Args:
            prospective_ratio: update ratio of the update that would be made, `(num_runs, num_groups)`.
            has_loss, has_horizon: 1.0 if known, else 0.0.

        Returns:
            The multiplier `(num_runs, num_groups)`.
        """
        context = self._context(0.0, has_loss, has_horizon)
        return self._decide(observations.observe_start(prospective_ratio.to(self._like), context))

    def decide(self, stats: RunStats, progress: float, *, has_loss: float = 1.0, has_horizon: float = 1.0) -> Tensor:
        """The decision after an interval.

        Args:
            stats: of the interval.
            progress: inner steps done over horizon.
            has_loss, has_horizon: 1.0 if known, else 0.0.

        Returns:
            The multiplier `(num_runs, num_groups)`.
        """
        stats = RunStats(*(value.to(self._like) for value in stats))
        context = self._context(progress, has_loss, has_horizon)
        observation, self.memory = observations.observe(stats, self.memory, context)
        return self._decide(observation)

    def state(self) -> dict[str, Any]:
        """Everything that the next decision depends on, as tensors and lists of tensors."""
        return {
            "multiplier": self.multiplier.clone(),
            "observation": self.observation.clone(),
            "memory": [value.clone() for value in self.memory],
            "controller": [value.clone() for value in _flatten(self.controller_state)],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`.

        Raises:
            ValueError: the state is of another controller or another number of groups.
        """
        template = self.controller.init(*self.shape, self._like)
        leaves = _flatten(template)
        got = [tuple(value.shape) for value in state["controller"]]
        expected = [tuple(value.shape) for value in leaves]
        if got != expected or tuple(state["multiplier"].shape) != self.shape:
            raise ValueError(
                f"got the state of a controller with shapes {got}, expected {expected} for {self.shape[1]} groups: "
                "load it into a scheduler with the same controller and scope"
            )
        self.multiplier = state["multiplier"].to(self._like)
        self.observation = state["observation"].to(self._like)
        self.memory = ObservationState(*(value.to(self._like) for value in state["memory"]))
        values = iter([value.to(old) for value, old in zip(state["controller"], leaves, strict=True)])
        self.controller_state = _rebuild(template, values)

    def _context(self, progress: float, has_loss: float, has_horizon: float) -> Context:
        return Context(self._like * progress, self.multiplier, self._like * has_loss, self._like * has_horizon)

    def _decide(self, observation: Tensor) -> Tensor:
        self.observation = observation
        self.multiplier, self.controller_state = self.controller(observation, self.controller_state)
        return self.multiplier


def _flatten(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, tuple):
        return [leaf for part in state for leaf in _flatten(part)]
    return []  # a control's generator: not something that a user's loop resumes


def _rebuild(template: Any, leaves: Any) -> Any:
    if isinstance(template, Tensor):
        return next(leaves)
    if isinstance(template, tuple):
        parts = [_rebuild(part, leaves) for part in template]
        return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
    return template
