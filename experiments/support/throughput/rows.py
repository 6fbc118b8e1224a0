"""The rows of the throughput benchmark, one function each: the bare engine, environments over it, PPO."""

import time
import warnings
from typing import Any

import torch

from experiments.support.throughput.loops import (
    async_vector_rate,
    copy_bandwidth,
    engine,
    graphed_loop,
    matmul_rate,
    plain_loop,
    rates,
    synchronize,
    work_of_a_step,
)
from metalr.engine import memory
from metalr.engine.runs import BatchedRuns
from metalr.tasks.task import Task

# "20 M inner steps" is the amount of training that the target is stated for.
_INNER_STEPS = 20_000_000


def limits_row(device: torch.device) -> dict[str, Any]:
    """The rates that the hardware allows."""
    return {"copy_bytes_per_s": copy_bandwidth(device), "matmul_flops_per_s": matmul_rate(device)}


def engine_row(
    task: Task,
    num_runs: int,
    device: torch.device,
    compile: bool,
    seconds: float,
    interval: int,
    *,
    kernels_by_rule: bool,
) -> dict[str, Any]:
    """The engine with all statistics on, the plain loops measured in the same turns.

    Args:
        task: of the runs.
        num_runs: side by side.
        device, compile, kernels_by_rule: of the engine.
        seconds: of measurement for each rate.
        interval: inner steps that the engine makes at once.
    """
    loops = {"plain": (plain_loop(task, device), 1)}
    if device.type == "cuda":
        try:
            loops["graph"] = (graphed_loop(task, device), 1)
        except Exception as error:
            warnings.warn(f"the plain loop could not be captured: {error}", RuntimeWarning)
        torch.cuda.reset_peak_memory_stats()
    taken_before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    started = time.perf_counter()
    go, runs = engine(task, num_runs, device, compile, interval, kernels_by_rule)
    ready = time.perf_counter() - started
    found = rates({**loops, "engine": (go, num_runs)}, device, seconds, interval)
    interval_ms = 1e3 * interval * num_runs / found["engine"]
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


def async_row(seconds: float, num_envs: int, **options: Any) -> dict[str, Any]:
    """The usual way to run environments in parallel: a process for each."""
    rate = async_vector_rate("mnist1d-mlp", num_envs, seconds, horizon=400, decisions=20, **options)
    return {"steps_per_s": rate, "how": "processes"}


