"""Optimizers given as `torch.optim` classes: by the same formula of the engine where it has one, else as they are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalr.optimizers.classic import InnerOptimizer, OptimizerState, from_torch

# `(params, lr=…) -> optimizer`: a class of `torch.optim`, or `functools.partial` of one with its arguments.
Factory = Callable[..., torch.optim.Optimizer]


def like_torch(factory: Factory) -> InnerOptimizer | None:
    """The inner optimizer with the formula of a torch optimizer and its arguments, or None where there is none.

    Example:
        >>> from functools import partial
        >>> like_torch(partial(torch.optim.SGD, momentum=0.9))
        SGD(weight_decay=0.0, clip_norm=None, momentum=0.9, nesterov=False)
        >>> like_torch(torch.optim.NAdam) is None
        True
    """
    optimizer = factory([nn.Parameter(torch.zeros(1))], lr=0.1)
    formulas = [from_torch(optimizer, group) for group in optimizer.param_groups]
    return formulas[0] if len(formulas) == 1 else None


@dataclass(frozen=True, repr=False)
class OwnOptimizer(InnerOptimizer):
    """A torch optimizer as it is, for the plain path, which alone can use it.

    Weight decay is an argument of the optimizer itself.

    Attributes:
        factory: called with the trained parameters, in the order of the module, and `lr=`.

    Raises:
        ValueError: weight_decay is not 0.

    Example:
        >>> from functools import partial
        >>> OwnOptimizer(factory=partial(torch.optim.NAdam, momentum_decay=0.01), clip_norm=1.0)
        OwnOptimizer(NAdam, momentum_decay=0.01, clip_norm=1.0)
    """

    factory: Factory = torch.optim.SGD

    def __post_init__(self) -> None:
        if self.weight_decay:
            raise ValueError(
                f"got weight_decay {self.weight_decay}, expected 0 here: pass it to the optimizer itself, as "
                "functools.partial(torch.optim.NAdam, weight_decay=0.01)"
            )

    def __repr__(self) -> str:
        # Written to records, so without the addresses in memory that functions have by default.
        kind = getattr(self.factory, "func", self.factory)
        arguments: dict[str, Any] = dict(getattr(self.factory, "keywords", {}))
        if self.clip_norm is not None:
            arguments["clip_norm"] = self.clip_norm
        name = getattr(kind, "__qualname__", type(kind).__qualname__)
        return f"OwnOptimizer({', '.join([name, *(f'{key}={value!r}' for key, value in arguments.items())])})"

    def init(self, params: Tensor) -> OptimizerState:
        raise self._not_batched()

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        raise self._not_batched()

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        return self.factory(params, lr=lr)

    def _not_batched(self) -> NotImplementedError:
        return NotImplementedError(
            f"got {self!r} in the batched engine, expected an optimizer with a formula there: pass plain=True to Task"
        )
