"""The torch scheduler of a schedule, `ScheduleLR`, for a user's own loop. It depends on torch alone."""

import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler

from metalr.schedulers.clock import check_horizon
from metalr.schedulers.param_groups import adopt_new_groups, check_state, numbers_like, restore_lr, same_number
from metalr.schedulers.shards import local_part
from metalr.schedules import Schedule

# One update writes a weight at most three times; more writes between two calls of step() mean several updates.
_WRITES_PER_UPDATE = 3
_UPDATES_PER_EPOCH = 8
# Below this fraction of its peak, and again at every halving, the LR is suspected of being too small.
_SUSPECT_BELOW = 1e-3
_WATCHED_WEIGHTS = 4096
_CHAINED_STEP = ChainedScheduler.step.__code__


class ScheduleLR(LRScheduler):
    """A schedule as a torch scheduler: after t calls of `step()` the LR is base_lr · schedule(t / horizon).

    It counts calls, as torch's own schedulers do, and composes with `SequentialLR` and `ChainedScheduler`. If something
    else changes the LR, be it another scheduler or an assignment, that change is a factor from there on:

        lr(t) = base_lr · factor · schedule(t / horizon)

    Args:
        optimizer: any `torch.optim.Optimizer`, with float or tensor LRs.
        schedule: progress -> multiplier.
        horizon: optimizer updates in the run. In a longer run progress exceeds 1; the docstring of each schedule gives
            its value there.
        last_epoch: -1 for a new run, as in torch.
        cycle_momentum: also set the momentum (or beta1) of every group to `schedule.momentum(progress)`, as torch's
            `OneCycleLR` and `CyclicLR` do; for schedules that have one.
        unit: of `horizon` and of a call of `step()`. With "updates" (the default) a call after many updates causes a
            warning; with "epochs" it is expected.

    Horizons: after `horizon` is assigned, or a run resumed with another one, the next LR is that of the new horizon.

    An LR that has become too small to change any watched weight in its dtype causes one warning.

    Raises:
        ValueError: `horizon` is not a positive whole number, or there is no momentum to cycle.
        RuntimeError: at the first `step` of a `ChainedScheduler`, if the schedule is 0 somewhere, which hides the other
            factors.

    Example:
        >>> from metalr.schedules import Linear
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> scheduler = ScheduleLR(optimizer, Linear(), horizon=10)
        >>> for _ in range(5):
        ...     optimizer.step(); scheduler.step()
        >>> scheduler.get_last_lr()
        [0.05]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        horizon: int,
        last_epoch: int = -1,
        *,
        unit: Literal["updates", "epochs"] = "updates",
        cycle_momentum: bool = False,
    ) -> None:
        if unit not in ("updates", "epochs"):
            raise ValueError(f"got unit {unit!r}, expected 'updates' or 'epochs': pass the one that step() follows")
        if cycle_momentum:
            _require_momentum(schedule, optimizer)
        self.schedule, self.cycle_momentum = schedule, cycle_momentum
        self.horizon = check_horizon(horizon)
        self._watch: _Watch | None = None
        self._watches_calls = unit == "updates"
        self._factor = 1.0  # of the schedule, in the LR that was written last
        self._outside: list[float | Tensor] = []  # for each group, the factor that others have put on its LR
        # Before the first update a changed LR is another scheduler's doing; later it is what a finished one has left.
        untrained = not getattr(optimizer, "_opt_called", False)
        self._in_company = untrained and hasattr(optimizer.step, "_wrapped_by_lr_sched")
        super().__init__(optimizer, last_epoch)
        self._constructed_lr = [float(lr) for lr in self._last_lr]

    def step(self, epoch: int | None = None) -> None:
        """Set the LR of the next update; call after `optimizer.step()`.

        Args:
            epoch: count of calls to jump to, as in torch; normally omitted.
        """
        if not self._is_initial:
            self._notice()
            if self._step_count == 1 and sys._getframe(1).f_code is _CHAINED_STEP:
                self._refuse_zeros()
        super().step(epoch)

    def __repr__(self) -> str:
        lrs = ", ".join(f"{float(group['lr']):.4g}" for group in self.optimizer.param_groups)
        return f"ScheduleLR(after {self.last_epoch} of {self.horizon} calls of step, lr {lrs}, {self.schedule})"

    def get_lr(self) -> list[float | Tensor]:
        """The LRs of the coming update; called by `step`."""
        groups = self.optimizer.param_groups
        self._adopt()
        if self.cycle_momentum:
            self._set_momentum()
        if self._is_initial:
            return self._initial_lrs()
        for index, group in enumerate(groups):
            self._outside[index] = self._outside_now(index, group["lr"])
        self._factor = self._factor_at(self.last_epoch)
        return [base * outside * self._factor for base, outside in zip(self.base_lrs, self._outside, strict=True)]

    def _adopt(self) -> None:
        adopt_new_groups(self)
        self._outside += [1.0] * (len(self.base_lrs) - len(self._outside))

    def _set_momentum(self) -> None:
        momentum = self.schedule.momentum(max(self.last_epoch, 0) / self.horizon)  # type: ignore[attr-defined]
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum

    def _initial_lrs(self) -> list[float | Tensor]:
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        changed = [not same_number(lr, base) for lr, base in zip(lrs, self.base_lrs, strict=True)]
        target = self._get_closed_form_lr()
        if not self._in_company:  # a loaded optimizer keeps its LR; a new one gets the first value of the schedule
            return [lr if c else new for lr, c, new in zip(lrs, changed, target, strict=True)]
        self._outside = [
            lr / base if c and float(base) > 0.0 else 1.0
            for lr, c, base in zip(lrs, changed, self.base_lrs, strict=True)
        ]
        return [new * outside for new, outside in zip(target, self._outside, strict=True)]

    def _outside_now(self, index: int, lr: float | Tensor) -> float | Tensor:
        """The factor of others on a group's LR: as before, if the LR is still the one that was written last."""
        base, last, outside = self.base_lrs[index], self._last_lr[index], self._outside[index]
        if isinstance(lr, Tensor) and lr.device.type != "cpu":  # asking for its value would wait for the device
            own = base * self._factor
            return torch.where((lr == last) | (own <= 0.0), outside, lr / own)
        own = float(base) * self._factor
        return outside if same_number(lr, last) or own <= 0.0 else float(lr) / own

    def _refuse_zeros(self) -> None:
        zero = next((t for t in range(self.horizon) if self._factor_at(t) <= 0.0), None)
        if zero is not None:
            raise RuntimeError(
                f"got {self.schedule} inside a ChainedScheduler, expected a schedule above 0 throughout: its factor is "
                f"0 at update {zero}, which hides the factors of the others; give it a floor or a start above 0"
            )

    def _factor_at(self, step: int) -> float:
        factor = self.schedule(max(step, 0) / self.horizon)
        return factor if 0.0 <= factor < math.inf else 0.0  # an LR below 0 or of no number would destroy the weights

    def _notice(self) -> None:
        if self._watch is None:
            self._watch = _Watch()
        found = self._watch.writes_since_last_call(self.optimizer)
        if self._watches_calls and found >= _UPDATES_PER_EPOCH * _WRITES_PER_UPDATE:
            self._watches_calls = False
            warnings.warn(
                f"ScheduleLR: step() was called once after the weights had been written {found} times, expected a call "
                f"after every optimizer.step(), since the horizon of {self.horizon} counts calls; for a call per epoch "
                "pass the horizon in epochs and unit='epochs'.",
                UserWarning,
                stacklevel=3,
            )
        if self._watch.finds_no_change(self.optimizer, self._factor):
            warnings.warn(
                f"ScheduleLR: the LR has fallen to {self._factor:.3g} of its base by step {self.last_epoch} of "
                f"{self.horizon}, where an update no longer changes any weight in its dtype; use a schedule with a "
                "floor, or stop here.",
                UserWarning,
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watch": None}

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        """The LRs without any other factor, as a `SequentialLR` asks for where this scheduler begins."""
        self._outside = [1.0] * len(self.base_lrs)
        self._factor = self._factor_at(self.last_epoch)
        return [base * self._factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The state as plain numbers and lists, loadable with `weights_only=True`."""
        self._adopt()
        return {
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "horizon": self.horizon,
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "last_lr": [float(lr) for lr in self._last_lr],
            "factor": self._factor,
            "outside": [float(factor) for factor in self._outside],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was called, whether the optimizer was loaded before or after construction.

        Raises:
            ValueError: the state belongs to another kind of scheduler or another number of parameter groups.
        """
        keys = ("last_epoch", "step_count", "base_lrs", "last_lr", "factor", "outside")
        check_state(state_dict, keys, len(self.optimizer.param_groups))
        self._adopt()
        self.last_epoch = int(state_dict["last_epoch"])
        self._step_count = int(state_dict["step_count"])
        self.base_lrs = numbers_like(self.base_lrs, state_dict["base_lrs"])
        restore_lr(self.optimizer, self._constructed_lr, state_dict["last_lr"])
        self._last_lr = numbers_like(self._last_lr, state_dict["last_lr"])
        self._factor = float(state_dict["factor"])
        self._outside = [float(factor) for factor in state_dict["outside"]]
        if self.cycle_momentum:
            self._set_momentum()


def _require_momentum(schedule: Schedule, optimizer: Optimizer) -> None:
    without = [g for g in optimizer.param_groups if "betas" not in g and not g.get("momentum")]
    if not hasattr(schedule, "momentum") or without:
        raise ValueError(
            f"got cycle_momentum=True with {type(schedule).__name__} and {type(optimizer).__name__}, expected a "
            "schedule with a momentum (OneCycle, Cyclic) and an optimizer with momentum above 0 or betas: leave it out"
        )


class _Watch:
    """The changes of the weights between two calls of a scheduler, seen without hooks.

    Hooks would break the graph of a compiled `optimizer.step`; reading a tensor's own write counter costs nothing.
    """

    def __init__(self) -> None:
        self._writes: int | None = None
        self._peak = 0.0
        self._next = 0.0
        self._held: list[tuple[Tensor, Tensor, int]] = []
        self._reported = False

    def writes_since_last_call(self, optimizer: Optimizer) -> int:
        """In-place writes to the first parameter since the last call; 0 at the first."""
        now = next((_writes(p) for group in optimizer.param_groups for p in group["params"]), 0)
        found = 0 if self._writes is None else now - self._writes
        self._writes = now
        return found

    def finds_no_change(self, optimizer: Optimizer, factor: float) -> bool:
        """True once: when a very small LR was in force and no watched weight changed. Rarely reads the device."""
        if self._reported:
            return False
        held, self._held = self._held, []
        if held:
            written = [(p, copy) for p, copy, writes in held if _writes(p) > writes]
            self._reported = bool(written) and all(torch.equal(_some(p), copy) for p, copy in written)
            return self._reported
        self._peak = max(self._peak, factor)
        if 0.0 < factor < min(_SUSPECT_BELOW * self._peak, self._next or self._peak):
            self._next = factor / 2.0
            # Two parameters of each group, because rows of an embedding that a batch does not use do not change either.
            params = [
                group["params"][index] for group in optimizer.param_groups if group["params"] for index in (0, -1)
            ]
            self._held = [(p, _some(p).clone(), _writes(p)) for p in params]
        return False


def _some(parameter: Tensor) -> Tensor:
    return local_part(parameter.detach()).flatten()[:_WATCHED_WEIGHTS]


def _writes(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
