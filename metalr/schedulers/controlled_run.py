"""One training run under a controller, independent of torch.optim: losses and measurements in, multipliers out.

`LearnedLR` is the shell around it for a user's loop.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from metalr.control import loop
from metalr.control.controller import Controller
from metalr.control.explanation import Reasons, reasons_for
from metalr.control.loop import Known
from metalr.control.lr import bounded_multiplier
from metalr.schedulers.clock import DecisionClock
from metalr.schedulers.history import History
from metalr.schedulers.loss_log import LossLog
from metalr.schedulers.ranks import Ranks
from metalr.signals.observations import feature
from metalr.signals.stats import Prospect, RunStats, loss_stats


class Meter(Protocol):
    """The interface of `metalr.schedulers.meter.OptimizerMeter`, which measures gradients and updates.

    Attributes:
        num_groups: groups that are measured separately.
    """

    num_groups: int

    def clear(self) -> None:
        """Forget what was measured of the interval."""

    def prospect(self, lrs: list[float]) -> tuple[Tensor, Tensor]:
        """Update ratio and log descent of the first update, before it is made, `(1, num_groups)` each."""

    def before_second_last(self) -> None:
        """Measure before the second-to-last update of the interval."""

    def before_last(self) -> None:
        """Measure before the last update of the interval."""

    def after_last(self) -> None:
        """Let go of what the last update of the interval was compared with."""

    def on_device(self) -> Tensor | None:
        """All measurements as one tensor on the parameters' device; None if there are none."""

    def statistics(self, measurement: Tensor | None) -> tuple[Tensor, ...]:
        """The gradient and update fields of `RunStats`, `(1, num_groups)` each."""

    def state(self) -> dict[str, Any]:
        """The measurements so far, for a checkpoint."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`."""


