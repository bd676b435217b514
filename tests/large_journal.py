"""A journal as after weeks of work: many settled records, and a long retry log; written by plain SQL in seconds."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from bridge.journal import versions

#: Microseconds between two events.
APART_US = 200_000
_SERIES = "WITH RECURSIVE n (i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i < :last)"
_SOURCE = "CASE WHEN i % 3 THEN 'acme' ELSE 'shop' END"


def fill(path: Path, *, settled: int, parked: int) -> None:
    """`settled` records delivered, one event, two values and a hundredth of a call each; then `parked` entries: a third
    each of records that the CRM does not know, refused values with messages of their own, and unmappable events.
    """
    versions.prepare(f"sqlite:///{path}")
    third = parked // 3
    last = settled + 2 * third
    now = time.time_ns() // 1_000
    at = f"{now} - ({last} - i) * {APART_US}"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        db.execute("INSERT INTO lanes (id, object_type, id_property) VALUES (1, 'partner_clients', 'acme_client_id')")
        every = {"first": 1, "last": last}
        db.execute(
            f"""{_SERIES}
                INSERT INTO events (seq, source, event_id, received_us, content_hash, payload, context, intake)
                SELECT i, {_SOURCE}, 'evt_' || i, {at}, 'h', '{{"id": "evt_' || i || '", "client": "c' || i || '"}}',
                       '{{}}', 'accepted' FROM n""",
            every,
        )
        db.execute(
            f"""{_SERIES} INSERT INTO asks (record, n, event, time_us, properties)
                SELECT i, 1, i, {at}, '["company_name", "tier"]' FROM n""",
            every,
        )
        db.execute(
            f"{_SERIES} INSERT INTO records (id, lane, record, n, newest_us) SELECT i, 1, 'c' || i, 1, {at} FROM n",
            every,
        )
        for name in ("company_name", "tier"):
            db.execute(
                f"""{_SERIES} INSERT INTO desired (record, property, value, time_us, n, revision, event, source, state,
                                                   skip, settled_us, call)
                    SELECT i, '{name}', 'v' || i, {at}, 1, 1, i, {_SOURCE}, 1, 0, {at} + 90000, i / 100 + 1 FROM n""",
                every,
            )
        db.execute(
            f"""{_SERIES} INSERT INTO calls (id, lane, started_us, duration_us, status, correlation_id, inputs)
                SELECT i + 1, 1, {now} - ({last} - i * 100) * {APART_US}, 150000, 200, 'id-' || i,
                       (WITH RECURSIVE k (j) AS (SELECT i * 100 UNION ALL SELECT j + 1 FROM k WHERE j < i * 100 + 99)
                        SELECT '[' || group_concat('[' || j || ',1,"delivered"]') || ']' FROM k) FROM n""",
            {"first": 0, "last": last // 100},
        )
        unknown, refused = (settled, settled + third), (settled + third, last)
        db.execute(
            """UPDATE records SET parked_us = newest_us + 1000000, failing_since_us = newest_us + 500000, attempts = 1,
                      category = 'OBJECT_NOT_FOUND', message = 'Object not found.' WHERE id > ? AND id <= ?""",
            unknown,
        )
        db.execute(
            "UPDATE desired SET state = 0, settled_us = NULL, call = NULL WHERE record > ? AND record <= ?", unknown
        )
        db.execute(
            """INSERT INTO due (record, source, lane, due_us, since_us) SELECT record, source, 1, NULL, time_us
                 FROM desired WHERE record > ? AND record <= ? AND property = 'tier'""",
            unknown,
        )
        db.execute(
            """UPDATE desired SET state = 2, category = 'VALIDATION_ERROR',
                      message = value || ' was not one of the allowed options: [gold, silver, bronze]'
                WHERE property = 'tier' AND record > ? AND record <= ?""",
            refused,
        )
        db.execute(
            f"""{_SERIES}
                INSERT INTO events (seq, source, event_id, received_us, content_hash, payload, context, intake,
                                    unmappable, waits)
                SELECT i, 'acme', 'lost_' || i, {now} - i, 'h', '{{"id": "lost_' || i || '"}}', '{{}}', 'parked',
                       'the record id is missing', 1 FROM n""",
            {"first": last + 1, "last": last + parked - 2 * third},
        )
        db.execute("COMMIT")
