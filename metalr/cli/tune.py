"""`metalr tune`."""

from dataclasses import dataclass
from typing import Any, Literal

from metalr.cli.checks import check_device
from metalr.progress import ProgressLines
from metalr.reports.text_table import listing, screen_width


@dataclass
class Tune:
    """Search the LR and parameters of one contender with a Gaussian process.

    Prints the best trials. To compare contenders use `metalr compare`.
    """

    task: str = "mnist1d-mlp"
    """A shipped task (see `metalr list`), or module:function of your own that returns a metalr.Task."""
    contender: str = "wsd"
    """A schedule, rule or optimizer; see `metalr list`."""
    horizon: int | None = None
    """Optimizer updates in a training run; none stands for 400, or your own task's."""
    trials: int = 20
    """Candidates in all."""
    tuning_seeds: int = 3
    """Runs behind each trial."""
    criterion: Literal["train", "valid"] = "train"
    """Final loss by which trials are judged."""
    seed: int = 0
    """Seed of the search: the same seed tries the same candidates."""
    device: str = "cpu"
    """Where the training runs live: cpu or cuda."""
    at_once: int = 1
    """Candidates that are proposed together, for several workers; the search learns from all of them at once."""
    workers: int = 1
    """Local processes that train."""
    cluster: str | None = None
    """Address of a Ray cluster that trains instead, or `auto`."""

    def run(self) -> None:
        """Search and print."""
        from metalr.compare.bayesian import search
        from metalr.compare.catalog import get_contender
        from metalr.compare.selection import Criterion
        from metalr.tasks.catalog import named_task
        from metalr.workers import Workers

        if self.cluster is None:
            check_device(self.device)
        with Workers(self.workers, self.cluster, gpus=self.device.startswith("cuda")) as workers:
            result = search(
                named_task(self.task, self.horizon, 400),
                get_contender(self.contender),
                num_trials=self.trials,
                tuning_seeds=self.tuning_seeds,
                criterion=Criterion(self.criterion),
                seed=self.seed,
                device=self.device,
                progress=ProgressLines(),
                at_once=self.at_once,
                workers=workers,
            )
        best = sorted(result.trials, key=lambda trial: trial.score)[:5]
        rows = [(f"{trial.score:.5g}", f"{trial.base_lr:.4g}", _listed(trial.parameters)) for trial in best]
        print(listing([(f"{self.criterion} loss", "base LR", "parameters"), *rows], screen_width()))


def _listed(parameters: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in parameters.items()
    )
