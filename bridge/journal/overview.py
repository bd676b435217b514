"""What the console shows of the retry log beyond its rows: groups, the payloads and the calls behind an entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.database import fetch
from bridge.journal.entries import KINDS, Entry, EntryState, Filter, described, narrowed
from bridge.journal.showing import PAYLOAD, PAYLOADS, beginning

#: Groups of one answer.
GROUPS = 50
#: The parts of the retry log by numbers, in the order in which they are sorted.
_KINDS = sorted(KINDS)
_CODE = "CASE kind " + " ".join(f"WHEN '{kind}' THEN {code}" for code, kind in enumerate(_KINDS)) + " END"
#: Calls looked through for those that carried a record.
CALLS_SEARCHED = 2_000


@dataclass(frozen=True, slots=True)
class Group:
    """Entries with one cause. `state`: parked when any of them is, as somebody must do something then."""

    state: EntryState
    category: str
    message: str
    entries: int
    first_us: int | None
    last_us: int | None


@dataclass(frozen=True, slots=True)
class Overview:
    """What a filter means: how many entries, the largest groups of them, and one page."""

    entries: int
    groups: tuple[Group, ...]
    more_groups: bool
    page: tuple[Entry, ...]


def count(connection: Connection, chosen: Filter) -> int:
    """How many entries `chosen` means."""
    parts, parameters = narrowed(chosen, "1 AS one")
    return int(fetch(connection, f"SELECT count(*) FROM {parts}", **parameters)[0][0])


def overview(connection: Connection, chosen: Filter, *, limit: int, offset: int) -> Overview:
    """The entries by category and message, the largest group first, and a page of them, oldest failure first.

    One statement, so that the log is read once: it may hold hundreds of thousands. The database makes a copy of it, in
    which numbers stand in place of words.
    """
    parked = "CASE WHEN state = 'parked' THEN 1 ELSE 0 END AS parked"
    parts, parameters = narrowed(chosen, f"failed_us, {_CODE} AS kind, ref, {parked}, category, message")
    rows = fetch(
        connection,
        f"""WITH entry AS MATERIALIZED (SELECT * FROM {parts})
            SELECT 'group', parked, category, message, entries, first_us, last_us FROM
              (SELECT max(parked) AS parked, category, message, count(*) AS entries, min(failed_us) AS first_us,
                      max(failed_us) AS last_us
                 FROM entry GROUP BY category, message ORDER BY entries DESC, category, message LIMIT :groups) AS g
            UNION ALL SELECT 'entry', kind, NULL, NULL, ref, failed_us, NULL FROM
              (SELECT kind, ref, failed_us FROM entry ORDER BY failed_us, kind, ref LIMIT :limit OFFSET :offset) AS e
            UNION ALL SELECT 'all', NULL, NULL, NULL, count(*), NULL, NULL FROM entry""",
        groups=GROUPS + 1,
        limit=limit,
        offset=offset,
        **parameters,
    )
    groups = [
        Group("parked" if parked else "retrying", category, message or "", int(number), first_us, last_us)
        for what, parked, category, message, number, first_us, last_us in rows
        if what == "group"
    ]
    shown = sorted((failed_us, kind, ref) for what, kind, _, _, ref, failed_us, _ in rows if what == "entry")
    return Overview(
        entries=next(int(number) for what, _, _, _, number, _, _ in rows if what == "all"),
        groups=tuple(sorted(groups, key=lambda group: (-group.entries, group.category, group.message))[:GROUPS]),
        more_groups=len(groups) > GROUPS,
        page=tuple(described(connection, [f"{_KINDS[kind]}-{ref}" for _, kind, ref in shown])),
    )


def payloads(connection: Connection, event_ids: tuple[str, ...], source: str) -> dict[str, str]:
    """The kept payloads of a source's events, as JSON texts: of the first few, and of long ones the beginning."""
    rows = fetch(
        connection,
        f"""SELECT event_id, {beginning("payload", PAYLOAD)} FROM events
            WHERE event_id IN (SELECT wanted FROM {{rows:wanted text}} AS given) AND source = :source""",
        rows=[[event_id] for event_id in dict.fromkeys(event_ids[:PAYLOADS])],
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
