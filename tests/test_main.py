"""`metalr --version` and `python -m metalr`, from anywhere."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import metalr

ROOT = Path(__file__).parent.parent


def run(*arguments: str, before: str = "pass", cwd: Path) -> subprocess.CompletedProcess:
    code = f"{before}; import runpy, sys; sys.argv[1:] = {arguments}; runpy.run_module('metalr', run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


def test_the_version_needs_the_core_alone(tmp_path):
    result = run("--version", before="import sys; sys.modules['tyro'] = None", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"metalr {metalr.__version__}\n", "")


def test_the_module_is_the_command(tmp_path):
    pytest.importorskip("tyro")
    result = run("list", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "shipped controllers\n  general" in result.stdout


def test_the_command_is_the_module():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {
        "metalr": "metalr.__main__:main"
    }
