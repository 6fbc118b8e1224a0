"""The libraries of the integration tests: a missing one skips its tests, unless all are required."""

import importlib
import os
from types import ModuleType

import pytest


def library(name: str) -> ModuleType:
    """The module `name`; skips the test if it is missing.

    Raises:
        ImportError: it is missing although METALR_REQUIRE_INTEGRATIONS is set, as `make test-integrations` does.
    """
    if not os.environ.get("METALR_REQUIRE_INTEGRATIONS"):
        return pytest.importorskip(name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"got no {name}, expected it: run `make test-integrations`, which installs every library"
        ) from error
