"""The notebook runs from its first cell to its last, in a fresh folder, and its controller is worth having."""

import json
from pathlib import Path
from typing import Any

import pytest

import metalr

pytest.importorskip("stable_baselines3")
pytest.importorskip("matplotlib")

NOTEBOOK = Path(__file__).parent.parent / "docs" / "own_model.ipynb"
pytestmark = pytest.mark.filterwarnings("ignore:.*distutils Version classes are deprecated:DeprecationWarning")


def test_from_a_model_of_ones_own_to_a_controller_and_its_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell["outputs"] for cell in cells if cell["cell_type"] == "code"] == [[]] * 6
    for index, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {index}", "exec"), names)
    assert all(ours < theirs for ours, theirs in names["losses"].values())
    assert metalr.load_card("runs/spirals/controller.safetensors")["about"]["agent"] == "ppo"
    assert "<html" in Path("runs/spirals-compared/report.html").read_text()
    assert "ours" in capsys.readouterr().out
