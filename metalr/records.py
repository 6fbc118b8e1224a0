"""A folder of tidy records: one JSON line per finished run, and a config that says what the folder is.

Append-only and written as runs finish, so that a run that was stopped goes on where it stood. Knows nothing of
what the records mean.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]

CONFIG = "config.json"
RECORDS = "records.jsonl"
CURVES = "curves.jsonl"


def versions(*more: str) -> dict[str, str]:
    """What a number may depend on beside the config: Python, the libraries, and the commit where there is one.

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
    """All complete lines of a file; what a stopped process left half-written at its end is passed over."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [from_line(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def read_curves(path: Path) -> dict[str, Record]:
    """Key -> curve of every run that has one, from a run folder."""
    return {curve["cell"]: curve for curve in read_lines(path / CURVES)}


def read_config(path: Path, kind: str) -> dict[str, Any]:
    """What config.json says.

    Raises:
        ValueError: the folder holds no run of this kind.
    """
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        found = config["kind"], config["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        found = ("nothing readable", None)
    if found[0] != kind:
        raise ValueError(f"got folder {path} with {found[0]}, expected a {kind}: name a folder that one was written to")
    return config


class RunFolder:
    """The records of one run of something, on disk.

    A folder that already holds the same run is gone on with; one that holds anything else is refused.

    Args:
        path: made if it does not exist.
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
        config: dict[str, Any] = {
            "kind": kind,
            "settings": json.loads(to_line(settings)),
            "versions": versions(),
        }
        if self.path.exists():
            self._check(config)
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / CONFIG).exists():
            _replace(self.path / CONFIG, json.dumps(config, indent=2) + "\n")
        self.config = read_config(self.path, kind)
        for name in (RECORDS, CURVES):
            _drop_torn_line(self.path / name)
        self.records = read_lines(self.path / RECORDS)
        self.done = {record["cell"] for record in self.records}
        self._curves = {curve["cell"] for curve in read_lines(self.path / CURVES)}

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

    def _check(self, config: Mapping[str, Any]) -> None:
        if not self.path.is_dir():
            raise ValueError(f"got {self.path}, which is a file, expected a folder for the run: name another path")
        if not any(self.path.iterdir()):
            return
        try:
            old = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
            kind, settings = old["kind"], old["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"got folder {self.path}, which holds files but no run, expected an empty or new folder: "
                "name another one"
            ) from None
        if kind != config["kind"]:
            raise ValueError(f"got folder {self.path} of a {kind}, expected one of a {config['kind']}: name another")
        changed = difference(settings, config["settings"])
        if changed:
            raise ValueError(
                f"got folder {self.path} of a different run (changed: {'; '.join(changed[:4])}), expected the same "
                "settings to go on with it: name another folder, or repeat the settings in its config.json"
            )


def difference(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, one short sentence for each leaf.

    Example:
        >>> difference({"seed": 0}, {"seed": 1})
        ['seed was 0, is 1']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            sentence
            for key in sorted({*old, *new})
            for sentence in difference(old.get(key), new.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if old == new else [f"{name} was {_short(old)}, is {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _append(path: Path, records: list[Record]) -> None:
    if not records:
        return
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(map(to_line, records)))
        file.flush()
        os.fsync(file.fileno())


def _drop_torn_line(path: Path) -> None:
    """A process that was killed while it wrote leaves half a line, onto which the next would be glued."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            with path.open("r+b") as file:
                file.truncate(whole)


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
