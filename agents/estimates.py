"""The border between an outer loop and whatever estimates a meta-gradient for it."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass
class Estimate:
    """A gradient estimate for one outer step.

    Attributes:
        loss: the meta-loss that goes into the record of progress; NaN where this step completes none.
        vector: `(num_meta,)` float64, estimated derivative of the meta-loss.
        task: name of the task, for messages.
        diverged: share of the runs that diverged.
        completed: True where `loss` is that of whole runs.
    """

    loss: float
    vector: Tensor
    task: str
    diverged: float
    completed: bool = True


class Estimator(Protocol):
    """Where a meta-gradient comes from."""

    def estimate(self, outer_step: int, progress: float = 0.0) -> Estimate:
        """One estimate at the present meta-parameters.

        Args:
            outer_step: outer steps done.
            progress: the same as a share of all, in [0, 1].
        """

    def state(self) -> dict[str, Any]:
        """Everything that the next estimate depends on, beside the meta-parameters: tensors and numbers."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
