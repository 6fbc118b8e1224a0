"""Units in processes of this machine."""

import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from metalr.workers.engine import Engine
from metalr.workers.in_worker import do


def new_process() -> Any:
    """An executor of one local process, which starts with its first call.

    Raises:
        ImportError: joblib is missing.
    """
    try:
        from joblib.externals.loky import ProcessPoolExecutor
    except ImportError as error:
        raise ImportError("several workers need the package 'joblib': pip install 'metalr[cluster]'") from error
    return ProcessPoolExecutor(1, initializer=_follow, initargs=(os.getpid(),), env={"OMP_NUM_THREADS": "1"})


class _Slot:
    """A local process, and the last unit that it was given. One that died is replaced.

    An executor for each process rather than one for all: a process that dies takes a whole executor with it.
    """

    def __init__(self) -> None:
        self.executor = new_process()
        self.future: Future[bytes] | None = None

    @property
    def free(self) -> bool:
        return self.future is None or self.future.done()

    def start(self, *arguments: Any) -> "Future[bytes]":
        if self.future is not None and self.future.exception() is not None:
            self.renew()
        future: Future[bytes] = self.executor.submit(do, *arguments)
        self.future = future
        return future

    def renew(self) -> None:
        self.close()
        self.executor, self.future = new_process(), None

    def close(self) -> None:
        self.executor.shutdown(wait=True, kill_workers=not self.free)


class LocalProcesses(Engine):
    """Local processes."""

    def __init__(self, count: int) -> None:
        self._slots = [_Slot() for _ in range(count)]
        self._folder = TemporaryDirectory(prefix="metalr-")
        self._file_names = itertools.count()

    def size(self) -> int:
        return len(self._slots)

    def room(self) -> int:
        return len(self._slots)

    def share(self, content: bytes) -> Callable[[], Any]:
        path = Path(self._folder.name) / str(next(self._file_names))
        path.write_bytes(content)
        return partial(_from_file, path)

    def forget(self, fetch: Callable[[], Any]) -> None:
        fetch.args[0].unlink()  # type: ignore[attr-defined]

    def start(self, name: str | None, fetch: Callable[[], Any] | None, call: bytes) -> "Future[bytes]":
        return next(slot for slot in self._slots if slot.free).start(name, fetch, call)

    def stop(self, futures: Sequence["Future[bytes]"]) -> None:
        for slot in self._slots:
            if slot.future in futures:
                slot.renew()

    def close(self) -> None:
        for slot in self._slots:
            slot.close()
        self._folder.cleanup()


def _from_file(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def _follow(caller: int) -> None:
    """Leave Ctrl-C to the caller, and end with it: a local worker would wait forever for one that was killed."""

    def watch() -> None:
        while os.getppid() == caller:
            time.sleep(1.0)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
