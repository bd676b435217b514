"""The journal's tables: the state each record should have, and the log of the events that asked for it.

Invariants:

* `desired` holds one row per record and property: the partner's latest word, by `(time_us, n)`.
  `n` comes from `records.n`, which every event raises by one under the record's lock; it orders the
  changes of one record and never repeats. `revision` names the write itself (a replay keeps `n` but
  not `revision`): what a call carried is settled by `(record, property, revision)` and nothing else.
* A record has a row in `due` for each source of which something waits for it, and no other; `due_us` is NULL
  while it is parked. A record for which nothing waits fails in nothing (see `due.reconcile`).
* `asks` tells which event asked which record, at which `n`. With `desired.event` it gives every
  event's fate without a write at delivery time.
* `staged` holds large requests, or the rest of them, while they are taken in slices: on disk, but in no other table
  yet.
* The schema only grows: version N-1 works on version N's journal.

Times are microseconds since the epoch. State is kept as small integers (`State`).
"""

from __future__ import annotations

import logging
from enum import IntEnum
from pathlib import Path

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text, UniqueConstraint, text
from sqlalchemy.engine import Connection

from bridge.errors import JournalVersionError

metadata = MetaData()

#: The migration that this code needs; `migrations/versions` holds it.
HEAD = "0004"
#: Stands for the version of a journal that is being carried over (`moving`): no program serves or migrates it.
MOVING = "moving"
#: Every version that this code can read, oldest first.
KNOWN = ("0001", "0002", "0003", "0004")


#: Later than any time, more than any number.
NEVER = 2**62


class State(IntEnum):
    """What stands between a desired value and the CRM."""

    PENDING = 0
    DELIVERED = 1
    REFUSED = 2
    UNKNOWN = 3  # the CRM knows no such record, and the source says that this is fine
    DISCARDED = 4  # by a person


# BigInteger primary keys do not become SQLite's rowid: Integer there, BIGINT on PostgreSQL.
Key = BigInteger().with_variant(Integer(), "sqlite")

lanes = Table(
    "lanes",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("object_type", Text, nullable=False),
    Column("id_property", Text, nullable=False),
    Column("caseless", Integer),  # 1: letter case does not tell its records apart; NULL: nobody has said yet
    Column("united", Integer),  # 1: its records stand as `caseless` says
    UniqueConstraint("object_type", "id_property"),
)

