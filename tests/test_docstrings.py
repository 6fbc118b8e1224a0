"""Every example of a docstring runs as a reader would paste it, with the documented name and torch at hand, no more.

The linter sees which docstrings are missing, except those of methods, which may inherit theirs: a test here sees that.
"""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import experiments
import metalr

PROMPT = re.compile(r"^\s*>>> ", flags=re.MULTILINE)
# Modules that cannot be imported where these libraries are missing; the integration tests run where they are not.
OF_LIBRARIES = {
    "metalr.schedulers.huggingface_callback": "transformers",
    "metalr.schedulers.lightning_callback": "lightning",
}


def modules(package) -> list[str]:
    """Names of the modules of a package; nothing is imported for it but packages."""
    return [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]


def has_examples(name: str) -> bool:
    return PROMPT.search(Path(importlib.util.find_spec(name).origin).read_text()) is not None


WITH_EXAMPLES = [name for package in (metalr, experiments) for name in modules(package) if has_examples(name)]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
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
    walked = {name.split(".")[1] for name in WITH_EXAMPLES if name.startswith("metalr.")}
    assert {"agents", "engine", "schedules", "schedulers", "tasks", "seeding"} <= walked


def undocumented(name: str) -> list[str]:
    """Public methods and properties of a module's classes that have no docstring, not even one of a base class."""
    library = OF_LIBRARIES.get(name)
    if library is not None and importlib.util.find_spec(library) is None:
        return []
    found = []
    for cls in vars(importlib.import_module(name)).values():
        if inspect.isclass(cls) and cls.__module__ == name and not cls.__name__.startswith("_"):
            public = [key for key in vars(cls) if not key.startswith("_") and key not in inspect.get_annotations(cls)]
            methods = [key for key in public if not inspect.isclass(getattr(cls, key))]
            found += [f"{name}.{cls.__name__}.{key}" for key in methods if not inspect.getdoc(getattr(cls, key))]
    return found


def test_every_public_method_is_documented():
    assert not [method for name in modules(metalr) for method in undocumented(name)]
