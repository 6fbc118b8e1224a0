"""A function run on several processes with a gloo group, for the tests of distributed training."""

import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# A collective that waits longer fails in its process; a process that waits for anything else is killed later.
COLLECTIVE_SECONDS = 60
LIMIT_SECONDS = 180


def _rank(rank: int, size: int, port: int, folder: str, function: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message="LearnedLR|ScheduleLR")  # pytest's own filter ends at its process
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size)
    )
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=COLLECTIVE_SECONDS))
    torch.save(function(rank, *args), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Results are saved. An ordinary exit aborts now and then: a thread of gloo that still holds a tensor
    # asks for an interpreter that is being torn down (https://github.com/pytorch/pytorch/pull/179291).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def on_ranks(function: Callable[..., Any], *args: Any, size: int = 2, limit: float = LIMIT_SECONDS) -> list[Any]:
    """The results of `function(rank, *args)` on `size` processes, by rank.

    Raises:
        TimeoutError: they have not finished after `limit` seconds, as in a deadlock, and are killed.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        _join(mp.spawn(_rank, (size, port, folder, function, args), nprocs=size, join=False), limit)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _join(processes: Any, limit: float) -> None:
    deadline = time.monotonic() + limit
    try:
        while not processes.join(timeout=1.0):
            if time.monotonic() > deadline:
                raise TimeoutError(f"got no end after {limit} s, expected one: the processes wait for each other")
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
