"""The torch scheduler of a controller, `LearnedLR`: a shell around `ControlledRun` for a user's own loop.

It depends on torch alone. `metalr.schedulers.meter` makes the measurements that the engine makes with matrices.
"""

import numbers
import sys
from collections.abc import Mapping
from types import CodeType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler
from torch.utils.hooks import RemovableHandle

from metalr.control.controller import Controller
from metalr.control.lr import lr_in_force
from metalr.schedulers.alerts import Alerts
from metalr.schedulers.clock import DecisionClock
from metalr.schedulers.controlled_run import ControlledRun
from metalr.schedulers.hooks import attach_hooks
from metalr.schedulers.lookahead import ScheduleAhead
from metalr.schedulers.loss_log import Loss, one_number
from metalr.schedulers.meter import OptimizerMeter, Scope
from metalr.schedulers.param_groups import (
    adopt_new_groups,
    check_state,
    copy_of,
    numbers_like,
    restore_lr,
    same_number,
    write_lr,
)
from metalr.schedulers.ranks import Ranks
from metalr.schedules import Constant

# With at least this many updates between two calls of step(), it seems to be called once per epoch.
_EPOCH_LIKE = 8
_CHAINED_STEP = ChainedScheduler.step.__code__


class LearnedLR(LRScheduler):
    """A controller as a torch scheduler.

    In the loop, the only new call is `observe`:

        loss.backward()
        scheduler.observe(loss); optimizer.step(); scheduler.step()

    `scheduler.step(loss)` works in place of `observe`, and so does passing no loss at all. The LR in force is

        lr(t) = base_lr · controller.schedule(t / horizon) · lr_multiplier

    where base_lr is the optimizer's own LR (or the card's, under an absolute action), and the multiplier is decided
    `decisions` times per run, first immediately before the first update. Hooks on the optimizer read the gradients,
    after accumulation, unscaling and clipping, at the last two updates before a decision; the decision then needs a
    single small copy from device to host.

    The scheduler counts optimizer updates, not calls: repeated or missing calls of `step()`, and updates that a
    `GradScaler` skips, change nothing.

    Args:
        optimizer: any `torch.optim.Optimizer`, with float or tensor LRs.
        controller: for example from `metalr.load_controller`.
        horizon: optimizer updates in the run. In a run that continues beyond it, the multiplier stays and the schedule
            is evaluated at progress above 1. None if unknown; then `steps_per_action` is required and the base schedule
            must be constant.
        decisions: per run; by default the controller's own number, or fewer in a run too short for them.
        steps_per_action: updates between decisions if the horizon is unknown.
        scope: "global" for a single multiplier, "param_group" for one per parameter group.
        hooks: False where hooks are unwelcome, as with a compiled `optimizer.step`; then call `observe` immediately
            before and `step` immediately after every update, before `zero_grad`.
        distributed: False if the ranks of a process group train different models; otherwise all ranks set the same
            LRs, from the mean of their losses (see `metalr.schedulers.ranks`), and either all of them call `observe` or
            none.
        measure: False reads no gradients and holds no copy of them; the controller then sees only losses and progress.
        expects_loss: True warns if no loss is observed. `load_scheduler` passes it for a controller whose card says
            that it was never trained without losses.

    Horizons: `set_horizon` lengthens or shortens the current run. A run that is resumed with another horizon takes its
    remaining decisions where the new horizon puts them, and its base schedule follows the new progress from then on.

    History: `history` keeps the latest thousand decisions of the run, as dicts like those of `explain`.

    Raises:
        ValueError: the horizon is too short for the decisions, or missing without `steps_per_action`.
        RuntimeError: the scheduler is part of a `ChainedScheduler`, which multiplies relative changes.
    """

    _handles: list[RemovableHandle]

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
        expects_loss: bool = False,
    ) -> None:
        # The base constructor calls step(), so everything that step() reads is set first.
        self.controller = controller
        self._clock = clock = DecisionClock(
            horizon,
            controller.decisions if decisions is None else decisions,
            steps_per_action,
            controller.spacing,
            fitted=decisions is None,
        )
        meter = OptimizerMeter(optimizer, scope, measure=measure)
        # Ranks pair up as early as this, because one whose data ends before its first update must still be counted.
        self.run = ControlledRun(controller, clock, meter, Ranks(distributed))
        self._require_constant_base()
        self._ahead = ScheduleAhead(controller.schedule)
        self._uses_hooks, self._scope = hooks, scope
        self._alerts = Alerts()
        self._expects_loss = expects_loss
        self._written_at = self._called_at = 0  # update counts at the last write and call
        super().__init__(optimizer)
        self._constructed_lr = [float(lr) for lr in self._last_lr]
        self.attach()

    # The calls of a user's loop

    def observe(self, loss: Loss) -> None:
        """Pass the loss of the coming update; call after `backward()` and before `optimizer.step()`.

        The value stays on its device.

        Args:
            loss: one number, in the unit of the loss whose gradient is used (with gradient accumulation, before the
                division by the number of minibatches); a dict of losses counts as their sum, and several calls for one
                update (gradient accumulation) as their mean.

        Raises:
            TypeError: the loss is not a number at all.
            ValueError: the loss is not one number.
        """
        self._take(loss, self.updates)
        if not self._uses_hooks:
            self._before_update()

    def step(self, loss: Loss | None = None) -> None:  # type: ignore[override]
        """Set the LR of the next update; call after `optimizer.step()`.

        Args:
            loss: of the update just made, if it was not passed to `observe`.

        Raises:
            TypeError: `loss` is an integer: some loops pass an epoch number to every scheduler.
        """
        first, clock = self._step_count < 2, self._clock
        if not self._is_initial:
            self._alerts.not_alone(self)
            if loss is not None:
                self._take_late(loss)
            if not self._uses_hooks:
                self._after_update()
            if clock.updates - self._called_at >= _EPOCH_LIKE:
                self._alerts.called_per_epoch(clock.updates - self._called_at)
            self._called_at = clock.updates
        if first or clock.updates == clock.next_decision:  # not at every step: it is slow
            _refuse_chain(sys._getframe(1).f_code)
        if first:
            super().step()  # with torch's own check of the order of calls
            return
        self._step_count += 1
        self._update_lr()

    @property
    def updates(self) -> int:
        """Optimizer updates made so far."""
        return self._clock.updates

    @property
    def horizon(self) -> int | None:
        """Optimizer updates in the run; None if unknown."""
        return self._clock.horizon

    def set_horizon(self, horizon: int | None) -> None:
        """Lengthen or shorten the run; decisions already taken stand.

        Args:
            horizon: optimizer updates in the run; None if unknown.

        Raises:
            ValueError: as for the class.
        """
        self._clock.set_horizon(horizon)
        self._require_constant_base()

    def attach(self) -> None:
        """Hook into the optimizer again after `detach`."""
        self._handles = attach_hooks(self, "_before_update", "_after_update") if self._uses_hooks else []

    def detach(self) -> None:
        """Release the optimizer: the scheduler keeps its history but no longer sets LRs."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def synchronize(self) -> None:
        """Continue from the rank that has made the most updates; call on all ranks after a block of uneven inputs.

        Ranks that ran out of data under `with model.join():` have made fewer updates than the others, from which DDP
        then gives them the weights. This method gives them the scheduler's state too.

        Raises:
            RuntimeError: not all ranks called it.
        """
        state = self.run.ranks.talk.furthest_state(self.updates, self.state_dict())
        if state is not None:
            self.load_state_dict(state)
            self._write_lrs()

    @property
    def history(self) -> list[dict[str, Any]]:
        """The latest thousand decisions, oldest first, as dicts with the first three keys of `explain`."""
        return self.run.history.entries()

    def explain(self) -> dict[str, Any]:
        """The last decision: the features behind it, its result, and the reasons.

        Returns:
            A dict: `updates` made before the decision; `features`, name -> one number for each controlled group;
            `lr_multiplier`, one number for each controlled group; `lr`, the LR now in force for each parameter group;
            `contributions`, feature -> log of the multiplier over the one that the controller would have decided
            without it, for each controlled group; `why`, the same in a sentence or two for each. The last two are
            empty before the first decision, and after `load_state_dict` until the next.
        """
        lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        found = self.run.history.latest(self.updates, self.run.state) | {"lr": lrs}
        reasons = self.run.reasons()
        if reasons is None:
            return found | {"contributions": {}, "why": []}
        bounds, groups = self.controller.bounds, range(len(found["lr_multiplier"]))
        why = [reasons.in_words(bounds, group) for group in groups]
        return found | {"contributions": reasons.numbers(), "why": why}

    def __repr__(self) -> str:
        lrs, multipliers = (
            ", ".join(f"{float(number):.4g}" for number in row)
            for row in ([group["lr"] for group in self.optimizer.param_groups], self.run.state.multiplier[0])
        )
        of_all = "" if self.horizon is None else f" of {self.horizon}"
        place = "not begun" if self.last_epoch < 0 else f"after {self.updates}{of_all} updates"
        return f"LearnedLR({place}, lr {lrs}, lr_multiplier {multipliers}, {self.controller})"

    # Called by torch's own classes

    def get_lr(self) -> list[float | Tensor]:
        """The LRs of the coming update."""
        adopt_new_groups(self)
        return [group["lr"] for group in self.optimizer.param_groups] if self._is_initial else [*self._lrs()]

    def _update_lr(self, epoch: int | None = None) -> None:
        if epoch == 0:  # a SequentialLR has reached the milestone at which this scheduler begins
            self._written_at = self._called_at = 0
            self.run.restart()
        if self._is_initial:
            super()._update_lr(epoch)
            return
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._decide_and_write()

    def state_dict(self) -> dict[str, Any]:
        """The state as plain numbers, lists and tensors, loadable with `weights_only=True`.

        Between the last two updates before a decision it includes a copy of the gradients, which the decision needs.
        """
        adopt_new_groups(self)
        return {
            **self.run.to_saved(),
            "scope": self._scope,
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "applied": self._written_at,
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "last_lr": [float(lr) for lr in self._last_lr],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was called, whether the optimizer was loaded before or after construction.

        The horizon is not part of the state: a run resumed with another one takes its remaining decisions where the new
        horizon puts them.

        Raises:
            ValueError: the state belongs to another controller, scope or number of parameter groups.
        """
        keys = ("updates", "interval_start", "started", "base_lrs", "last_lr", "losses", "loop", "meter")
        check_state(state_dict, keys, len(self.optimizer.param_groups))
        adopt_new_groups(self)
        if state_dict.get("scope") == self._scope == "param_group":  # groups added later are not controlled
            self.run.meter.num_groups = state_dict["loop"]["multiplier"].shape[1]
        self.run.load_saved({**state_dict, "meter": self._comparable(state_dict["meter"])})
        self.last_epoch = int(state_dict["last_epoch"])
        self._step_count = int(state_dict["step_count"])
        self._written_at = int(state_dict["applied"])
        self._called_at = self.updates
        self.base_lrs = numbers_like(self.base_lrs, state_dict["base_lrs"])
        restore_lr(self.optimizer, self._constructed_lr, state_dict["last_lr"])
        self._last_lr = numbers_like(self._last_lr, state_dict["last_lr"])

    def _comparable(self, meter: Mapping[str, Any]) -> Mapping[str, Any]:
        """The meter's state, without copies of gradients where a group was added to them since."""
        held, groups = meter["held"], len(self.optimizer.param_groups)
        measured = groups if self._scope == "global" else self.run.meter.num_groups
        return meter if held is None or len(held[0]) == measured else {"held": None, "measured": []}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.attach()

    # Around each update

    def _before_update(self) -> None:
        if self.last_epoch < 0:  # waiting for its turn in a SequentialLR
            return
        clock = self._clock
        if clock.must_settle:
            self.run.settle()
        if clock.updates != self._written_at:
            self._catch_up()
        if self.run.skips(getattr(self.optimizer, "found_inf", None)):
            return
        if clock.updates == 0 and not self._uses_hooks:  # every call of `observe` may be the last before the update
            self.run.unstart()
        if not clock.started:
            self.run.start(self._lrs())
            self._write_lrs()
        self.run.before_update()

    def _after_update(self) -> None:
        if self.last_epoch >= 0:
            self.run.after_update()

    def _take_late(self, loss: Loss) -> None:
        """Take the loss of the update just made."""
        if isinstance(loss, numbers.Integral):
            raise TypeError(
                f"got step({loss}), a whole number, expected no argument or the loss: call step(), since updates "
                "are counted by the scheduler itself"
            )
        self._take(loss, max(self.updates - int(self._uses_hooks), 0))

    def _take(self, loss: Loss, update: int) -> None:
        """Keep a loss if a decision will need it: after the last one, before its turn and detached none will."""
        is_active = self.last_epoch >= 0 and (self._handles or not self._uses_hooks)
        if is_active and self._clock.next_decision is not None:
            self.run.losses.add(loss, update)
        else:
            one_number(loss)  # refused all the same if it is none

    def _catch_up(self) -> None:
        """Make up for a call of step() that did not come, unless another scheduler has taken over."""
        if self._clock.over:
            return  # no decision is left, and a SequentialLR may have moved on to its next part
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        if all(same_number(lr, last) for lr, last in zip(lrs, self._last_lr, strict=False)):
            self._decide_and_write()

    def _decide_and_write(self) -> None:
        if self._clock.due and self.run.decide_if_due():
            self._alert()
        self._write_lrs()

    def _alert(self) -> None:
        """Warn of whatever the last decision shows to be wrong."""
        if self.run.exploded:
            self._alerts.breaker(self.updates, self.run.state.multiplier[0].tolist())
        if self._expects_loss and not self.run.has_loss and not any(e["features"]["has_loss"][0] for e in self.history):
            self._alerts.no_loss()
        if self.run.has_loss and self._clock.progress < 0.5:  # without losses the multiplier says little of the base
            bases = [float(lr) for lr in self.base_lrs]
            self._alerts.at_bound(self.controller, self.run.history.multipliers(), bases, self.horizon)

    def _lrs(self) -> list[float]:
        factor = self._ahead.factor(self._clock.updates, self._clock.horizon)
        multipliers = self.run.multipliers(len(self.base_lrs))
        controlled = len(self.base_lrs) if self.run.meter.num_groups == 1 else self.run.meter.num_groups
        bases = [float(base) for base in self.base_lrs]
        bases[:controlled] = [self.controller.base(base) for base in bases[:controlled]]
        return [lr_in_force(base, factor, m) for base, m in zip(bases, multipliers, strict=True)]

    def _write_lrs(self) -> None:
        adopt_new_groups(self)
        self._written_at = self._clock.updates
        groups = self.optimizer.param_groups
        for group, lr in zip(groups, self._lrs(), strict=True):
            write_lr(group, lr)
        self._last_lr = [copy_of(group["lr"]) for group in groups]

    def _require_constant_base(self) -> None:
        if self.horizon is None and not isinstance(self.controller.schedule, Constant):
            raise ValueError(
                f"got horizon None with the base schedule {self.controller.schedule}, expected a constant one: "
                "a schedule of progress needs a horizon"
            )


def _refuse_chain(caller: CodeType) -> None:
    # Recognised by its code, not its locals, because reading those would keep the caller's tensors alive.
    if caller is _CHAINED_STEP:
        raise RuntimeError(
            "got a LearnedLR inside a ChainedScheduler, expected it alone: it sets absolute LRs, which would undo "
            "the others; pass the other schedule as load_scheduler(..., base=schedule) instead"
        )
