"""The settings of a comparison, and the trials that follow from them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from metalr.compare.catalog import CLASSIC, CONTENDERS, get_contender
from metalr.compare.contenders import Contender
from metalr.compare.run_record import Phase

# Report seeds start this far above tuning seeds, and another comparison seed this far above both.
_SEED_GAP = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Two comparisons of equal settings give equal records.

    Attributes:
        contenders: names of the registered contenders to tune; None for all that need no package of their own.
        num_lrs, lr_range: the LR grid, log-spaced factors of the task's base LR, both ends included.
        draws: parameter settings for each LR of the grid. Every contender gets num_lrs · draws trials; one with
            fewer parameter settings than draws spends the rest on a finer LR grid over the same range.
        tuning_seeds, report_seeds: how many of each; they never overlap.
        factors: of the task's base LR, for the comparison with a wrong base LR; empty leaves it out.
        wrong_base: registered contenders in that comparison, at their default parameters; None for all that are tuned.
        tune_controllers: also give every learned controller its trials, over the same LR grid.
        targets: also train four optimizers under the same budget; the best of them sets the target that the times
            to target are measured against. Without them the tuned best schedule sets it.
        ablations: show the base schedule, random, untrained and replayed policy beside each learned controller.
        seed: of everything that is drawn.
        max_runs: largest batch.
        dtype: "float32" or "float64".
    """

    contenders: tuple[str, ...] | None = CLASSIC
    num_lrs: int = 11
    lr_range: tuple[float, float] = (1.0 / 32.0, 32.0)
    draws: int = 1
    tuning_seeds: int = 3
    report_seeds: int = 10
    factors: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    wrong_base: tuple[str, ...] | None = None
    tune_controllers: bool = False
    targets: bool = False
    ablations: bool = True
    seed: int = 0
    max_runs: int = 256
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("draws", "tuning_seeds", "report_seeds", "max_runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name} {getattr(self, name)}, expected at least 1")
        low, high = self.lr_range
        if self.num_lrs < 2 or not 0.0 < low < high < float("inf"):
            raise ValueError(
                f"got {self.num_lrs} LRs in {self.lr_range}, expected at least 2 in a range 0 < low < high of "
                "factors of the base LR: pass for example num_lrs=11, lr_range=(0.03, 30)"
            )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"got dtype {self.dtype!r}, expected 'float32' or 'float64'")
        if any(not 0.0 < factor < float("inf") for factor in self.factors):
            raise ValueError(f"got base LR factors {self.factors}, expected positive finite numbers")
        if max(self.tuning_seeds, self.report_seeds) >= _SEED_GAP:
            raise ValueError(f"got more than {_SEED_GAP} seeds, expected fewer")
        for name in (*(self.contenders or ()), *(self.wrong_base or ())):
            get_contender(name)

    @property
    def num_trials(self) -> int:
        """Trials of every contender that is tuned."""
        return self.num_lrs * self.draws

    def registered(self) -> list[Contender]:
        """The registered contenders that are tuned."""
        return list(CONTENDERS.values()) if self.contenders is None else [get_contender(n) for n in self.contenders]

    def seeds(self, phase: Phase) -> list[int]:
        """The seeds of a phase. Tuning has its own; the report and the wrong base LRs share fresh ones."""
        start = 2 * self.seed * _SEED_GAP
        if phase == "tuning":
            return list(range(start, start + self.tuning_seeds))
        return list(range(start + _SEED_GAP, start + _SEED_GAP + self.report_seeds))


def trials_of(contender: Contender, settings: Settings) -> list[tuple[dict[str, Any], float]]:
    """The trials of a contender: (parameters, base LR factor), `settings.num_trials` of them.

    Example:
        >>> from metalr.compare.catalog import get_contender
        >>> from metalr.compare.settings import Settings
        >>> [round(factor, 3) for _, factor in trials_of(get_contender("constant"), Settings(num_lrs=3))]
        [0.031, 1.0, 32.0]
    """
    # At least two LRs for each parameter setting, so that every setting sees both ends of the range.
    drawn = contender.settings(min(settings.draws, settings.num_trials // 2), settings.seed)
    share, more = divmod(settings.num_trials, len(drawn))
    trials = []
    for index, parameters in enumerate(drawn):
        for factor in np.geomspace(*settings.lr_range, share + (index < more)):
            trials.append((parameters, float(factor)))
    return trials
