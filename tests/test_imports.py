"""Imports point one way, and the core needs nothing but torch, numpy and safetensors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"gymnasium", "stable_baselines3", "sb3_contrib", "higher", "matplotlib", "optuna", "tyro", "rich", "sklearn"}
RANK = {"metalr": 0, "envs": 1, "agents": 2, "experiments": 3}

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
    from metalr.controllers import ScheduleController
    from metalr.schedules import Linear

    path = save_controller(tmp_path / "c.safetensors", ScheduleController(Linear(), decisions=5))
    result = run(LOOP.format(blocked=sorted(HEAVY | {"numpy"}), path=str(path)))
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) < 0.5


def test_importing_metalr_imports_nothing_heavy():
    result = run(f"import sys, metalr; print(sorted({HEAVY!r} & set(sys.modules)))")
    assert result.stdout.strip() == "[]"


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            first, *rest = name.split(".")
            if first == "metalr":
                rooms.add(rest[0] if rest and rest[0] in RANK else "metalr")
            elif first == "experiments":
                rooms.add(first)
    return rooms


@pytest.mark.parametrize("room", RANK)
def test_imports_point_one_way(room):
    for path in sorted((ROOT / room).rglob("*.py")):
        inside_link = any(part.is_symlink() for part in path.parents)
        if inside_link or path.name == "cli.py":
            continue
        upwards = {other for other in imported_rooms(path) if RANK[other] > RANK[room]}
        assert not upwards, f"{path.name} imports {upwards}"
