"""Journals with a backlog, made once and copied for each use."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from bridge.journal import versions
from bridge.journal.store import Journal
from bridge.model import Clock, PropertyUpdate, SystemClock
from bridge.settings import Journal as JournalSettings
from tests.bench.crm import State
from tests.builders import event, key

PROPERTIES = 8
#: Events of one transaction.
STEP = 1_000


def values(number: int) -> dict[str, str]:
    """What record `c<number>` is to hold."""
    return {f"p{place}": f"v{number}" for place in range(PROPERTIES)}


def expected(records: int) -> State:
    """What the CRM holds once the backlog is delivered."""
    return {f"c{number}": values(number) for number in range(records)}


@cache
def filled(records: int) -> Path:
    """A folder with such a journal, which all rows of a run share: copy it before use."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return fill(folder, records)


def fill(folder: Path, records: int) -> Path:
    """A SQLite journal in that folder, with a backlog; returns the folder."""
    fill_journal(f"sqlite:///{folder}/journal.db", records)
    return folder


def fill_journal(url: str, records: int) -> None:
    """Append one event with 8 properties for each of so many distinct records."""
    versions.prepare(url)
    with opened(url, SystemClock()) as journal:
        for at in range(0, records, STEP):
            updates = [(number, PropertyUpdate(key(f"c{number}"), values(number)))
                       for number in range(at, min(at + STEP, records))]  # fmt: skip
            journal.append([event(f"e{number}", updates=(update,)) for number, update in updates])


@contextlib.contextmanager
def opened(url: str, clock: Clock) -> Iterator[Journal]:
    """The journal, without a limit of what may wait."""
    journal = Journal(settings=JournalSettings(url=url, max_pending=1 << 40, max_size=1 << 50), clock=clock)
    try:
        yield journal
    finally:
        journal.close()


def copied(template: Path, folder: Path) -> Path:
    """A copy of a filled journal, for one use. It is on the disk: what is measured must not wait for that."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in template.glob("journal.db*"):
        shutil.copyfile(file, folder / file.name)
    os.sync()
    return folder
