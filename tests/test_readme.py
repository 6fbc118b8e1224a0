"""Every Python block of the README runs as it stands there, in order, with the names that its text implies."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metalr

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
NAMES = [next(iter(block.strip().splitlines()))[:60] for block in BLOCKS]

pytestmark = pytest.mark.filterwarnings("ignore:.*distutils Version classes are deprecated:DeprecationWarning")


def a_users_names() -> dict:
    """What a reader has around the first loop: a model, data, an optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    loader = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(60)]
    return {
        "metalr": metalr,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "loss_fn": torch.nn.functional.cross_entropy,
        "loader": loader,
        "num_updates": len(loader),
    }


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_a_block_runs(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), a_users_names())


def test_the_first_loop_runs_where_every_warning_is_an_error():
    """In a process of its own: nothing here has imported or silenced anything before."""
    names = (
        "import torch, metalr; torch.manual_seed(0)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))\n"
        "loader = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(60)]\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)\n"
        "loss_fn, num_updates = torch.nn.functional.cross_entropy, len(loader)\n"
    )
    command = [sys.executable, "-W", "error", "-c", names + BLOCKS[0]]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_every_file_that_it_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert not missing


def test_every_module_that_it_runs_exists():
    modules = set(re.findall(r"python -m (experiments\.\w+)", TEXT))
    assert modules
    assert all((ROOT / (module.replace(".", "/") + ".py")).is_file() for module in modules)
