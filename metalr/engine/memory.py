"""Memory of a run, free memory of a device, and so the number of runs that fit, before anything is allocated."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metalr.engine.step import TrainingStep
from metalr.tasks.data import Batch

# Copies of a run's flat row beside its weights and the optimizer's buffers: the gradients of the last two steps, the
# weights before the last, the new weights and buffers of an update made out of place, and its intermediate results.
_ROWS = 8
# On CUDA a state is there four times: before the interval, in the graph's input and in its output, and handed out. Rows
# of temporaries lie in the graph's own memory, and as much outside it while weights are drawn from 64-bit integers.
_GRAPH_STATES, _GRAPH_ROWS = 4, 2 * _ROWS
# Share of the free memory that is left to everything else.
_RESERVE = 0.1


@dataclass(frozen=True)
class Footprint:
    """Memory of one run, in bytes.

    Attributes:
        state: weights, optimizer buffers and the copies of them that an inner step makes.
        activations: tensors that a forward pass keeps for the backward pass, and as much again for their gradients.
        batch: one minibatch.
        tensor: the largest that an operation works on: the flat row of weights, or one kept by the forward pass.
    """

    state: int
    activations: int
    batch: int
    tensor: int

    @property
    def total(self) -> int:
        """Bytes for each run."""
        return self.state + self.activations + self.batch


def footprint(step: TrainingStep, batch: Batch | None, dtype: torch.dtype) -> Footprint:
    """Measure one run by a single forward pass, on the device of the module.

    Args:
        step: of the task.
        batch: inputs and targets `(num_runs, batch, …)` of one run, or of several where these take another route
            through the network; None where no minibatch can be had without using one up.
        dtype: of the weights.
    """
    layout = step.layout
    rows = 1 + len(step.task.optimizer.init(torch.empty(0)))
    rows = _GRAPH_STATES * rows + _GRAPH_ROWS if step.device.type == "cuda" else rows + _ROWS
    row_bytes = layout.num_params * dtype.itemsize
    state = row_bytes * rows
    if batch is None:
        return Footprint(state, 0, 0, row_bytes)
    sizes = _kept_sizes(step, batch, dtype)
    num_runs = len(batch[0])
    size_of_batch = sum(part.numel() * part.element_size() for part in batch) // num_runs
    largest = max(row_bytes, max(sizes, default=0) // num_runs)
    return Footprint(state, 2 * sum(sizes) // num_runs, size_of_batch, largest)


def _kept_sizes(step: TrainingStep, batch: Batch, dtype: torch.dtype) -> list[int]:
    """Bytes of each tensor that a forward pass keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = min(storage.nbytes(), tensor.numel() * tensor.element_size())
        return tensor

    shape = len(batch[0]), step.layout.num_params
    rows = torch.zeros(shape, dtype=dtype, device=batch[0].device, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step.losses(rows, *batch)
    return list(sizes.values())


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be allocated on a device, or None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    limits = [_mem_available(), _cgroup_available()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def max_runs(size: Footprint, device: torch.device, chunk: int | None = None) -> int | None:
    """Number of runs that fit on a device now, or None where the system does not say how much memory is free.

    Args:
        size: of one run.
        device: where the runs are going to live.
        chunk: runs whose minibatches and activations are in memory at the same time; None for all.
    """
    available = available_bytes(device)
    if available is None:
        return None
    usable = int((1.0 - _RESERVE) * available)
    in_passing = size.activations + size.batch
    if chunk is None:
        return usable // max(size.total, 1)
    return max(usable - chunk * in_passing, 0) // max(size.state, 1)


def check_fits(num_runs: int, size: Footprint, device: torch.device, chunk: int | None = None) -> None:
    """Refuse more runs than the device has memory for.

    Raises:
        ValueError: they do not fit; the message says how many do.
    """
    available, most = available_bytes(device), max_runs(size, device, chunk)
    if available is not None and most is not None and num_runs > most:
        raise ValueError(
            f"got num_runs {num_runs}, expected at most {most} on {device}: a run needs {size.total / 2**20:.3g} MiB "
            f"(state {size.state / 2**20:.3g}, activations {size.activations / 2**20:.3g}) and "
            f"{available / 2**30:.3g} GiB are free; use fewer runs, a smaller batch or a smaller network"
        )


def _mem_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _cgroup_available() -> int | None:
    """Memory that a container's limit leaves, where there is one."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Cached files count as used but are dropped when memory is asked for.
    return None if limit == "max" else int(limit) - int(used) + int(files.get("inactive_file", 0))
