"""Imports point one way, and the core needs nothing but torch, numpy and safetensors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "gymnasium",
    "stable_baselines3",
    "sb3_contrib",
    "higher",
    "matplotlib",
    "optuna",
    "tyro",
    "rich",
    "sklearn",
} | {*("transformers", "lightning", "tensorboard", "joblib", "ray")}
# From the ground up: a room imports from itself and from those before it.
ROOMS = (
    *(
        "roots",
        "workers",
        "signals",
        "optimizers",
        "schedules",
        "tasks",
        "control",
        "engine",
        "schedulers",
        "learned",
        "artefacts",
    ),
    *("metalr", "compare", "reports", "envs", "agents", "cli", "experiments"),
)

LOOP = """
import sys, torch
for name in {blocked}:
    sys.modules[name] = None  # importing it now fails
import metalr
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = metalr.load_scheduler({path!r}, optimizer, horizon=40)
x = torch.randn(64, 3)
for _ in range(40):
    optimizer.zero_grad(); loss = (model(x) - x.sum(1, keepdim=True)).square().mean(); loss.backward()
    scheduler.observe(loss); optimizer.step(); scheduler.step()
print("final", loss.item())
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("room", ["envs", "agents"])
def test_a_bare_import_is_refused(room):
    result = run(f"import {room}")
    assert f"expected 'import metalr.{room}'" in result.stderr


def test_the_loop_of_the_readme_needs_torch_and_safetensors_alone(tmp_path):
    from metalr import save_controller
    from metalr.control.reference import ScheduleController
    from metalr.schedules import Linear

    path = save_controller(tmp_path / "c.safetensors", ScheduleController(Linear(), decisions=5))
    result = run(LOOP.format(blocked=sorted(HEAVY | {"numpy"}), path=str(path)))
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) < 0.5


def test_importing_metalr_imports_nothing_heavy():
    result = run(f"import sys, metalr; print(sorted({HEAVY!r} & set(sys.modules)))")
    assert result.stdout.strip() == "[]"


def room_of(path: Path) -> str:
    """The room that a file is in: a folder of `metalr/`, "roots" for the files beside them, or a top-level folder."""
    first, *rest = path.relative_to(ROOT).parts
    if first != "metalr":
        return first
    files = {"__init__.py": "metalr", "__main__.py": "cli", "cli.py": "cli"}
    return rest[0] if len(rest) > 1 else files.get(rest[0], "roots")


def imported_modules(path: Path) -> set[str]:
    """Full names of what a file imports from this project, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("metalr", "experiments")}


def room_of_module(name: str) -> str:
    first, *rest = name.split(".")
    if first == "experiments":
        return first
    if not rest:
        return "metalr"
    if rest[0] in ROOMS:
        return rest[0]
    return "roots" if (ROOT / "metalr" / f"{rest[0]}.py").is_file() else "metalr"


SOURCES = [p for room in ("metalr", "envs", "agents", "experiments") for p in sorted((ROOT / room).rglob("*.py"))]
SOURCES = [path for path in SOURCES if not any(part.is_symlink() for part in path.parents)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = room_of(path)
    upwards = {name for name in imported_modules(path) if ROOMS.index(room_of_module(name)) > ROOMS.index(room)}
    assert not upwards, f"{room} is below what it imports: {sorted(upwards)}"


def test_every_room_says_what_it_is_for_and_lists_what_it_offers():
    for folder in sorted(p for p in (ROOT / "metalr").iterdir() if p.is_dir()):
        if folder.name in ("envs", "agents", "__pycache__"):
            continue
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert text, folder
        if folder.name != "schedules":  # lists classes rather than files
            missing = [p.stem for p in folder.glob("*.py") if p.stem != "__init__" and f"\n{p.stem} " not in text]
            assert not missing, f"{folder.name}/__init__.py does not list {missing}"
