"""Every example of a docstring runs as a reader would paste it: the documented name and torch at hand, no more."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import experiments
import metalr

PROMPT = re.compile(r"^\s*>>> ", flags=re.MULTILINE)


def with_examples() -> list[str]:
    """Names of the modules that have examples; nothing is imported for it but packages."""
    found = []
    for package in (metalr, experiments):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            spec = importlib.util.find_spec(module.name)
            if PROMPT.search(Path(spec.origin).read_text()):
                found.append(module.name)
    return found


@pytest.mark.parametrize("name", with_examples())
def test_examples_run_as_pasted(name, capsys):
    module = importlib.import_module(name)
    results = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        documented = test.name.removeprefix(name).split(".")[1:2]
        test.globs = {"torch": torch} | {own: getattr(module, own) for own in documented}
        results.append(doctest.DocTestRunner().run(test))
    assert not sum(result.failed for result in results), capsys.readouterr().out
    # An example that the finder cannot see, as behind a decorator that hides its function, would pass unread.
    assert sum(result.attempted for result in results) == len(PROMPT.findall(Path(module.__file__).read_text()))


def test_every_room_with_code_is_walked():
    walked = {name.split(".")[1] for name in with_examples() if name.startswith("metalr.")}
    assert {"agents", "engine", "schedules", "schedulers", "tasks", "seeding"} <= walked