class ControlledRun:
    """One run: it counts updates, measures the last two of each interval, and lets the controller decide.

    Args:
        controller: takes the decisions.
        clock: says when they fall.
        meter: measures the updates.
        ranks: the link to the other ranks of a distributed run.

    Attributes:
        losses: observed since the last decision.
        history: of the decisions so far.
        state: of the decision loop, with num_runs = 1.
    """

    def __init__(self, controller: Controller, clock: DecisionClock, meter: Meter, ranks: Ranks) -> None:
        self.controller = controller
        self.clock = clock
        self.meter = meter
        self.ranks = ranks
        self._skipping = False
        self._clear()

    def restart(self) -> None:
        """Start a new run."""
        self.clock.restart()
        self.ranks.restart()
        self.meter.clear()
        self._clear()

    def _clear(self) -> None:
        like = torch.ones(1, self.meter.num_groups, dtype=torch.float64)
        self.losses = LossLog()
        self.history = History()
        self.state = loop.init(self.controller.init(like), like)
        self._before: Any = None
        self._read_from: Tensor | None = None
        self._read: list[float] = []

    # Around each update

    def settle(self) -> None:
        """Make the update count exact if some updates may have been skipped on the device."""
        self.losses.shift(self.clock.settle())

    def skips(self, flag: Tensor | None) -> bool:
        """Whether the coming update is known to be skipped.

        Args:
            flag: nonzero if a fused optimizer will skip the update; it stays on its device where possible. None if no
                update can be skipped in this way.
        """
        self._skipping = False
        if isinstance(flag, Tensor):
            if not self.clock.started or flag.device.type == "cpu":
                self._skipping = bool(flag)
            else:
                self.clock.may_be_skipped(flag)
        return self._skipping

    def unstart(self) -> None:
        """Forget the first decision, to take it again on other gradients before any update is made."""
        like = torch.ones_like(self.state.multiplier)
        self.clock.started = False
        self._before = None
        self.state = loop.init(self.controller.init(like), like)

    def start(self, lrs: list[float]) -> None:
        """Take the first decision, immediately before the first update.

        Args:
            lrs: of that update without a controller, one for each parameter group.
        """
        self.clock.started = True
        self.history = History()
        loss = self.ranks.talk.first_loss(self.losses)
        log_loss = torch.tensor([math.nan if loss is None else loss], dtype=torch.float64).log()
        prospect = Prospect(*self.meter.prospect(lrs), log_loss)
        self._before = self.state.controller
        self.state = loop.start(self.controller, self.state, prospect, self._horizon, self._known(loss is not None))
        self._agree(0)

    def before_update(self) -> None:
        """Measure the gradients if the coming update is one of the last two before a decision."""
        left, stop = self.clock.updates_left, self.clock.next_decision
        if left == 2 and stop is not None:
            self.ranks.publish(stop, self.clock.updates, self.losses)
            self.meter.before_second_last()
        elif left == 1:
            self.meter.before_last()

    def after_update(self) -> None:
        """Count the update."""
        if self._skipping:
            self._skipping = False
            return
        if self.clock.updates_left == 1:
            self.meter.after_last()
        self.clock.updates += 1

    # Decisions

    def decide_if_due(self) -> bool:
        """Take the next decision if it is due; returns whether it was."""
        if not self.clock.due:
            return False
        self.settle()
        stop = self.clock.next_decision
        if not self.clock.due or stop is None:
            return False
        stats, has_loss = self._stats(stop)
        self._before = self.state.controller
        self.state = loop.decide(
            self.controller, self.state, stats, self.clock.updates, self._horizon, self._known(has_loss)
        )
        self._agree(stop)
        self.clock.decided()
        self.meter.clear()
        return True

    @property
    def exploded(self) -> bool:
        """Whether the last decision followed an explosion of the loss."""
        return any(feature(self.state.observation, "loss_exploded")[0].tolist())

    @property
    def has_loss(self) -> bool:
        """Whether the last decision saw losses."""
        return any(feature(self.state.observation, "has_loss")[0].tolist())

    def reasons(self) -> Reasons | None:
        """Why the last decision was as it was; None if there was none since the run was begun or loaded."""
        if self._before is None:
            return None
        return reasons_for(self.controller, self.state.observation, self._before)

    def multipliers(self, num_groups: int) -> list[float]:
        """The multiplier of each parameter group; 1 for groups added to a run that controls its groups separately.

        The tensor is read once per decision, not once per update.
        """
        if self._read_from is not self.state.multiplier or len(self._read) != num_groups:
            self._read_from, self._read = self.state.multiplier, self.state.multiplier[0].tolist()
            if self.meter.num_groups == 1:
                self._read *= num_groups
            self._read += [1.0] * (num_groups - len(self._read))
        return self._read

    @property
    def _horizon(self) -> float:
        return math.inf if self.clock.horizon is None else self.clock.horizon

    def _known(self, has_loss: bool) -> Known:
        return Known(float(has_loss), float(self.clock.horizon is not None))

    def _agree(self, stop: int) -> None:
        self.state = self.state._replace(multiplier=self.ranks.talk.agree(stop, self.state.multiplier))
        self.history.add(self.clock.updates, self.state)

    def _stats(self, stop: int) -> tuple[RunStats, bool]:
        """The interval's statistics on the host, and whether losses are among them."""
        losses, measurement = self.ranks.talk.gather(stop, self.clock.updates, self.losses, self.meter.on_device())
        # A single loss without a logarithm stands for no loss at all.
        column = torch.tensor(losses or [0.0], dtype=torch.float64)[:, None]
        return RunStats(*loss_stats(column), *self.meter.statistics(measurement)), bool(losses)

    # Checkpoints

    def to_saved(self) -> dict[str, Any]:
        """The state as plain numbers, lists and tensors; with gradients between the last two updates of an interval."""
        self.settle()
        return {
            **self.clock.state(),
            "losses": self.losses.state(),
            "published": self.ranks.published,
            "history": self.history.state(),
            "loop": loop.to_saved(self.state),
            "meter": self.meter.state(),
        }

    def load_saved(self, saved: dict[str, Any]) -> None:
        """Continue from the result of `to_saved`.

        Raises:
            ValueError: it belongs to another controller or another number of groups.
        """
        self._clear()
        fresh = self.state.multiplier
        self.state = loop.from_saved(saved["loop"], self.state)
        bounded = bounded_multiplier(self.controller.bounds, self.state.multiplier, fresh)
        self.state = self.state._replace(multiplier=bounded)
        self.meter.load_state(saved["meter"])
        self.clock.load_state(saved)
        self.losses.load_state(saved["losses"])
        self.history = History(saved.get("history", ()))
        self.ranks.resume(saved.get("published"), self.clock.next_decision)
