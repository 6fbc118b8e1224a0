"""How many inner steps per second does the engine make, beside its rivals and beside the limits of the hardware?

    python -m experiments.benchmark_throughput                               # a CPU, one thread: some twenty minutes
    python -m experiments.benchmark_throughput --device cuda                 # ends by itself within nine minutes
    python -m experiments.benchmark_throughput --device cuda --part profile  # which kernels the time goes into
    python -m experiments.benchmark_throughput --smoke                       # half a minute

Every ratio is of numbers that one process measured in turns: the engine with all statistics on, (a) a plain eager
loop over one run without any, (b) that loop in a CUDA graph (on a GPU), (c) `gymnasium.vector.AsyncVectorEnv` over the
one-run environment. Then several architectures in one vector environment, and PPO: seconds for 20 M inner steps on a
GPU, and the share of its wall time that goes into engine, policy and Python.

`records/benchmark_throughput-<device>.jsonl`, with one line for each number, the table beside it and a scaling figure
are written after each row. The same command resumes: a row of the same hardware, versions and settings is not measured
again (`--fresh` does that, as a change of the engine requires), one that failed is. `--minutes` ends a sitting,
`--part scan | models | ppo` measures a part.

Columns: how = the executor that ran; xplain, xgraph = over (a) and (b); limit = share of the rate that the measured
copy bandwidth or matrix rate allows; MiB = memory reckoned for a run; fit = runs for which there is memory; prep =
seconds of compiling and capturing; reset = time to start all runs anew over that of an interval of 20 inner steps.

Expected on one CPU thread, 32 runs of an MLP 40-32-32-10: at least 3 times the plain loop eager and 8 times compiled,
and never slower for one run of any task. Expected on one H200, MLP 40-100-100-10, batch 100, momentum, TF32: at least
1.5 M inner steps/s with 256 runs and 2.5 M with 4096, 1,000 times (a) and 60 times (b); reset below 1 with 512 runs;
PPO 20 M inner steps with 512 runs in less than 30 s, policy and Python at most 3 ms for each decision, an update at
most 0.3 s for a rollout of 512 x 40.

Found on one thread of an AMD EPYC core: 5.4 times the plain loop eager, 9.4 compiled. The second expectation fails by a
hair: one run of teacher-student has 0.99 times the plain loop's rate, four of the byte transformer 0.96; one run of any
other task 1.0 to 1.2. The GPU has not been measured yet.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from experiments.support import harness
from experiments.support.records import circumstances, place
from experiments.support.throughput import report
from experiments.support.throughput.record import Record, measured
from experiments.support.throughput.rows import async_row, engine_row, limits_row, mixed_row, ppo_row, profile_row
from metalr.tasks.catalog import make_task
from metalr.tasks.datasets import mnist1d
from metalr.tasks.models import MLP, GRUClassifier
from metalr.tasks.task import Task

INTERVAL = 20
# Longest time for one row on a GPU, in seconds: what compiles for longer than that gives way to what does not.
ROW_SECONDS = {"PPO": 240}
OTHER_ROW_SECONDS = 110
Part = Literal["scan", "models", "ppo", "profile"]


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the benchmark."""

    device: str = "cpu"
    """cpu or cuda."""
    part: Part | None = None
    """scan (the main MLP against the number of runs), models (the other networks and optimizers), ppo (environments
    and PPO) or profile; the first three by default."""
    seconds: float = 0.5
    """Of measurement for each number."""
    minutes: float | None = None
    """A row is begun only if it is sure to end within so many; by default no limit on a CPU and 8.7 on a GPU."""
    max_runs: int = 4096
    """Largest number of runs."""
    compile: bool = True
    """Measure the compiled step too (on a GPU nothing else is measured with it on)."""
    by_rule: bool = True
    """On a GPU, let the compiler choose kernels by rule, so that bits repeat; without it, by the clock."""
    tf32: bool = True
    """On a GPU, let matrix products round their inputs to TF32."""
    policy_threads: int | None = None
    """Torch threads while PPO is measured; by default 1 on a CPU and 4 on a GPU's machine."""
    fresh: bool = False
    """Measure again what is in the record."""
    folder: Path | None = None
    """Where the records go; `experiments/records` by default."""

    def small(self) -> "Args":
        return replace(self, seconds=min(self.seconds, 0.05))


