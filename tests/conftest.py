"""Fixtures that all tests may ask for."""

from __future__ import annotations

import gc

from hypothesis import settings

from tests.backends import database_url, journal_url
from tests.examples import examples
from tests.postgres import end_shared, own_server

__all__ = ["database_url", "journal_url", "own_server"]

# A machine that is busy with other work must not fail a law.
settings.register_profile("untimed", deadline=None, max_examples=examples())
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """What was made to collect the tests stays, and need not be looked through whenever garbage is collected."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Workers of pytest-xdist do not come to `atexit`."""
    end_shared()
