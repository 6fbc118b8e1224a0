"""Ablations: variants of a learned controller that explain it, the same machinery without the learning.

base schedule    its schedule alone: what its multiplier adds
random policy    random actions in the same bounds: what any movement of the LR does
untrained policy the same network with fresh weights: what training did
replay           its mean multipliers, whatever happens: what reacting to the run adds
(a state-blind policy, trained on progress alone, comes from whoever trains policies)
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metalr import seeding
from metalr.control import actions
from metalr.control.actions import ActionState
from metalr.control.controller import Controller, Spacing
from metalr.control.policy import PolicyController, PolicyNetwork
from metalr.control.reference import RandomController, ReplayController, ScheduleController
from metalr.schedules import Schedule


@dataclass(frozen=True)
class RandomOfSeeds(Controller):
    """The random policy of runs whose seeds are known.

    The seeds are the key of its actions. `RandomController` has to take the observation, whose last bits depend on how
    many runs share a batch, so that it would act otherwise in another batch.

    Attributes:
        random: gives action, schedule, decisions and seed.
        seeds: one for each run.
    """

    random: RandomController
    seeds: tuple[int, ...]

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        """That of the random controller."""
        return self.random.schedule

    @property
    def decisions(self) -> int:  # type: ignore[override]
        """Those of the random controller."""
        return self.random.decisions

    @property
    def spacing(self) -> Spacing:  # type: ignore[override]
        """That of the random controller."""
        return self.random.spacing

    def init(self, like: Tensor) -> tuple[Tensor, ActionState]:
        return self.random.init(like)

    def __call__(self, observation: Tensor, state: tuple[Tensor, ActionState]) -> tuple[Tensor, tuple]:
        count, action_state = state
        run = torch.tensor(self.seeds, device=count.device)[:, None]
        group = torch.arange(count.shape[1], device=count.device)
        stream = seeding.stream(self.random.seed, "policy")
        action = 2.0 * seeding.uniform(stream, run, group, count.long(), dtype=observation.dtype) - 1.0
        multiplier, action_state = actions.act(self.random.action, action, observation, action_state)
        return multiplier, (count + 1.0, action_state)

    def config(self) -> dict[str, Any]:
        return self.random.config()

    def with_schedule(self, schedule: Schedule) -> "RandomOfSeeds":
        return replace(self, random=self.random.with_schedule(schedule))


def mean_replay(controller: Controller, multipliers: Tensor) -> ReplayController:
    """The replay of a controller's mean schedule.

    Args:
        controller: gives the base schedule.
        multipliers: `(decisions, num_runs, num_groups)` that it set; their geometric mean is played.
    """
    mean = multipliers.double().log().mean((1, 2)).exp()
    return ReplayController(tuple(mean.tolist()), controller.schedule, controller.spacing, controller.decisions)


def untrained(controller: PolicyController, seed: int = 0) -> PolicyController:
    """The same policy with fresh weights, uniform within 1/sqrt(fan_in), and zero biases."""
    weights = []
    for index, weight in enumerate(controller.network.weights):
        position = torch.arange(weight.numel())
        drawn = 2.0 * seeding.uniform(seeding.stream(seed, "policy"), index, position, dtype=weight.dtype) - 1.0
        weights.append(drawn.view(weight.shape) / math.sqrt(weight.shape[1]))
    network = PolicyNetwork(weights, [torch.zeros_like(bias) for bias in controller.network.biases])
    return PolicyController(
        network,
        controller.action,
        controller.schedule,
        controller.decisions,
        visible=controller.visible,
        spacing=controller.spacing,
    )


def ablations_of(controller: Controller, seed: int = 0) -> dict[str, Controller]:
    """Name -> variant, as far as the controller's kind has them. The replay needs episodes: see `mean_replay`."""
    plan = controller.schedule, controller.decisions
    found: dict[str, Controller] = {"base schedule": ScheduleController(*plan, controller.spacing)}
    if hasattr(controller, "action"):
        found["random policy"] = RandomController(controller.action, *plan, seed=seed, spacing=controller.spacing)
    if isinstance(controller, PolicyController):
        found["untrained policy"] = untrained(controller, seed)
    return found