class Row(NamedTuple):
    """One measurement: its part, the values that name it, and how it is made."""

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
    """Rows to measure, the most important first."""
    on_gpu, smoke = args.device != "cpu", args.smoke
    rows = [
        Row("limits", {"what": "limits", "model": "", "num_runs": 0}, partial(limits_row, torch.device(args.device)))
    ]
    for part, name, optimizer, num_runs in _engines(args):
        make = MODELS.get(name) or partial(make_task, name)
        make = make if optimizer == "default" else partial(make, optimizer=optimizer)
        if num_runs > args.max_runs:
            continue
        for compiled in _compiled(name, optimizer, num_runs, args):
            key = {"what": "engine", "model": name, "optimizer": optimizer, "num_runs": num_runs, "compiled": compiled}
            rows.append(Row(part, key, partial(_measure_engine, make, num_runs, compiled, args)))
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
    # The large MLP on a GPU, the small one on a CPU, as in PPO's row.
    one_env = {"width": 100, "batch_size": 100} if on_gpu else {}
    key = {"what": "AsyncVectorEnv", "model": "AsyncVectorEnv", "num_runs": processes}
    rows.append(Row("ppo", key, partial(async_row, 4 * args.seconds, processes, **one_env)))
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


def _measure_engine(make: Callable[..., Task], num_runs: int, compiled: bool, args: Args) -> dict[str, Any]:
    device = torch.device(args.device)
    return engine_row(make(), num_runs, device, compiled, args.seconds, INTERVAL, kernels_by_rule=args.by_rule)


def _measure_mixed(names: list[str], each: int, args: Args) -> dict[str, Any]:
    tasks = [MODELS[name](optimizer="momentum", horizon=400) for name in names]
    compile = args.compile and args.device != "cpu"
    return mixed_row(tasks, each, torch.device(args.device), compile, args.seconds)


def _measure_ppo(num_envs: int, decisions: int, horizon: int, args: Args) -> dict[str, Any]:
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    task = _large_mlp(horizon=horizon) if on_gpu else make_task("mnist1d-mlp", horizon=horizon)
    torch.set_num_threads(args.policy_threads or (4 if on_gpu else 1))
    try:
        return ppo_row(task, num_envs, decisions, device, args.compile and on_gpu, args.smoke)
    finally:
        torch.set_num_threads(1)


def _measure_profile(num_runs: int, args: Args) -> dict[str, Any]:
    device = torch.device(args.device)
    compiled = args.compile and device.type == "cuda"
    return profile_row(_large_mlp(), num_runs, device, compiled, INTERVAL, kernels_by_rule=args.by_rule)


def main(args: Args) -> None:
    """Measure row by row; write, draw and print after each."""
    on_gpu = args.device != "cpu"
    torch.set_float32_matmul_precision("high" if args.tf32 and on_gpu else "highest")
    minutes = args.minutes if args.minutes is not None else 8.7 if on_gpu else float("inf")
    name = f"benchmark_throughput-{args.device.partition(':')[0]}"
    path, figure = place(name, smoke=args.smoke), place(name, smoke=args.smoke, kind="figures", ending="png")
    if args.folder:
        path, figure = args.folder / f"{name}{'-smoke' if args.smoke else ''}.jsonl", args.folder / f"{name}.png"
    tf32 = args.tf32 and on_gpu
    settings = {"precision": "TF32" if tf32 else "float32", "seconds_each": args.seconds, "by_rule": args.by_rule}
    record = Record(path, {**circumstances(args.device, ()), **settings})
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
        print(f"{left} rows are left for the next sitting: repeat the command for them")


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
    harness.run(main, Args)
