"""Thin adapters between `LearnedLR` and the loops of other libraries. Needs none of them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedules import Schedule


def observing(loss_function: Callable[..., Any], scheduler: LearnedLR) -> Callable[..., Any]:
    """A loss function that also shows its training losses to a scheduler, for Hugging Face's `compute_loss_func`.

    Losses that need no gradient, as in evaluation, are not shown.

    Example:
        trainer = Trainer(..., compute_loss_func=observing(my_loss, scheduler), optimizers=(optimizer, scheduler))
    """

    @functools.wraps(loss_function)
    def observed(*args: Any, **kwargs: Any) -> Any:
        loss = loss_function(*args, **kwargs)
        _observe_if_training(loss, scheduler)
        return loss

    return observed


def observe_forward(model: nn.Module, scheduler: LearnedLR) -> RemovableHandle:
    """Show a scheduler the `loss` that a model returns in training, as models of Hugging Face do.

    Args:
        model: its output has a `loss`, as an attribute or under that key, or is a tuple that begins with it.
        scheduler: that is to observe.

    Returns:
        A handle; `handle.remove()` ends it.
    """

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Mapping):
            loss = output.get("loss")
        else:
            loss = getattr(output, "loss", output[0] if isinstance(output, tuple) else None)
        _observe_if_training(loss, scheduler)

    return model.register_forward_hook(hook)


def _observe_if_training(loss: Any, scheduler: LearnedLR) -> None:
    first = loss[0] if isinstance(loss, tuple) else loss  # (loss, outputs) where outputs are asked for
    if isinstance(first, Tensor) and first.requires_grad:
        scheduler.observe(first)


class TimmScheduler:
    """The interface of timm's schedulers around a torch one.

    timm calls `step_update` after every update and `step` after every epoch; only the first counts here. Losses go to
    `scheduler.observe` in the training loop. timm's own schedulers find their place from the update number alone; a
    resumed run needs `load_state_dict` here.

    Args:
        scheduler: any scheduler of this package, new or loaded.
    """

    def __init__(self, scheduler: LRScheduler) -> None:
        self.scheduler = scheduler
        self.optimizer: Optimizer = scheduler.optimizer

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """After an optimizer update. `metric` is timm's running mean, not the loss of this update: it is not used."""
        if num_updates > self.scheduler.last_epoch:  # where a run goes on, timm names the last update once more
            self.scheduler.step()

    def step(self, epoch: int, metric: float | None = None) -> None:
        """After an epoch: nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """The torch scheduler's."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The torch scheduler's."""
        self.scheduler.load_state_dict(state_dict)


def sb3_learning_rate(schedule: Schedule, base_lr: float) -> Callable[[float], float]:
    """A schedule as the `learning_rate` of Stable-Baselines3, which counts its progress down from 1 to 0.

    Example:
        >>> from metalr.schedules import Linear
        >>> sb3_learning_rate(Linear(), 3e-4)(0.5)
        0.00015
    """

    def learning_rate(progress_remaining: float) -> float:
        return base_lr * schedule(1.0 - progress_remaining)

    return learning_rate
