"""What the console shows of the retry log beyond its rows: groups, the payloads and the calls behind an entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.database import fetch
from bridge.journal.retry_log import Filter, narrowed

#: Groups of one answer.
GROUPS = 50
#: Calls looked through for those that carried a record.
CALLS_SEARCHED = 2_000


@dataclass(frozen=True, slots=True)
class Group:
    """Entries with one cause."""

    category: str
    message: str
    entries: int
    first_us: int | None
    last_us: int | None


def count(connection: Connection, chosen: Filter) -> int:
    """How many entries `chosen` means."""
    parts, parameters = narrowed(chosen)
    return int(fetch(connection, f"SELECT count(*) FROM {parts}", **parameters)[0][0])


def groups(connection: Connection, chosen: Filter) -> list[Group]:
    """The entries by category and message, the largest group first."""
    parts, parameters = narrowed(chosen)
    rows = fetch(
        connection,
        f"""SELECT category, message, count(*) AS entries, min(failed_us), max(failed_us) FROM {parts}
             GROUP BY category, message ORDER BY entries DESC, category, message LIMIT :groups""",
        groups=GROUPS,
        **parameters,
    )
    return [Group(category, message or "", int(number), first, last) for category, message, number, first, last in rows]


def payloads(connection: Connection, event_ids: tuple[str, ...], source: str) -> dict[str, str]:
    """The kept payloads of a source's events, as JSON texts."""
    rows = fetch(
        connection,
        """SELECT event_id, payload FROM events
            WHERE event_id IN (SELECT wanted FROM {rows:wanted text}) AND source = :source""",
        rows=[[event_id] for event_id in sorted(set(event_ids))],
        source=source,
    )
    return {str(event_id): str(payload) for event_id, payload in rows}


def calls(connection: Connection, record: int, *, since_us: int) -> list[dict[str, Any]]:
    """The calls that carried a record since then, newest first; looked for among the newest of all."""
    found = []
    for number, started_us, duration_us, status, correlation_id, error, inputs in fetch(
        connection,
        """SELECT id, started_us, duration_us, status, correlation_id, error, inputs FROM
             (SELECT * FROM calls WHERE started_us >= :since ORDER BY started_us DESC LIMIT :searched) AS c
            WHERE inputs LIKE :carried ORDER BY started_us DESC""",
        since=since_us,
        searched=CALLS_SEARCHED,
        carried=f"%[{record},%",
    ):
        outcomes = [outcome for ref, _, outcome in orjson.loads(inputs) if ref == record]
        found.append(
            {
                "call": number,
                "started_us": started_us,
                "duration_ms": round(duration_us / 1_000),
                "status": status,
                "correlation_id": correlation_id,
                "error": error,
                "outcome": outcomes[0] if outcomes else None,
            }
        )
    return found
