"""A controller in Lightning, as a callback and nothing else. Imports lightning."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from metalr.control.controller import Controller
from metalr.schedulers.decision_log import DecisionLog, Send
from metalr.schedulers.learned_lr import LearnedLR


class ControlledLR(Callback):
    """Gives the one optimizer of a module a `LearnedLR` when training begins.

    `configure_optimizers` returns the optimizer alone, and `training_step` need not know of the scheduler: losses are
    read on their way to `backward`. The horizon is the number of updates that the Trainer expects, whether it was told
    epochs or steps. Checkpoints hold the state of the controller. The multiplier is logged as `lr_multiplier`, to
    wherever the Trainer logs.

    Args:
        controller: for example from `metalr.load_controller`.
        horizon: optimizer updates of the whole run; the Trainer's own number by default.
        send: takes every decision, as `metalr.schedulers.decision_log.DecisionLog` sends them; for example
            `lambda values, step: trainer.logger.log_metrics(values, step)`.
        options: of `LearnedLR`.

    Attributes:
        scheduler: the `LearnedLR`, once training has begun; `scheduler.history` shows its decisions.

    Raises:
        ValueError: when training begins: there are several optimizers, or a scheduler already.

    Example:
        Trainer(max_epochs=10, callbacks=[ControlledLR(load_controller("general"))]).fit(module, loader)
    """

    def __init__(
        self, controller: Controller, horizon: int | None = None, send: Send | None = None, **options: Any
    ) -> None:
        self.controller = controller
        self.horizon = horizon
        self.send = send
        self.options = options
        self.scheduler: LearnedLR | None = None
        self._send_new: DecisionLog | None = None
        self._resumed: dict[str, Any] = {}
        self._stepped_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizers, schedulers = trainer.optimizers, trainer.lr_scheduler_configs
        if len(optimizers) != 1 or schedulers:
            raise ValueError(
                f"got a module with {len(optimizers)} optimizers and {len(schedulers)} schedulers, expected one "
                "optimizer and no scheduler: return the optimizer alone from configure_optimizers"
            )
        horizon = trainer.estimated_stepping_batches if self.horizon is None else self.horizon
        self.scheduler = LearnedLR(optimizers[0], self.controller, horizon, **self.options)  # type: ignore[arg-type]
        if self._resumed:
            self.scheduler.load_state_dict(self._resumed)
            self._resumed = {}
        self._stepped_at = trainer.global_step
        if self.send is not None and trainer.is_global_zero:
            self._send_new = DecisionLog(self.scheduler, self.send)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self.scheduler is None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.scale(torch.ones_like(loss))  # left on its device
        self.scheduler.observe(loss.detach() * trainer.accumulate_grad_batches / scale)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.scheduler is None or trainer.global_step == self._stepped_at:  # there are more gradients to accumulate
            return
        self._stepped_at = trainer.global_step
        self.scheduler.step()
        pl_module.log("lr_multiplier", self.scheduler.run.multipliers(len(self.scheduler.base_lrs))[0])
        if self._send_new is not None:
            self._send_new()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        """Let go of the optimizer; the scheduler keeps its history."""
        if self.scheduler is not None:
            self.scheduler.detach()
        self._send_new = None

    def state_dict(self) -> dict[str, Any]:
        return self._resumed if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict
