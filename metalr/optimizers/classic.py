"""Inner optimizers as pure functions of flat parameter matrices; the learning rate is an argument of the update.

All tensors are `(num_runs, num_params)`, and `lr` broadcasts against them, so that every run and every parameter
group has its own. Each update equals that of the `torch.optim` class of the same name, which `to_torch` builds.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

OptimizerState = tuple[Tensor, ...]

# Added under square roots: keeps the derivative finite where a second moment is zero, and is far below any eps.
_TINY = 1e-36


@dataclass(frozen=True)
class InnerOptimizer(ABC):
    """The interface of an inner optimizer, and the settings that all of them share.

    Attributes:
        weight_decay: factor of the L2 penalty; weight_decay * params is added to the gradient (`AdamW` decouples it).
        clip_norm: largest Euclidean norm of each run's gradient, which is scaled down to it; None leaves it alone.
    """

    weight_decay: float = 0.0
    clip_norm: float | None = None

    @abstractmethod
    def init(self, params: Tensor) -> OptimizerState:
        """Return the buffers before the first update, for params `(num_runs, num_params)`."""

    @abstractmethod
    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        """Make one update, out of place.

        Args:
            gradient: `(num_runs, num_params)`, already clipped.
            state: from `init` or the previous update.
            params: `(num_runs, num_params)`.
            lr: `(num_runs, 1)` or `(num_runs, num_params)`.
            step: `(num_runs, 1)`, number of updates before this one.

        Returns:
            The new params and the new state.
        """

    @abstractmethod
    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        """Build the same optimizer from `torch.optim`. Clipping is left to the caller's loop, as in torch.

        Raises:
            NotImplementedError: `torch.optim` has no such optimizer.
        """

    @property
    def has_momentum(self) -> bool:
        """Whether `update_at` is there: the momentum (or beta1) can differ from update to update."""
        return False

    def update_at(
        self,
        momentum: float | Tensor,
        gradient: Tensor,
        state: OptimizerState,
        params: Tensor,
        lr: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, OptimizerState]:
        """As `update`, at another momentum (SGD) or beta1 (Adam) than the optimizer's own, `(num_runs, 1)` or a number.

        Raises:
            NotImplementedError: it has no momentum.
        """
        raise NotImplementedError(f"got {self}, expected an optimizer with momentum: use SGD, Adam or AdamW")

    def clip(self, gradient: Tensor) -> Tensor:
        """Scale each run's gradient `(num_runs, num_params)` down to `clip_norm`, as torch's `clip_grad_norm_` does."""
        if self.clip_norm is None:
            return gradient
        norm = (gradient.square().sum(-1, keepdim=True) + _TINY).sqrt()
        return gradient * (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)

    def _decayed(self, gradient: Tensor, params: Tensor) -> Tensor:
        return gradient + self.weight_decay * params if self.weight_decay else gradient


@dataclass(frozen=True)
class SGD(InnerOptimizer):
    """Gradient descent with heavy-ball or Nesterov momentum, as `torch.optim.SGD` without dampening.

    Equation: buffer = momentum * buffer + gradient; params -= lr * buffer, or for Nesterov's variant
    params -= lr * (gradient + momentum * buffer).
    Source: Sutskever et al. 2013, "On the importance of initialization and momentum", in torch's variant.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> SGD().update(2.0 * one, (), one, 0.1 * one, step=0 * one)[0].item()
        0.8
    """

    momentum: float = 0.0
    nesterov: bool = False

    def init(self, params: Tensor) -> OptimizerState:
        return (torch.zeros_like(params),) if self.momentum else ()

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        if self.momentum:
            return self.update_at(self.momentum, gradient, state, params, lr, step)
        return params - lr * self._decayed(gradient, params), state

    @property
    def has_momentum(self) -> bool:
        return bool(self.momentum)

    def update_at(
        self,
        momentum: float | Tensor,
        gradient: Tensor,
        state: OptimizerState,
        params: Tensor,
        lr: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, OptimizerState]:
        direction = self._decayed(gradient, params)
        buffer = momentum * state[0] + direction
        direction = direction + momentum * buffer if self.nesterov else buffer
        return params - lr * direction, (buffer,)

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            params, lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class RMSprop(InnerOptimizer):
    """Gradient over the root of its running mean square, as `torch.optim.RMSprop` without momentum.

    Equation: square = decay * square + (1 - decay) * gradient**2; params -= lr * gradient / (sqrt(square) + eps).
    Source: Tieleman and Hinton 2012, lecture 6.5 of "Neural networks for machine learning".

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> optimizer = RMSprop()
        >>> round(optimizer.update(2.0 * one, optimizer.init(one), one, 0.01 * one, step=0 * one)[0].item(), 6)
        0.9
    """

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
    """Gradient over the root of the sum of its squares, as `torch.optim.Adagrad`.

    Equation: total = total + gradient**2; params -= lr * gradient / (sqrt(total) + eps).
    Source: Duchi, Hazan and Singer 2011, "Adaptive subgradient methods".

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> optimizer = Adagrad()
        >>> round(optimizer.update(2.0 * one, optimizer.init(one), one, 0.1 * one, step=0 * one)[0].item(), 6)
        0.9
    """

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
    """Adam: running mean of the gradient over the root of its running mean square, as `torch.optim.Adam`.

    Equation: mean = beta1 * mean + (1 - beta1) * gradient; square = beta2 * square + (1 - beta2) * gradient**2;
    params -= lr * (mean / (1 - beta1**t)) / (sqrt(square / (1 - beta2**t)) + eps) at update t = 1, 2, ...
    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.

    Example:
        The first update moves every parameter by almost exactly lr, whatever the size of the gradient.

        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> optimizer = Adam()
        >>> round(optimizer.update(2.0 * one, optimizer.init(one), one, 0.1 * one, step=0 * one)[0].item(), 6)
        0.9
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def init(self, params: Tensor) -> OptimizerState:
        return torch.zeros_like(params), torch.zeros_like(params)

    def update(
        self, gradient: Tensor, state: OptimizerState, params: Tensor, lr: Tensor, step: Tensor
    ) -> tuple[Tensor, OptimizerState]:
        return self.update_at(self.beta1, gradient, state, params, lr, step)

    @property
    def has_momentum(self) -> bool:
        return True

    def update_at(
        self,
        momentum: float | Tensor,
        gradient: Tensor,
        state: OptimizerState,
        params: Tensor,
        lr: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, OptimizerState]:
        return self._adam(momentum, self._decayed(gradient, params), state, params, lr, step)

    def _adam(
        self,
        beta1: float | Tensor,
        gradient: Tensor,
        state: OptimizerState,
        params: Tensor,
        lr: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, OptimizerState]:
        mean = beta1 * state[0] + (1.0 - beta1) * gradient
        square = self.beta2 * state[1] + (1.0 - self.beta2) * gradient.square()
        count = (step + 1).to(params.dtype)
        unbiased_mean = mean / (1.0 - beta1**count)  # of this update's beta1, as torch has it
        unbiased_square = square / (1.0 - self.beta2**count)
        return params - lr * unbiased_mean / ((unbiased_square + _TINY).sqrt() + self.eps), (mean, square)

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(params, lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

    Equation: params = params * (1 - lr * weight_decay), then the update of `Adam`.
    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> optimizer = AdamW(weight_decay=0.5)
        >>> optimizer.update(0.0 * one, optimizer.init(one), one, 0.1 * one, step=0 * one)[0].item()
        0.95
    """

    weight_decay: float = 0.01

    def update_at(
        self,
        momentum: float | Tensor,
        gradient: Tensor,
        state: OptimizerState,
        params: Tensor,
        lr: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, OptimizerState]:
        return self._adam(momentum, gradient, state, params * (1.0 - lr * self.weight_decay), lr, step)

    def to_torch(self, params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(params, lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class ExpectedSGD(InnerOptimizer):
    """SGD on a noisy quadratic, in expectation: the params are the second moments of the weights.

    With loss ½ Σ hᵢ wᵢ² and gradient noise of variance `noise`·hᵢ, one SGD update maps Aᵢ = E[wᵢ²] to

        Aᵢ ← (1 - lr·hᵢ)² Aᵢ + lr²·noise·hᵢ        (Wu et al. 2018, "short-horizon bias", section 3)

    The loss ½ Σ hᵢ Aᵢ has the gradient hᵢ/2 with respect to Aᵢ, from which `update` recovers the curvature.

    Raises:
        ValueError: weight_decay is not 0.

    Example:
        With h = 1, the gradient is 0.5.

        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> ExpectedSGD(noise=0.01).update(0.5 * one, (), one, lr=one, step=0 * one)[0].item()
        0.01
    """

    noise: float = 0.01

    def __post_init__(self) -> None:
        if self.weight_decay:
            raise ValueError(
                f"got weight_decay {self.weight_decay}, expected 0, since ExpectedSGD follows the plain recursion: "
                "leave it out"
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
    """Return the inner optimizer that does what a `torch.optim` one does to a parameter group, or None if none does.

    It predicts the first update of a user's optimizer without touching that optimizer.

    Example:
        >>> theirs = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        >>> from_torch(theirs, theirs.param_groups[0])
        SGD(weight_decay=0.0, clip_norm=None, momentum=0.9, nesterov=False)
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
