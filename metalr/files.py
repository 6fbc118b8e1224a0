"""Files that are written as a whole or not at all, and folders that one process writes to at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on every system; there nothing is locked
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends and is removed when the block fails.

    A reader, a full disk or a kill meets the old file or the new one, never a part of one. The path given has the
    ending of `path`, because some writers choose a format by it.

    Args:
        path: the file to make or replace; its folder must exist.

    Example:
        with whole_file("weights.pt") as partial:
            torch.save(weights, partial)
    """
    path = Path(path)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())  # some disks refuse only here
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all; text in UTF-8 with the line ends that it has."""
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Keep other processes that ask for a folder out of it until the block ends, however the process ends.

    The lock is on the folder itself, so that no file is needed which could be left behind. A folder that is made here
    and still empty at the end is removed.

    Args:
        folder: made if it does not exist; the path of a file is left to the caller.

    Raises:
        ValueError: another process holds it.

    Example:
        with held("runs/compare"):
            append_records()
    """
    folder, found = Path(folder), Path(folder).exists()
    if found and not folder.is_dir():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
        if not found:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _locked(folder: Path) -> int | None:
    """A descriptor that locks a folder until it is closed; None where folders cannot be locked."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"got folder {folder}, to which another process is writing, expected it free: wait until that one has "
            "finished, or name another folder"
        ) from error
    except OSError:  # some network disks have no locks
        os.close(descriptor)
        return None
    return descriptor
