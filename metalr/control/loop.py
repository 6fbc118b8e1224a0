"""Observe, decide, remember: the one loop around a controller, as pure functions of an explicit state.

The batched engine, the environment, the meta-gradients and `LearnedLR` in a user's loop all call these functions;
that is why they set the same LRs.

    state = init(controller.init(like), like)
    state = start(controller, state, prospect, horizon)        # before the first update
    state = decide(controller, state, stats, step, horizon)    # after each interval

A decision has two halves, `observe` and `act`. An agent that chooses actions from outside works between them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalr.control.lr import bounded_multiplier
from metalr.signals import observations
from metalr.signals.observations import Context, ObservationState
from metalr.signals.stats import Prospect, RunStats
from metalr.trees import leaves, map_leaves, replace_leaves

# (observation, state of the controller) -> (multiplier, new state): a `Controller`, or an action from outside.
Decide = Callable[[Tensor, Any], tuple[Tensor, Any]]


class LoopState(NamedTuple):
    """Everything carried from one decision to the next.

    Attributes:
        multiplier: in force, `(num_runs, num_groups)`; ones before the first decision.
        observation: behind the last decision, `(num_runs, num_groups, NUM_FEATURES)`.
        memory: of the features.
        controller: state of the controller, a tree of tensors with leading axis num_runs.
    """

    multiplier: Tensor
    observation: Tensor
    memory: ObservationState
    controller: Any


class Known(NamedTuple):
    """The optional facts that an episode shows: 1.0 or 0.0, as a number or `(num_runs, num_groups)`.

    Attributes:
        loss: whether losses are passed.
        horizon: whether the number of inner steps is known.
    """

    loss: Tensor | float = 1.0
    horizon: Tensor | float = 1.0


EVERYTHING = Known()


def init(controller_state: Any, like: Tensor) -> LoopState:
    """The state before the first decision.

    Args:
        controller_state: from `Controller.init` or `actions.initial_state`.
        like: `(num_runs, num_groups)`; gives the shape, dtype and device of multipliers and features.
    """
    one = torch.ones_like(like)
    blank = like.new_zeros(*like.shape, observations.NUM_FEATURES)
    return LoopState(one, blank, observations.initial_state(one), controller_state)


def observe_start(state: LoopState, prospect: Prospect, horizon: float, known: Known = EVERYTHING) -> LoopState:
    """The state with the observation before the first update.

    Args:
        state: from `init`.
        prospect: the first update as it would be at a multiplier of 1.
        horizon: inner steps in the run; infinite if unknown.
        known: what the episode shows.
    """
    prospect = Prospect(*(value.to(state.multiplier) for value in prospect))
    context = _context(state, 0.0, horizon, known)
    observation, memory = observations.observe_start(prospect, state.memory, context)
    return state._replace(observation=observation, memory=memory)


def observe(
    state: LoopState, stats: RunStats, step: Tensor | float, horizon: float, known: Known = EVERYTHING
) -> LoopState:
    """The state with the observation after an interval.

    Args:
        state: after the decision at the start of the interval.
        stats: of the interval.
        step: inner steps done, a number or broadcastable to `(num_runs, num_groups)`.
        horizon: inner steps in the run; infinite if unknown.
        known: what the episode shows.
    """
    stats = RunStats(*(value.to(state.multiplier) for value in stats))
    observation, memory = observations.observe(stats, state.memory, _context(state, step, horizon, known))
    return state._replace(observation=observation, memory=memory)


def act(controller: Decide, state: LoopState) -> LoopState:
    """The state with the multiplier that the controller decides from its observation, within its own bounds."""
    multiplier, controller_state = controller(state.observation, state.controller)
    bounds = getattr(controller, "bounds", None)
    if bounds is not None:
        multiplier = bounded_multiplier(bounds, multiplier, state.multiplier)
    return state._replace(multiplier=multiplier, controller=controller_state)


def start(
    controller: Decide, state: LoopState, prospect: Prospect, horizon: float, known: Known = EVERYTHING
) -> LoopState:
    """The first decision, before the first update: `observe_start`, then `act`."""
    return act(controller, observe_start(state, prospect, horizon, known))


def decide(
    controller: Decide,
    state: LoopState,
    stats: RunStats,
    step: Tensor | float,
    horizon: float,
    known: Known = EVERYTHING,
) -> LoopState:
    """The decision after an interval: `observe`, then `act`."""
    return act(controller, observe(state, stats, step, horizon, known))


def reset(state: LoopState, fresh: LoopState, which: Tensor) -> LoopState:
    """The state with the runs of `which`, `(num_runs,)` bool, taken from `fresh`; the others keep every bit."""

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return new.where(which.view(-1, *[1] * (new.dim() - 1)), old)

    return map_leaves(choose, fresh, state)


def to_saved(state: LoopState) -> dict[str, Any]:
    """The state as tensors and lists of tensors, for a checkpoint."""
    return {
        "multiplier": state.multiplier.clone(),
        "observation": state.observation.clone(),
        "memory": [value.clone() for value in state.memory],
        "controller": [value.clone() for value in leaves(state.controller)],
    }


def from_saved(saved: dict[str, Any], template: LoopState) -> LoopState:
    """The state that `to_saved` saved, for the controller and groups of a fresh `template`.

    Raises:
        ValueError: it was saved for another controller or another number of groups.
    """
    expected = leaves(template.controller)
    got_shapes, shapes = ([tuple(value.shape) for value in values] for values in (saved["controller"], expected))
    like = template.multiplier
    if got_shapes != shapes or saved["multiplier"].shape != like.shape:
        raise ValueError(
            f"got the state of a controller with shapes {got_shapes}, expected {shapes} for {like.shape[1]} groups: "
            "load it into a scheduler with the same controller and scope"
        )
    return LoopState(
        saved["multiplier"].to(like),
        saved["observation"].to(like),
        ObservationState(*(value.to(like) for value in saved["memory"])),
        replace_leaves(template.controller, [v.to(old) for v, old in zip(saved["controller"], expected, strict=True)]),
    )


def _context(state: LoopState, step: Tensor | float, horizon: float, known: Known) -> Context:
    one = torch.ones_like(state.multiplier)
    return Context(one * step, one * horizon, state.multiplier, one * known.loss, one * known.horizon)
