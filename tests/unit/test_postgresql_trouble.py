"""What people and the service are told of trouble with PostgreSQL."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from bridge.errors import JournalDamagedError, JournalDiskError, JournalError, JournalUnavailableError
from bridge.journal.database import render
from bridge.journal.postgresql.database import ConflictError, OutOfReachError, SlowError, explained

WITHOUT_DRIVER = """
import sys
sys.modules["psycopg"] = None
from bridge.errors import BridgeError
from bridge.journal import versions
try:
    versions.prepare("postgresql://bridge@db.example/bridge")
except BridgeError as error:
    print(error)
"""


def test_a_driver_that_is_missing_is_named() -> None:
    told = subprocess.run([sys.executable, "-c", WITHOUT_DRIVER], capture_output=True, text=True, check=True).stdout
    assert "install the extra `postgres`" in told
    assert "partner-bridge[postgres]" in told


@pytest.mark.parametrize(
    "state, meant, says",
    [
        ("40001", ConflictError, "try again"),
        ("40P01", ConflictError, "try again"),
        ("55P03", SlowError, "locks"),
        ("57014", SlowError, "too slow"),
        ("57P01", OutOfReachError, "out of reach"),
        ("53300", OutOfReachError, "max_connections"),
        ("53100", JournalDiskError, "disk is full"),
        ("25006", JournalDiskError, "primary"),
        ("58030", JournalDiskError, "disk fails"),
        ("XX001", JournalDamagedError, "restore a backup"),
        ("28P01", JournalUnavailableError, "journal.url"),
        ("3D000", JournalUnavailableError, "journal.url"),
        ("42501", JournalError, "role"),
        ("54001", type(None), ""),
        ("22P05", type(None), ""),
        ("42601", type(None), ""),
    ],
)
def test_trouble_is_told_apart_by_what_cures_it(state: str, meant: type, says: str) -> None:
    """A mistake in a statement, or in its data, is none of the database's."""
    found = explained(psycopg.errors.lookup(state)("what the server said"), lost=False)
    assert type(found) is meant
    assert found is None or says in str(found)
    assert found is None or "what the server said" in str(found)


def test_a_connection_that_breaks_without_a_word_is_out_of_reach() -> None:
    assert isinstance(explained(psycopg.OperationalError("server closed the connection"), lost=True), OutOfReachError)
    assert isinstance(explained(psycopg.OperationalError("connection refused"), lost=False), OutOfReachError)


def test_a_statement_is_rendered_for_each_database() -> None:
    statement = (
        "SELECT {greatest}(a, :b) FROM {rows:a int, c text} r WHERE c LIKE '%x' AND r.a IN (SELECT id FROM {ids})"
    )
    assert render(statement) == (
        "SELECT max(a, :b) FROM (SELECT value ->> 0 AS a, value ->> 1 AS c FROM json_each(:rows) LIMIT -1) r "
        "WHERE c LIKE '%x' AND r.a IN (SELECT id FROM (SELECT value AS id FROM json_each(:ids)))"
    )
    assert render(statement, "postgresql") == (
        "SELECT greatest(a, %(b)s) FROM (SELECT cast(value ->> 0 AS bigint) AS a, cast(value ->> 1 AS text) AS c "
        "FROM jsonb_array_elements(cast(%(rows)s AS jsonb))) r WHERE c LIKE '%%x' AND r.a IN (SELECT id FROM "
        "(SELECT cast(value AS bigint) AS id FROM jsonb_array_elements_text(cast(%(ids)s AS jsonb))) AS ids)"
    )
