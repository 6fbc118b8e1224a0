"""A piece of work, and the error of work that failed for good."""

from typing import Any, NamedTuple

TRIES = 3


class Unit(NamedTuple):
    """A piece of work: `function(*arguments)`, or `function(shared, *arguments)` where something is shared.

    Attributes:
        arguments: small; sent with the unit.
        shared: large, such as a task; fetched and built once by each worker for all units that hold the same object.
    """

    arguments: tuple[Any, ...]
    shared: Any = None


class UnitError(RuntimeError):
    """Work that failed for good; the message has the cause of the first."""
