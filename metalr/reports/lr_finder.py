"""The LR range test of a user's own model, optimizer and loader, in the interface of other LR finders."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metalr.reports.lr_range_test import LRCurve, lr_figure, read_curve
from metalr.reports.untouched import untouched
from metalr.schedulers.hooks import attach_hooks
from metalr.schedulers.param_groups import write_lr

# Memory of the running mean that decides when to stop, per update.
_MEMORY = 0.8


class LRFinder:
    """Trains briefly while the LR grows, then puts everything back as it was.

    Model, optimizer and random numbers are restored to the bit (see `metalr.reports.untouched`), also after an
    exception or Ctrl-C, so that training may begin at once.

    Args:
        model: on its device; the test puts it into training mode.
        optimizer: of its parameters. Its groups keep the ratios between their LRs.
        loss_fn: `(model(inputs), targets)` -> one number.

    Attributes:
        history: `{"lr": […], "loss": […]}` of the last test, an entry for each update.
        curve: the last test, smoothed, with its suggestion.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> loader = [(x, x.sum(1, keepdim=True))]
        >>> finder = LRFinder(model, optimizer, torch.nn.functional.mse_loss)
        >>> finder.range_test(loader, start_lr=1e-4, end_lr=10.0)
        >>> round(finder.suggestion, 1)
        1.9
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, loss_fn: Callable[[Any, Any], Tensor]) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.history: dict[str, list[float]] = {"lr": [], "loss": []}
        self.curve: LRCurve | None = None

    def range_test(
        self,
        loader: Iterable[Any],
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_iter: int = 100,
        *,
        diverge_th: float = 5.0,
        accumulation_steps: int = 1,
    ) -> None:
        """Train for up to `num_iter` updates, each at a larger LR: start_lr · (end_lr / start_lr) ** (i / (n - 1)).

        Args:
            loader: of pairs (inputs, targets); it begins again where it ends. Tensors are moved to the model's device.
            start_lr: of the first update, for the first parameter group.
            end_lr: of the last update.
            num_iter: updates, at least 10.
            diverge_th: multiple of the lowest running mean of the loss beyond which the test stops.
            accumulation_steps: minibatches for each update.

        Raises:
            ValueError: the range is not one; a batch is no pair; a loss is negative; the optimizer is under a
                `LearnedLR`, which would count the updates; or no LR lowers the loss.
        """
        if not 0.0 < start_lr < end_lr < math.inf or num_iter < 10:
            raise ValueError(
                f"got LRs from {start_lr} to {end_lr} in {num_iter} updates, expected 0 < start_lr < end_lr and at "
                "least 10 updates: pass for example 1e-7, 10 and 100"
            )
        self._refuse_scheduler()
        self.reset()
        lrs = np.geomspace(start_lr, end_lr, num_iter)
        modules = [module for module in (self.model, self.loss_fn) if isinstance(module, nn.Module)]
        with untouched(modules, self.optimizer, loader):
            self.model.train()
            self._train(_pairs(loader, self._device), lrs.tolist(), diverge_th, accumulation_steps)
        losses = np.array(self.history["loss"], dtype=np.float64)
        if losses.min(initial=0.0) < 0.0:
            raise ValueError(
                f"got a loss of {losses.min():.3g}, expected none below 0, since the test compares ratios: add a "
                "constant to the loss for the test"
            )
        logs = np.full((num_iter, 1), np.nan)
        logs[: len(losses), 0] = np.log(np.maximum(losses, 1e-12))
        self.curve = read_curve(lrs, logs)

    @property
    def suggestion(self) -> float:
        """An LR for the first parameter group, for a constant or decaying schedule.

        Raises:
            ValueError: there has been no test, or it found none.
        """
        return self._found().suggestion

    def plot(self, title: str = "LR range test") -> Any:
        """The loss against the LR, point by point and smoothed, with the suggestion, as a matplotlib figure.

        Raises:
            ValueError: there has been no test, or it found no LR.
            ImportError: matplotlib is missing.
        """
        figure = lr_figure(self._found(), title)
        figure.axes[0].plot(self.history["lr"], self.history["loss"], ".", color="#0072B2", alpha=0.35, zorder=1)
        return figure

    def reset(self) -> None:
        """Forget the last test. Model and optimizer need no reset: every test restores them at its end."""
        self.history = {"lr": [], "loss": []}
        self.curve = None

    def _found(self) -> LRCurve:
        if self.curve is None:
            raise ValueError("got no LR range test that found an LR, expected one: call range_test first")
        return self.curve

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def _refuse_scheduler(self) -> None:
        hooks = getattr(self.optimizer, "_optimizer_step_pre_hooks", {})
        if any(hook.__module__ == attach_hooks.__module__ for hook in hooks.values()):
            raise ValueError(
                "got an optimizer under a LearnedLR, which would count the updates of the test, expected one without: "
                "make the scheduler after the test, or call its detach() before and attach() after"
            )

    def _train(self, batches: Iterator[Any], lrs: list[float], diverge_th: float, parts: int) -> None:
        ratios = _ratios([float(group["lr"]) for group in self.optimizer.param_groups])
        mean, lowest = 0.0, math.inf
        for step, lr in enumerate(lrs):
            for group, ratio in zip(self.optimizer.param_groups, ratios, strict=True):
                write_lr(group, lr * ratio)
            loss = self._update(batches, parts)
            if not math.isfinite(loss):
                return
            self.history["lr"].append(lr)
            self.history["loss"].append(loss)
            mean = _MEMORY * mean + (1.0 - _MEMORY) * loss
            unbiased = mean / (1.0 - _MEMORY ** (step + 1))
            lowest = min(lowest, unbiased)
            if unbiased > diverge_th * lowest:
                return

    def _update(self, batches: Iterator[Any], parts: int) -> float:
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(parts):
            inputs, targets = next(batches)
            loss = self.loss_fn(self.model(inputs), targets) / parts
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        return total


def _ratios(lrs: list[float]) -> list[float]:
    """Of the LRs to the first; 1 throughout if that is 0."""
    return [lr / lrs[0] for lr in lrs] if lrs[0] > 0.0 else [1.0] * len(lrs)


def _pairs(loader: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, Any]]:
    """The batches of a loader, again and again."""
    while True:
        empty = True
        for batch in loader:
            empty = False
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    f"got a batch of type {type(batch).__name__}, expected a pair (inputs, targets): pass a loader of "
                    "pairs"
                )
            inputs, targets = (part.to(device) if isinstance(part, Tensor) else part for part in batch)
            yield inputs, targets
        if empty:
            raise ValueError("got an empty loader, expected batches: pass one with data")
