"""Modules that hold meta-parameters, and the vector that meta-learners move."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import parameters_to_vector

from metalr import schedules


class Learned(nn.Module, ABC):
    """A module that the meta-learners of `metalr.agents` can train. Subclasses are final."""

    def meta_params(self) -> dict[str, nn.Parameter]:
        """The trainable meta-parameters by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def initial_params(self) -> Tensor | None:
        """The net's initial weights as a row `(num_params,)` if they are learned, else None."""
        return None

    def project(self) -> None:
        """Put the meta-parameters back inside their bounds, in place; called after every outer step."""


class OpenLoop(Learned):
    """Progress -> LR multiplier."""

    @abstractmethod
    def forward(self, progress: Tensor) -> Tensor:
        """`(…,)` progress in [0, 1] -> `(…, num_groups)` multipliers of the base LR."""

    def schedule(self) -> schedules.Schedule:
        """The learned multipliers as a plain schedule of numbers.

        Raises:
            ValueError: it has more than one LR, which a single schedule cannot hold.
        """
        found = self.schedules()
        if len(found) != 1:
            raise ValueError(
                f"got {len(found)} learned LRs, expected 1 for one schedule; use schedules(), one for each "
                "parameter group"
            )
        return found[0]

    @abstractmethod
    def schedules(self) -> list[schedules.Schedule]:
        """One schedule for each group."""


class MetaVector:
    """The trainable meta-parameters of a module as one vector, in the order of `Learned.meta_params`.

    Args:
        learned: the module, whose values `read` and `write` copy.
    """

    def __init__(self, learned: Learned) -> None:
        self.learned = learned
        self.params = learned.meta_params()

    def __len__(self) -> int:
        return sum(p.numel() for p in self.params.values())

    def read(self) -> Tensor:
        """A copy of the values, `(num_meta,)`."""
        return parameters_to_vector(self.params.values()).detach()

    def write(self, vector: Tensor) -> None:
        """Put values `(num_meta,)` into the module, in place."""
        # torch's vector_to_parameters would make the parameters views of the vector, in its dtype.
        with torch.no_grad():
            for name, piece in self.split(vector).items():
                self.params[name].copy_(piece)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """`(num_meta,)` -> name -> tensor of the parameter's shape."""
        pieces = vector.split([p.numel() for p in self.params.values()])
        return {name: piece.view(p.shape) for (name, p), piece in zip(self.params.items(), pieces, strict=True)}

    def per_run(self, vectors: Tensor) -> Callable[..., Any]:
        """The module with meta-parameters `(num_runs, num_meta)` of each run's own.

        Arguments of the returned function have the leading axis num_runs, as its results have.
        """

        def one_run(vector: Tensor, *arguments: Tensor) -> Any:
            return functional_call(self.learned, self.split(vector), arguments)

        return lambda *arguments: vmap(one_run)(vectors, *arguments)
