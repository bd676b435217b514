"""A new, empty journal on each database that a journal may be kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from bridge.journal.database import on_postgresql
from bridge.journal.postgresql import versions
from bridge.journal.sqlite import trouble
from bridge.journal.sqlite.files import sqlite_path
from tests.empty_journal import prepare
from tests.postgres import fresh_database, shared


def verify(url: str) -> None:
    """Fail, with what is wrong, unless what must hold in this journal does."""
    assert (versions.verify(url) if on_postgresql(url) else trouble.verify(sqlite_path(url))) == []


@contextmanager
def sqlite(folder: Path) -> Iterator[str]:
    url = f"sqlite:///{folder}/journal.db"
    prepare(url)
    yield url


@contextmanager
def postgresql(_folder: Path) -> Iterator[str]:
    url = fresh_database()
    yield url
    shared().drop(url)


BACKENDS: dict[str, Callable[[Path], AbstractContextManager[str]]] = {"sqlite": sqlite, "postgresql": postgresql}


@pytest.fixture(params=list(BACKENDS))
def journal_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What `journal.url` says, once for each; verified after the test."""
    yield from _verified(request, BACKENDS[request.param](tmp_path))


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The same on PostgreSQL only."""
    yield from _verified(request, postgresql(tmp_path))


def _verified(request: pytest.FixtureRequest, journal: AbstractContextManager[str]) -> Iterator[str]:
    with journal as url:
        yield url
        if not damages(request):
            verify(url)


def damages(request: pytest.FixtureRequest) -> bool:
    """Whether the test damages its journal on purpose."""
    return request.node.get_closest_marker("damages") is not None
