"""A task of one's own for the command line, by the module and the function that makes it."""

import importlib
import os
import sys
from types import ModuleType

from metalr.tasks.task import Task


def imported_task(reference: str) -> Task:
    """Call the function of a module and check that it returns a task.

    The module is found in the working folder too, and its code is run.

    Args:
        reference: "module:function"; a function without arguments that returns a `Task`, or a `Task` itself.

    Raises:
        ValueError: there is no such module or function, or it returns something else.

    Example:
        >>> imported_task("json:task")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: got task 'json:task', but the module json has no 'task', expected ...: check its name
    """
    module_name, _, name = reference.partition(":")
    added = os.getcwd()
    sys.path.insert(0, added)
    try:
        found = getattr(_module(module_name, reference), name, None)
        if found is None:
            raise ValueError(
                f"got task {reference!r}, but the module {module_name} has no {name!r}, expected a function that "
                "returns a metalr.Task: check its name"
            )
        task = found() if callable(found) else found
    finally:
        sys.path.remove(added)
    if not isinstance(task, Task):
        raise ValueError(
            f"got a {type(task).__name__} from {reference!r}, expected a metalr.Task: return Task(model, data, loss, …)"
        )
    return task.with_(name=reference) if task.name == Task.name else task


def _module(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ModuleNotFoundError, ValueError) as error:
        missing = getattr(error, "name", name)
        if missing is not None and not f"{name}.".startswith(f"{missing}."):
            raise  # a package that the module itself needs
        raise ValueError(
            f"got task {reference!r}, whose module {name!r} is not found, expected module:function: run metalr in the "
            "folder of the module's file, or install its package"
        ) from error
