"""What is built from a checkout: the wheel, the source archive, the editable install."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")  # torch brings it

ROOT = Path(__file__).parent.parent
FOLDERS = (".ci", ".github", "agents", "docs", "envs", "experiments", "metalr", "tests")
FILES = (
    *(".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in"),
    *("Makefile", "README.md", "constraints.txt", "mkdocs.yml", "pyproject.toml"),
)

USE = """
import metalr, metalr.agents.ppo, metalr.envs, torch
optimizer = torch.optim.SGD(torch.nn.Linear(3, 1).parameters(), lr=0.1)
metalr.load_scheduler("general", optimizer, horizon=200)
print(metalr.__file__, metalr.agents.ppo.__file__)
"""

TYPES = """
from typing import reveal_type
import metalr
from metalr.agents.ppo import train_ppo
from metalr.envs.transition import EnvConfig
reveal_type(metalr.load_scheduler)
reveal_type(train_ppo)
reveal_type(EnvConfig().decisions)
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints, away from what this process sees through its own variables."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=inherited | environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy, links and all, that a build may litter."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(kind: str, checkout: Path, folder: Path) -> Path:
    """Call the build backend as pip does, without its isolated environment."""
    run(sys.executable, "-c", f"from setuptools.build_meta import *; build_{kind}({str(folder)!r})", cwd=checkout)
    (built,) = folder.iterdir()
    return built


def files_under(folder: Path, *names: str) -> set[str]:
    """Paths relative to a folder, also behind links."""
    walks = [walk for name in names for walk in os.walk(folder / name, followlinks=True)]
    found = {Path(place, name) for place, folders, files in walks for name in files if "__pycache__" not in place}
    return {str(path.relative_to(folder)) for path in found}


def test_the_wheel_holds_the_package_and_nothing_else(checkout, tmp_path):
    with zipfile.ZipFile(build("wheel", checkout, tmp_path)) as wheel:
        names = {name for name in wheel.namelist() if not name.startswith("metalr-")}
        assert names == files_under(checkout, "metalr")
        assert {"metalr/py.typed", "metalr/envs/lr_control.py", "metalr/agents/ppo.py"} <= names
        assert any(name.endswith(".safetensors") for name in names)
        assert all(wheel.read(name) == (checkout / name).read_bytes() for name in names)


def test_an_installed_wheel_works_elsewhere(checkout, tmp_path):
    (tmp_path / "wheel").mkdir()
    (tmp_path / "elsewhere").mkdir()
    with zipfile.ZipFile(build("wheel", checkout, tmp_path / "wheel")) as wheel:
        wheel.extractall(tmp_path / "installed")
    places = run(sys.executable, "-c", USE, cwd=tmp_path / "elsewhere", PYTHONPATH=str(tmp_path / "installed")).split()
    assert all(Path(place).is_relative_to(tmp_path / "installed") for place in places)


@pytest.fixture(scope="module")
def unpacked(checkout, tmp_path_factory) -> Path:
    """The source archive, as its reader has it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(build("sdist", checkout, tmp_path_factory.mktemp("sdist"))) as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


def test_the_source_archive_holds_all_of_the_checkout(checkout, unpacked):
    found = {name for name in files_under(unpacked, "") if not name.startswith("metalr.egg-info/")}
    assert found - {"PKG-INFO", "setup.cfg"} == files_under(checkout, *FOLDERS) | set(FILES)
    assert not [path for path in unpacked.rglob("*") if path.is_symlink()]


@pytest.mark.slow
def test_the_tests_run_in_the_source_archive(unpacked):
    collected = run(sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", cwd=unpacked)
    assert int(re.search(r"(\d+) tests collected", collected)[1]) > 1000
    run(sys.executable, "-m", "pytest", "tests/test_imports.py", "tests/test_readme.py", "tests/signals", cwd=unpacked)


@pytest.fixture(scope="module")
def editable(checkout, tmp_path_factory) -> Path:
    """The Python of an environment where the checkout is installed for editing, beside the libraries of this one."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    with zipfile.ZipFile(build("editable", checkout, tmp_path_factory.mktemp("editable"))) as wheel:
        wheel.extractall(packages)
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin" / "python"


def test_an_editable_install_is_a_plain_path(checkout, editable, tmp_path):
    (entry,) = editable.parents[1].glob("lib/python*/site-packages/__editable__*")
    assert entry.read_text().split() == [str(checkout)]
    assert all(Path(place).is_relative_to(checkout) for place in run(editable, "-c", USE, cwd=tmp_path).split())


@pytest.mark.slow
def test_a_type_checker_follows_an_editable_install(editable, tmp_path):
    (tmp_path / "user.py").write_text(TYPES)
    shown = run(sys.executable, "-m", "mypy", "--python-executable", editable, "user.py", cwd=tmp_path)
    scheduler, training, decisions = re.findall('Revealed type is "(.*)"', shown)
    assert scheduler.endswith("-> metalr.schedulers.learned_lr.LearnedLR")
    assert training.endswith("-> metalr.control.policy.PolicyController")
    assert decisions in ("int", "builtins.int")
