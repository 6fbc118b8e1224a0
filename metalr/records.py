"""The folder of a run: a config that says which run it is, and a JSON line for each record.

A folder belongs to one run. The same run continues in it, where it was stopped; any other is refused. Records are
appended as they are made.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from metalr.files import held, write_whole

Record = dict[str, Any]

CONFIG = "config.json"
RECORDS = "records.jsonl"
CURVES = "curves.jsonl"


def versions(*more: str) -> dict[str, str]:
    """Versions that a number may depend on: Python, the libraries, and the commit where there is one.

    Args:
        more: packages whose versions are wanted too; one that is not installed is left out.
    """
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("metalr", "numpy", *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def _commit() -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    try:
        answer = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def to_line(record: Mapping[str, Any]) -> str:
    """One line of strict JSON: infinity and NaN become null."""
    return json.dumps(_plain(record), allow_nan=False, separators=(",", ":")) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_line(line: str) -> Record:
    """The record of a line; a loss of null is infinite, a metric of null is NaN."""
    record = json.loads(line)
    for key, value in record.items():
        missing = math.inf if key.endswith("_loss") else math.nan if key.endswith("_metric") else None
        if value is None:
            record[key] = missing
        elif isinstance(value, list) and missing is not None:
            record[key] = [missing if item is None else item for item in value]
    return record


def read_lines(path: Path) -> list[Record]:
    """All complete lines of a file; what a stopped process left half-written at its end is passed over.

    Raises:
        ValueError: a line is not a record.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    return [_record(line, path, number) for number, line in enumerate(lines, start=1)]


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        return from_line(line.decode())
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"got {path} with line {number} damaged ({error}), expected one JSON object in each line: delete that "
            "line, and what it held is made again"
        ) from error


def read_records(path: Path) -> list[Record]:
    """The lines of a file as a set: the first of each "cell", in order.

    Raises:
        ValueError: a line is not a record, or belongs to no cell.
    """
    found: dict[str, Record] = {}
    for number, record in enumerate(read_lines(path), start=1):
        if not isinstance(record.get("cell"), str):
            raise ValueError(
                f"got {path} with line {number} without its cell, expected one record in each line: delete that line, "
                "and what it held is made again"
            )
        found.setdefault(record["cell"], record)
    return list(found.values())


def read_curves(path: Path) -> dict[str, Record]:
    """Key -> curve of every run that has one, from a run folder."""
    return {curve["cell"]: curve for curve in read_records(path / CURVES)}


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """The config of a run's folder.

    Raises:
        ValueError: the folder holds no run of this kind.
    """
    config = _stored_config(folder)
    found = "nothing readable" if config is None else _kind(config)
    if config is None or found != kind:
        raise ValueError(
            f"got folder {folder} with {found}, expected a {kind}: name a folder that one was written to, or put back "
            f"its {CONFIG}"
        )
    return config


def open_folder(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Begin a run in a new folder, or continue it in its own. Whatever else is in a folder stays as it is.

    Args:
        folder: made if it does not exist.
        config: JSON-able, with everything that the run depends on under "settings" or beside it. "kind" says what
            sort of run it is, training if left out. "versions" are kept but may change: a bug may have been fixed.

    Returns:
        The config in the folder, with the versions that the run was begun with.

    Raises:
        ValueError: the folder holds another run, or files that belong to none.
    """
    new = json.loads(to_line(config))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"got {folder}, which is a file, expected a folder for the run: name another path")
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG, json.dumps(new, indent=2) + "\n")
        return new
    return _same_run(folder, new)


@contextmanager
def open_run(folder: Path, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """`open_folder` for as long as a block lasts, with no other process in the folder meanwhile.

    A run that fails before it has written anything leaves no config, so that the corrected one may have the folder.

    Args:
        folder: of the run.
        config: as for `open_folder`.

    Yields:
        The config in the folder.

    Raises:
        ValueError: as for `open_folder`, or another process holds the folder.
    """
    with held(folder):
        is_new = not (folder / CONFIG).exists()
        stored = open_folder(folder, config)
        try:
            yield stored
        except BaseException:
            if is_new and [path.name for path in folder.iterdir()] == [CONFIG]:
                (folder / CONFIG).unlink()
            raise


def _same_run(folder: Path, new: dict[str, Any]) -> dict[str, Any]:
    """The config in a folder that is not empty; raises ValueError if it is not of the run `new`."""
    old = _stored_config(folder)
    if old is None:
        raise ValueError(
            f"got folder {folder}, which already holds files but no run (no readable {CONFIG}), expected an empty or "
            "new folder: name another one"
        )
    if _kind(old) != _kind(new):
        raise ValueError(f"got folder {folder} of a {_kind(old)}, expected one of a {_kind(new)}: name another")
    changed = difference(_identity(old), _identity(new))
    if changed:
        shown = "; ".join(sentence.removeprefix("settings.") for sentence in changed[:4])
        raise ValueError(
            f"got folder {folder} of a different run (changed: {shown}), expected the same settings to continue it: "
            f"name another folder, or repeat the settings in its {CONFIG}"
        )
    return old


def _stored_config(folder: Path) -> dict[str, Any] | None:
    """The config in a folder; None if there is none that can be read."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and "settings" in config else None


def _kind(config: Mapping[str, Any]) -> str:
    return config.get("kind", "training")


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "versions"}


