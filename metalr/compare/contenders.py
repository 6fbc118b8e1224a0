"""Contenders: whoever is compared, behind one interface.

A contender says how its runs are trained and what there is to tune beside the LR, whose range all of them share. The
classes below `Contender` are final; `metalr.compare.catalog` lists the registered ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar

from metalr.compare.ablations import RandomOfSeeds
from metalr.compare.fingerprints import describe_controller
from metalr.compare.search import Space
from metalr.compare.staged_search import StagedSearch
from metalr.control.controller import Controller
from metalr.control.reference import RandomController, ScheduleController
from metalr.control.rules import ReactiveRule
from metalr.optimizers.classic import ExpectedSGD, InnerOptimizer
from metalr.optimizers.wrappers import CycledMomentum
from metalr.schedules import Constant, Cosine, Cyclic, OneCycle, Schedule
from metalr.tasks.task import Task

Parameters = Mapping[str, Any]

# A contender that is not bound to a number of decisions has this many, or one for every two inner steps of a short run.
DECISIONS = 40
# Schedules with a momentum.
_CYCLING = (OneCycle, Cyclic)


class Kind(StrEnum):
    """The kind of a contender, as records name it."""

    SCHEDULE = "schedule"
    RULE = "rule"
    STAGED = "staged search"
    WRAPPER = "optimizer"
    EXTERNAL = "outside"
    TARGET = "target"
    FIXED = "fixed"
    LEARNED = "controller"
    ABLATION = "ablation"


@dataclass(frozen=True, kw_only=True)
class Contender(ABC):
    """An interface; the subclasses are final.

    Attributes:
        kind: as records name it.
        trains_alone: it needs a loop of its own and trains one run after the other.
        ignores_guess: its LR does not depend on the guess, so that a wrong base LR changes nothing.
        name: in tables and records.
        about: one sentence.
        space: parameter -> its range or its values, searched together with the LR.
    """

    kind: ClassVar[Kind]
    trains_alone: ClassVar[bool] = False
    ignores_guess: ClassVar[bool] = False

    name: str
    about: str = ""
    space: Space = field(default_factory=dict)

    @abstractmethod
    def controller(self, parameters: Parameters, horizon: int) -> Controller:
        """The controller of its runs.

        Args:
            parameters: missing ones have their defaults.
            horizon: inner steps in a run, to which the number of decisions is fitted.

        Raises:
            ValueError: a parameter is unknown, or has a value that is refused.
        """

    def optimizer(self, parameters: Parameters, task: Task) -> InnerOptimizer:
        """The inner optimizer of its runs: the task's, unless it replaces or wraps that."""
        return task.optimizer

    def search(self, parameters: Parameters) -> StagedSearch | None:
        """The search that trains its runs in place of its controller; None for everyone else."""
        return None

    def controller_of_runs(self, parameters: Parameters, horizon: int, seeds: Sequence[int]) -> Controller:
        """The controller of some runs with these seeds, which only a random one reads."""
        return self.controller(parameters, horizon)

    def base_lr(self, task: Task) -> float:
        """The middle of its LR range on a task."""
        return task.base_lr

    def fits(self, task: Task) -> bool:
        """Whether it can train the task."""
        return True

    def batch_key(self, parameters: Parameters, task: Task) -> Hashable:
        """Runs of equal keys can share a batch: they have one inner optimizer and decide at the same steps."""
        controller = self.controller(parameters, task.horizon)
        return self.optimizer(parameters, task), controller.decisions, controller.spacing

    def describe(self) -> dict[str, Any]:
        """Everything that its records depend on, JSON-able, as far as it can be written."""
        space = {name: asdict(dimension) for name, dimension in self.space.items()}
        return {"kind": self.kind, "about": self.about, "space": space, "defaults": self.defaults}

    @property
    def defaults(self) -> dict[str, Any]:
        """Parameter -> its value in the first trial."""
        return {name: dimension.default for name, dimension in self.space.items()}

    def _completed(self, parameters: Parameters) -> dict[str, Any]:
        """The parameters with defaults for the missing ones.

        Raises:
            ValueError: one is unknown.
        """
        unknown = sorted(set(parameters) - set(self.space))
        if unknown:
            raise ValueError(
                f"got parameters {unknown} for {self.name!r}, expected names among {sorted(self.space) or 'none'}"
            )
        return {**self.defaults, **parameters}


