"""The benchmark measures what it says: its loops train, its counts are right, its command runs."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from metalr.optimizers.classic import SGD, Adam, AdamW
from metalr.tasks.catalog import TASKS, make_task

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("stable_baselines3")

from experiments import benchmark_throughput
from experiments.support import records
from experiments.support.throughput import loops, record, report

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_work_of_a_step_in_closed_form():
    task = make_task("mnist1d-mlp")  # 40-32-32-10, batch 64, momentum
    flops, moved = loops.work_of_a_step(task)
    products = [40 * 32, 32 * 32, 32 * 10]
    # Forward and the weights' gradient for each layer; the gradient of the inputs for all but the first.
    assert flops == 2 * 64 * (2 * sum(products) + sum(products[1:]))
    assert moved == 4 * task.num_params * (4 + 2) + 4 * 64 * 40


def test_rates_are_steps_over_time():
    def go(num_steps: int) -> None:
        time.sleep(1e-3 * num_steps)

    found = loops.rates({"one": (go, 1), "many": (go, 32)}, CPU, 0.05, unit=5)
    assert 500.0 < found["one"] <= 1000.0
    assert found["many"] == pytest.approx(32.0 * found["one"], rel=0.3)


@pytest.mark.parametrize("name", benchmark_throughput.MODELS)
def test_every_model_can_be_measured(name):
    task = benchmark_throughput.MODELS[name](optimizer="adamw", batch_size=4)
    loops.plain_loop(task, CPU)(1)
    go, runs = loops.engine(task, 2, CPU, False, 2)
    go(4)
    assert runs.state.step.tolist() == [6, 6]


def test_a_plan_covers_what_was_asked():
    for device, most in (("cpu", 32), ("cuda", 1024)):
        rows = benchmark_throughput.plan(benchmark_throughput.Args(device=device))
        engines = [row.key for row in rows if row.key["what"] == "engine"]
        assert {key["model"] for key in engines} >= set(benchmark_throughput.MODELS)
        assert {key["optimizer"] for key in engines} >= {"momentum", "adam", "adamw"}
        for model in benchmark_throughput.MODELS:
            assert max(key["num_runs"] for key in engines if key["model"] == model) >= most
        main = [key["num_runs"] for key in engines if key["model"] == benchmark_throughput.LARGE]
        assert {1, 4096} <= set(main)
        assert {row.key["what"] for row in rows} == {"limits", "engine", "groups", "PPO", "AsyncVectorEnv"}
        keys = [tuple(row.key.values()) for row in rows]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_planned_task_can_be_made(device):
    planned = {
        (row.key["model"], row.key["optimizer"]): row.measure.args[0]
        for row in benchmark_throughput.plan(benchmark_throughput.Args(device=device))
        if row.key["what"] == "engine"
    }
    kinds = {"adam": Adam, "adamw": AdamW, "momentum": SGD}
    for (_, optimizer), make in planned.items():
        assert type(make().optimizer) is kinds.get(optimizer, type(make().optimizer))


def test_every_shipped_task_is_measured_with_one_run():
    rows = benchmark_throughput.plan(benchmark_throughput.Args())
    made = {row.key["model"] for row in rows if row.key["num_runs"] == 1}
    known = set(benchmark_throughput.SHIPPED) | {"MLP 40-32-32-10", "Conv1d", "Conv2d", "byte transformer"}
    assert made >= known
    # One follows second moments, for which torch.optim has no loop; one needs a folder of images.
    assert len(TASKS) == len(known) + len({"noisy-quadratic", "cifar10-cnn"})


def test_the_parts_make_up_the_whole():
    parts = [benchmark_throughput.plan(benchmark_throughput.Args(part=part)) for part in ("scan", "models", "ppo")]
    whole = benchmark_throughput.plan(benchmark_throughput.Args())
    assert len(whole) == sum(map(len, parts)) - 2  # the hardware's limits belong to each


def test_kernels_by_the_clock_are_those_of_the_bare_engine(monkeypatch):
    args = benchmark_throughput.Args(by_rule=False, seconds=0.01)
    rows = benchmark_throughput.plan(args)
    assert {row.part for row in rows} == {"limits", "scan", "models"}
    asked, make = [], loops.BatchedRuns

    def record(*arguments, kernels_by_rule, **options):
        asked.append(kernels_by_rule)
        return make(*arguments, **options)

    monkeypatch.setattr(loops, "BatchedRuns", record)
    next(row for row in rows if row.part == "scan" and not row.key["compiled"]).measure()
    assert asked == [False]


@pytest.fixture
def sitting(monkeypatch, tmp_path):
    """Runs the command on rows that count how often they are measured: two that work and one that does not."""
    counts: list[int] = []

    def measure(index: int) -> dict:
        counts.append(index)
        if index == 1:
            raise RuntimeError("out of luck")
        return {"steps_per_s": 1e6 * (index + 1), "how": "compiled", "plain_steps_per_s": 1e3, "over_plain": 1000.0}

    def plan(args):
        keys = [
            {"what": "engine", "model": "m", "optimizer": "momentum", "num_runs": 4**index, "compiled": True}
            for index in range(3)
        ]
        return [benchmark_throughput.Row("scan", key, partial(measure, i)) for i, key in enumerate(keys)]

    monkeypatch.setattr(benchmark_throughput, "plan", plan)

    def sit(**options) -> tuple[list[int], list[dict]]:
        counts.clear()
        benchmark_throughput.main(benchmark_throughput.Args(folder=tmp_path, **options))
        path = tmp_path / "benchmark_throughput-cpu.jsonl"
        return list(counts), [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return sit


@pytest.fixture
def no_figure(monkeypatch):
    """It is drawn anew after every row, which takes longer than all else here; one test below looks at it."""
    monkeypatch.setattr(report, "draw", lambda rows, path: None)


@pytest.mark.usefixtures("no_figure")
def test_a_failed_row_says_why_and_alone_is_tried_again(sitting):
    measured, rows = sitting()
    assert measured == [0, 1, 2]
    assert [row.get("failed") for row in rows] == [None, "RuntimeError: out of luck", None]
    measured, again = sitting()
    assert measured == [1]
    assert len(again) == 3
    assert sitting(seconds=0.25)[0] == [0, 1, 2]  # other settings, other rows
    assert sitting(seconds=0.25, fresh=True)[0] == [0, 1, 2]


@pytest.mark.usefixtures("no_figure")
def test_a_sitting_ends_in_time_and_leaves_the_rest(sitting, capsys):
    assert sitting(minutes=0.5) == ([], [])
    assert "3 rows are left for the next sitting" in capsys.readouterr().out
    assert sitting(minutes=3.0)[0] == [0, 1, 2]


def test_a_row_that_takes_too_long_is_given_up():
    row = record.measured({"what": "engine"}, lambda: time.sleep(5.0), 1)
    assert row == {"what": "engine", "failed": "TimeoutError: not ready after 1 s"}


def test_the_table_and_what_stands_beside_it(sitting, tmp_path, capsys):
    _, rows = sitting()
    printed = capsys.readouterr().out
    assert "FAILED engine, m, 4 runs: RuntimeError: out of luck" in printed
    assert (tmp_path / "benchmark_throughput-cpu.png").stat().st_size > 5000
    names = {"model": "4 networks at once", "optimizer": "momentum", "num_runs": 4096, "how": "one graph, compiled"}
    ratios = {"over_plain": 2345.6, "over_graph": 123.4, "of_limit": 0.28, "reset_over_interval": 0.71}
    widest = {"steps_per_s": 2.345e6, "mib_per_run": 1.36, "runs_that_fit": 98_765, "preparation_s": 12.3, **ratios}
    lines = report.table([*rows, {**widest, **names}]).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[1].split() == ["m", "momentum", "1", "compiled", "1", "M", "1000"]
    said = "4 networks at once momentum 4096 graph+comp. 2.35 M 2346 123 28 % 1.4 98.8 k 12.3 0.71"
    assert " ".join(lines[-1].split()) == said


def test_the_committed_table_is_that_of_the_committed_record():
    path = records.place("benchmark_throughput-cpu", smoke=False)
    rows = records.read(path)
    assert path.with_suffix(".txt").read_text() == f"{report.table(rows)}\n\n{report.summary(rows)}\n"


@pytest.mark.slow
def test_the_command_runs(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark_throughput", "--smoke", "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    path = tmp_path / "benchmark_throughput-cpu-smoke.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["what"] for row in rows} == {"limits", "engine", "AsyncVectorEnv", "groups", "PPO"}
    assert all(row["steps_per_s"] > 0.0 for row in rows if row["what"] != "limits")
    assert all(0.0 < row["of_limit"] < 1.0 for row in rows if row["what"] == "engine")
    ppo = next(row for row in rows if row["what"] == "PPO")
    assert sum(ppo[f"{part}_share"] for part in ("engine", "policy", "python", "update")) == pytest.approx(1.0)
