"""JSON-able descriptions of tasks and controllers, exact enough to notice that a folder belongs to another one."""

import hashlib
from typing import Any

import torch

from metalr.control.controller import Controller
from metalr.tasks.data import Data, TensorData
from metalr.tasks.task import Task


def describe_task(task: Task) -> dict[str, Any]:
    """A task's settings, its network and the SHA-256 of its data."""
    return {
        "optimizer": repr(task.optimizer),
        "base_lr": task.base_lr,
        "horizon": task.horizon,
        "batch_size": task.batch_size,
        "model": repr(task.build()),
        "schedule": repr(task.schedule),
        "data": _data_digest(task.data),
        **({"plain": True} if task.plain else {}),
    }


def _data_digest(data: Data) -> str:
    """SHA-256 of resident or generated tensors; a stream has none, and its name must do."""
    if not isinstance(data, TensorData):
        name, data = type(data).__name__, data.to("cpu", torch.float32)
        if not isinstance(data, TensorData):
            return name
    digest = hashlib.sha256()
    for tensor in (part for split in (data.train, data.valid, data.test) for part in split):
        digest.update(str(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe_controller(controller: Controller) -> dict[str, Any]:
    """A controller's config and the SHA-256 of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(controller.tensors().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return {**controller.config(), "sha256": digest.hexdigest()}