events = Table(
    "events",
    metadata,
    Column("seq", Key, primary_key=True, autoincrement=True),
    Column("source", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("received_us", BigInteger, nullable=False),
    Column("occurred_us", BigInteger),
    Column("content_hash", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("context", Text, nullable=False),
    Column("root", Text),  # hash of the whole body in `roots`, where the mapping looks at it
    Column("intake", Text, nullable=False),  # accepted, ignored, parked
    Column("unmappable", Text),  # why (a part of) it asks nothing of any record
    Column("waits", Integer, nullable=False, server_default="0"),  # 1: unmappable, in the retry log
    # The id first: `trace ID` looks events up without knowing their source.
    UniqueConstraint("event_id", "source"),
    Index("events_received", "received_us"),
    Index("events_root", "root", sqlite_where=text("root IS NOT NULL"), postgresql_where=text("root IS NOT NULL")),
    Index("events_waiting", "seq", sqlite_where=text("waits = 1"), postgresql_where=text("waits = 1")),
    sqlite_autoincrement=True,  # a pruned event's number is never given again: `asks` and `desired` name it
)

roots = Table(
    "roots",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("body", Text, nullable=False),
    Column("received_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

records = Table(
    "records",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("lane", BigInteger, nullable=False),
    Column("record", Text, nullable=False),  # the id as it is compared, see `bridge.model.comparable`
    Column("spelling", Text),  # the id as the newest event spells it, where that is another text
    Column("n", BigInteger, nullable=False),
    Column("newest_us", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("failing_since_us", BigInteger),
    Column("retry_us", BigInteger),
    Column("parked_us", BigInteger),
    Column("category", Text),  # why it is retried or parked
    Column("message", Text),
    Column("doubt_us", BigInteger),  # start of the last call whose end is not known
    Column("doubt_n", BigInteger),
    UniqueConstraint("lane", "record"),
    Index(
        "records_failing",
        "id",
        sqlite_where=text("category IS NOT NULL"),
        postgresql_where=text("category IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

desired = Table(
    "desired",
    metadata,
    Column("record", BigInteger, primary_key=True, autoincrement=False),
    Column("property", Text, primary_key=True),
    Column("value", Text),  # NULL: the mapping found the sender's value invalid
    Column("time_us", BigInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("event", BigInteger, nullable=False),
    Column("source", Text),  # the event's: a value is remembered longer than its event
    Column("state", Integer, nullable=False),
    Column("skip", Integer, nullable=False),  # 1: the source leaves out values already confirmed
    Column("displaced", BigInteger),  # the event whose pending value this one took the place of
    Column("category", Text),
    Column("message", Text),
    Column("settled_us", BigInteger),
    Column("call", BigInteger),
    Index("desired_refused", "record", sqlite_where=text("state = 2"), postgresql_where=text("state = 2")),
    sqlite_with_rowid=False,
)

asks = Table(
    "asks",
    metadata,
    Column("record", BigInteger, primary_key=True, autoincrement=False),
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    Column("event", BigInteger, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("properties", Text, nullable=False),  # JSON array of names
    Index("asks_event", "event"),
    sqlite_with_rowid=False,
)

due = Table(
    "due",
    metadata,
    Column("record", BigInteger, primary_key=True, autoincrement=False),
    Column("source", Text, primary_key=True),
    Column("lane", BigInteger, nullable=False),
    Column("due_us", BigInteger),  # NULL while the record is parked
    Column("since_us", BigInteger, nullable=False),  # arrival of the oldest change that waits
    Index(
        "due_take",
        "lane",
        "source",
        "due_us",
        sqlite_where=text("due_us IS NOT NULL"),
        postgresql_where=text("due_us IS NOT NULL"),
    ),
    Index(
        "due_since",
        "since_us",
        sqlite_where=text("due_us IS NOT NULL"),
        postgresql_where=text("due_us IS NOT NULL"),
    ),
    sqlite_with_rowid=False,
)

calls = Table(
    "calls",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("lane", BigInteger, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("duration_us", BigInteger, nullable=False),
    Column("status", Integer),  # NULL: no answer
    Column("correlation_id", Text),
    Column("error", Text),
    Column("inputs", Text, nullable=False),  # JSON [[record, revision read, outcome], …]
    Index("calls_started", "started_us"),
    sqlite_autoincrement=True,
)

staged = Table(
    "staged",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("received_us", BigInteger, nullable=False),
    Column("events", Text, nullable=False),  # JSON: what of a large request is still to be merged
    Column("request", BigInteger),  # of a further piece: the request's first
    Column("incomplete", Integer),  # 1, of a first piece: the request is not whole yet, and must not be merged
    Index(
        "staged_request",
        "request",
        sqlite_where=text("request IS NOT NULL"),
        postgresql_where=text("request IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),  # may be a secret: never shown
    sqlite_with_rowid=False,
)

dispatcher = Table(
    "dispatcher",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("holder", Text),
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    Column("until_us", BigInteger),
    Column("pauses", Text, nullable=False, server_default="[]"),
    Column("figures", Text, nullable=False, server_default="{}"),  # counts, refreshed once a second
    Column("figures_us", BigInteger),
)


# --- conditions that several modules need, of `records r` and `desired d` ---

#: A doubtful call may have undone this confirmed value.
UNDONE = "d.state = 1 AND d.revision > r.doubt_n"
#: Confirmed values of the record go once more when its doubt is over.
GOES_AGAIN = f"(r.doubt_us IS NOT NULL AND EXISTS (SELECT 1 FROM desired d WHERE d.record = r.id AND {UNDONE}))"
#: The record has failed and is retried or parked, or that is still noted of it.
FAILS = """(coalesce(r.category, r.message) IS NOT NULL OR r.attempts > 0
            OR coalesce(r.parked_us, r.retry_us, r.failing_since_us) IS NOT NULL)"""

#: The value was settled before `:before`: it may be forgotten if it is as old itself.
FORGETTABLE = "d.state IN (1, 3, 4) AND d.settled_us < :before"

# --- what people are told of the tables, and what must hold between them ---

#: A journal in figures, by name, each with its query.
FIGURES = {
    "events": "SELECT count(*) FROM events",
    "records": "SELECT count(*) FROM records",
    "values": "SELECT count(*) FROM desired",
    "pending": "SELECT count(DISTINCT record) FROM due WHERE due_us IS NOT NULL",  # records that are not parked
    "parked": "SELECT count(*) FROM records WHERE parked_us IS NOT NULL",
    "refused": "SELECT count(*) FROM desired WHERE state = 2",
    "unmapped": "SELECT count(*) FROM events WHERE waits = 1",
    "calls": "SELECT count(*) FROM calls",
    "oldest_event_us": "SELECT min(received_us) FROM events",
    "newest_event_us": "SELECT max(received_us) FROM events",
    "oldest_pending_us": "SELECT min(since_us) FROM due WHERE due_us IS NOT NULL",
}

#: Problems told of one file.
TOLD = 20

#: What must hold between the tables: what is wrong, and a query of how many rows are.
INVARIANTS = (
    ("pending values without a record", "FROM desired d LEFT JOIN records r ON r.id = d.record WHERE r.id IS NULL"),
    (
        "records with pending values that are not due",
        """FROM records r WHERE EXISTS (SELECT 1 FROM desired d WHERE d.record = r.id AND d.state = 0)
              AND NOT EXISTS (SELECT 1 FROM due WHERE due.record = r.id
                                 AND (due.due_us IS NOT NULL OR r.parked_us IS NOT NULL))""",
    ),
    (
        "pending values whose source is not due",
        """FROM desired d WHERE d.state = 0 AND EXISTS (SELECT 1 FROM due WHERE due.record = d.record)
              AND NOT EXISTS (SELECT 1 FROM due WHERE due.record = d.record AND due.source = coalesce(d.source, ''))""",
    ),
    (
        "due rows for which nothing waits",
        f"""FROM due JOIN records r ON r.id = due.record
             WHERE NOT EXISTS (SELECT 1 FROM desired d WHERE d.record = r.id AND d.state = 0
                                  AND coalesce(d.source, '') = due.source)
               AND NOT {GOES_AGAIN}""",
    ),
    (
        "failures of records for which nothing waits",
        f"""FROM records r
             WHERE {FAILS} AND NOT EXISTS (SELECT 1 FROM desired d WHERE d.record = r.id AND d.state = 0)
               AND NOT {GOES_AGAIN}""",
    ),
    (
        "due rows without a time of records that are not parked",
        "FROM due JOIN records r ON r.id = due.record WHERE due.due_us IS NULL AND r.parked_us IS NULL",
    ),
    ("due rows without a record", "FROM due LEFT JOIN records r ON r.id = due.record WHERE r.id IS NULL"),
    (
        "due rows of another lane than their record",
        "FROM due JOIN records r ON r.id = due.record AND r.lane <> due.lane",
    ),
    (
        "due rows of parked records",
        "FROM due JOIN records r ON r.id = due.record WHERE r.parked_us IS NOT NULL AND due.due_us IS NOT NULL",
    ),
    ("records of an unknown lane", "FROM records r LEFT JOIN lanes l ON l.id = r.lane WHERE l.id IS NULL"),
    (
        "values newer than their record",
        "FROM desired d JOIN records r ON r.id = d.record WHERE d.n > r.n OR d.revision > r.n",
    ),
    ("asks newer than their record", "FROM asks a JOIN records r ON r.id = a.record WHERE a.n > r.n"),
    ("asks of unknown events", "FROM asks a LEFT JOIN events e ON e.seq = a.event WHERE e.seq IS NULL"),
    ("values in an unknown state", "FROM desired WHERE state NOT BETWEEN 0 AND 4"),
    ("events that wait without a reason", "FROM events WHERE waits = 1 AND unmappable IS NULL"),
    ("rows of the dispatcher beside its own", "FROM dispatcher WHERE id <> 1"),
)


# --- versions ---


def suffices(version: str | None) -> bool:
    """Whether this code works on a journal of this version: its own, or what additive migrations made of that."""
    return version is not None and version[:2] == HEAD[:2] and version >= HEAD


def refuse_unknown(version: str | None, path: Path | str) -> None:
    """Raise JournalVersionError for a version that this code has never heard of."""
    if version == MOVING:
        raise JournalVersionError(
            f"a move to the journal {path} was cut short: run `partner-bridge migrate --to …` again, it goes on there"
        )
    if version is not None and version not in KNOWN and not suffices(version):
        raise JournalVersionError(
            f"the journal {path} was written by a newer Partner Bridge (version {version}; this one knows "
            f"{HEAD}); it was left untouched: run the newer program, or restore a backup"
        )


def migrate(connection: Connection) -> None:
    """Bring the tables up to `HEAD` in the open transaction."""
    from alembic import command
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", "bridge.journal:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
