"""New journals that are copies of an empty one: its migrations take as long as many a test."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

from bridge.journal import versions
from bridge.journal.database import on_postgresql
from bridge.journal.sqlite.files import sqlite_path


@cache
def _files() -> dict[str, bytes]:
    """What there is beside each other, by what the names end in."""
    folder = Path(tempfile.mkdtemp(prefix="empty-"))
    versions.prepare(f"sqlite:///{folder}/journal.db")
    files = {file.name.removeprefix("journal.db"): file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    return files


def prepare(url: str) -> None:
    """As `versions.prepare`."""
    if on_postgresql(url) or sqlite_path(url).exists():
        versions.prepare(url)
        return
    path = sqlite_path(url)
    for ending, data in _files().items():
        path.with_name(path.name + ending).write_bytes(data)
