"""The command line: `metalr train`, `export`, `compare`, `explain`, `tune`, `find-lr` and `list`.

It only parses, calls and prints; each command is one function elsewhere.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args

import torch

from metalr.compare.catalog import CLASSIC
from metalr.control.controller import Controller
from metalr.progress import ProgressLines
from metalr.reports.tables import interval
from metalr.reports.text_table import Cell, Grid, as_text, listing, screen_width, wrap
from metalr.tasks.task import Task
from metalr.workers import UnitError

try:
    import tyro
except ImportError as error:
    raise SystemExit("the command line needs tyro: pip install 'metalr[cli]'") from error

try:
    from metalr.agents.run_folder import TrainOptions, build_tasks
    from metalr.agents.training_folder import CONTROLLER
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
        """Train a controller with PPO, DQN or by cloning, try it on fresh seeds, and say what to type next.

        After Ctrl-C `metalr train --resume FOLDER` continues. When training is done the folder holds
        controller.safetensors.
        """

        options: Annotated[TrainOptions, tyro.conf.arg(name="")] = field(default_factory=TrainOptions)
        folder: Annotated[Path, tyro.conf.arg(help="A new folder for the run, or that of the same run.")] = Path(
            "runs/train"
        )
        resume: Annotated[
            Path | None,
            tyro.conf.arg(help="Continue the run in this folder; every option but the workers is read from it."),
        ] = None
        workers: Annotated[
            int, tyro.conf.arg(help="Local processes that share the training; the controller is the same.")
        ] = 1
        cluster: Annotated[
            str | None, tyro.conf.arg(help="Address of a Ray cluster that trains a clone instead, or `auto`.")
        ] = None

        def run(self) -> None:
            """Train, or continue a training."""
            from metalr.agents.run_folder import read_options, train
            from metalr.workers import Workers

            folder, options = self.folder, self.options
            if self.resume is not None:
                folder, options = self.resume, read_options(self.resume)
            _check_device(options.device)
            progress = ProgressLines()
            with Workers(self.workers, self.cluster) as workers:
                controller = train(options, folder, workers=workers, progress=progress)
            progress.finish()
            if not workers.here:
                print(workers.costs)
            tasks = build_tasks(options)
            _print_fresh_runs(controller, tasks, options)
            print(f"controller: {folder / CONTROLLER}")
            _print_what_next(folder / CONTROLLER, tasks, options)

    def _print_fresh_runs(controller: Controller, tasks: list[Task], options: TrainOptions) -> None:
        """A trained controller on fresh seeds of its first few tasks."""
        from metalr.agents.fresh_runs import fresh_rows

        rows = fresh_rows(controller, tasks[:_SHOWN_TASKS], device=options.device)
        factors = list(rows[0].loss)
        cells: list[list[Cell]] = [
            [
                f"{row.task}, {'its base schedule alone' if row.alone else options.agent}",
                *(interval(row.loss[factor]) for factor in factors),
            ]
            for row in rows
        ]
        marked = frozenset(index for index, row in enumerate(rows) if not row.alone)
        notes = ["Interquartile mean [95 %] of the final train loss over 10 fresh seeds, by base LR."]
        if len(tasks) > _SHOWN_TASKS:
            notes.append(f"The first {_SHOWN_TASKS} of its {len(tasks)} tasks.")
        header = ["base LR", *(f"x{factor:g}" for factor in factors)]
        print(as_text(Grid("On fresh seeds", header, cells, notes, marked), screen_width()))

    def _print_what_next(path: Path, tasks: list[Task], options: TrainOptions) -> None:
        names = [options.task] if options.family is None else list(dict.fromkeys(task.name for task in tasks))
        compare = f"metalr compare --task {' '.join(names)} --horizon {tasks[0].horizon}"
        if options.family is None and options.optimizer is not None:
            compare += f" --optimizer {options.optimizer}"
        print(f"compare it: {compare} --controllers {path}")
        print(f'use it:     metalr.load_scheduler("{path}", optimizer, horizon={tasks[0].horizon})')


# Tasks whose fresh runs are shown after a training.
_SHOWN_TASKS = 4


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
    """For .csv: the task on whose runs the table is recorded, shipped or module:function."""
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
        from metalr.schedulers.plain_runs import runs_of
        from metalr.tasks.catalog import make_task

        runs = runs_of(make_task(self.task, horizon=self.horizon), num_runs=16)
        base_lr = torch.full((16,), runs.task.base_lr)
        return run_episode(controller, runs, torch.arange(16), base_lr, splits=()).multipliers


@dataclass
class Compare:
    """Compare schedules and controllers: equal budgets, fresh seeds, two tables that never mix.

    Writes records, a figure and one HTML report into the folder; the same command resumes a stopped comparison.
    """

    tasks: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--task"])] = ("mnist1d-mlp",)
    """Shipped tasks (see `metalr list`), or module:function of your own that return a metalr.Task."""
    horizon: int | None = None
    """Optimizer updates in a training run: 400, or your own task's, by default."""
    optimizer: str | None = None
    """Inner optimizer; each task's own by default."""
    controllers: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
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
        from metalr.compare.comparison import compare
        from metalr.compare.settings import Settings
        from metalr.reports import report
        from metalr.tasks.catalog import named_task
        from metalr.workers import Workers

        if self.cluster is None:
            _check_device(self.device)
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
                controllers={name: load_controller(_file_or_name(path)) for name, path in names.items()},
                device=self.device,
                progress=ProgressLines(),
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
class Explain:
    """Run a controller once on a task and say at every decision which features moved the multiplier, and how much.

    A factor in brackets is the multiplier decided over the one that would have been decided without that feature.
    """

    controller: tyro.conf.Positional[Path]
    """A controller file, or the name of a shipped one."""
    task: str = "mnist1d-mlp"
    """A shipped task (see `metalr list`), or module:function of your own that returns a metalr.Task."""
    horizon: int | None = None
    """Optimizer updates in the run; without a number 200, or your own task's."""
    optimizer: str | None = None
    """Inner optimizer, in place of the task's own; see `metalr list`."""
    factor: float = 1.0
    """Of the task's base LR, to see how a wrong guess is repaired."""
    seed: int = 0
    """Of the run."""

    def run(self) -> None:
        """Run and print."""
        from metalr.artefacts.controller_file import load_controller
        from metalr.control.explanation import reasons_of_episode
        from metalr.engine.episodes import run_episode
        from metalr.schedulers.plain_runs import runs_of
        from metalr.tasks.catalog import named_task

        controller = load_controller(_file_or_name(self.controller))
        runs = runs_of(named_task(self.task, self.horizon, 200, optimizer=self.optimizer), num_runs=1)
        base_lr = torch.tensor([self.factor * runs.task.base_lr], dtype=torch.float64)
        episode = run_episode(controller, runs, torch.tensor([self.seed]), base_lr, splits=("train",))
        rows = [("update", "LR", "why")]
        steps = controller.decision_steps(runs.task.horizon)
        for step, found in zip(steps, reasons_of_episode(controller, episode.observations), strict=True):
            rows.append((str(step), f"{episode.lr[step, 0, 0]:.3g}", found.in_words(controller.bounds)))
        print(listing(rows, screen_width()))
        print(f"final train loss {episode.final['train'][0].item():.4g}, base LR {base_lr.item():.3g}")


