"""How much faster do several workers make oracle curves and comparisons, and what stops them first?

    python -m experiments.workers_scaling

The same oracle curves and the same comparison, both on tasks of the family meta-train, in this process, on two local
workers and on a Ray cluster of two nodes of one core each, which Ray's cluster utility starts on this machine (left out
where Ray is not installed). Shown are wall times beside those of this process, what the start of the workers cost, and
the share of their time that was overhead. It needs two cores with nothing else on them, for about eight minutes. A
run that was stopped begins anew; the cluster, where most can go wrong, comes first.

Beside the records of the measurements are those of a calculation: 10,000 tasks of 16 LRs on 1, 10 and 100 nodes, a unit
for each task. The time is that of the slower of two: the workers, at the measured seconds of a unit (with reading and
building), and the one process that sends the units and writes their results, at the measured seconds of an empty unit
on Ray (on two workers, where Ray is missing) and of writing a result.

Expected: on two workers at least 1.7 times as fast as in this process, for curves and for the comparison; overhead
below 15 %; the bottleneck is the workers on 1 and 10 nodes, and the process that writes on 100.

Found: two workers are 1.73 times as fast for curves and 1.87 for the comparison, two nodes of Ray 1.48 and 1.98, with
overheads of 5 to 10 %. 10,000 tasks are 4.1 core-hours; up to 40 nodes the workers are the bottleneck, and beyond them
the process that sends and writes.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.support import harness, records
from experiments.support.tables import print_table
from metalr.agents.clone_folder import CloneFolder, make_oracle_piece, save_tensors
from metalr.agents.clone_runs import CloneConfig
from metalr.compare.comparison import compare
from metalr.compare.oracle import Grid
from metalr.compare.settings import Settings
from metalr.tasks.general import draw_task
from metalr.tasks.task import Task
from metalr.workers import Costs, Unit, Workers

NAME = "workers_scaling"
HERE = "this process"
RAY = "Ray, two nodes"
TIMED = ("oracle curves", "compare")


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    curves: int = 40
    """Oracle curves."""
    compared: int = 6
    """Tasks of the comparison."""
    trials: int = 8
    """Of each contender in it."""
    empty: int = 1000
    """Units without work, which show what a unit costs the process that sends it."""
    tasks: int = 10_000
    """Of the calculation."""
    lrs: int = 16
    """Of each oracle curve, measured and calculated."""
    nodes: tuple[int, ...] = (1, 10, 100)
    """Of the calculation."""
    cores: int = 16
    """Of each node in the calculation."""

    def small(self) -> "Args":
        return replace(self, curves=4, compared=2, trials=2, empty=20, lrs=5)


def draw(index: int) -> Task:
    """A task of the training family."""
    return draw_task("meta-train", index)


def draw_short(index: int) -> Task:
    """The same for a smoke run."""
    return draw(index).with_(horizon=40, batch_size=8)


def nothing(index: int) -> int:
    """A unit without work."""
    return index


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a Ray cluster on this machine."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


@contextmanager
def started(place: str) -> Iterator[Workers]:
    """Workers in a place."""
    if place == RAY:
        with two_nodes() as address, Workers(cluster=address) as workers:
            yield workers
    else:
        with Workers(1 if place == HERE else 2) as workers:
            yield workers


def measured(workers: Workers, work: Callable[[], object]) -> Costs:
    """The costs of a piece of work, with all of its wall time."""
    workers.costs = Costs()
    begun = time.perf_counter()
    work()
    return replace(workers.costs, wall=time.perf_counter() - begun)


def measure(place: str, args: Args, folder: Path) -> dict[str, Costs]:
    """What the start, empty units, oracle curves and a comparison cost in a place."""
    drawn = draw_short if args.smoke else draw
    config = CloneConfig(grid=Grid(num_lrs=args.lrs))
    settings = Settings(trials=args.trials, ablations=False, max_runs=64)
    tasks = [drawn(index).with_(name=f"task {index}") for index in range(args.compared)]
    begun = time.perf_counter()
    with started(place) as workers:
        found = {"start": measured(workers, lambda: empty_units(workers, 2))}
        found["start"].wall = time.perf_counter() - begun
        found["empty units"] = measured(workers, lambda: empty_units(workers, args.empty))
        curves = CloneFolder(folder / "curves", drawn, config)
        found["oracle curves"] = measured(workers, lambda: curves.make_oracles(range(args.curves), workers))
        found["compare"] = measured(workers, lambda: compare(tasks, folder / "compare", settings, workers=workers))
    return found


def empty_units(workers: Workers, count: int) -> None:
    """Send units that do nothing."""
    assert len(list(workers.each(nothing, [Unit((index,)) for index in range(count)]))) == count


def rows_of(place: str, found: dict[str, Costs], alone: dict[str, Costs]) -> list[records.Row]:
    """A record for each piece of work in a place."""
    return [
        {
            "what": what,
            "place": place,
            **asdict(costs),
            "overhead": costs.overhead,
            "speed_up": alone[what].wall / costs.wall if what in TIMED else None,
            "seed": 0,
        }
        for what, costs in found.items()
    ]


def seconds_to_write(args: Args, folder: Path) -> float:
    """To write one oracle curve."""
    drawn = draw_short if args.smoke else draw
    piece = make_oracle_piece((drawn, CloneConfig(grid=Grid(num_lrs=args.lrs))), 0)
    begun = time.perf_counter()
    for index in range(10):
        save_tensors(folder / "written" / str(index), piece)
    return (time.perf_counter() - begun) / 10


def calculated(args: Args, found: dict[str, Costs], writing: float) -> list[records.Row]:
    """A record for each number of nodes."""
    curves, empty = found["oracle curves"], found["empty units"]
    unit = (curves.work + curves.build) / curves.units
    sending = empty.wall / empty.units
    rows = []
    for nodes in args.nodes:
        working, alone = args.tasks * unit / (nodes * args.cores), args.tasks * (sending + writing)
        rows.append(
            {
                "nodes": nodes,
                "cores": nodes * args.cores,
                "unit_seconds": unit,
                "sending_seconds": sending,
                "writing_seconds": writing,
                "hours": max(working, alone) / 3600.0,
                "core_hours": args.tasks * unit / 3600.0,
                "bottleneck": "workers" if working > alone else "sending and writing",
                "full_at_nodes": unit / ((sending + writing) * args.cores),
                "seed": None,
            }
        )
    return rows


def check_cores(args: Args) -> None:
    """Raise ValueError if two workers would share a core, except in a smoke run."""
    from joblib import cpu_count

    if cpu_count() < 2 and not args.smoke:
        raise ValueError(f"got {cpu_count()} core, expected two for two workers: run it on another machine")


def main(args: Args) -> None:
    """Measure in every place, calculate, print, write the records."""
    check_cores(args)
    places = [HERE, "two workers", *([RAY] if importlib.util.find_spec("ray") else [])]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for place in reversed(places):
            found[place] = measure(place, args, Path(folder) / place)
            print(f"{place}: {found[place]['oracle curves']}", flush=True)
        writing = seconds_to_write(args, Path(folder))
    rows = [row for place in places for row in rows_of(place, found[place], found[HERE])]
    timed = [row for row in rows if row["what"] in TIMED]
    print_table(timed, ["what", "place", "units", "work", "wall", "speed_up", "overhead"])
    for row in rows:
        if row["what"] not in TIMED:
            print(
                f"{row['place']}: {row['wall'] / row['units']:.2g} s for each of {row['units']} units ({row['what']})"
            )
    paper: list[dict[str, Any]] = calculated(args, found[places[-1]], writing)
    print(f"\n{args.tasks} tasks of {args.lrs} LRs, {args.cores} cores a node:")
    print_table(paper, ["nodes", "hours", "core_hours", "unit_seconds", "sending_seconds", "bottleneck"])
    print(f"one process can feed {paper[0]['full_at_nodes']:.0f} nodes")
    print(records.write(NAME, [*rows, *paper], device="cpu", smoke=args.smoke))


if __name__ == "__main__":
    harness.run(main, Args)
