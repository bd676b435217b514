"""Fixtures that all tests may ask for."""

from __future__ import annotations

from tests.backends import journal_url
from tests.postgres import database_url, end_shared, own_server

__all__ = ["database_url", "journal_url", "own_server"]


def pytest_sessionfinish() -> None:
    """Workers of pytest-xdist do not come to `atexit`."""
    end_shared()
