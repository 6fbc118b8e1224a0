"""A controller in Hugging Face's Trainer, as a callback and nothing else. Imports transformers."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from metalr.control.controller import Controller
from metalr.schedulers.adapters import observe_forward
from metalr.schedulers.decision_log import DecisionLog, Send
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.loss_log import Loss

# Key under which the state of the Trainer's own scheduler, in a checkpoint, holds that of the controller's.
_KEY = "controlled_lr"


class ControlledLR(TrainerCallback):
    """Gives the optimizer of a Trainer a `LearnedLR` when training begins.

    The horizon is the number of updates that the Trainer then knows, whether it was told epochs or steps, and the base
    LR is `learning_rate`. The schedule of the Trainer's arguments (`lr_scheduler_type`, `warmup_steps`) has no effect;
    the controller has a base schedule of its own. Losses are those that the model returns in training; where they are
    computed elsewhere, pass `compute_loss_func=observing(my_loss, callback)`.

    The Trainer's checkpoints hold the state of the controller. Its logs, from the console to `log_history`, have the
    multiplier as `lr_multiplier`; callbacks that report to trackers see it if they are listed after this one.

    Args:
        controller: for example from `metalr.load_controller`.
        horizon: optimizer updates of the whole run; the Trainer's own number by default.
        send: takes every decision, as `metalr.schedulers.decision_log.DecisionLog` sends them: `wandb.log`,
            `mlflow.log_metrics`, `tensorboard(writer)`.
        options: of `LearnedLR`.

    Attributes:
        scheduler: the `LearnedLR`, once training has begun; `scheduler.history` shows its decisions.

    Raises:
        ValueError: when training begins: the Trainer was given a scheduler that is not a `LearnedLR`, or its arguments
            ask for one that follows metrics.

    Example:
        Trainer(model=model, args=args, train_dataset=dataset, callbacks=[ControlledLR(load_controller("general"))])
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
        self._hook: RemovableHandle | None = None

    # For `observing`

    @property
    def updates(self) -> int:
        """Optimizer updates made so far."""
        return 0 if self.scheduler is None else self.scheduler.updates

    def observe(self, loss: Loss) -> None:
        """Pass on the loss of the coming update, where the model does not compute it."""
        if self.scheduler is not None:
            self.scheduler.observe(loss)

    # Called by the Trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._release()  # an exception may have ended the last training
        theirs = kwargs["lr_scheduler"]
        if type(theirs) is not LambdaLR:
            raise ValueError(
                f"got a Trainer with a {type(theirs).__name__}, expected the scheduler that it makes by itself: leave "
                "out the second of its optimizers=, and choose no lr_scheduler_type that follows metrics"
            )
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])  # accelerate has wrapped it
        self.scheduler = self._make(optimizer, state.max_steps if self.horizon is None else self.horizon)
        _take_over(theirs, self.scheduler)
        self._hook = observe_forward(kwargs["model"], self.scheduler)
        if self.send is not None and state.is_world_process_zero:
            self._send_new = DecisionLog(self.scheduler, self.send)

    def _make(self, optimizer: Optimizer, horizon: int) -> LearnedLR:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]  # the Trainer's own schedule has had its first step
        return LearnedLR(optimizer, self.controller, horizon, **self.options)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._send_new is not None:
            self._send_new()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.scheduler is not None and logs is not None and "learning_rate" in logs:
            logs["lr_multiplier"] = self.scheduler.explain()["lr_multiplier"][0]
            state.log_history[-1]["lr_multiplier"] = logs["lr_multiplier"]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._release()

    def _release(self) -> None:
        """Let go of model and optimizer; the scheduler keeps its history."""
        if self.scheduler is not None:
            self.scheduler.detach()
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._send_new = None


def _take_over(theirs: LRScheduler, ours: LearnedLR) -> None:
    """Let the calls that the Trainer makes to its own scheduler reach ours, whose state a checkpoint may have brought.

    The Trainer shows its callbacks no way to exchange the scheduler itself.
    """
    resumed = vars(theirs).pop(_KEY, None)
    own_state = theirs.state_dict()  # that of a new scheduler, in which a Trainer without this callback could resume
    if resumed is not None:
        ours.load_state_dict(resumed)
    theirs.step = ours.step  # type: ignore[assignment]
    theirs.get_last_lr = ours.get_last_lr  # type: ignore[method-assign]
    theirs.state_dict = lambda: {**own_state, _KEY: ours.state_dict()}  # type: ignore[method-assign]
