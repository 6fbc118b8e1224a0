"""The torch scheduler of a controller, `LearnedLR`.

It lives in a user's own loop and needs torch alone. It measures with `metalr.schedulers.meter` what the engine measures
with matrices, and drives the same `ControlLoop`.
"""

import sys
import warnings
from collections import deque
from collections.abc import Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler
from torch.utils.hooks import RemovableHandle

from metalr.control.controller import Controller, decision_steps
from metalr.control.loop import ControlLoop
from metalr.schedulers.history import decision_row, explain_row
from metalr.schedulers.hooks import attach_hooks
from metalr.schedulers.loss_log import Loss, LossLog, mean_by_update
from metalr.schedulers.meter import OptimizerMeter, Scope
from metalr.schedulers.param_groups import (
    adopt_new_groups,
    check_horizon,
    check_state,
    copy_of,
    numbers_like,
    restore_lr,
    same_number,
    write_lr,
)
from metalr.schedulers.ranks import Agreement, connect, furthest_state
from metalr.schedules import Constant
from metalr.signals.observations import feature
from metalr.signals.stats import RunStats, loss_stats

# So many updates between two calls of step() look like one call per epoch.
_EPOCH_LIKE = 8
# Values of the base schedule that are computed together.
_AHEAD = 256
# Decisions that `history` remembers, the latest ones.
_HISTORY = 1000
_CHAINED_STEP = ChainedScheduler.step.__code__


