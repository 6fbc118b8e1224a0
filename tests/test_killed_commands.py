"""`train`, `compare` and `export`, killed at twenty random moments each: nothing is lost and nothing doubled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from metalr.artefacts.controller_file import load_card

ROOT = Path(__file__).parent.parent
KILLS = 20

pytestmark = pytest.mark.slow


def kill(kind: str, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "tests.support.killed_commands", kind, str(folder), str(KILLS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    found = result.stdout.split()
    print(kind, *found)
    assert len(found) == KILLS
    return found


def test_compare(tmp_path):
    found = [int(word) for word in kill("compare", tmp_path)]
    assert found == sorted(found)  # no record was lost
    assert found[0] > 0
    lines = {name: (tmp_path / name / "records.jsonl").read_text().splitlines() for name in ("whole", "killed")}
    assert lines["killed"] == lines["whole"]  # to the bit, none doubled
    curves = {name: (tmp_path / name / "curves.jsonl").read_text().splitlines() for name in ("whole", "killed")}
    assert curves["killed"] == curves["whole"]
    assert len({json.loads(line)["cell"] for line in lines["killed"]}) == len(lines["killed"])


def test_train(tmp_path):
    kill("train", tmp_path)
    killed, whole = (load_card(tmp_path / name / "controller.safetensors")["about"] for name in ("killed", "whole"))
    assert killed["decisions_trained"] == whole["decisions_trained"]
    steps = [step for step, _ in killed["learning_curve"]]
    assert steps == sorted(set(steps))


def test_export(tmp_path):
    assert set(kill("export", tmp_path)) <= {"-", kill_free(tmp_path)}
    assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def kill_free(folder: Path) -> str:
    return str(len(load_card(folder / "whole.safetensors")["about"]))
