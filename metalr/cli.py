"""The command line: `metalr train`, `export`, `compare`, `tune`, `find-lr` and `list`.

It only parses, calls and prints; each command is one function elsewhere.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from metalr.compare.catalog import CLASSIC
from metalr.reports.text_table import plain
from metalr.workers import UnitError

try:
    import tyro
except ImportError as error:
    raise SystemExit("the command line needs tyro: pip install 'metalr[cli]'") from error

try:
    from metalr.agents.run_folder import TrainOptions
except ImportError as error:  # the agents need more than the core; the other commands work without them
    _missing = str(error)

    @dataclass
    class Train:
        """Train a controller (needs pip install 'metalr[rl,data]')."""

        def run(self) -> None:
            """Say which packages are missing."""
            raise SystemExit(f"training needs more packages ({_missing}): pip install 'metalr[rl,data]'")

else:

    @dataclass
    class Train:  # type: ignore[no-redef]
        """Train a controller with PPO or DQN on batched training runs.

        After Ctrl-C `metalr train --resume FOLDER` continues. When training is done the folder holds
        controller.safetensors.
        """

        options: Annotated[TrainOptions, tyro.conf.arg(name="")] = field(default_factory=TrainOptions)
        folder: Path = Path("runs/train")
        """A new folder for the run."""
        resume: Path | None = None
        """Continue in this folder; every other option is read from it."""

        def run(self) -> None:
            """Train, or continue a training."""
            from metalr.agents.run_folder import read_options, train

            folder, options = self.folder, self.options
            if self.resume is not None:
                folder, options = self.resume, read_options(self.resume)
            _check_device(options.device)
            train(options, folder, progress=_interactive())
            print(f"controller: {folder / 'controller.safetensors'}")


@dataclass
class Export:
    """Write a controller to one file; the ending of its name says what.

    .safetensors: a controller file, from a run folder's last checkpoint. .py: one Python file that needs torch alone.
    .csv: the mean LR of some runs as a table, for programs that can only follow one.
    """

    source: tyro.conf.Positional[Path]
    """A run folder, a .safetensors file, or the name of a shipped controller."""
    target: tyro.conf.Positional[Path]
    """The file to write."""
    task: str = "mnist1d-mlp"
    """For .csv: the shipped task on whose runs the table is recorded."""
    horizon: int = 200
    """For .csv: optimizer updates in those runs."""

    def run(self) -> None:
        """Write the file."""
        from metalr.artefacts.controller_file import load_card, load_controller, save_controller
        from metalr.artefacts.replay_table import write_replay_csv
        from metalr.artefacts.standalone import write_standalone

        if self.source.is_dir():
            from metalr.agents.run_folder import export_folder

            controller: Any
            controller, about = export_folder(self.source)
            card: dict[str, Any] = {"about": {**about, "exported_from": self.source.name}}
        else:
            source = _file_or_name(self.source)
            controller, card = load_controller(source), load_card(source)
        if self.target.suffix == ".safetensors":
            save_controller(self.target, controller, card["about"])
        elif self.target.suffix == ".py":
            write_standalone(controller, card, self.target)
        elif self.target.suffix == ".csv":
            multipliers = self._multipliers(controller)
            write_replay_csv(controller, multipliers, self.target, card=card, horizon=self.horizon)
        else:
            raise ValueError(f"got target {self.target}, expected a name that ends in .safetensors, .py or .csv")
        print(self.target)

    def _multipliers(self, controller: Any) -> torch.Tensor:
        from metalr.engine.episodes import run_episode
        from metalr.engine.runs import BatchedRuns
        from metalr.tasks.catalog import make_task

        runs = BatchedRuns(make_task(self.task, horizon=self.horizon), num_runs=16)
        base_lr = torch.full((16,), runs.task.base_lr)
        return run_episode(controller, runs, torch.arange(16), base_lr, splits=()).multipliers


@dataclass
class Compare:
    """Compare schedules and controllers: equal budgets, fresh seeds, two tables that never mix.

    Writes records, a figure and one HTML report into the folder; the same command resumes a stopped comparison.
    """

    tasks: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--task"])] = ("mnist1d-mlp",)
    """Shipped tasks; see `metalr list`."""
    horizon: int = 400
    """Optimizer updates in a training run."""
    optimizer: str | None = None
    """Inner optimizer; each task's own by default."""
    controllers: tuple[Path, ...] = ()
    """Controller files, or names of shipped ones, to compare with the schedules."""
    contenders: tuple[str, ...] = CLASSIC
    """Schedules, rules and optimizers to tune; `all` takes every one that needs no package of its own."""
    trials: int = 16
    """Candidates of every contender, over the LR and its own parameters together."""
    extension: int = 0
    """More candidates of every contender where the best LR of any of them lies on an edge."""
    factors: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """Wrong base LRs, as factors of the right one, for the last table."""
    tune_controllers: bool = False
    """Give controllers the same number of trials too; without it they have none."""
    targets: bool = False
    """Let the best of four optimizers set the target for the times to target."""
    tuning_seeds: int = 3
    """Runs behind each trial."""
    report_seeds: int = 10
    """Fresh runs behind each reported number."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Makes the comparison repeatable."""
    workers: int = 1
    """Local processes that train; the records are the same however many."""
    cluster: str | None = None
    """Address of a Ray cluster that trains instead, or `auto`."""
    folder: Path = Path("runs/compare")
    """Where everything goes."""

    def run(self) -> None:
        """Compare, print and write the report."""
        from metalr.artefacts.controller_file import load_controller
        from metalr.compare.comparison import compare, progress_bar
        from metalr.compare.settings import Settings
        from metalr.reports import report
        from metalr.tasks.catalog import make_task
        from metalr.workers import Workers

        if self.cluster is None:
            _check_device(self.device)
        changes = {} if self.optimizer is None else {"optimizer": self.optimizer}
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
                [make_task(name, horizon=self.horizon, **changes) for name in self.tasks],
                self.folder,
                settings,
                controllers={name: load_controller(_file_or_name(path)) for name, path in names.items()},
                device=self.device,
                progress=progress_bar() if _interactive() else None,
                workers=workers,
            )
        report.show(comparison)
        if not workers.here:
            print(workers.costs)
        print(f"figure: {report.figure(comparison, self.folder / 'curves.png')}")
        print(f"report: {report.html(comparison, self.folder / 'report.html')}")