@dataclass
class Tune:
    """Search the LR and the parameters of one contender with a Gaussian process, and print the best trials.

    For a comparison use `metalr compare`, which gives every contender the same trials and reports on fresh seeds.
    """

    task: str = "mnist1d-mlp"
    """A shipped task (see `metalr list`), or module:function of your own that returns a metalr.Task."""
    contender: str = "wsd"
    """A schedule, rule or optimizer; see `metalr list`."""
    horizon: int | None = None
    """Optimizer updates in a training run: 400, or your own task's, by default."""
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
        from metalr.compare.selection import Criterion
        from metalr.tasks.catalog import named_task
        from metalr.workers import Workers

        if self.cluster is None:
            _check_device(self.device)
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


@dataclass
class FindLR:
    """Find an LR: train briefly while the LR grows, and see where the loss falls fastest and where it explodes."""

    task: str = "mnist1d-mlp"
    """A shipped task (see `metalr list`), or module:function of your own that returns a metalr.Task."""
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
        print(listing(rows.items(), screen_width()))


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
        _print_words("contenders", CONTENDERS)
        _print_words("contenders from packages of their own: pip install 'metalr[optimizers]'", EXTERNAL_CONTENDERS)
        _print_section("inner optimizers", {name: repr(optimizer) for name, optimizer in OPTIMIZERS.items()})
        try:
            from metalr.envs.rewards import REWARDS
        except ImportError:
            print("rewards\n  (install 'metalr[rl]' to see them)\n")
        else:
            _print_section("rewards", {name: reward.formula for name, reward in REWARDS.items()})
        _print_section("features", {feature.name: feature.formula for feature in FEATURES})
        shipped = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
        _print_words("shipped controllers", shipped or ["none"])


def _listed(parameters: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in parameters.items()
    )


def _first_line(thing: Callable) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _print_section(title: str, rows: dict[str, str]) -> None:
    print(f"{title}\n{listing(rows.items(), screen_width(), indent='  ')}\n")


def _print_words(title: str, words: Iterable[str]) -> None:
    print("\n  ".join([title, *wrap(", ".join(words), screen_width() - 2)]) + "\n")


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """`X | None` reads like X in the help, with the default `none`, where tyro would write `{None}|X`."""
    kinds = get_args(info.type)
    if info.type_origin not in (Union, UnionType) or len(kinds) != 2 or NoneType not in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not NoneType)
    inner = tyro.constructors.PrimitiveTypeInfo.make(kind, info.markers)
    spec = tyro.constructors.ConstructorRegistry.get_primitive_spec(inner)
    if isinstance(spec, tyro.constructors.UnsupportedTypeAnnotationError):
        return None

    return replace(
        spec,
        instance_from_str=lambda words: None if words == ["none"] else spec.instance_from_str(words),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["none"] if value is None else spec.str_from_instance(value),
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `metalr` command."""
    # Two threads on small kernels collapse as soon as anything else runs beside them.
    torch.set_num_threads(1)
    commands: dict[str, Callable[..., Any]] = {
        "train": Train,
        "export": Export,
        "compare": Compare,
        "explain": Explain,
        "tune": Tune,
        "find-lr": FindLR,
        "list": List,
    }
    command = tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="metalr",
        description="Learning-rate controllers, learned and compared.",
        args=arguments,
        registry=_REGISTRY,
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