def mixed_row(tasks: list[Task], each: int, device: torch.device, compile: bool, seconds: float) -> dict[str, Any]:
    """Several run groups of different architectures in one vector environment, a decision at a time.

    The plain loops beside it make equally many inner steps of each architecture.

    Args:
        tasks: one for each group, of equal horizon.
        each: runs in a group.
        device, compile: of the environment.
        seconds: of measurement.
    """
    from metalr.envs.transition import EnvConfig, Transition

    decisions = 20
    num_steps, num_envs = tasks[0].horizon // decisions, each * len(tasks)
    started = time.perf_counter()
    transition = Transition(tasks, num_envs, EnvConfig(decisions=decisions, device=str(device), compile=compile))
    transition.reset()
    action = torch.zeros(num_envs, transition.num_groups)

    def go(count: int) -> None:
        for _ in range(count // num_steps):
            outcome = transition.step(action)
            if bool(outcome.done.any()):
                transition.reset(outcome.done)

    go(num_steps)
    synchronize(device)
    ready = time.perf_counter() - started
    loops = {str(index): (plain_loop(task, device), 1) for index, task in enumerate(tasks)}
    found = rates({**loops, "engine": (go, num_envs)}, device, seconds, num_steps)
    plain = len(tasks) / sum(1.0 / found[name] for name in loops)
    engines = [group.runs for group in transition.groups if isinstance(group.runs, BatchedRuns)]
    return {
        "how": " + ".join(dict.fromkeys(runs.executor.how for runs in engines)),
        "steps_per_s": found["engine"],
        "plain_steps_per_s": plain,
        "over_plain": found["engine"] / plain,
        "mib_per_run": sum(runs.footprint.total for runs in engines) / len(tasks) / 2**20,
        "preparation_s": sum(runs.executor.preparation_seconds for runs in engines),
        "until_ready_s": ready,
    }


def ppo_row(
    task: Task, num_envs: int, decisions: int, device: torch.device, compile: bool, smoke: bool
) -> dict[str, Any]:
    """PPO end to end, and where its wall time goes.

    The seconds are those of training without any clock in it, after one rollout that compiles, captures and warms up;
    the shares come from rollouts after it, in which every part waits for the device before its time is taken.
    """
    from metalr.agents.ppo import PPOSettings, build_ppo
    from metalr.envs.transition import EnvConfig, Transition

    config = EnvConfig(decisions=decisions, device=str(device), compile=compile)
    transition = Transition([task], num_envs, config)
    model = build_ppo(transition, PPOSettings(), seed=0)
    started = time.perf_counter()
    model.learn(num_envs * decisions)
    synchronize(device)
    ready = time.perf_counter() - started
    on_gpu, rollout = device.type == "cuda", num_envs * task.horizon
    rollouts = -(-_INNER_STEPS // rollout) if on_gpu and not smoke else 1 if smoke else 4
    started = time.perf_counter()
    model.learn(rollouts * num_envs * decisions, reset_num_timesteps=False)
    synchronize(device)
    seconds = time.perf_counter() - started
    engine = transition.groups[0].runs
    assert isinstance(engine, BatchedRuns)
    return {
        "how": engine.executor.how,
        "threads": torch.get_num_threads(),
        "inner_steps": rollouts * rollout,
        "seconds": seconds,
        "steps_per_s": rollouts * rollout / seconds,
        "until_ready_s": ready,
        **_shares(model, transition, device, 1 if smoke else 3),
    }


def _shares(model: Any, transition: Any, device: torch.device, rollouts: int) -> dict[str, float]:
    """Shares of wall time in engine, policy, update and all the rest, which is Python."""
    spent = dict.fromkeys(("engine", "policy", "update"), 0.0)

    def timed(owner: Any, name: str, share: str) -> None:
        call = getattr(owner, name)

        def measured(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = call(*arguments, **options)
            synchronize(device)
            spent[share] += time.perf_counter() - started
            return result

        setattr(owner, name, measured)

    for name in ("init", "reset_runs", "probe", "unroll", "evaluate"):
        timed(transition.groups[0].runs, name, "engine")
    timed(model.policy, "forward", "policy")
    timed(model, "train", "update")
    decisions = rollouts * transition.config.decisions
    started = time.perf_counter()
    model.learn(decisions * transition.num_envs, reset_num_timesteps=False)
    wall = time.perf_counter() - started
    spent["python"] = wall - sum(spent.values())
    return {
        **{f"{part}_share": seconds / wall for part, seconds in spent.items()},
        "policy_ms_per_decision": 1e3 * spent["policy"] / decisions,
        "python_ms_per_decision": 1e3 * spent["python"] / decisions,
        "policy_and_python_ms_per_decision": 1e3 * (spent["policy"] + spent["python"]) / decisions,
        "engine_ms_per_decision": 1e3 * spent["engine"] / decisions,
        "s_per_update": spent["update"] / rollouts,
    }


def profile_row(
    task: Task, num_runs: int, device: torch.device, compile: bool, interval: int, *, kernels_by_rule: bool
) -> dict[str, Any]:
    """Which kernels an interval's time goes into: name, share of the device's time, calls for each inner step."""
    from torch.profiler import ProfilerActivity, profile

    go, runs = engine(task, num_runs, device, compile, interval, kernels_by_rule)
    activities = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    go(interval)
    synchronize(device)
    with profile(activities=activities) as recorded:
        go(3 * interval)
        synchronize(device)
    events = [(e.key, getattr(e, "self_device_time_total", 0) or e.self_cpu_time_total, e.count)
              for e in recorded.key_averages()]  # fmt: skip
    total = sum(time for _, time, _ in events) or 1.0
    top = sorted(events, key=lambda event: -event[1])[:12]
    kernels = [[name[:60], time / total, count / (3 * interval)] for name, time, count in top]
    return {"how": runs.executor.how, "kernels": kernels}