@dataclass(frozen=True, kw_only=True)
class ScheduleContender(Contender):
    """An open-loop schedule; one that moves the momentum too does so in the batched engine, where there is momentum.

    Attributes:
        factory: `(**parameters) -> Schedule`.

    Example:
        >>> from metalr.compare.catalog import SCHEDULE_CONTENDERS
        >>> SCHEDULE_CONTENDERS["polynomial"].schedule({"power": 2.0})
        Polynomial(power=2.0, end=0.0, cycle=False)
    """

    kind = Kind.SCHEDULE
    factory: Callable[..., Schedule]

    def schedule(self, parameters: Parameters) -> Schedule:
        """The schedule at these parameters; missing ones have their defaults."""
        return self.factory(**self._completed(parameters))

    def controller(self, parameters: Parameters, horizon: int) -> Controller:
        return ScheduleController(self.schedule(parameters), _decisions(horizon))

    def optimizer(self, parameters: Parameters, task: Task) -> InnerOptimizer:
        schedule = self.schedule(parameters)
        if task.plain or not task.optimizer.has_momentum or not isinstance(schedule, _CYCLING):
            return task.optimizer
        return CycledMomentum(inner=task.optimizer, schedule=schedule, horizon=task.horizon)

    def describe(self) -> dict[str, Any]:
        cycles = {"cycle_momentum": True} if isinstance(self.schedule({}), _CYCLING) else {}
        try:
            return {**super().describe(), **cycles, "defaults": self.controller({}, horizon=100).config()}
        except ValueError:  # a user's function has no name that a file could hold
            return {**super().describe(), **cycles, "defaults": "a Python function"}


@dataclass(frozen=True, kw_only=True)
class RuleContender(Contender):
    """A reactive rule: a closed loop that was written by hand.

    Attributes:
        factory: `(**parameters) -> ReactiveRule`.
    """

    kind = Kind.RULE
    factory: Callable[..., ReactiveRule]

    def controller(self, parameters: Parameters, horizon: int) -> Controller:
        return replace(self.factory(**self._completed(parameters)), decisions=_decisions(horizon))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "defaults": self.controller({}, horizon=100).config()}


@dataclass(frozen=True, kw_only=True)
class StagedContender(Contender):
    """A search for the LR within the run, whose probes are charged; see `metalr.compare.staged_search`."""

    kind = Kind.STAGED

    def controller(self, parameters: Parameters, horizon: int) -> Controller:
        return ScheduleController(Constant(), _decisions(horizon))

    def search(self, parameters: Parameters) -> StagedSearch:
        return StagedSearch(**self._completed(parameters))

    def fits(self, task: Task) -> bool:
        return not task.plain

    def batch_key(self, parameters: Parameters, task: Task) -> Hashable:
        return self.search(parameters), task.optimizer


@dataclass(frozen=True, kw_only=True)
class WrapperContender(Contender):
    """A constant LR under an optimizer that wraps the task's.

    Attributes:
        factory: `(inner=…, **parameters) -> InnerOptimizer`.
    """

    kind = Kind.WRAPPER
    factory: Callable[..., InnerOptimizer]

    def controller(self, parameters: Parameters, horizon: int) -> Controller:
        return ScheduleController(Constant(), _decisions(horizon))

    def optimizer(self, parameters: Parameters, task: Task) -> InnerOptimizer:
        return self.factory(inner=task.optimizer, **self._completed(parameters))

    def fits(self, task: Task) -> bool:
        return _trains_weights(task) and not task.plain


