"""A new, empty journal on each database that a journal may be kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from bridge.journal import versions
from tests.postgres import fresh_database, shared


@contextmanager
def sqlite(folder: Path) -> Iterator[str]:
    url = f"sqlite:///{folder}/journal.db"
    versions.prepare(url)
    yield url


@contextmanager
def postgresql(_folder: Path) -> Iterator[str]:
    url = fresh_database()
    yield url
    shared().drop(url)


BACKENDS: dict[str, Callable[[Path], AbstractContextManager[str]]] = {"sqlite": sqlite, "postgresql": postgresql}


@pytest.fixture(params=list(BACKENDS))
def journal_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What `journal.url` says, once for each."""
    with BACKENDS[request.param](tmp_path) as made:
        yield made
