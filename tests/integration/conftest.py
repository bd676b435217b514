"""What holds at the end of every test here: the journals that it leaves are sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.journal.store import Journal
from bridge.settings import Journal as JournalSettings
from tests.backends import damages, verify
from tests.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(journal_url: str, clock: FakeClock) -> Iterator[Journal]:
    """An empty one on the test's clock, on each database."""
    opened = Journal(settings=JournalSettings(url=journal_url), clock=clock)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _sound_journals(request: pytest.FixtureRequest) -> Iterator[None]:
    """Verify the files in a test's folder when it is over. Databases are verified as they are dropped."""
    folder: Path | None = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder is not None and not damages(request):
        for journal in folder.rglob("journal.db"):
            verify(f"sqlite:///{journal}")
