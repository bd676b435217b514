"""Who may deliver but cannot begin to is no more alive than who delivers and gets stuck."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from bridge.config import load_settings
from bridge.operations.health import STUCK_AFTER_S
from bridge.server.service import Service
from tests.empty_journal import prepare
from tests.rig import ShiftingClock
from tests.running import eventually

CONFIG = """\
journal: {url: "sqlite:///FOLDER/journal.db"}
crm: {base_url: "http://127.0.0.1:9", token: {env: CRM_TOKEN}}
sources:
  acme:
    verify: {scheme: bearer, secrets: [{env: ACME_SECRET}]}
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: {company_name: name}
"""


def rename(folder: Path, table: str, to: str) -> None:
    with closing(sqlite3.connect(folder / "journal.db")) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO {to}")


def test_a_process_that_may_deliver_and_cannot_begin_is_not_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it can. Meanwhile the calls that were made before cannot be read, against which the limit counts."""
    monkeypatch.setenv("CRM_TOKEN", "a-token-for-the-sandbox")
    monkeypatch.setenv("ACME_SECRET", "a-secret-of-the-partner-acme")
    (tmp_path / "bridge.yaml").write_text(CONFIG.replace("FOLDER", str(tmp_path)), encoding="utf-8")
    settings = load_settings(tmp_path / "bridge.yaml")
    prepare(settings.journal.url)
    clock = ShiftingClock()
    service = Service(settings=settings, clock=clock)
    rename(tmp_path, "calls", "calls_away")
    service.start()
    try:
        shifted = 0
        while service.alive().ok and shifted < 10 * STUCK_AFTER_S:
            clock.shift(1)
            shifted += 1
            time.sleep(0.02)
        assert shifted >= STUCK_AFTER_S - 2  # the clock itself went on too
        assert "the dispatcher has made no progress" in service.alive().why
        rename(tmp_path, "calls_away", "calls")
        assert eventually(lambda: service.alive().ok)
    finally:
        service.stop()
