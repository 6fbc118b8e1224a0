"""The libraries that the clients' tests run: skipped where one is missing, except where all must be there."""

import importlib
import os
from types import ModuleType

import pytest


def client(name: str) -> ModuleType:
    """The module `name`; skips the test where it is missing.

    Raises:
        ImportError: it is missing and METALR_REQUIRE_CLIENTS is set, as `make test-clients` does.
    """
    if not os.environ.get("METALR_REQUIRE_CLIENTS"):
        return pytest.importorskip(name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"got no {name}, expected every client: run `make test-clients`, which installs them"
        ) from error
