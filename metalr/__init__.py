"""Learned learning-rate controllers, exported as plain PyTorch schedulers.

scheduler = metalr.load_scheduler("controller.safetensors", optimizer, horizon=num_updates)
for x, y in loader:
    optimizer.zero_grad(); loss = loss_fn(model(x), y); loss.backward()
    scheduler.observe(loss); optimizer.step(); scheduler.step()
"""

from metalr.artefacts.controller_file import (
    list_controllers,
    load_card,
    load_controller,
    load_scheduler,
    save_controller,
)
from metalr.schedulers.learned_lr import LearnedLR
from metalr.schedulers.schedule_lr import ScheduleLR
from metalr.tasks.catalog import TASKS, make_task
from metalr.tasks.families import FAMILIES, TaskFamily
from metalr.tasks.task import Task

__version__ = "0.1.0"

__all__ = [
    "FAMILIES",
    "TASKS",
    "LearnedLR",
    "ScheduleLR",
    "Task",
    "TaskFamily",
    "list_controllers",
    "load_card",
    "load_controller",
    "load_scheduler",
    "make_task",
    "save_controller",
]
