"""Rewards by name: each is the rise of a potential, so the undiscounted return is the outcome of the run.

The potential is -log(loss / initial loss). At the end of an episode the loss is that of the whole split, not of
minibatches. A diverged run ends at potential -`PENALTY`, whatever it had gained.
"""

from typing import NamedTuple

from torch import Tensor

# A diverged run counts as one whose loss is exp(3) = 20 times the initial loss.
PENALTY = 3.0


class Reward(NamedTuple):
    """The definition of a named reward.

    Attributes:
        split: on which the outcome is measured; "train" uses the minibatch losses of the interval until the end.
        paired: whether the potential of the base schedule with the same seed and data order is subtracted.
        only_final: whether there is no reward before the end of the episode.
        formula: in words, for people.
    """

    split: str
    paired: bool
    only_final: bool
    formula: str


REWARDS: dict[str, Reward] = {
    "train": Reward("train", False, False, "fall of log train loss over the interval"),
    "valid": Reward("valid", False, False, "fall of log valid loss over the interval"),
    "paired": Reward("train", True, False, "fall of log train loss beyond that of the base schedule alone"),
    "final": Reward("train", False, True, "log(initial / final train loss), at the last decision only"),
}


def rise(potential: Tensor, before: Tensor, diverged: Tensor, last: Tensor, only_final: bool) -> Tensor:
    """The reward of one decision: the rise of the potential over its interval.

    Args:
        potential: after the interval, `(num_runs,)`.
        before: before the interval, or at the start of the episode if `only_final`; `(num_runs,)`.
        diverged: whether the run has diverged, `(num_runs,)` bool.
        last: whether this was the last decision, `(num_runs,)` bool.
        only_final: whether there is no reward before the end of the episode.

    Returns:
        `(num_runs,)`. For a diverged run, -PENALTY - before.

    Example:
        >>> no = torch.tensor([False, False])
        >>> diverged = torch.tensor([False, True])
        >>> rise(torch.tensor([0.75, 0.75]), torch.tensor([0.5, 0.5]), diverged, no, only_final=False).tolist()
        [0.25, -3.5]
    """
    potential = potential.clamp(min=-PENALTY).where(~diverged, potential.new_tensor(-PENALTY))
    reward = potential - before
    return reward.where(diverged | last, reward.new_zeros(())) if only_final else reward
