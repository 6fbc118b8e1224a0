"""The interface of the places where units are done elsewhere."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any


class Engine(ABC):
    """Starts units elsewhere. A future that ends with an exception has lost its unit."""

    @abstractmethod
    def size(self) -> int:
        """Workers."""

    @abstractmethod
    def room(self) -> int:
        """How many units may be under way at once."""

    @abstractmethod
    def share(self, content: bytes) -> Callable[[], Any]:
        """Make a pickled value available; a worker gets it by the call returned."""

    def forget(self, fetch: Callable[[], Any]) -> None:  # noqa: B027 -- a cluster forgets what nobody refers to
        """Take back what was shared."""

    @abstractmethod
    def start(self, name: str | None, fetch: Callable[[], Any] | None, call: bytes) -> "Future[bytes]":
        """Begin a unit; see `do`."""

    @abstractmethod
    def stop(self, futures: Sequence["Future[bytes]"]) -> None:
        """Give up units that are under way."""

    @abstractmethod
    def close(self) -> None:
        """Let the workers go."""