class RunFolder:
    """The records of one run of something, on disk.

    Args:
        path: made if it does not exist; see `open_folder`.
        kind: what the run is, for example "comparison".
        settings: everything that the records depend on, JSON-able.

    Attributes:
        records: of all finished runs, in the order of writing.
        done: their keys (the field "cell" of each record).
        config: kind, settings, and the versions that the run was begun with.

    Raises:
        ValueError: the folder holds a different run, or files that are no run at all.
    """

    def __init__(self, path: str | Path, kind: str, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.config = open_folder(self.path, _config(kind, settings))
        for name in (RECORDS, CURVES):
            _drop_torn_line(self.path / name)
        self.records = read_records(self.path / RECORDS)
        self.done = {record["cell"] for record in self.records}
        self._curves = set(read_curves(self.path))

    @classmethod
    @contextmanager
    def held(cls, path: str | Path, kind: str, settings: Mapping[str, Any]) -> "Iterator[RunFolder]":
        """A run folder for as long as a block lasts, with no other process in it meanwhile; see `open_run`."""
        with open_run(Path(path), _config(kind, settings)):
            yield cls(path, kind, settings)

    def append(self, records: Iterable[Record], curves: Iterable[Record] = ()) -> None:
        """Write what is not there yet, to the disk and not just to its cache."""
        fresh_curves = [curve for curve in curves if curve["cell"] not in self._curves]
        fresh = [record for record in records if record["cell"] not in self.done]
        # Curves first: a record says that its run is finished, so nothing of the run may be missing then.
        _append(self.path / CURVES, fresh_curves)
        _append(self.path / RECORDS, fresh)
        self._curves |= {curve["cell"] for curve in fresh_curves}
        self.records += [from_line(to_line(record)) for record in fresh]
        self.done |= {record["cell"] for record in fresh}


def _config(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "settings": settings, "versions": versions()}


def difference(old: Any, new: Any, name: str = "") -> list[str]:
    """One short sentence for each leaf in which two JSON values differ.

    Example:
        >>> difference({"seed": 0, "tasks": [{"horizon": 20}]}, {"seed": 1, "tasks": [{"horizon": 40}]})
        ['seed was 0, is 1', 'tasks.0.horizon was 20, is 40']
    """
    before, after = _parts(old), _parts(new)
    if before is None or after is None:
        return [] if old == new else [f"{name} was {_short(old)}, is {_short(new)}"]
    return [
        sentence
        for key in sorted({*before, *after})
        for sentence in difference(before.get(key), after.get(key), f"{name}.{key}".strip("."))
    ]


def _parts(value: Any) -> dict[str, Any] | None:
    """The named parts of an object or of a list of objects; None for anything else, which is a leaf."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return {str(index): item for index, item in enumerate(value)}
    return value if isinstance(value, dict) else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _append(path: Path, records: list[Record]) -> None:
    if not records:
        return
    size = path.stat().st_size if path.exists() else None
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(map(to_line, records)))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a full disk must not leave half a line
        if size is None:
            path.unlink(missing_ok=True)
        else:
            os.truncate(path, size)
        raise


def _drop_torn_line(path: Path) -> None:
    """A process that was killed while it wrote leaves half a line, onto which the next would be glued."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
