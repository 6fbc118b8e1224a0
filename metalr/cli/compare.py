"""`metalr compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metalr.cli.checks import check_device, file_or_name
from metalr.compare.catalog import CLASSIC
from metalr.progress import ProgressLines


@dataclass
class Compare:
    """Compare schedules and controllers under equal budgets, on fresh seeds.

    Writes records, a figure and one HTML report into the folder.

    The same command continues a comparison that was stopped.
    """

    tasks: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--task"])] = ("mnist1d-mlp",)
    """Shipped tasks (see `metalr list`), or module:function of your own that return a metalr.Task."""
    horizon: int | None = None
    """Optimizer updates in a training run; none stands for 400, or your own task's."""
    optimizer: str | None = None
    """Inner optimizer, in place of each task's own; see `metalr list`."""
    controllers: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Controller files, or names of shipped ones, to compare with the schedules."""
    contenders: tuple[str, ...] = CLASSIC
    """Schedules, rules and optimizers to tune (see `metalr list`); `all` takes all that need no further package."""
    trials: int = 16
    """Candidates of every contender, over the LR and its own parameters together."""
    extension: int = 0
    """Further candidates of every contender, where the best LR of one of them lies on the edge of the range."""
    factors: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """Wrong base LRs, as factors of the right one, for the last table."""
    tune_controllers: bool = False
    """Give controllers the same number of trials too; without it they have none."""
    targets: bool = False
    """Train four optimizers too: the best of them sets the loss to which times are measured."""
    tuning_seeds: int = 3
    """Runs behind each trial."""
    report_seeds: int = 10
    """Fresh runs behind each reported number."""
    device: str = "cpu"
    """Where the training runs live: cpu or cuda."""
    seed: int = 0
    """Makes the comparison repeatable."""
    workers: int = 1
    """Local processes that train; the records are the same however many."""
    cluster: str | None = None
    """Address of a Ray cluster that trains instead, or `auto`."""
    folder: Path = Path("runs/compare")
    """Folder of the records, the figure and the report."""

    def run(self) -> None:
        """Compare, print and write the report."""
        from metalr.artefacts.controller_file import load_controller
        from metalr.compare.comparison import compare
        from metalr.compare.settings import Settings
        from metalr.reports import report
        from metalr.tasks.catalog import named_task
        from metalr.workers import Workers

        if self.cluster is None:
            check_device(self.device)
        settings = Settings(
            contenders=None if self.contenders == ("all",) else self.contenders,
            trials=self.trials,
            extension=self.extension,
            factors=tuple(dict.fromkeys(self.factors)),
            tune_controllers=self.tune_controllers,
            targets=self.targets,
            tuning_seeds=self.tuning_seeds,
            report_seeds=self.report_seeds,
            seed=self.seed,
        )
        names = _different_names(self.controllers)
        with Workers(self.workers, self.cluster, gpus=self.device.startswith("cuda")) as workers:
            comparison = compare(
                [named_task(name, self.horizon, 400, optimizer=self.optimizer) for name in self.tasks],
                self.folder,
                settings,
                controllers={name: load_controller(file_or_name(path)) for name, path in names.items()},
                device=self.device,
                progress=ProgressLines(),
                workers=workers,
            )
        report.show(comparison)
        if not workers.here:
            print(workers.costs)
        print(f"figure: {report.figure(comparison, self.folder / 'curves.png')}")
        print(f"report: {report.html(comparison, self.folder / 'report.html')}")


def _different_names(paths: tuple[Path, ...]) -> dict[str, Path]:
    """A short name for each controller file: its stem, with as many folders before it as tell the files apart.

    A file `controller.safetensors` is named after its folder.

    Raises:
        ValueError: the same file comes twice.
    """
    places = [path.resolve().with_suffix("").parts for path in paths]
    if len(set(places)) < len(places):
        raise ValueError(f"got controllers {list(map(str, paths))}, expected different files: name each once")
    by_folder = [place[:-1] if place[-1] == "controller" else place for place in places]
    places = by_folder if len(set(by_folder)) == len(places) else places
    depth = next(n for n in range(1, 100) if len({place[-n:] for place in places}) == len(places))
    return {"/".join(place[-depth:]): path for place, path in zip(places, paths, strict=True)}
