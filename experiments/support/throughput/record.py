"""The throughput benchmark's record: rows that survive a kill, a failure of one of them, and another sitting."""

import gc
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from experiments.support.records import read, write_lines


class Record:
    """The rows on disk, whole after each of them.

    Args:
        path: of the file.
        common: circumstances and settings; rows of other ones are left out from the first new row on.
    """

    def __init__(self, path: Path, common: dict[str, Any]) -> None:
        self.path = path
        self.common = common
        # A commit changes with every word of the documentation; whoever changes the engine says --fresh.
        same = {key: value for key, value in common.items() if key != "commit"}
        self.rows = [row for row in read(path) if all(row.get(key) == value for key, value in same.items())]

    def has(self, key: dict[str, Any]) -> bool:
        """Whether a row was measured and did not fail."""
        return any("failed" not in row for row in self.rows if key.items() <= row.items())

    def put(self, row: dict[str, Any]) -> None:
        """Add a row, instead of an earlier one of the same thing, and write the file."""
        key = {name: row[name] for name in ("what", "model", "optimizer", "num_runs", "compiled") if name in row}
        self.rows = [old for old in self.rows if not key.items() <= old.items()]
        self.rows.append({**row, **self.common})
        for each in self.rows:
            self._relate(each)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(self.path, self.rows)

    def _relate(self, row: dict[str, Any]) -> None:
        """Where the hardware's limits are known, say how far from them the engine is."""
        limits = next((r for r in self.rows if r["what"] == "limits" and "failed" not in r), None)
        if limits and row.get("flops_per_step"):
            seconds = (
                row["flops_per_step"] / limits["matmul_flops_per_s"],
                row["bytes_per_step"] / limits["copy_bytes_per_s"],
            )
            row["limit_steps_per_s"] = 1.0 / max(seconds)
            row["of_limit"] = row["steps_per_s"] / row["limit_steps_per_s"]


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread when the time is up, where the system has that signal; 0 for no limit."""
    if not seconds or not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_: Any) -> None:
        raise TimeoutError(f"not ready after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measured(key: dict[str, Any], measure: Callable[[], dict[str, Any]], seconds: int) -> dict[str, Any]:
    """A row: its key, its numbers and what the engine had to give up; or the reason why there are none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with time_limit(seconds):
                found = measure()
        except Exception as error:  # whatever it is, the other rows are to be had
            found = {"failed": f"{type(error).__name__}: {error}"[:500]}
    gc.collect()  # graphs and their memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    notes = [str(warning.message)[:500] for warning in caught if issubclass(warning.category, RuntimeWarning)]
    return {**key, **found, **({"notes": notes} if notes else {})}
