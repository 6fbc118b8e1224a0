"""The batched engine and its rivals: a plain loop, the same loop in a CUDA graph, a vector of processes.

Each is a function that makes a number of inner steps of a task; `rates` times them in turns.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metalr.engine.runs import BatchedRuns
from metalr.tasks.task import Task

Steps = Callable[[int], None]


def _parts(task: Task, device: torch.device) -> tuple[Any, torch.optim.Optimizer, Tensor, Tensor]:
    module = task.build().to(device, torch.float32)
    optimizer = task.optimizer.to_torch(module.parameters(), 0.1 * task.base_lr)
    inputs, targets = (part[0] for part in task.data.to(device, torch.float32).train)
    return module, optimizer, inputs, targets


def plain_loop(task: Task, device: torch.device) -> Steps:
    """One run in a loop as anyone would write it: module, `torch.optim`, no statistics at all."""
    module, optimizer, inputs, targets = _parts(task, device)

    def go(num_steps: int) -> None:
        for _ in range(num_steps):
            index = torch.randint(len(inputs), (task.batch_size,), device=device)
            optimizer.zero_grad()
            loss = task.loss(module(inputs[index]), targets[index])
            loss.backward()
            optimizer.step()

    return go


def graphed_loop(task: Task, device: torch.device) -> Steps:
    """The plain loop with one step captured as a CUDA graph."""
    module, optimizer, inputs, targets = _parts(task, device)
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True

    def step() -> None:
        index = torch.randint(len(inputs), (task.batch_size,), device=device)
        optimizer.zero_grad(set_to_none=True)
        task.loss(module(inputs.index_select(0, index)), targets.index_select(0, index)).backward()
        optimizer.step()

    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def go(num_steps: int) -> None:
        for _ in range(num_steps):
            graph.replay()

    return go


def engine(
    task: Task, num_runs: int, device: torch.device, compile: bool, interval: int, kernels_by_rule: bool = True
) -> tuple[Steps, BatchedRuns]:
    """The batched engine with all statistics, an interval at a time; a step of it is one of every run."""
    runs = BatchedRuns(task, num_runs, device=device, compile=compile, kernels_by_rule=kernels_by_rule)
    runs.init(torch.arange(num_runs))
    lr = torch.full((num_runs,), 0.1 * task.base_lr, device=device)
    runs.unroll(lr, interval)  # compiles and captures

    def go(num_steps: int) -> None:
        for _ in range(num_steps // interval):
            runs.unroll(lr, interval)

    return go, runs


def _one_env(options: dict[str, Any]) -> Any:
    from metalr.envs.lr_control import LRControlEnv

    torch.set_num_threads(1)
    return LRControlEnv(**options)


def async_vector_rate(task_name: str, num_envs: int, seconds: float, **options: Any) -> float:
    """Inner steps per second, over all environments, of `gymnasium.vector.AsyncVectorEnv` with one run in each."""
    import gymnasium

    make = partial(_one_env, {"task": task_name, **options})
    envs = gymnasium.vector.AsyncVectorEnv([make] * num_envs, context="spawn")
    try:
        steps_per_action = options["horizon"] // options["decisions"]
        envs.reset(seed=0)
        action = envs.action_space.sample() * 0.0
        envs.step(action)
        started, decisions = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            envs.step(action)
            decisions += 1
        return decisions * steps_per_action * num_envs / (time.perf_counter() - started)
    finally:
        envs.close()


def synchronize(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(
    contenders: dict[str, tuple[Steps, int]], device: torch.device, seconds: float, unit: int = 20
) -> dict[str, float]:
    """Inner steps per second of each contender, the best of several short turns.

    They take turns, so that whatever else the machine does meets all of them alike.

    Args:
        contenders: name -> what makes steps, and how many runs each of its steps counts for.
        device: where the work is done.
        seconds: for each contender in all.
        unit: steps are made in multiples of this.
    """
    turns, counts = 5, {}
    for name, (go, _) in contenders.items():
        go(unit)
        synchronize(device)
        started = time.perf_counter()
        go(unit)
        synchronize(device)
        each = (time.perf_counter() - started) / unit
        counts[name] = max(int(seconds / turns / each) // unit, 1) * unit
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(turns):
        for name, (go, num_runs) in contenders.items():
            started = time.perf_counter()
            go(counts[name])
            synchronize(device)
            best[name] = max(best[name], counts[name] * num_runs / (time.perf_counter() - started))
    return best


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.ones((1 << 28) if device.type == "cuda" else (1 << 24), device=device)
    target = torch.empty_like(source)

    def go(count: int) -> None:
        for _ in range(count):
            target.copy_(source)

    return rates({"copy": (go, 2 * source.numel() * 4)}, device, 0.5, unit=2)["copy"]


def matmul_rate(device: torch.device) -> float:
    """Floating-point operations per second of a large float32 product, at the precision that torch is set to."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device) for _ in range(2))

    def go(count: int) -> None:
        for _ in range(count):
            torch.matmul(a, b)

    return rates({"matmul": (go, 2 * size**3)}, device, 0.5, unit=2)["matmul"]


def work_of_a_step(task: Task) -> tuple[int, int]:
    """Floating-point operations of one inner step of one run, and the bytes that it must at least move.

    The bytes: params read, the gradient written and read, params written, every optimizer buffer read and written,
    the minibatch read. Activations are taken to stay in the cache.
    """
    module, _, inputs, targets = _parts(task, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        task.loss(module(inputs[: task.batch_size]), targets[: task.batch_size]).backward()
    buffers = len(task.optimizer.init(torch.empty(0)))
    batch = inputs[0].numel() * inputs.element_size() * task.batch_size
    return counter.get_total_flops(), task.num_params * 4 * (4 + 2 * buffers) + batch
