"""Files that are written as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
