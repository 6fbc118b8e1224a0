"""How many inner steps per second does the engine make, against what else there is, and how far is it from the limit?

    python -m experiments.benchmark_throughput                               # a CPU, one thread: some twenty minutes
    python -m experiments.benchmark_throughput --device cuda                 # ends by itself within nine minutes
    python -m experiments.benchmark_throughput --device cuda --part profile  # which kernels the time goes into
    python -m experiments.benchmark_throughput --smoke                       # half a minute

Every ratio is of numbers that one process measured in turns: the engine with all statistics on, (a) a plain eager
loop over one run without any, (b) that loop in a CUDA graph (on a GPU), (c) `gymnasium.vector.AsyncVectorEnv` over the
one-run environment. Then several architectures in one vector environment, and PPO: seconds for 20 M inner steps on a
GPU, and the share of its wall time that goes into engine, policy and Python.

Writes `records/benchmark_throughput-<device>.jsonl`, one line for each number, a scaling figure, and prints the table,
all after each row. The same command goes on where it stopped: what is there for the same hardware, versions and
settings is not measured again (`--fresh` does; after a change of the engine that is what you want), what failed is
tried again. `--minutes` ends a sitting, `--part scan | models | ppo` measures a part.

Columns: how = what really ran; xplain, xgraph = over (a) and (b); limit = share of the rate that the measured copy
bandwidth or matrix rate allows; MiB = memory that is reckoned for a run; fit = runs for which there is memory; prep =
seconds of compiling and capturing; reset = time to start all runs anew over that of an interval of 20 inner steps.

Expected on one CPU thread, 32 runs of an MLP 40-32-32-10: at least 3 times the plain loop eager and 8 times compiled,
and never slower for one run of any task. Expected on one H200, MLP 40-100-100-10, batch 100, momentum, TF32: at least
1.5 M inner steps/s with 256 runs and 2.5 M with 4096, 1,000 times (a) and 60 times (b); reset below 1 with 512 runs;
PPO 20 M inner steps with 512 runs in less than 30 s, policy and Python at most 3 ms for each decision, an update at
most 0.3 s for a rollout of 512 x 40.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro

from experiments import throughput_ppo as ppo
from experiments import throughput_report as report
from experiments.meta_records import FOLDER, figure_path
from experiments.throughput_loops import (
    copy_bandwidth,
    engine,
    graphed_loop,
    matmul_rate,
    plain_loop,
    rates,
    synchronize,
    work_of_a_step,
)
from experiments.throughput_record import Record, circumstances, measured
from metalr.engine import memory
from metalr.tasks.catalog import make_task
from metalr.tasks.datasets import mnist1d
from metalr.tasks.models import MLP, GRUClassifier
from metalr.tasks.task import Task

INTERVAL = 20
# Longest time for one row on a GPU, in seconds: what compiles for longer than that gives way to what does not.
ROW_SECONDS = {"PPO": 240}
OTHER_ROW_SECONDS = 110
Part = Literal["scan", "models", "ppo", "profile"]


@dataclass
class Args:
    """Options of the benchmark.

    Attributes:
        device: "cpu" or "cuda".
        part: "scan" (the main MLP against the number of runs), "models" (the other networks and optimizers), "ppo"
            (environments and PPO), "profile"; None for the first three.
        seconds: of measurement for each number.
        minutes: a row is begun only if it is sure to end within so many; None for no limit on a CPU and 8.7 on a GPU.
        max_runs: largest number of runs.
        compile: measure the compiled step too (on a GPU nothing else is measured with it on).
        by_rule: on a GPU, let the compiler choose kernels by rule, so that bits repeat; without it, by the clock, and
            environments and PPO, which always choose by rule, are left out.
        tf32: on a GPU, let matrix products round their inputs to TF32.
        policy_threads: torch threads while PPO is measured; None for 1 on a CPU and 4 on a GPU's machine.
        fresh: measure again what is in the record.
        smoke: a quick run with small numbers.
        folder: where the records go; None for `experiments/records`.
    """

    device: str = "cpu"
    part: Part | None = None
    seconds: float = 0.5
    minutes: float | None = None
    max_runs: int = 4096
    compile: bool = True
    by_rule: bool = True
    tf32: bool = True
    policy_threads: int | None = None
    fresh: bool = False
    smoke: bool = False
    folder: Path | None = None


class Row(NamedTuple):
    """Something to be measured: its part, what names it, and how."""

    part: str
    key: dict[str, Any]
    measure: Callable[[], dict[str, Any]]


def _gru(**changes: Any) -> Task:
    inputs, targets = (part[0] for part in mnist1d().train)
    task = make_task("mnist1d-mlp")
    return Task(partial(GRUClassifier, 1, 32, 10), (inputs[..., None], targets), task.loss, **changes)


def _large_mlp(**changes: Any) -> Task:
    return make_task("mnist1d-mlp").with_(**{"model": partial(MLP, [40, 100, 100, 10]), "batch_size": 100, **changes})


SMALL, LARGE = "MLP 40-32-32-10", "MLP 40-100-100-10"
# The GRU is last: it takes longest to compile.
MODELS: dict[str, Callable[..., Task]] = {
    SMALL: partial(make_task, "mnist1d-mlp"),
    LARGE: _large_mlp,
    "Conv1d": partial(make_task, "mnist1d-cnn"),
    "Conv2d": partial(make_task, "digits-cnn"),
    "byte transformer": partial(make_task, "bytes-transformer"),
    "GRU": _gru,
}
MIXED = (LARGE, "Conv1d", "Conv2d", "byte transformer")
# Also measured on a CPU, where no shipped task may be slower than its plain loop, with one run either.
SHIPPED = ("quadratic", "digits-mlp", "teacher-student")


def plan(args: Args) -> list[Row]:
    """What is measured, the most important first."""
    on_gpu, smoke = args.device != "cpu", args.smoke
    rows = [Row("limits", {"what": "limits", "model": "", "num_runs": 0}, partial(_measure_limits, args))]
    for part, name, optimizer, num_runs in _engines(args):
        make = MODELS.get(name) or partial(make_task, name)
        make = make if optimizer == "default" else partial(make, optimizer=optimizer)
        if num_runs > args.max_runs:
            continue
        for compiled in _compiled(name, optimizer, num_runs, args):
            key = {"what": "engine", "model": name, "optimizer": optimizer, "num_runs": num_runs, "compiled": compiled}
            rows.append(Row(part, key, partial(measure_engine, make, num_runs, compiled, args)))
    num_envs, decisions, horizon = (512, 40, 800) if on_gpu else (64, 20, 400)
    if smoke:
        num_envs, decisions, horizon = 4, 5, 20
    key = {"what": "PPO", "model": "PPO", "num_runs": num_envs}
    rows.append(Row("ppo", key, partial(_measure_ppo, num_envs, decisions, horizon, args)))
    mixed = [LARGE, "Conv2d"] if smoke else list(MIXED)
    each = 2 if smoke else min(256 if on_gpu else 16, args.max_runs)
    key = {"what": "groups", "model": f"{len(mixed)} networks at once", "num_runs": each * len(mixed)}
    rows.append(Row("ppo", key, partial(_measure_mixed, mixed, each, args)))
    processes = 16 if on_gpu and not smoke else 2
    key = {"what": "AsyncVectorEnv", "model": "AsyncVectorEnv", "num_runs": processes}
    rows.append(Row("ppo", key, partial(_measure_async, processes, args)))
    for num_runs in (2,) if smoke else (256, 4096):
        key = {"what": "profile", "model": LARGE, "num_runs": num_runs}
        rows.append(Row("profile", key, partial(_measure_profile, num_runs, args)))
    wanted = (args.part,) if args.part else ("scan", "models", "ppo")
    chosen = [row for row in rows if row.part in ("limits", *wanted) and (args.by_rule or row.part != "ppo")]
    # On a GPU PPO comes before the many models; within a part the order stays.
    order = ["limits", "scan", "ppo", "models", "profile"]
    return sorted(chosen, key=lambda row: order.index(row.part))


def _engines(args: Args) -> Iterator[tuple[str, str, str, int]]:
    """Part, model, optimizer and number of runs of each measurement of the bare engine."""
    if args.smoke:
        yield from [("scan", SMALL, "momentum", 1), ("scan", SMALL, "momentum", 4), ("models", "Conv2d", "adamw", 2)]
    elif args.device != "cpu":
        yield from [("scan", LARGE, "momentum", n) for n in (256, 4096, 1, 512, 1024, 64, 16, 4)]
        yield from [("models", LARGE, optimizer, n) for optimizer in ("adam", "adamw") for n in (256, 4096)]
        yield from [
            ("models", name, "momentum", n) for name in MODELS if name not in (LARGE, "GRU") for n in (256, 1024)
        ]
        yield from [("models", "GRU", "momentum", n) for n in (256, 1024)]
        others = [name for name in MODELS if name not in (LARGE, "GRU")]
        yield from [("models", name, optimizer, 256) for optimizer in ("adamw", "adam") for name in others]
        # For a second sitting: the rest of the scaling curves.
        yield from [("models", name, "momentum", n) for n in (1, 4096) for name in others]
    else:
        for name in (SMALL, LARGE):
            yield from [("scan", name, "momentum", n) for n in (1, 4, 16, 32, 64, 256, 1024, 4096)]
        yield from [("models", name, "momentum", n) for name in list(MODELS)[2:] for n in (1, 4, 32)]
        for optimizer in ("adam", "adamw"):
            yield from [
                ("models", name, optimizer, n) for name in MODELS if name != "byte transformer" for n in (1, 32)
            ]
        yield from [("models", name, "default", n) for name in SHIPPED for n in (1, 32)]


def _compiled(name: str, optimizer: str, num_runs: int, args: Args) -> list[bool]:
    """Eager or compiled: on a GPU compiled alone, on a CPU both where it is a question."""
    if args.device != "cpu":
        return [args.compile]
    asked = args.compile and not args.smoke and num_runs in (1, 32) and name in (SMALL, "Conv1d")
    return [False, True] if asked and optimizer == "momentum" else [False]


def measure_engine(make: Callable[..., Task], num_runs: int, compiled: bool, args: Args) -> dict[str, Any]:
    """The engine with all statistics on, the plain loops measured in the same turns."""
    task, device = make(), torch.device(args.device)
    loops = {"plain": (plain_loop(task, device), 1)}
    if device.type == "cuda":
        try:
            loops["graph"] = (graphed_loop(task, device), 1)
        except Exception as error:
            warnings.warn(f"the plain loop could not be captured: {error}", RuntimeWarning)
        torch.cuda.reset_peak_memory_stats()
    taken_before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    started = time.perf_counter()
    go, runs = engine(task, num_runs, device, compiled, INTERVAL, args.by_rule)
    ready = time.perf_counter() - started
    found = rates({**loops, "engine": (go, num_runs)}, device, args.seconds, INTERVAL)
    interval_ms = 1e3 * INTERVAL * num_runs / found["engine"]
    flops, moved = work_of_a_step(task)
    peak = torch.cuda.max_memory_allocated() - taken_before if device.type == "cuda" else None
    return {
        "how": runs.executor.how,
        "num_params": task.num_params,
        "batch_size": task.batch_size,
        "steps_per_s": found["engine"],
        "plain_steps_per_s": found["plain"],
        "graph_steps_per_s": found.get("graph"),
        "over_plain": found["engine"] / found["plain"],
        "over_graph": found["engine"] / found["graph"] if "graph" in found else None,
        "flops_per_step": flops,
        "bytes_per_step": moved,
        "mib_per_run": runs.footprint.total / 2**20,
        "measured_mib_per_run": peak / num_runs / 2**20 if peak is not None else None,
        "runs_that_fit": memory.max_runs(runs.footprint, device),
        "preparation_s": runs.executor.preparation_seconds,
        "until_ready_s": ready,
        "reset_over_interval": _reset_ms(runs, device) / interval_ms,
    }


def _reset_ms(runs: Any, device: torch.device) -> float:
    """Milliseconds that starting every run anew takes, the best of three after one to warm up."""
    seeds, taken = torch.arange(runs.num_runs, device=device) + 1000, []
    for _ in range(4):
        synchronize(device)
        started = time.perf_counter()
        runs.init(seeds)
        synchronize(device)
        taken.append(1e3 * (time.perf_counter() - started))
    return min(taken[1:])


def _measure_limits(args: Args) -> dict[str, Any]:
    device = torch.device(args.device)
    return {"copy_bytes_per_s": copy_bandwidth(device), "matmul_flops_per_s": matmul_rate(device)}


def _measure_mixed(names: list[str], each: int, args: Args) -> dict[str, Any]:
    tasks = [MODELS[name](optimizer="momentum", horizon=400) for name in names]
    compile = args.compile and args.device != "cpu"
    return ppo.mixed_row(tasks, each, torch.device(args.device), compile, args.seconds)


def _measure_ppo(num_envs: int, decisions: int, horizon: int, args: Args) -> dict[str, Any]:
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    task = _large_mlp(horizon=horizon) if on_gpu else make_task("mnist1d-mlp", horizon=horizon)
    torch.set_num_threads(args.policy_threads or (4 if on_gpu else 1))
    try:
        return ppo.ppo_row(task, num_envs, decisions, device, args.compile and on_gpu, args.smoke)
    finally:
        torch.set_num_threads(1)


# The three of `throughput_ppo`: the large MLP on a GPU, the small one on a CPU.


def _measure_async(processes: int, args: Args) -> dict[str, Any]:
    options = {"width": 100, "batch_size": 100} if args.device != "cpu" else {}
    return ppo.async_row(4 * args.seconds, processes, **options)


def _measure_profile(num_runs: int, args: Args) -> dict[str, Any]:
    device = torch.device(args.device)
    go, runs = engine(_large_mlp(), num_runs, device, args.compile and device.type == "cuda", INTERVAL, args.by_rule)
    return {"how": runs.executor.how, **ppo.profile_row(go, INTERVAL, device)}


def main(args: Args) -> None:
    """Measure row by row; write, draw and print after each."""
    torch.set_num_threads(1)
    on_gpu = args.device != "cpu"
    torch.set_float32_matmul_precision("high" if args.tf32 and on_gpu else "highest")
    args.seconds = min(args.seconds, 0.05) if args.smoke else args.seconds
    minutes = args.minutes if args.minutes is not None else 8.7 if on_gpu else float("inf")
    name = f"benchmark_throughput-{args.device.partition(':')[0]}"
    file = f"{name}{'-smoke' if args.smoke else ''}.jsonl"
    tf32 = args.tf32 and on_gpu
    settings = {"precision": "TF32" if tf32 else "float32", "seconds_each": args.seconds, "by_rule": args.by_rule}
    common = circumstances(args.device, settings)
    record = Record((args.folder or FOLDER / "records") / file, common)
    figure = args.folder / f"{name}.png" if args.folder else figure_path(name, args.smoke)
    started = time.monotonic()
    todo = [row for row in plan(args) if args.fresh or not record.has(row.key)]
    left = 0
    for index, row in enumerate(todo):
        seconds = ROW_SECONDS.get(row.key["what"], OTHER_ROW_SECONDS) if minutes < float("inf") else 0
        spent = time.monotonic() - started
        if spent + seconds > 60.0 * minutes:
            left += 1
            continue
        record.put(measured(row.key, row.measure, seconds))
        _show(record, row, figure, f"[{index + 1}/{len(todo)}, {spent / 60.0:.1f} min]")
    print(f"\n{report.table(record.rows)}\n\n{report.summary(record.rows)}\n\n{record.path}")
    if left:
        print(f"{left} rows are left for the next sitting: the same command goes on with them")


def _show(record: Record, row: Row, figure: Path, progress: str) -> None:
    """One line about the row, the table beside the record, and the figure as far as it goes."""
    last = record.rows[-1]
    names = " ".join(str(value) for value in row.key.values() if not isinstance(value, bool))
    result = last.get("failed") or f"{last.get('steps_per_s', 0.0):.4g} steps/s, {last.get('how', '')}"
    print(f"{progress} {names}: {result}", flush=True)
    record.path.with_suffix(".txt").write_text(f"{report.table(record.rows)}\n\n{report.summary(record.rows)}\n")
    try:
        report.draw(record.rows, figure)
    except Exception as error:  # without matplotlib there is still a table
        print(f"no figure: {error}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(tyro.cli(Args))