def _check_device(name: str) -> None:
    """Raise ValueError if a device cannot be used here."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"got device {name!r}, which cannot be used here ({reason}), expected cpu or cuda") from error


def _file_or_name(source: Path) -> Path | str:
    """The path of a file, or the name of a shipped controller where there is no such file."""
    from metalr.artefacts.controller_file import SHIPPED

    is_name = len(source.parts) == 1 and not source.exists() and (SHIPPED / f"{source}.safetensors").is_file()
    return str(source) if is_name else source


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


@dataclass
class Tune:
    """Search the LR and the parameters of one contender with a Gaussian process, and print the best trials.

    For a comparison use `metalr compare`, which gives every contender the same trials and reports on fresh seeds.
    """

    task: str = "mnist1d-mlp"
    """A shipped task; see `metalr list`."""
    contender: str = "wsd"
    """A schedule, rule or optimizer; see `metalr list`."""
    horizon: int = 400
    """Optimizer updates in a training run."""
    trials: int = 20
    """Candidates in all."""
    tuning_seeds: int = 3
    """Runs behind each trial."""
    criterion: Literal["train", "valid"] = "train"
    """The final loss that is made small."""
    seed: int = 0
    """Of the search."""
    device: str = "cpu"
    """cpu or cuda."""
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
        from metalr.compare.comparison import progress_bar
        from metalr.compare.selection import Criterion
        from metalr.tasks.catalog import make_task
        from metalr.workers import Workers

        if self.cluster is None:
            _check_device(self.device)
        with Workers(self.workers, self.cluster, gpus=self.device.startswith("cuda")) as workers:
            result = search(
                make_task(self.task, horizon=self.horizon),
                get_contender(self.contender),
                num_trials=self.trials,
                tuning_seeds=self.tuning_seeds,
                criterion=Criterion(self.criterion),
                seed=self.seed,
                device=self.device,
                progress=progress_bar() if _interactive() else None,
                at_once=self.at_once,
                workers=workers,
            )
        best = sorted(result.trials, key=lambda trial: trial.score)[:5]
        rows = [(f"{trial.score:.5g}", f"{trial.base_lr:.4g}", _listed(trial.parameters)) for trial in best]
        print(plain((f"{self.criterion} loss", "base LR", "parameters"), rows))


@dataclass
class FindLR:
    """Find an LR: train briefly while the LR grows, and see where the loss falls fastest and where it explodes."""

    task: str = "mnist1d-mlp"
    """A shipped task; see `metalr list`."""
    optimizer: str | None = None
    """Inner optimizer; the task's own by default."""
    seeds: int = 16
    """Runs behind the curve."""
    figure: Path = Path("runs/find-lr.png")
    """Where the curve is drawn."""

    def run(self) -> None:
        """Print the suggestion and draw the curve."""
        from metalr.reports.lr_range_test import find_lr, save_figure
        from metalr.tasks.catalog import make_task

        changes = {} if self.optimizer is None else {"optimizer": self.optimizer}
        curve = find_lr(make_task(self.task, **changes), num_seeds=self.seeds)
        rows = {
            "suggestion": f"{curve.suggestion:.3g}",
            "steepest": f"{curve.steepest:.3g}",
            "lowest": f"{curve.lowest:.3g}  (beyond it the LR is too big)",
            "figure": str(save_figure(curve, self.figure, self.task)),
        }
        print(plain(None, rows.items()))


