"""The settings of a comparison, and the trials that follow from them."""

from dataclasses import dataclass
from typing import Any

from metalr.compare.catalog import CLASSIC, CONTENDERS, get_contender
from metalr.compare.contenders import Contender
from metalr.compare.run_record import Phase
from metalr.compare.search import lr_trials

# Report seeds start this far above tuning seeds, and another comparison seed this far above both.
_SEED_GAP = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Two comparisons of equal settings give equal records.

    Attributes:
        contenders: names of the registered contenders to tune; None for all that need no package of their own.
        trials: of every tuned contender, over the LR and its own parameters together; see `metalr.compare.search`.
        lr_range: factors of the task's base LR between which the LR is searched, evenly on a log scale.
        extension: more trials of every tuned contender on a task where the best LR of any of them lies on an edge of
            the range; their LRs are up to 8 times beyond either end. 0 only marks such contenders.
        price_at: numbers of trials after which the best one so far is reported too, as far as there are so many.
        tuning_seeds, report_seeds: how many of each; they never overlap.
        factors: of the task's base LR, for the comparison with a wrong base LR; empty leaves it out.
        wrong_base: registered contenders in that comparison, at their default parameters; None for all that are tuned.
        tune_controllers: also give every learned controller its trials, over the LR alone.
        targets: also train four optimizers under the same budget; the best of them sets the target that the times
            to target are measured against. Without them the tuned best schedule sets it.
        ablations: show the base schedule, random, untrained and replayed policy beside each learned controller.
        seed: of everything that is drawn.
        max_runs: largest batch.
        dtype: "float32" or "float64".
    """

    contenders: tuple[str, ...] | None = CLASSIC
    trials: int = 16
    lr_range: tuple[float, float] = (1.0 / 32.0, 32.0)
    extension: int = 0
    price_at: tuple[int, ...] = (1, 4, 16, 64)
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
        for name in ("trials", "tuning_seeds", "report_seeds", "max_runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name} {getattr(self, name)}, expected at least 1")
        if self.extension < 0 or any(count < 1 for count in self.price_at):
            raise ValueError(
                f"got extension {self.extension} and price_at {self.price_at}, expected numbers of trials: at least 0 "
                "and at least 1"
            )
        low, high = self.lr_range
        if not 0.0 < low <= 1.0 <= high < float("inf") or low == high:
            raise ValueError(
                f"got LRs in {self.lr_range}, expected a range 0 < low <= 1 <= high of factors of the base LR, which "
                "is the first trial: pass for example lr_range=(0.03, 30)"
            )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"got dtype {self.dtype!r}, expected 'float32' or 'float64'")
        if any(not 0.0 < factor < float("inf") for factor in self.factors):
            raise ValueError(f"got base LR factors {self.factors}, expected positive finite numbers")
        if max(self.tuning_seeds, self.report_seeds) >= _SEED_GAP:
            raise ValueError(f"got more than {_SEED_GAP} seeds, expected fewer")
        for name in (*(self.contenders or ()), *(self.wrong_base or ())):
            get_contender(name)

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
    """The trials of a contender, (parameters, base LR factor): `settings.trials`, then those of an extension.

    Example:
        >>> from metalr.compare.catalog import get_contender
        >>> from metalr.compare.settings import Settings
        >>> [round(factor, 3) for _, factor in trials_of(get_contender("constant"), Settings(trials=4))]
        [1.0, 0.448, 0.176, 12.642]
    """
    return lr_trials(contender.space, settings.trials, settings.lr_range, settings.seed, extension=settings.extension)
