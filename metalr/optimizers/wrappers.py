"""Wrappers of inner optimizers: hypergradient descent and Lookahead, rivals of a schedule, and a cycled momentum.

They wrap another inner optimizer and keep the same contract, so the batched engine runs them like any other.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from metalr.optimizers.classic import SGD, AdamW, ExpectedSGD, InnerOptimizer, OptimizerState


def _no_torch(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"got {name}, which has no class in torch.optim, expected an optimizer that has one: "
        "train it in the batched engine"
    )


@dataclass(frozen=True)
class Hypergradient(InnerOptimizer):
    """Gradient descent on the LR of another optimizer during training (Baydin et al. 2018, arXiv 1703.04782).

    The optimizer's update is -lr·dₜ with a direction dₜ that does not depend on the LR (the gradient for SGD, the
    ratio of moments for Adam). The derivative of the loss with respect to the previous LR is -gₜ·dₜ₋₁, hence

        lrₜ = lrₜ₋₁ + beta · gₜ·dₜ₋₁,   paramsₜ = paramsₜ₋₁ - lrₜ·dₜ,   d₀ = 0      (their algorithms 4 and 5)

    `Hypergradient(inner=SGD())` is SGD-HD and `Hypergradient(inner=Adam())` is Adam-HD. The LR is part of the
    optimizer's state: the `lr` argument is its initial value and is not read after the first update. As in the
    paper, nothing bounds it, so a large beta can drive it below zero.

    Attributes:
        inner: the optimizer whose LR is learned; its weight decay and clipping apply.
        beta: LR of the LR, in LR per (gradient · direction).

    Raises:
        ValueError: `inner` has an update that is not proportional to its LR, or beta is negative or not finite; from
            `update`, if there is more than one LR per run.

    Example:
        The LR of the second update is 0.1 + 0.01·(3·2).

        >>> from metalr.optimizers.classic import SGD
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> optimizer = Hypergradient(inner=SGD(), beta=0.01)
        >>> params, state = optimizer.update(2.0 * one, optimizer.init(one), one, lr=0.1 * one, step=0 * one)
        >>> params, state = optimizer.update(3.0 * one, state, params, lr=0.1 * one, step=one)
        >>> state[0].item()
        0.16
    """

    inner: InnerOptimizer = field(default_factory=SGD)
    beta: float = 1e-3

    def __post_init__(self) -> None:
        if isinstance(self.inner, (ExpectedSGD, Hypergradient, Lookahead)):
            raise ValueError(
                f"got {type(self.inner).__name__} inside Hypergradient, expected an optimizer whose update is "
                "proportional to its LR: use SGD, RMSprop, Adagrad, Adam or AdamW"
            )
        if not 0.0 <= self.beta < float("inf"):
            raise ValueError(f"got beta {self.beta}, expected a finite number that is not negative: try 1e-3")

    def clip(self, gradient: Tensor) -> Tensor:
        return self.inner.clip(gradient)

    def init(self, params: Tensor) -> OptimizerState:
        """Return the LR `(num_runs, 1)`, the last direction `(num_runs, num_params)`, and the inner state."""
        lr = params.new_zeros((params.shape[0], 1))
        return lr, torch.zeros_like(params), *self.inner.init(params)

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        if lr.shape[-1] != 1:
            raise ValueError(
                f"got LRs for {lr.shape[-1]} parameters, expected one LR per run: "
                "use groups='global' with hypergradient descent"
            )
        own_lr, last_direction, *inner_state = state
        own_lr = torch.where(step == 0, lr.to(params), own_lr)
        # The differentiated loss includes the L2 penalty, unless the penalty is decoupled.
        own_lr = own_lr + self.beta * (self._slope(gradient, params) * last_direction).sum(-1, keepdim=True)
        direction, new_inner = self._direction(gradient, tuple(inner_state), params, step)
        return params - own_lr * direction, (own_lr, direction, *new_inner)

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        raise _no_torch("Hypergradient")

    def _slope(self, gradient: Tensor, params: Tensor) -> Tensor:
        return gradient if isinstance(self.inner, AdamW) else self.inner._decayed(gradient, params)

    def _direction(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        """The step that the inner optimizer would subtract at LR 1, and its new state.

        Taken from zero weights, so that weights - update loses nothing to rounding.
        """
        one = torch.ones_like(params[:, :1])
        moved, state = self.inner.update(self._slope(gradient, params), state, params * 0.0, one, step)
        decay = self.inner.weight_decay * params if isinstance(self.inner, AdamW) else 0.0
        return decay - moved, state


@dataclass(frozen=True)
class Lookahead(InnerOptimizer):
    """Slow weights that follow the fast ones every few updates (Zhang et al. 2019, arXiv 1907.08610).

        every k updates:  slow ← slow + share · (fast - slow),  fast ← slow

    The inner optimizer keeps its buffers at a synchronisation, the paper's default.

    Attributes:
        inner: the optimizer of the fast weights; its weight decay and clipping apply.
        k: updates between synchronisations.
        share: fraction of the way to the fast weights that the slow weights move, in (0, 1].

    Raises:
        ValueError: k or share is out of range.

    Example:
        SGD moves the fast weight from 1 to 0.8, and the slow weight follows half of the way.

        >>> from metalr.optimizers.classic import SGD
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> optimizer = Lookahead(inner=SGD(), k=1, share=0.5)
        >>> optimizer.update(2.0 * one, optimizer.init(one), one, lr=0.1 * one, step=0 * one)[0].item()
        0.9
    """

    inner: InnerOptimizer = field(default_factory=SGD)
    k: int = 5
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.k < 1 or not 0.0 < self.share <= 1.0:
            raise ValueError(
                f"got k {self.k} and share {self.share}, expected k >= 1 and a share in (0, 1]: try 5 and 0.5"
            )

    def clip(self, gradient: Tensor) -> Tensor:
        return self.inner.clip(gradient)

    def init(self, params: Tensor) -> OptimizerState:
        return params.clone(), *self.inner.init(params)

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        slow, *inner_state = state
        fast, new_inner = self.inner.update(gradient, tuple(inner_state), params, lr, step)
        meet = (step + 1) % self.k == 0
        slow = torch.where(meet, slow + self.share * (fast - slow), slow)
        return torch.where(meet, slow, fast), (slow, *new_inner)

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        raise _no_torch("Lookahead")


class MomentumSchedule(Protocol):
    """A schedule that moves the momentum too: `OneCycle`, `Cyclic`."""

    def momentum(self, progress: Tensor, /) -> Tensor:
        """The momentum (SGD) or beta1 (Adam) at this progress."""


@dataclass(frozen=True)
class CycledMomentum(InnerOptimizer):
    """Another momentum at every update, as torch's `OneCycleLR` and `CyclicLR` set it with `cycle_momentum=True`.

        momentum (SGD) or beta1 (Adam) of update t = schedule.momentum(t / horizon)

    It follows from the count of updates alone, so that compiled and captured steps need no further input.

    Attributes:
        inner: SGD with momentum, Adam or AdamW; its weight decay and clipping apply, its own momentum does not.
        schedule: gives the momentum; the LR stays the caller's.
        horizon: inner steps in a run.

    Raises:
        ValueError: `inner` has no momentum, or the horizon is below 1.

    Example:
        >>> from metalr.optimizers.classic import SGD
        >>> from metalr.schedules import Cyclic
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> optimizer = CycledMomentum(inner=SGD(momentum=0.9), schedule=Cyclic(up=0.25, max_momentum=0.5), horizon=4)
        >>> optimizer.update(one, (one,), one, lr=0.1 * one, step=0 * one)[1][0].item()
        1.5
    """

    inner: InnerOptimizer = field(kw_only=True)
    schedule: MomentumSchedule = field(kw_only=True)
    horizon: int = field(kw_only=True)

    def __post_init__(self) -> None:
        if not self.inner.has_momentum:
            raise ValueError(f"got {self.inner}, expected an optimizer with momentum to cycle: use SGD, Adam or AdamW")
        if self.horizon < 1:
            raise ValueError(f"got horizon {self.horizon}, expected at least 1: it counts the inner steps of a run")

    def clip(self, gradient: Tensor) -> Tensor:
        return self.inner.clip(gradient)

    def init(self, params: Tensor) -> OptimizerState:
        return self.inner.init(params)

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        momentum = self.schedule.momentum(step.double() / self.horizon).to(params.dtype)
        return self.inner.update_at(momentum, gradient, state, params, lr, step)

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        raise _no_torch("CycledMomentum")
