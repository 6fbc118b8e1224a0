"""A deadlock fails its test instead of blocking the test run for ever."""

import time

import pytest

from tests.integrations.ranks import on_ranks


def one_never_ends(rank):
    time.sleep(3600 if rank else 0)


def test_processes_that_wait_for_ever_are_killed():
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="wait for each other"):
        on_ranks(one_never_ends, limit=2.0)
    assert time.monotonic() - start < 60.0
