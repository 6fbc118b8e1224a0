"""Records of the experiments: one line of strict JSON for each row, with the circumstances that it was made under.

A row keeps its circumstances for good: one that is read back and written again is not passed off as made anew.
"""

import functools
import gzip
import math
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from metalr.files import write_whole
from metalr.records import read_lines, to_line, versions

Row = dict[str, Any]

FOLDER = Path(__file__).parents[1]
# Packages that a number may depend on, beside those that are always named.
PACKAGES = (
    "dadaptation",
    "dog-optimizer",
    "gymnasium",
    "higher",
    "mechanic-pytorch",
    "mnist1d",
    "momo-opt",
    "prodigyopt",
    "schedulefree",
    "scikit-learn",
    "scipy",
    "stable-baselines3",
)


def place(name: str, *, smoke: bool, kind: Literal["records", "figures"] = "records", ending: str = "jsonl") -> Path:
    """The file of an experiment, `experiments/<kind>/<name>.<ending>` or, in a smoke run, `runs/<name>-smoke.<ending>`.

    Its folder is made.
    """
    path = Path("runs") / f"{name}-smoke.{ending}" if smoke else FOLDER / kind / f"{name}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def hardware(device: str) -> str:
    """The name of the processor or GPU behind a torch device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# Once in a process: the commit that matters is the one whose code was loaded.
_versions = functools.cache(versions)


def circumstances(device: str, packages: tuple[str, ...] = PACKAGES) -> Row:
    """Device, hardware, threads, versions and commit.

    Args:
        device: where the numbers are computed, as torch names it.
        packages: whose versions are named too, where they are installed.
    """
    threads = torch.get_num_threads()
    return {"device": device, "hardware": hardware(device), "torch_threads": threads, **_versions(*packages)}


def write(name: str, rows: Iterable[Row], *, device: str, smoke: bool) -> Path:
    """Replace the records of an experiment.

    Args:
        name: of the experiment.
        rows: each with its seed, None where nothing is random; a row with a device of its own was computed there.
        device: where the others were computed.
        smoke: see `place`.

    Returns:
        The file.

    Raises:
        ValueError: a row has no seed.
    """
    stamped = []
    for row in rows:
        if "torch" in row:  # read back from a file, with its circumstances
            stamped.append(row)
            continue
        if "seed" not in row:
            raise ValueError(f"got a row of {sorted(row)}, expected a seed too: add one, None where nothing is random")
        stamped.append({"experiment": name, **row, **circumstances(row.get("device", device))})
    return write_lines(place(name, smoke=smoke), stamped)


def write_lines(path: Path, rows: Iterable[Row]) -> Path:
    """Write rows to a file, as a whole or not at all; infinity and NaN become null, `.gz` is compressed."""
    content = "".join(map(to_line, rows)).encode()
    write_whole(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def read(path: Path) -> list[Row]:
    """The rows of a file, none if it does not exist; a loss of null is infinite."""
    rows = read_lines(path)
    return [{**row, "loss": math.inf} if row.get("loss", 0.0) is None else row for row in rows]


def recorded(name: str, *, smoke: bool) -> list[Row]:
    """The rows of an earlier run, from which an experiment resumes; none for a smoke run, which starts anew."""
    return [] if smoke else read(place(name, smoke=False))
