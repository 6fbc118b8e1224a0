"""The libraries that the integration tests run: skipped where one is missing, except where all must be there."""

import importlib
import os
from types import ModuleType

import pytest


def library(name: str) -> ModuleType:
    """The module `name`; skips the test where it is missing.

    Raises:
        ImportError: it is missing and METALR_REQUIRE_INTEGRATIONS is set, as `make test-integrations` does.
    """
    if not os.environ.get("METALR_REQUIRE_INTEGRATIONS"):
        return pytest.importorskip(name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"got no {name}, expected it: run `make test-integrations`, which installs every library"
        ) from error
