"""Commands of the command line that are killed at random moments and given again. Run by `test_killed_commands`.

    python -m tests.support.killed_commands train|compare|export FOLDER KILLS

Prints what the folder held at each kill. FOLDER/whole is of a command that was left alone, FOLDER/killed of the others.
"""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from metalr.agents.sb3_callbacks import CHECKPOINT
from metalr.artefacts.controller_file import load_card
from metalr.cli import main as cli

_TASK = ["--task", "teacher-student", "--horizon", "20"]
_TRAIN = ["train", *_TASK, "--decisions", "5", "--num-envs", "8", "--episodes", "4000"]
_COMPARE = ["compare", *_TASK, "--trials", "10", "--tuning-seeds", "40", "--report-seeds", "40"]
_COMPARE += ["--contenders", "constant", "cosine", "wsd", "step", "linear", "exponential", "--factors", "0.1", "1"]


def command(kind: str, folder: Path, name: str) -> list[str]:
    if kind == "export":
        return ["export", "general", str(folder / f"{name}.safetensors")]
    if kind == "train" and (folder / name / "config.json").exists():
        return ["train", "--resume", str(folder / name)]
    return [*(_TRAIN if kind == "train" else _COMPARE), "--folder", str(folder / name)]


def begun(kind: str, folder: Path) -> bool:
    """Whether there is something to lose."""
    if kind == "export":
        return True
    return (folder / "killed" / (CHECKPOINT if kind == "train" else "records.jsonl")).exists()


def held(kind: str, folder: Path) -> str:
    """What there is, in a word; it must always be readable."""
    if kind == "export":
        path = folder / "killed.safetensors"
        found = str(len(load_card(path)["about"])) if path.exists() else "-"
        path.unlink(missing_ok=True)
        return found
    if kind == "train":
        return "trained" if (folder / "killed" / "controller.safetensors").exists() else "checkpoint"
    return str((folder / "killed" / "records.jsonl").read_bytes().count(b"\n"))


def child(arguments: list[str]) -> int:
    """A process that runs a command; forked, so that it need not import everything anew."""
    pid = os.fork()
    if pid:
        return pid
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        cli.main(arguments)
        os._exit(0)


def killed_once(kind: str, folder: Path, delay: float) -> str:
    """Give the command and kill it `delay` seconds after there is something to lose."""
    pid = child(command(kind, folder, "killed"))
    while not begun(kind, folder):
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            raise SystemExit(f"got the {kind} command ended before there was anything to lose, expected it to run")
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return held(kind, folder)


def main() -> None:
    kind, folder, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    moments = random.Random(kind)
    longest = {"train": 6.0, "compare": 1.5, "export": 0.3}[kind]
    print(*(killed_once(kind, folder, moments.uniform(0.0, longest)) for _ in range(kills)))
    for name in ("killed", "whole"):
        _, status = os.waitpid(child(command(kind, folder, name)), 0)
        if status:
            raise SystemExit(f"got exit status {status} of the {name} command")


if __name__ == "__main__":
    main()
