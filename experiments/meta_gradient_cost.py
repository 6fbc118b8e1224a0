"""How much time and memory does a meta-gradient cost, by each route?

An MLP 40-32-32-10 on MNIST-1D with momentum, eight runs, float32, 1,000 inner steps (`higher` takes the runs one after
the other, so it is measured with one run). Each route runs in a process of its own, so that its peak memory is its own:
peak resident memory over that of the same process before the unroll.

    python -m experiments.meta_gradient_cost

Expected: segments need at most a quarter of the full unroll's extra memory, at 1.2 to 2.1 times its time.

Found: segments need 6.6 % of the full unroll's extra memory at 1.05 times its time, less time than was expected; a
first order gradient saves 17 % of the memory and 10 % of the time. PES costs what the runs alone cost.

About 3 minutes on one CPU core.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from experiments.support import harness, plotting, records
from experiments.support.tables import print_table
from metalr.agents.meta_gradients import meta_gradient
from metalr.agents.pes import PES
from metalr.engine.runs import BatchedRuns
from metalr.learned.schedules import KnotLR
from metalr.tasks.catalog import make_task

NAME = "meta_gradient_cost"
ROUTES = ("forward only", "full", "full, first order", "segments", "truncated to 32", "PES", "higher, one run")
OPTIONS: dict[str, dict[str, Any]] = {
    "full, first order": {"order": 1},
    "segments": {"route": "segments"},
    "truncated to 32": {"route": "truncated", "segment_length": 32},
    "higher, one run": {"backend": "higher"},
}


@dataclass(frozen=True)
class Args(harness.Options):
    """Options of the experiment."""

    horizon: int = 1000
    """Inner steps."""
    num_runs: int = 8
    """Runs side by side."""
    route: str = ""
    """Measure this one alone, in this process; empty measures all in processes of their own."""

    def small(self) -> "Args":
        return replace(self, horizon=min(self.horizon, 20))


def peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def measure(route: str, args: Args) -> dict[str, Any]:
    """Seconds per inner step and extra peak memory of one route."""
    num_runs = 1 if route.startswith("higher") else args.num_runs
    learned = KnotLR(20)

    def once(horizon: int) -> None:
        task = make_task("mnist1d-mlp", horizon=horizon)
        if route == "PES":
            PES(learned, task, num_pairs=num_runs // 2, dtype=torch.float32).estimate(0)
            return
        runs, seeds = BatchedRuns(task, num_runs), torch.arange(num_runs)
        if route == "forward only":
            runs.init(seeds)
            runs.unroll(torch.full((num_runs,), 0.1), horizon)
            return
        meta_gradient(learned, runs, seeds, **OPTIONS.get(route, {}))

    once(8)  # load everything that is loaded once
    before, started = peak_mib(), time.perf_counter()
    once(args.horizon)
    seconds = time.perf_counter() - started
    return {
        "route": route,
        "horizon": args.horizon,
        "num_runs": num_runs,
        "ms_per_inner_step": 1e3 * seconds / args.horizon,
        "extra_peak_mib": peak_mib() - before,
        "seed": 0,
    }


def draw(rows: list[dict[str, Any]], smoke: bool) -> None:
    """Time and memory of each route."""
    figure, panels = plotting.panels(2)
    for panel, key, label in (
        (panels[0], "ms_per_inner_step", "ms per inner step"),
        (panels[1], "extra_peak_mib", "extra peak memory, MiB"),
    ):
        panel.barh(
            [f"{r['route']} ({r['num_runs']} runs)" for r in rows], [r[key] for r in rows], color=plotting.COLOURS[0]
        )
        panel.set_xlabel(label)
        panel.invert_yaxis()
    plotting.save(figure, NAME, smoke=smoke)


def main(args: Args) -> None:
    """Every route in its own process, then the table."""
    if args.route:
        print(json.dumps(measure(args.route, args)))
        return
    rows = []
    for route in ROUTES:
        command = [sys.executable, "-m", f"experiments.{NAME}", "--route", route]
        command += ["--horizon", str(args.horizon), "--num-runs", str(args.num_runs)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    full = next(r for r in rows if r["route"] == "full")
    for row in rows:
        row["memory_over_full"] = row["extra_peak_mib"] / max(full["extra_peak_mib"], 1e-9)
        row["time_over_full"] = row["ms_per_inner_step"] / full["ms_per_inner_step"]
    records.write(NAME, rows, device="cpu", smoke=args.smoke)
    draw(rows, args.smoke)
    columns = ("route", "num_runs", "horizon", "ms_per_inner_step", "time_over_full", "extra_peak_mib")
    print_table(rows, (*columns, "memory_over_full"))


if __name__ == "__main__":
    harness.run(main, Args)
