"""Inner optimizers as pure functions of flat parameter matrices; the learning rate is an argument of the update.

All tensors are `(num_runs, num_params)`; `lr` broadcasts against them, so that every run and every parameter
group has its own. Each update equals the `torch.optim` class of the same name, which `to_torch` builds.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

OptimizerState = tuple[Tensor, ...]

# Inside a square root: keeps its derivative finite where a second moment is zero, far below any eps.
_TINY = 1e-36


@dataclass(frozen=True)
class InnerOptimizer(ABC):
    """What every inner optimizer shares.

    Attributes:
        weight_decay: L2 penalty added to the gradient (decoupled in `AdamW`), in 1/step.
        clip_norm: the gradient of each run is scaled down to this Euclidean norm; None leaves it alone.
    """

    weight_decay: float = 0.0
    clip_norm: float | None = None

    @abstractmethod
    def init(self, params: Tensor) -> OptimizerState:
        """The buffers before the first update, for params `(num_runs, num_params)`."""

    @abstractmethod
    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        """One update, out of place.

        Args:
            gradient: `(num_runs, num_params)`, already clipped.
            state: from `init` or the last update.
            params: `(num_runs, num_params)`.
            lr: `(num_runs, 1)` or `(num_runs, num_params)`.
            step: `(num_runs, 1)`, updates done before this one.

        Returns:
            The new params and the new state.
        """

    @abstractmethod
    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        """The same optimizer from `torch.optim`. Clipping stays with the caller's loop, as in torch."""

    def clip(self, gradient: Tensor) -> Tensor:
        """Scale each run's gradient down to `clip_norm`, as `torch.nn.utils.clip_grad_norm_` does."""
        if self.clip_norm is None:
            return gradient
        norm = (gradient.square().sum(-1, keepdim=True) + _TINY).sqrt()
        return gradient * (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)

    def _decayed(self, gradient: Tensor, params: Tensor) -> Tensor:
        return gradient + self.weight_decay * params if self.weight_decay else gradient


@dataclass(frozen=True)
class SGD(InnerOptimizer):
    """params -= lr * (momentum buffer); heavy-ball or Nesterov, as `torch.optim.SGD` without dampening.

    Example: a gradient of 2 at lr 0.1 moves a parameter from 1 to 0.8.
    """

    momentum: float = 0.0
    nesterov: bool = False

    def init(self, params: Tensor) -> OptimizerState:
        return (torch.zeros_like(params),) if self.momentum else ()

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        direction = self._decayed(gradient, params)
        if self.momentum:
            buffer = self.momentum * state[0] + direction
            direction = direction + self.momentum * buffer if self.nesterov else buffer
            state = (buffer,)
        return params - lr * direction, state

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            params, lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class RMSprop(InnerOptimizer):
    """params -= lr * gradient / (sqrt(running mean of its square) + eps), as `torch.optim.RMSprop`."""

    decay: float = 0.99
    eps: float = 1e-8

    def init(self, params: Tensor) -> OptimizerState:
        return (torch.zeros_like(params),)

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        gradient = self._decayed(gradient, params)
        square = self.decay * state[0] + (1.0 - self.decay) * gradient.square()
        return params - lr * gradient / ((square + _TINY).sqrt() + self.eps), (square,)

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(params, lr, alpha=self.decay, eps=self.eps, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Adagrad(InnerOptimizer):
    """params -= lr * gradient / (sqrt(sum of its squares) + eps), as `torch.optim.Adagrad` (Duchi et al. 2011)."""

    eps: float = 1e-10

    def init(self, params: Tensor) -> OptimizerState:
        return (torch.zeros_like(params),)

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        gradient = self._decayed(gradient, params)
        total = state[0] + gradient.square()
        return params - lr * gradient / ((total + _TINY).sqrt() + self.eps), (total,)

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(params, lr, eps=self.eps, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Adam(InnerOptimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), as `torch.optim.Adam`.

    Example: the first update moves every parameter by almost exactly lr, whatever the gradient's size.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def init(self, params: Tensor) -> OptimizerState:
        return torch.zeros_like(params), torch.zeros_like(params)

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        return self._adam(self._decayed(gradient, params), state, params, lr, step)

    def _adam(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        mean = self.beta1 * state[0] + (1.0 - self.beta1) * gradient
        square = self.beta2 * state[1] + (1.0 - self.beta2) * gradient.square()
        count = (step + 1).to(params.dtype)
        unbiased_mean = mean / (1.0 - self.beta1**count)
        unbiased_square = square / (1.0 - self.beta2**count)
        return params - lr * unbiased_mean / ((unbiased_square + _TINY).sqrt() + self.eps), (mean, square)

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(params, lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW`."""

    weight_decay: float = 0.01

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        return self._adam(gradient, state, params * (1.0 - lr * self.weight_decay), lr, step)

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(params, lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class ExpectedSGD(InnerOptimizer):
    """SGD on a noisy quadratic, in expectation: the params are the second moments of the weights.

    With loss ½ Σ hᵢ wᵢ² and gradient noise of variance `noise`·hᵢ, one SGD step maps Aᵢ = E[wᵢ²] to

        Aᵢ ← (1 - lr·hᵢ)² Aᵢ + lr²·noise·hᵢ        (Wu et al. 2018, "short-horizon bias", section 3)

    The loss ½ Σ hᵢ Aᵢ has the gradient hᵢ/2 with respect to Aᵢ, which is how the curvature arrives here.
    Example: h = 1, A = 1, lr = 1, noise = 0.01 gives A = 0.01.
    """

    noise: float = 0.01

    def __post_init__(self) -> None:
        if self.weight_decay:
            raise ValueError(
                f"got weight_decay {self.weight_decay}, expected 0: ExpectedSGD follows the plain recursion"
            )

    def init(self, params: Tensor) -> OptimizerState:
        return ()

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        curvature = 2.0 * gradient
        return (1.0 - lr * curvature).square() * params + lr.square() * self.noise * curvature, state

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        raise NotImplementedError(
            "got ExpectedSGD, which follows second moments, expected an optimizer of weights: "
            "torch.optim has no counterpart; train the noisy quadratic in the batched engine"
        )


OPTIMIZERS: dict[str, InnerOptimizer] = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True),
    "rmsprop": RMSprop(),
    "adagrad": Adagrad(),
    "adam": Adam(),
    "adamw": AdamW(),
}


def from_torch(optimizer: torch.optim.Optimizer, group: dict) -> InnerOptimizer | None:
    """The inner optimizer that does what a `torch.optim` one does for a parameter group, or None if none does.

    Used to foresee the first update of a user's optimizer without touching it.
    """
    decay = {"weight_decay": float(group.get("weight_decay", 0.0))}
    if group.get("maximize") or group.get("amsgrad") or group.get("centered"):
        return None
    kind = type(optimizer)
    if kind is torch.optim.SGD and not group["dampening"]:
        return SGD(momentum=float(group["momentum"]), nesterov=bool(group["nesterov"]), **decay)
    if kind is torch.optim.RMSprop and not group["momentum"]:
        return RMSprop(decay=float(group["alpha"]), eps=float(group["eps"]), **decay)
    if kind is torch.optim.Adagrad and not group["lr_decay"] and not group["initial_accumulator_value"]:
        return Adagrad(eps=float(group["eps"]), **decay)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        beta1, beta2 = (float(beta) for beta in group["betas"])
        decoupled = kind is torch.optim.AdamW or group.get("decoupled_weight_decay", False)
        return (AdamW if decoupled else Adam)(beta1=beta1, beta2=beta2, eps=float(group["eps"]), **decay)
    return None
