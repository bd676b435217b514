"""Folders of counters that killed services left."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bridge.server.master import COUNTERS_PREFIX, COUNTERS_YOUNG_S, remove_left_counters


def test_only_counters_that_no_process_holds_are_removed(tmp_path: Path) -> None:
    """The demo's folder, and whatever else bears our name, is not a counters' folder."""
    left, held, young = (tmp_path / f"{COUNTERS_PREFIX}{name}" for name in ("left", "held", "young"))
    others = [tmp_path / "partner-bridge-demo-1", tmp_path / "partner-bridge", tmp_path / "elsewhere"]
    for folder in (left, held, young, *others):
        folder.mkdir()
        (folder / "file").touch()
    for folder in (left, held, *others):
        at = folder.stat().st_mtime - 2 * COUNTERS_YOUNG_S
        os.utime(folder, (at, at))
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        remove_left_counters(str(tmp_path))
    finally:
        os.close(lock)
    assert {folder.name for folder in tmp_path.iterdir()} == {folder.name for folder in (held, young, *others)}
    assert all((folder / "file").exists() for folder in others)
