"""Modules that hold meta-parameters, and the vector that meta-learners move."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metalr import schedules


class Learned(nn.Module, ABC):
    """What the meta-learners of `metalr.agents` share. Subclasses are final."""

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
        """What was learned as a plain schedule of numbers.

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
    """The trainable meta-parameters of a module as one vector, in the order of `named_parameters()`.

    Args:
        learned: gives names and shapes; `read` and `write` copy its values.
    """

    def __init__(self, learned: Learned) -> None:
        self.learned = learned
        named = [(name, p) for name, p in learned.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.shapes = [p.shape for _, p in named]
        self.sizes = [p.numel() for _, p in named]

    def __len__(self) -> int:
        return sum(self.sizes)

    def read(self) -> Tensor:
        """A copy of the values, `(num_meta,)`."""
        values: Mapping[str, Tensor] = dict(self.learned.named_parameters())
        return torch.cat([values[name].detach().flatten() for name in self.names]).clone()

    def write(self, vector: Tensor) -> None:
        """Put values `(num_meta,)` into the module, in place."""
        values = dict(self.learned.named_parameters())
        with torch.no_grad():
            for name, piece in self.split(vector).items():
                values[name].copy_(piece)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """`(num_meta,)` -> name -> tensor of the parameter's shape."""
        pieces = zip(self.names, vector.split(self.sizes), self.shapes, strict=True)
        return {name: piece.view(shape) for name, piece, shape in pieces}

    def per_run(self, vectors: Tensor) -> Callable[..., Any]:
        """The module with meta-parameters `(num_runs, num_meta)` of each run's own.

        Arguments of the returned function have the leading axis num_runs, as its results have.
        """

        def one_run(vector: Tensor, *arguments: Tensor) -> Any:
            return functional_call(self.learned, self.split(vector), arguments)

        return lambda *arguments: vmap(one_run)(vectors, *arguments)
