"""Every experiment answers one question in one file, says what was expected and found, and has a quick form."""

import ast
import importlib
import itertools
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("tyro")
pytest.importorskip("scipy")
pytest.importorskip("higher")
pytest.importorskip("stable_baselines3")

import tyro

from experiments.support import harness

ROOT = Path(__file__).parents[2]
SUPPORT = sorted((ROOT / "experiments" / "support").rglob("*.py"))
EXPERIMENTS = [path for path in sorted((ROOT / "experiments").glob("*.py")) if path.stem != "__init__"]
NAMES = [path.stem for path in EXPERIMENTS]


def imported(path: Path) -> set[str]:
    """Full names of the parts of `experiments` that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "experiments"}


@pytest.mark.parametrize("path", [*EXPERIMENTS, *SUPPORT], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_experiment_is_imported_by_another_file(path):
    wrong = {name for name in imported(path) if not name.startswith("experiments.support.")}
    assert not wrong, "shared code belongs to experiments/support"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_a_docstring_holds_question_command_expectation_and_finding(path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert text.splitlines()[0].endswith("?")
    assert re.search(rf"^    python -m experiments\.{path.stem}( |$)", text, re.MULTILINE), "the exact command"
    expected, found = (re.search(rf"^{word}\b", text, re.MULTILINE) for word in ("Expected", "Found"))
    assert expected is not None
    assert found is not None
    assert expected.start() < found.start()


@pytest.mark.parametrize("name", NAMES)
def test_the_options_have_a_quick_form(name):
    module = importlib.import_module(f"experiments.{name}")
    assert issubclass(module.Args, harness.Options)
    assert module.Args.__dataclass_params__.frozen
    args = tyro.cli(module.Args, args=["--smoke"])
    changed = [f.name for f in fields(args) if getattr(args.small(), f.name) != getattr(args, f.name)]
    assert args.small().smoke
    assert changed, "`small` changes nothing"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described_below_it(name):
    tree = ast.parse((ROOT / "experiments" / f"{name}.py").read_text())
    (args,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Args")
    pairs = [pair for pair in itertools.pairwise(args.body) if isinstance(pair[0], ast.AnnAssign)]
    assert pairs
    for option, text in pairs:
        described = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        assert described, f"{ast.unparse(option)} has no text below it"


def test_the_parts_of_support_are_listed():
    for folder in {path.parent for path in SUPPORT}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        parts = {path.stem for path in folder.iterdir() if path.stem not in ("__init__", "__pycache__")}
        assert {line.split("  ")[0] for line in text.splitlines()[2:]} == parts


def files() -> list[Path]:
    """Everything in `experiments/`."""
    return sorted(path for path in (ROOT / "experiments").rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_quick_form_runs_and_writes_to_runs_alone(name, tmp_path):
    before = files()
    answer = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", "--smoke"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert files() == before
