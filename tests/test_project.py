"""What the files around the package say of it: one version, one address, one set of pinned tools."""

import re
import tomllib
from pathlib import Path

import metalr

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
AROUND = ("CITATION.cff", "README.md", "mkdocs.yml", "pyproject.toml", "docs/quickstart.md")


def test_there_is_one_version():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)[1]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1]
    assert cited == newest == metalr.__version__
    assert PROJECT["dynamic"] == ["version"]


def test_there_is_one_address():
    for name in AROUND:
        assert set(re.findall(r"github\.com/([\w-]+/[\w-]+)", (ROOT / name).read_text())) == {"OWNER/metalr"}, name


def test_the_licence_and_the_authors_are_those_of_the_project():
    assert PROJECT["authors"] == [{"name": "The metalr authors"}]
    assert "The metalr authors" in (ROOT / "LICENSE").read_text()
    assert "name: The metalr authors" in (ROOT / "CITATION.cff").read_text()


def test_every_library_of_the_documentation_is_pinned():
    wanted = [re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["optional-dependencies"]["docs"]]
    assert wanted
    assert set(wanted) <= PINS.keys()


def test_the_torch_that_the_documents_name_is_the_one_that_is_tested():
    for page in ("README.md", "docs/faq.md"):
        assert re.findall(r"torch==([\d.]+)`", (ROOT / page).read_text()) == [PINS["torch"]]


def test_the_extras_that_the_documents_name_exist():
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.*")) if path.suffix != ".png"]
    groups = [group for text in texts for group in re.findall(r"(?:metalr|\.)\[([a-z,]+)\]", text)]
    named = {extra for group in groups for extra in group.split(",")}
    assert named >= {"rl", "data", "plot", "cli"}
    assert named <= PROJECT["optional-dependencies"].keys()


def test_the_workflow_and_the_hooks_call_what_people_call():
    assert "- run: bash .ci/run\n" in (ROOT / ".github/workflows/ci.yml").read_text()
    hooks = re.findall(r"entry: \.venv/bin/(.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == ["ruff check --fix", "ruff format"]
