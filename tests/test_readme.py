"""The first loop, the commands and the modules that the README names."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import BLOCKS, PAGES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
CLI = re.findall(r"^(metalr .*?)(?:  +#.*)?$", TEXT, flags=re.MULTILINE)


def test_the_first_loop_runs_where_every_warning_is_an_error(tmp_path):
    """In a process of its own: nothing here has imported or silenced anything before."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{BLOCKS[0].text}"
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_small_torch_comes_before_the_first_install_and_a_checkout_is_installed_by_the_first_command(page):
    """A person pastes the first command; what follows it comes too late."""
    text = (ROOT / page).read_text()
    (first, *_) = re.finditer(r"^pip install (.*)$", text, flags=re.MULTILINE)
    assert "CPU" in text[: first.start()]
    assert first[1] == '".[rl,data,plot,cli]"'


def test_the_readme_names_the_agents_of_the_command_line():
    pytest.importorskip("stable_baselines3")
    from metalr import FAMILIES
    from metalr.agents.run_folder import AGENTS

    assert all(re.search(rf"\b{name}\b", TEXT, flags=re.IGNORECASE) for name in AGENTS)
    assert "metalr train --agent clone" in TEXT
    assert set(re.findall(r"--family (\w+)", TEXT)) == {"small"} <= FAMILIES.keys()


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tyro")
    pytest.importorskip("stable_baselines3")
    from metalr.cli import main as cli

    monkeypatch.chdir(tmp_path)
    assert len(CLI) >= 5
    for command in CLI:
        cli.main(shlex.split(command)[1:])
        assert capsys.readouterr().out
    assert (tmp_path / "digits.safetensors").is_file()
    assert (tmp_path / "runs" / "compare" / "report.html").is_file()


def test_every_module_that_is_run_exists():
    modules = {module for page in PAGES for module in re.findall(r"python -m (experiments\.\w+)", page.read_text())}
    assert len(modules) > 10
    assert all((ROOT / (module.replace(".", "/") + ".py")).is_file() for module in modules)


def test_every_make_target_exists():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^make ([\w-]+)", TEXT + (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE))
    assert len(named) > 5
    assert named <= targets