class LearnedLR(LRScheduler):
    """A controller as a torch scheduler.

    In the loop, the only new call is `observe`:

        loss.backward()
        scheduler.observe(loss); optimizer.step(); scheduler.step()

    `scheduler.step(loss)` in place of `observe` is accepted, and so is no loss at all. The LR in force is

        lr(t) = base_lr · controller.schedule(t / horizon) · lr_multiplier

    where base_lr is the optimizer's own LR and the multiplier is decided `decisions` times in a run, the first
    time right before the first update. Gradients are read by hooks on the optimizer, after accumulation,
    unscaling and clipping, at the last two updates before a decision; then nothing but one small copy goes
    from device to host.

    It counts optimizer updates, not calls: repeated or missing calls of `step()`, and updates that a
    `GradScaler` skips, change nothing.

    Args:
        optimizer: any `torch.optim.Optimizer`, with float or tensor LRs.
        controller: for example from `metalr.load_controller`.
        horizon: optimizer updates in the run. After it the multiplier stays and the schedule goes on past
            progress 1. None if unknown; then `steps_per_action` is needed and the base schedule must be constant.
        decisions: per run; the controller's own number by default.
        steps_per_action: updates between decisions, for an unknown horizon.
        scope: "global" for one multiplier, "param_group" for one for each parameter group.
        hooks: False where hooks are unwelcome, as with a compiled `optimizer.step`; then `observe` must come right
            before and `step` right after every update, before `zero_grad`.
        distributed: False where the ranks of a process group train different models; otherwise all ranks set the
            same LRs, by the mean of their losses (see `metalr.schedulers.ranks`), and either all call `observe` or
            none.
        measure: False reads no gradients and holds no copy of them; the controller then has losses and progress alone.

    Horizons: `set_horizon` lengthens or shortens a run under way. A run that goes on past its horizon keeps its last
    multiplier; one that ends early was simply on the way. One resumed with another horizon takes its coming decisions
    where the new horizon puts them, and the base schedule follows the new progress from there on.

    A run's decisions are kept in `history`, the latest thousand: dicts as `explain()` returns.

    Raises:
        ValueError: the horizon is too short for the decisions, or missing without `steps_per_action`.
        RuntimeError: it is a part of a `ChainedScheduler`, which multiplies relative changes.
    """

    _handles: list[RemovableHandle]
    _calls_at: int

    def __init__(
        self,
        optimizer: Optimizer,
        controller: Controller,
        horizon: int | None,
        *,
        decisions: int | None = None,
        steps_per_action: int | None = None,
        scope: Scope = "global",
        hooks: bool = True,
        distributed: bool = True,
        measure: bool = True,
    ) -> None:
        # The base constructor calls step(), so everything that step() reads comes first.
        self.controller = controller
        self.decisions = controller.decisions if decisions is None else decisions
        self.steps_per_action = steps_per_action
        self.horizon: int | None = None
        self._stops: list[int] = []
        self._plan(horizon)
        self._meter = OptimizerMeter(optimizer, scope, measure=measure)
        self._loop = ControlLoop(controller, 1, self._meter.num_groups)
        self._uses_hooks = hooks
        self._distributed = distributed
        self._connected = False
        self._ranks: Agreement | None = None
        self._published: dict[str, Any] | None = None
        self._warned: set[str] = set()
        self._read_multiplier: Tensor | None = None
        self._read: list[float] = []
        self._losses = LossLog()
        self._skips: list[tuple[int, Tensor]] = []
        self._skipping = False
        self._rows: deque[Tensor] = deque(maxlen=_HISTORY)
        self._restart()
        super().__init__(optimizer)
        # Already here: a rank that makes no update, its data at an end, must count as the others do.
        self._connect()
        self._connected = self._ranks is not None
        self._constructed_lr = [float(lr) for lr in self._last_lr]
        self._attach()

    # The calls of a user's loop

    def observe(self, loss: Loss) -> None:
        """Pass the loss of the coming update; call after `backward()`, before `optimizer.step()`.

        Several calls for one update (gradient accumulation) count as their mean. A dict of losses counts as
        their sum. The value stays where it is: nothing is copied to the host.

        Raises:
            ValueError: the loss is not one number.
        """
        self._losses.add(loss, self._updates)
        if not self._uses_hooks:
            self._before_update()

    def step(self, loss: Loss | None = None) -> None:  # type: ignore[override]
        """Set the LR of the next update; call after `optimizer.step()`.

        Args:
            loss: of the update just made, if it was not passed to `observe`.

        Raises:
            TypeError: it got an epoch number, as some loops pass to every scheduler.
        """
        first = self._step_count < 2
        if not self._is_initial:
            if isinstance(loss, int):
                raise TypeError(
                    f"got step({loss}), a whole number, expected no argument or the loss: call step(), since updates "
                    "are counted by the scheduler itself"
                )
            if loss is not None:
                self._losses.add(loss, max(self._updates - int(self._uses_hooks), 0))
            if not self._uses_hooks:
                self._after_update()
            if self._updates - self._calls_at >= _EPOCH_LIKE:
                self._notice_epochs()
            self._calls_at = self._updates
        if first or self._updates == self._stop:  # at decisions, not at every step: it takes its time
            _refuse_chain(sys._getframe(1).f_code)
        if first:
            super().step()  # with torch's own look at the order of calls
            return
        self._step_count += 1
        self._update_lr()

    def set_horizon(self, horizon: int | None) -> None:
        """Lengthen or shorten the run from here on; decisions already taken stay."""
        self._plan(horizon)
        self._aim()

    def detach(self) -> None:
        """Let go of the optimizer: the scheduler keeps its history and acts no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def synchronize(self) -> None:
        """Continue from the rank that has made the most updates; call on all ranks, after a block of uneven inputs.

        Ranks that ran out of data under `with model.join():` made fewer updates than others, and DDP then gives them
        the weights of those. This gives them the scheduler's state too.
        """
        if self._connect() is not None:
            self.load_state_dict(furthest_state(self._updates, self.state_dict()))
            self._write_lr()

    @property
    def history(self) -> list[dict[str, Any]]:
        """What each decision saw and did, the latest thousand; `explain` says how to read one."""
        return [explain_row(row) for row in self._rows]

    def explain(self) -> dict[str, Any]:
        """What the last decision saw and did.

        Returns:
            `updates` made before it; `features`, name -> one number for each controlled group; `lr_multiplier`, one
            for each controlled group; `lr` in force now, one for each parameter group.
        """
        row = self._rows[-1] if self._rows else self._row()
        return explain_row(row) | {"lr": [float(group["lr"]) for group in self.optimizer.param_groups]}

    def _row(self) -> Tensor:
        return decision_row(self._updates, self._loop.multiplier[0], self._loop.observation[0])

    # What torch's own classes call

    def get_lr(self) -> list[float | Tensor]:
        """The LRs of the coming update."""
        adopt_new_groups(self)
        if self._is_initial:
            return [group["lr"] for group in self.optimizer.param_groups]
        return [*self._lr_now()]

    def _update_lr(self, epoch: int | None = None) -> None:
        if epoch == 0:  # a SequentialLR has reached the milestone where this scheduler begins
            self._restart()
        if self._is_initial:
            super()._update_lr(epoch)
            return
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._decide_if_due()
        self._write_lr()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and tensors, loadable with `weights_only=True`.

        Between the last two updates before a decision it holds a copy of the gradients, which the decision needs.
        """
        self._count_skips()
        return {
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "updates": self._updates,
            "applied": self._applied,
            "interval_start": self._interval_start,
            "started": self._started,
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "last_lr": [float(lr) for lr in self._last_lr],
            "losses": self._losses.state(),
            "published": self._published,
            "history": list(self._rows),
            "loop": self._loop.state(),
            "meter": self._meter.state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict()` was taken, whether the optimizer was loaded before or after construction.

        The horizon is this scheduler's own: a run resumed with another one takes its coming decisions where the
        new horizon puts them.

        Raises:
            ValueError: the state is of another controller, scope or number of parameter groups.
        """
        keys = ("updates", "interval_start", "started", "base_lrs", "last_lr", "losses", "loop", "meter")
        check_state(state_dict, keys, len(self.optimizer.param_groups))
        self._loop.load_state(state_dict["loop"])
        self._meter.load_state(state_dict["meter"])
        self.last_epoch = int(state_dict["last_epoch"])
        self._step_count = int(state_dict["step_count"])
        self._updates = int(state_dict["updates"])
        self._applied = int(state_dict["applied"])
        self._calls_at = self._updates
        self._interval_start = int(state_dict["interval_start"])
        self._started = bool(state_dict["started"])
        self._losses.load_state(state_dict["losses"])
        self._skips = []
        self._rows = deque(state_dict.get("history", ()), maxlen=_HISTORY)
        self.base_lrs = numbers_like(self.base_lrs, state_dict["base_lrs"])
        restore_lr(self.optimizer, self._constructed_lr, state_dict["last_lr"])
        self._last_lr = numbers_like(self._last_lr, state_dict["last_lr"])
        self._aim()
        self._resume_talk(state_dict.get("published"))

    def __getstate__(self) -> dict[str, Any]:
        left_out = {"_handles": None, "_ranks": None, "_connected": False}
        return {key: left_out.get(key, value) for key, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    # Around each update

    def _attach(self) -> None:
        self._handles = []
        if self._uses_hooks:
            self._handles = attach_hooks(self, "_before_update", "_after_update")

    def _before_update(self) -> None:
        if self.last_epoch < 0:  # waiting for its turn in a SequentialLR
            return
        if self._skips and (not self._started or (self._stop is not None and self._updates >= self._stop - 2)):
            self._count_skips()
        if self._updates != self._applied:
            self._catch_up()
        skipped = getattr(self.optimizer, "found_inf", None)
        if isinstance(skipped, Tensor):  # a fused optimizer decides on the device whether it skips this update
            if not self._started or skipped.device.type == "cpu":
                self._skipping = bool(skipped)
                if self._skipping:
                    return
            else:
                self._skips.append((self._updates, skipped.detach().clone()))
        if not self._started:
            self._start()
        if self._stop is None:
            return
        if self._updates + 2 == self._stop:
            self._publish(self._stop)
            self._meter.before_second_last()
        elif self._updates + 1 == self._stop:
            self._meter.before_last()

    def _start(self) -> None:
        self._started = True
        ratio = self._meter.prospective_ratio(self._lr_now())
        self._loop.start(ratio, has_loss=float(bool(self._losses)), has_horizon=float(self.horizon is not None))
        self._agree(0)
        self._write_lr()

    def _after_update(self) -> None:
        if self.last_epoch < 0 or self._skipping:
            self._skipping = False
            return
        if self._updates + 1 == self._stop:
            self._meter.after_last()
        self._updates += 1

    def _count_skips(self) -> None:
        """Take back the updates that a `GradScaler` skipped on the device; called as rarely as decisions allow."""
        if self._skips:
            flags = torch.stack([flag.reshape(()) for _, flag in self._skips]).tolist()
            skipped = [update for (update, _), flag in zip(self._skips, flags, strict=True) if flag]
            self._updates -= len(skipped)
            self._losses.shift(skipped)
            self._skips = []

    def _catch_up(self) -> None:
        """step() was not called after the last update: do its work, unless another scheduler has taken over."""
        if self.horizon is not None and self._updates >= self.horizon:
            return  # nothing is left to decide, and a SequentialLR may have gone on to its next part
        mine = all(same_number(g["lr"], lr) for g, lr in zip(self.optimizer.param_groups, self._last_lr, strict=False))
        if mine:
            self._decide_if_due()
            self._write_lr()

    # Other ranks

    def _connect(self) -> Agreement | None:
        if self._distributed and not self._connected:
            self._connected = True
            self._ranks = connect()
        return self._ranks

    def _publish(self, stop: int) -> None:
        ranks = self._connect()
        if ranks is not None:
            updates, values = self._losses.take(self._updates + 1)
            losses = mean_by_update(updates, values)
            self._published = {"stop": stop, "losses": losses}
            ranks.publish(stop, losses)

    def _agree(self, stop: int) -> None:
        ranks = self._connect()
        if ranks is not None:
            self._loop.multiplier = ranks.agree(stop, self._loop.multiplier)
        self._rows.append(self._row())

    def _resume_talk(self, published: dict[str, Any] | None) -> None:
        """Say again what a checkpoint between the last two updates of an interval had said."""
        ranks = self._connect()
        if ranks is not None:
            ranks.restart()
        self._published = published
        if published is not None and self._stop == published["stop"] and ranks is not None:
            ranks.publish(published["stop"], published["losses"])

    # Decisions

    def _plan(self, horizon: int | None) -> None:
        self._ahead: tuple[int, list[float]] = (-1, [])
        if horizon is not None:
            self.horizon = check_horizon(horizon)
            self._stops = decision_steps(self.horizon, self.decisions)[1:]
            return
        if self.steps_per_action is None or self.steps_per_action < 2:
            raise ValueError(
                f"got horizon None with steps_per_action {self.steps_per_action}, expected the horizon in optimizer "
                "updates, or at least 2 updates between decisions: pass one of them"
            )
        if not isinstance(self.controller.schedule, Constant):
            raise ValueError(
                f"got horizon None with the base schedule {self.controller.schedule}, expected a constant one: "
                "a schedule of progress needs a horizon"
            )
        self.horizon = None

    def _restart(self) -> None:
        self._updates = 0
        self._applied = 0
        self._calls_at = 0
        self._interval_start = 0
        self._started = False
        self._losses = LossLog()
        self._skips = []
        self._published = None
        self._rows.clear()
        if self._ranks is not None:
            self._ranks.restart()
        self._loop.reset()
        self._meter.clear()
        self._aim()

    def _aim(self) -> None:
        """Set the update count at which the next decision falls; None after the last one."""
        if self.horizon is None:
            self._stop: int | None = self._interval_start + (self.steps_per_action or 0)
        else:
            earliest = max(self._interval_start + 1, self._updates)
            self._stop = next((stop for stop in self._stops if stop >= earliest), None)

    def _decide_if_due(self) -> None:
        if self._stop is None or self._updates < self._stop:
            return
        self._count_skips()
        if self._updates < self._stop:
            return
        progress = 0.0 if self.horizon is None else self._updates / self.horizon
        stats, has_loss = self._read_stats(self._stop)
        known = {"has_loss": float(has_loss), "has_horizon": float(self.horizon is not None)}
        self._loop.decide(stats, progress, **known)
        self._agree(self._stop)
        self._interval_start = self._stop
        self._meter.clear()
        self._aim()
        if any(feature(self._loop.observation, "loss_exploded")[0].tolist()):
            self._warn_once(
                "breaker",
                f"the loss exploded or was not finite before update {self._updates}; the LR was cut to "
                f"{self._loop.multiplier[0].tolist()} times the base and may rise again slowly",
            )

    def _read_stats(self, stop: int) -> tuple[RunStats, bool]:
        """The interval's statistics on the host, by one copy, and whether losses are among them."""
        measurement = self._meter.on_device()
        if self._ranks is not None:
            # In this order: to read the measurement is to wait for the gradients of all ranks.
            measurement = None if measurement is None else measurement.cpu()
            losses = list(self._ranks.mean_losses(stop).values())
        else:
            # A late decision must not see the loss of the coming update, which `observe` may have brought already.
            updates, values = self._losses.take(self._updates)
            if measurement is not None and isinstance(values, Tensor):
                flat = torch.cat([measurement.flatten().double(), values.to(measurement.device)]).cpu()
                measurement, values = flat[: measurement.numel()].view(measurement.shape), flat[measurement.numel() :]
            measurement = None if measurement is None else measurement.cpu()
            losses = list(mean_by_update(updates, values).values())
        # One loss that has no logarithm stands for none.
        column = torch.tensor(losses or [0.0], dtype=torch.float64)[:, None]
        return RunStats(*loss_stats(column), *self._meter.statistics(measurement)), bool(losses)

    def _lr_now(self) -> list[float]:
        block, index = divmod(self._updates, _AHEAD)
        if self._ahead[0] != block:
            self._look_ahead(block)
        if self._read_multiplier is not self._loop.multiplier or len(self._read) != len(self.base_lrs):
            self._read_multipliers()
        factor = self._ahead[1][index]
        return [float(base) * factor * m for base, m in zip(self.base_lrs, self._read, strict=True)]

    def _read_multipliers(self) -> None:
        """One for each parameter group; the tensor is read once for each decision, not at every step."""
        self._read_multiplier, self._read = self._loop.multiplier, self._loop.multiplier[0].tolist()
        if self._meter.scope == "global":
            self._read *= len(self.base_lrs)
        self._read += [1.0] * (len(self.base_lrs) - len(self._read))  # a group added later keeps its own LR

    def _look_ahead(self, block: int) -> None:
        """Compute what the base schedule has for a block of updates at once, which is quicker than one by one.

        Blocks begin at multiples of their size, so that a resumed run computes the same ones.
        """
        updates = torch.arange(block * _AHEAD, (block + 1) * _AHEAD, dtype=torch.float64)
        progress = updates / self.horizon if self.horizon else torch.zeros_like(updates)
        self._ahead = block, self.controller.schedule(progress).tolist()

    def _write_lr(self) -> None:
        adopt_new_groups(self)
        self._applied = self._updates
        groups = self.optimizer.param_groups
        for group, lr in zip(groups, self._lr_now(), strict=True):
            write_lr(group, lr)
        self._last_lr = [copy_of(group["lr"]) for group in groups]

    def _notice_epochs(self) -> None:
        self._warn_once(
            "epochs",
            f"scheduler.step() was called once after {self._updates - self._calls_at} optimizer updates. "
            "Decisions still come at the right updates, because updates are counted, not calls; "
            "call step() after every optimizer.step() to silence this",
        )

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"LearnedLR: {message}.", UserWarning, stacklevel=4)


def _refuse_chain(caller: CodeType) -> None:
    # By its code, not its locals: reading those would keep the caller's tensors alive.
    if caller is _CHAINED_STEP:
        raise RuntimeError(
            "got a LearnedLR inside a ChainedScheduler, expected it alone: it sets absolute LRs, which would undo "
            "the others; pass the other schedule as load_scheduler(..., base=schedule) instead"
        )