@dataclass(frozen=True, kw_only=True)
class ExternalContender(Contender):
    """An optimizer of another package, `EXTERNAL_OPTIMIZERS[name]`, on tasks whose optimizer it is a variant of.

    Attributes:
        usual_lr: the middle of its LR range.
        schedule: of its LR.
        inner: see `ExternalOptimizer`.
    """

    kind = Kind.EXTERNAL
    trains_alone = True
    usual_lr: float
    schedule: Schedule
    inner: str

    def controller(self, parameters: Parameters, horizon: int) -> Controller:
        return ScheduleController(self.schedule, _decisions(horizon))

    def base_lr(self, task: Task) -> float:
        return self.usual_lr

    def fits(self, task: Task) -> bool:
        return _trains_weights(task) and not task.plain and self.inner in type(task.optimizer).__name__

    def batch_key(self, parameters: Parameters, task: Task) -> Hashable:
        return self.name, super().batch_key(parameters, task)


@dataclass(frozen=True, kw_only=True)
class TargetContender(Contender):
    """Cosine decay under an optimizer that replaces the task's; the best of a few of them sets the task's target.

    Attributes:
        replacement: the optimizer. The task's clipping is kept.
        usual_lr: the middle of its LR range.
    """

    kind = Kind.TARGET
    replacement: InnerOptimizer
    usual_lr: float

    def controller(self, parameters: Parameters, horizon: int) -> Controller:
        return ScheduleController(Cosine(), _decisions(horizon))

    def optimizer(self, parameters: Parameters, task: Task) -> InnerOptimizer:
        return replace(self.replacement, clip_norm=task.optimizer.clip_norm)

    def base_lr(self, task: Task) -> float:
        return self.usual_lr

    def fits(self, task: Task) -> bool:
        return _trains_weights(task)


@dataclass(frozen=True, kw_only=True)
class FixedContender(Contender):
    """A schedule at an absolute LR: it ignores the guess, and nothing of it is tuned on the task.

    Beside a controller that was trained on a task it shows what knowing the LR of that task is worth.

    Attributes:
        schedule: what multiplies the LR.
        lrs: task -> its LR.
    """

    kind = Kind.FIXED
    ignores_guess = True
    schedule: Schedule
    lrs: Mapping[str, float]

    def controller(self, parameters: Parameters, horizon: int) -> Controller:
        return ScheduleController(self.schedule, _decisions(horizon))

    def base_lr(self, task: Task) -> float:
        return self.lrs[task.name]

    def fits(self, task: Task) -> bool:
        return task.name in self.lrs

    def describe(self) -> dict[str, Any]:
        schedule = ScheduleContender(name=self.name, factory=lambda: self.schedule).describe()["defaults"]
        return {**super().describe(), "schedule": schedule, "lrs": dict(self.lrs)}


@dataclass(frozen=True, kw_only=True)
class LearnedContender(Contender):
    """A learned controller, with the number of decisions that it was made for.

    Attributes:
        learned: the controller.
    """

    kind = Kind.LEARNED
    learned: Controller

    def controller(self, parameters: Parameters, horizon: int) -> Controller:
        return self.learned

    def describe(self) -> dict[str, Any]:
        return describe_controller(self.learned)


@dataclass(frozen=True, kw_only=True)
class Ablation(Contender):
    """A variant of a learned controller that explains it.

    Attributes:
        variant: the controller.
    """

    kind = Kind.ABLATION
    variant: Controller

    def controller(self, parameters: Parameters, horizon: int) -> Controller:
        return self.variant

    def controller_of_runs(self, parameters: Parameters, horizon: int, seeds: Sequence[int]) -> Controller:
        return RandomOfSeeds(self.variant, tuple(seeds)) if isinstance(self.variant, RandomController) else self.variant

    def describe(self) -> dict[str, Any]:
        return describe_controller(self.variant)


def of_schedule(name: str, schedule: Schedule, about: str = "a schedule without a search space") -> ScheduleContender:
    """A user's own schedule, with nothing to tune but the LR.

    Example:
        >>> from metalr.schedules import Function
        >>> of_schedule("square", Function(lambda p: (1 - p) ** 2)).schedule({})(0.5)
        0.25
    """
    return ScheduleContender(name=name, about=about, factory=lambda: schedule)


def _decisions(horizon: int) -> int:
    return max(min(DECISIONS, horizon // 2), 1)


def _trains_weights(task: Task) -> bool:
    """Whether another optimizer can stand in for the task's; none can for one that follows second moments instead."""
    return not isinstance(task.optimizer, ExpectedSGD)
