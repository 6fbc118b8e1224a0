"""Integrations: thin adapters between `LearnedLR` and the loops of other libraries, none of which is imported."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from metalr.schedulers.loss_log import Loss
from metalr.schedules import Schedule


class Observer(Protocol):
    """The part of `LearnedLR` to which losses are passed; a callback that makes its scheduler later has it too."""

    @property
    def updates(self) -> int:
        """Optimizer updates made so far."""

    def observe(self, loss: Loss) -> None:
        """Take the loss of the coming update."""


def observing(loss_function: Callable[..., Any], scheduler: Observer) -> Callable[..., Any]:
    """A loss function that also passes its training losses to a scheduler, for Hugging Face's `compute_loss_func`.

    Losses that need no gradient, as in evaluation, are not passed. With `num_items_in_batch`, the losses of accumulated
    minibatches are parts of a sum, and their sum is passed: the scheduler compares it with gradients of that unit.

    Args:
        loss_function: returns a loss, or a tuple that begins with it.
        scheduler: to which the losses are passed.

    Returns:
        A function with the arguments and results of `loss_function`.

    Example:
        trainer = Trainer(..., compute_loss_func=observing(my_loss, scheduler), optimizers=(optimizer, scheduler))
    """
    parts = _Parts(scheduler)

    @functools.wraps(loss_function)
    def observed(*args: Any, **kwargs: Any) -> Any:
        loss = loss_function(*args, **kwargs)
        first = _training_loss(loss)
        if first is not None:
            parts.pass_on(first, kwargs)
        return loss

    return observed


class _Parts:
    """Parts of the loss of one update, made into numbers whose mean is their sum, since `observe` takes means."""

    def __init__(self, scheduler: Observer) -> None:
        self.scheduler = scheduler
        self.update = -1

    def pass_on(self, loss: Tensor, arguments: Mapping[str, Any]) -> None:
        """Pass the scheduler a loss that was computed from these arguments."""
        is_part = arguments.get("num_items_in_batch") is not None
        self.scheduler.observe(self._next(loss) if is_part else loss)

    def _next(self, part: Tensor) -> Tensor:
        """The number for the next part."""
        if self.update != self.scheduler.updates:
            self.update, self.count, self.sum = self.scheduler.updates, 0, torch.zeros_like(part.detach())
        # With S the sum of k parts, k · S less (k - 1) times the sum before is this.
        self.count += 1
        number = self.sum + self.count * part.detach()
        self.sum = self.sum + part.detach()
        return number


def observe_forward(model: nn.Module, scheduler: Observer) -> RemovableHandle:
    """Pass a scheduler the `loss` that a model returns in training, as Hugging Face models do.

    A model that takes `num_items_in_batch` returns parts of a sum, as a loss function does (see `observing`).

    Args:
        model: returns an output with a `loss`, as an attribute or a key, or a tuple that begins with it.
        scheduler: to which the losses are passed.

    Returns:
        A handle; `handle.remove()` stops the passing.
    """
    parts = _Parts(scheduler)

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(output, Mapping):
            loss = output.get("loss")
        else:
            loss = getattr(output, "loss", output[0] if isinstance(output, tuple) else None)
        first = _training_loss(loss)
        if first is not None:
            parts.pass_on(first, kwargs)

    return model.register_forward_hook(hook, with_kwargs=True)


def _training_loss(loss: Any) -> Tensor | None:
    first = loss[0] if isinstance(loss, tuple) else loss  # (loss, outputs) if outputs were asked for
    return first if isinstance(first, Tensor) and first.requires_grad else None


class TimmScheduler:
    """A torch scheduler behind the interface of timm's.

    timm calls `step_update` after every update and `step` after every epoch; only the former has an effect. Pass losses
    to `scheduler.observe` in the training loop. timm's own schedulers depend on the update number alone; with this one,
    a resumed run needs `load_state_dict`.

    Args:
        scheduler: any scheduler of this package, new or loaded.
    """

    def __init__(self, scheduler: LRScheduler) -> None:
        self.scheduler = scheduler
        self.optimizer: Optimizer = scheduler.optimizer

    def __repr__(self) -> str:
        return f"TimmScheduler({self.scheduler})"

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Step the scheduler after an optimizer update.

        Args:
            num_updates: made so far.
            metric: ignored, because timm passes a running mean and not the loss of this update.
        """
        if num_updates > self.scheduler.last_epoch:  # timm repeats the last update number when it resumes a run
            self.scheduler.step()

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Do nothing at the end of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """The state of the torch scheduler."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the torch scheduler."""
        self.scheduler.load_state_dict(state_dict)


def sb3_learning_rate(schedule: Schedule, base_lr: float) -> Callable[[float], float]:
    """A schedule as the `learning_rate` of Stable-Baselines3, which counts its progress down from 1 to 0.

    Args:
        schedule: progress -> multiplier.
        base_lr: LR at multiplier 1.

    Returns:
        A function from the remaining progress to the LR.

    Example:
        >>> from metalr.schedules import Linear
        >>> sb3_learning_rate(Linear(), 3e-4)(0.5)
        0.00015
    """

    def learning_rate(progress_remaining: float) -> float:
        return base_lr * schedule(1.0 - progress_remaining)

    return learning_rate
