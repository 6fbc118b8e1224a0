"""Disturbed rollouts: a policy meets what its own choices would not have led to, and learns to come back.

A policy that is rolled out meets the runs that follow from its choices, all of them near the LR that it believes in. In
a disturbed run every choice is shifted by an offset, which keeps its value through a part of the run. The targets are
those of every other run, so that the policy learns what an LR that is too high or too low looks like in the midst of a
run, and what to do about it.

Source: Laskey et al. 2017, "DART" (arXiv 1703.09327), where the noise is white.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalr import seeding
from metalr.control import actions
from metalr.control.controller import Controller
from metalr.control.recurrent import RecurrentPolicyController, RecurrentState
from metalr.schedules import Schedule

# Progress at which the parts of a run begin, after the first. The early ones are short: there the LR is sought.
_PARTS = (0.1, 0.3, 0.6)


class DisturbedState(NamedTuple):
    """The state of a policy whose choices are shifted, and the number of decisions that it has taken."""

    policy: RecurrentState
    taken: Tensor


class DisturbedController(Controller):
    """A recurrent policy whose choices are shifted.

    Args:
        policy: to disturb.
        offsets: of the log multiplier at each decision, `(decisions, num_runs)`.
    """

    def __init__(self, policy: RecurrentPolicyController, offsets: Tensor) -> None:
        self.policy, self.offsets = policy, offsets
        self.schedule, self.decisions, self.spacing = policy.schedule, policy.decisions, policy.spacing

    def init(self, like: Tensor) -> DisturbedState:
        return DisturbedState(self.policy.init(like), torch.zeros(len(like), dtype=torch.int64))

    def __call__(self, observation: Tensor, state: DisturbedState) -> tuple[Tensor, DisturbedState]:
        spec = self.policy.action
        action, memory = self.policy.decide(observation, state.policy.memory)
        shifted = action + self.offsets[int(state.taken[0])].to(action)[:, None] / spec.alpha
        multiplier, act = actions.act(spec, shifted, observation, state.policy.action)
        return multiplier, DisturbedState(RecurrentState(memory, act), state.taken + 1)

    def config(self) -> dict[str, Any]:
        raise NotImplementedError("a disturbed policy is not saved: save the policy")

    def with_schedule(self, schedule: Schedule) -> "DisturbedController":
        return DisturbedController(self.policy.with_schedule(schedule), self.offsets)


def draw_offsets(steps: list[int], horizon: int, num_runs: int, deviation: float, key: tuple[int, ...]) -> Tensor:
    """Draw offsets of the log multiplier, constant in each part of each run.

    Args:
        steps: inner steps of the decisions.
        horizon: inner steps in the run.
        num_runs: their number.
        deviation: standard deviation of an offset.
        key: the student's seed, and further numbers to tell this draw from others.

    Returns:
        `(decisions, num_runs)` float32.

    Example:
        >>> from metalr.agents.disturbed import draw_offsets
        >>> [round(offset, 3) for offset in draw_offsets([0, 5, 50, 90], 100, 1, 0.5, (0, 1))[:, 0].tolist()]
        [-0.774, -0.774, -0.532, 0.256]
    """
    seed, *rest = key
    runs, parts = torch.arange(num_runs), torch.arange(len(_PARTS) + 1)[:, None]
    by_part = deviation * seeding.normal(seeding.stream(seed, "noise"), *rest, runs, parts).float()
    progress = torch.tensor(steps, dtype=torch.float64) / horizon
    return by_part[torch.bucketize(progress, torch.tensor(_PARTS, dtype=torch.float64), right=True)]
