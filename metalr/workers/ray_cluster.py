"""Units on the nodes of a Ray cluster."""

import logging
import pickle
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from metalr.workers.engine import Engine
from metalr.workers.in_worker import do

# Units on the way to a cluster for each of its workers, so that none waits for its next one.
_AHEAD = 2
# Seconds between two looks at the size of a cluster, to which nodes may be added.
_LOOK = 5.0


class RayCluster(Engine):
    """The cores, or GPUs, of a Ray cluster."""

    def __init__(self, address: str, gpus: bool) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError("a cluster needs the package 'ray': pip install 'metalr[cluster]'") from error
        self._ray = ray
        self._connected = not ray.is_initialized()
        if self._connected:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        # A lost unit is tried again by `Work`, for both engines alike.
        self._task = ray.remote(num_cpus=1, num_gpus=int(gpus), max_retries=0)(do)
        self._resource = "GPU" if gpus else "CPU"
        self._size, self._looked = 0, -_LOOK

    def size(self) -> int:
        if time.monotonic() - self._looked > _LOOK:
            self._size = int(self._ray.cluster_resources().get(self._resource, 0))
            self._looked = time.monotonic()
        return self._size

    def room(self) -> int:
        return _AHEAD * max(self.size(), 1)

    def share(self, content: bytes) -> Callable[[], Any]:
        return partial(_from_ray, self._ray.put(content))

    def start(self, name: str | None, fetch: Callable[[], Any] | None, call: bytes) -> "Future[bytes]":
        return self._task.remote(name, fetch, call).future()

    def stop(self, futures: Sequence["Future[bytes]"]) -> None:
        for future in futures:
            self._ray.cancel(future.object_ref, force=True)  # type: ignore[attr-defined]

    def close(self) -> None:
        if self._connected:
            self._ray.shutdown()


def _knock(address: str) -> None:
    """Raise ConnectionError at once where nobody answers; Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if address.startswith("ray://") or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise ConnectionError(
            f"got cluster {address!r}, where nobody answers ({error}), expected host:port of a running one: start it "
            "with `ray start --head`, which prints the address"
        ) from error


def _from_ray(reference: Any) -> Any:
    import ray

    return pickle.loads(ray.get(reference))