@dataclass
class List:
    """Show what there is: tasks, families, schedules, contenders, optimizers, rewards, features, controllers."""

    def run(self) -> None:
        """Print the lists."""
        from metalr.artefacts.controller_file import SHIPPED
        from metalr.compare.catalog import CONTENDERS, EXTERNAL_CONTENDERS
        from metalr.optimizers.classic import OPTIMIZERS
        from metalr.schedules import SCHEDULES
        from metalr.signals.observations import FEATURES
        from metalr.tasks.catalog import TASKS
        from metalr.tasks.families import FAMILIES

        _print_section("tasks", {name: _first_line(builder) for name, builder in TASKS.items()})
        _print_section("families", {name: ", ".join(family.tasks) for name, family in FAMILIES.items()})
        _print_section("schedules", {name: _first_line(kind) for name, kind in SCHEDULES.items()})
        print("contenders\n  " + ", ".join(CONTENDERS))
        print("contenders from packages of their own: pip install 'metalr[optimizers]'")
        print("  " + ", ".join(EXTERNAL_CONTENDERS) + "\n")
        _print_section("inner optimizers", {name: repr(optimizer) for name, optimizer in OPTIMIZERS.items()})
        try:
            from metalr.envs.rewards import REWARDS
        except ImportError:
            print("rewards\n  (install 'metalr[rl]' to see them)\n")
        else:
            _print_section("rewards", {name: reward.formula for name, reward in REWARDS.items()})
        _print_section("features", {feature.name: feature.formula for feature in FEATURES})
        shipped = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
        print("shipped controllers\n  " + (", ".join(shipped) or "none"))


def _listed(parameters: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in parameters.items()
    )


def _first_line(thing: Callable) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _print_section(title: str, rows: dict[str, str]) -> None:
    print(f"{title}\n{plain(None, rows.items(), indent='  ')}\n")


def _interactive() -> bool:
    return sys.stdout.isatty()


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `metalr` command."""
    # Two threads on small kernels collapse as soon as anything else runs beside them.
    torch.set_num_threads(1)
    commands: dict[str, Callable[..., Any]] = {
        "train": Train,
        "export": Export,
        "compare": Compare,
        "tune": Tune,
        "find-lr": FindLR,
        "list": List,
    }
    command = tyro.extras.subcommand_cli_from_dict(
        commands, prog="metalr", description="Learning-rate controllers, learned and compared.", args=arguments
    )
    try:
        command.run()
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
    except KeyboardInterrupt:
        raise SystemExit("stopped; the folder holds what was done, and the same command continues it") from None
    except (ValueError, TypeError, OSError, ImportError, UnitError) as error:
        raise SystemExit(f"metalr: {error}") from None


if __name__ == "__main__":
    main()
