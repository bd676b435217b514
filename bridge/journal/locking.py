"""Who waits for whom, where several processes write at once: on PostgreSQL. SQLite has one writer at a time.

Under READ COMMITTED each statement sees what was committed before it began. So whoever decides something about a
record by what stands in `desired`, `due` or `asks` first locks the record's row, in a statement of its own: what
other transactions did to the record under that lock is then seen by all further statements. Append locks by raising
`n`, all others by `lock_records`.

All take locks in one order: what people and retention do (`take_turns`); `roots`, `events` and `lanes` by their keys;
`records` by (lane, record). Only a replay that maps an event to other records than before goes back in this order;
then the database undoes one of the two, which is done again (`Database.transact`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from bridge.errors import JournalTermError
from bridge.journal.database import fetch, is_postgresql, select
from bridge.model import RecordKey

#: Of `pg_advisory_xact_lock`, within the database.
TURNS = 0x50617275


def lock_records(connection: Connection, refs: Collection[int]) -> None:
    """Lock these records until the transaction ends; waits for whoever has them."""
    if refs and is_postgresql(connection):
        fetch(
            connection,
            """SELECT count(*) FROM (SELECT 1 FROM records WHERE id {any_id}
                                      ORDER BY lane, record COLLATE "C" FOR UPDATE) AS locked""",
            ids=list(refs),
        )


def select_locked(
    connection: Connection, columns: str, refs: Collection[int], *, size: str, **parameters: Any
) -> Sequence[Sequence[Any]]:
    """These columns of the records and, in the end, this `size`, which is told as of before the wait. They are locked
    until the transaction ends; waits for whoever has them.
    """
    found = f"SELECT {columns}, ({size}) AS size FROM records WHERE id {{any_id}}"
    if is_postgresql(connection):
        found += ' ORDER BY lane, record COLLATE "C" FOR UPDATE'
    return select(connection, f"{columns}, size", found, ids=list(refs), **parameters)


def take_turns(connection: Connection) -> None:
    """Let people's acts and retention follow each other, step by step; neither intake nor delivery waits for them."""
    if is_postgresql(connection):
        fetch(connection, "SELECT count(*) FROM (SELECT pg_advisory_xact_lock(:key)) AS locked", key=TURNS)


def lock_addresses(connection: Connection, keys: Collection[RecordKey]) -> None:
    """Lock those of these records that are there."""
    if keys and is_postgresql(connection):
        fetch(
            connection,
            """SELECT count(*) FROM (
                 SELECT 1 FROM {rows:object_type text, id_property text, record text} r
                   JOIN lanes l ON l.object_type = r.object_type AND l.id_property = r.id_property
                   JOIN records o ON o.lane = l.id AND o.record = r.record
                  ORDER BY o.lane, o.record COLLATE "C" FOR UPDATE OF o) AS locked""",
            rows=[(key.lane.object_type, key.lane.id_property, key.id) for key in keys],
        )


def lock_roots(connection: Connection, seqs: Collection[int]) -> list[str]:
    """Lock the roots of these events; returns their hashes."""
    locking = ' ORDER BY hash COLLATE "C" FOR UPDATE' if is_postgresql(connection) else ""
    rows = fetch(
        connection,
        "SELECT hash FROM roots WHERE hash IN (SELECT root FROM events WHERE seq IN (SELECT id FROM {ids}))" + locking,
        ids=list(seqs),
    )
    return [str(root) for (root,) in rows]


def lock_outdated(connection: Connection, refs: Collection[int], *, before_us: int) -> None:
    """Lock those of these records of which something may be forgotten: few, where all would be written to."""
    if refs and is_postgresql(connection):
        fetch(
            connection,
            """SELECT count(*) FROM (
                 SELECT 1 FROM records r WHERE r.id IN (SELECT id FROM {ids})
                    AND (r.newest_us < :before OR EXISTS (
                      SELECT 1 FROM desired d
                       WHERE d.record = r.id AND d.state IN (1, 3, 4) AND d.settled_us < :before))
                  ORDER BY r.lane, r.record COLLATE "C" FOR UPDATE OF r) AS locked""",
            ids=list(refs),
            before=before_us,
        )


def lock_dispatcher(connection: Connection) -> None:
    """Lock what all replicas know of delivery, before some of it is written anew."""
    if is_postgresql(connection):
        fetch(connection, "SELECT id FROM dispatcher WHERE id = 1 FOR NO KEY UPDATE")


def fence(connection: Connection, epoch: int | None, *, alone: bool = False) -> None:
    """Raise JournalTermError unless this is the dispatcher's epoch, and let it not end before this transaction does.

    `alone`: what stands in the row will be written anew. None: there is no other dispatcher.

    A lock on the key alone: only a take-over (`FOR UPDATE`) waits for it. With `FOR SHARE` the renewal of the term, an
    UPDATE of the same row, would wait for settling transactions that overlap without end.
    """
    if epoch is None:
        return
    how = "NO KEY UPDATE" if alone else "KEY SHARE"
    [(current,)] = fetch(connection, f"SELECT epoch FROM dispatcher WHERE id = 1 FOR {how}")
    if current != epoch:
        raise JournalTermError("another process delivers: what this one still did is left to it")
