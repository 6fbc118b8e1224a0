"""Units for the tests of `metalr.workers`, in a module that workers can import too."""

import os
import signal
import time
from pathlib import Path

import torch


def add(shared: torch.Tensor, number: int) -> tuple[torch.Tensor, int, int]:
    """The sum, the process and its threads; later numbers are faster."""
    time.sleep(0.02 * (6 - number) if number < 6 else 0.0)
    return shared + number, os.getpid(), torch.get_num_threads()


def identity(shared: list, number: int) -> tuple[int, int]:
    """Process and identity of what is shared."""
    time.sleep(0.05)
    return os.getpid(), id(shared)


def fragile(folder: Path, number: int) -> int:
    """1 dies once, 2 raises an error once, 3 raises one always, 4 dies always; each try leaves a file."""
    tries = len(list(folder.glob(f"{number}-*")))
    (folder / f"{number}-{tries}").touch()
    if (number == 1 and tries == 0) or number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if (number == 2 and tries == 0) or number == 3:
        raise ValueError(f"no {number}")
    return number


def append(held: list, number: int) -> int:
    """The length of what is held, with a number more."""
    held.append(number)
    return len(held)


def die(held: list) -> None:
    """End the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    """Make nothing."""
    raise ValueError("got nothing")


def wait_long(folder: Path, number: int) -> None:
    """Leave the process's number and wait for a minute."""
    (folder / str(os.getpid())).touch()
    time.sleep(60.0)


def visible_gpus() -> str | None:
    """The GPUs that this process may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
