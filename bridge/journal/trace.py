"""The story of one event or one record, for `trace`: read from what is kept, written by nothing. Of long values it
tells the beginning.
"""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy.engine import Connection

from bridge.journal import matching
from bridge.journal.database import fetch
from bridge.journal.event_log import Standing, fate
from bridge.journal.matching import RECORDS_MEANT
from bridge.journal.retry_log import beginning
from bridge.journal.schema import NEVER, State

#: Calls looked through for one delivery; a record is rarely more than a few calls from its event.
CALLS_SEARCHED = 20_000


def of_event(connection: Connection, event_id: str) -> list[dict[str, Any]]:
    """What became of the event(s) with this id, one story per source that sent one."""
    stories = []
    for seq, source, received_us, occurred_us, intake, unmappable, waits in fetch(
        connection,
        """SELECT seq, source, received_us, occurred_us, intake, unmappable, waits FROM events
            WHERE event_id = :event_id ORDER BY seq""",
        event_id=event_id,
    ):
        stories.append(
            {
                "event": event_id,
                "source": source,
                "received_us": received_us,
                "occurred_us": occurred_us,
                "taken_as": intake,
                "unmappable": unmappable,
                "waits": bool(waits),
                "records": _asked(connection, seq, received_us),
            }
        )
    return stories


def _asked(connection: Connection, seq: int, received_us: int) -> list[dict[str, Any]]:
    asked = []
    for ref, n, time_us, names, object_type, id_property, record in fetch(
        connection,
        """SELECT a.record, a.n, a.time_us, a.properties, l.object_type, l.id_property,
                  coalesce(r.spelling, r.record) FROM asks a
             JOIN records r ON r.id = a.record JOIN lanes l ON l.id = r.lane WHERE a.event = :seq
            ORDER BY a.record, a.n""",
        seq=seq,
    ):
        fates = [_fate(connection, seq, ref, (time_us, n), name, received_us) for name in orjson.loads(names)]
        asked.append(
            {
                "object_type": object_type,
                "id_property": id_property or None,
                "record": record,
                "time_us": time_us,
                "properties": fates,
            }
        )
    return asked


def _fate(
    connection: Connection, seq: int, ref: int, rank: tuple[int, int], name: str, received_us: int
) -> dict[str, Any]:
    """What became of one value: see `event_log.fate`; and the event that took its place, or the call that confirmed it.

    `forgotten`: the journal remembers no such value any more.
    """
    rows = fetch(
        connection,
        f"""SELECT d.event, d.state, d.settled_us, r.category, r.parked_us IS NOT NULL, r.message,
                  {beginning("d.value")}, d.category, d.message, d.call, e.event_id, d.source
             FROM desired d JOIN records r ON r.id = d.record LEFT JOIN events e ON e.seq = d.event
            WHERE d.record = :ref AND d.property = :name""",
        ref=ref,
        name=name,
    )
    if not rows:
        return {"property": name, "fate": "forgotten"}
    event, state, settled_us, why, parked, record_message, value, category, message, call, by_id, by_source = rows[0]
    became = fate(Standing(event, State(state), settled_us, why, bool(parked)), seq, received_us)
    if became != "superseded":
        if became in {"parked", "retrying"}:
            category, message = why, record_message
        return {
            "property": name,
            "fate": became,
            "value": value,
            "category": category,
            "message": message,
            "settled_us": settled_us if state else None,
            "call": _call(connection, call) if state != State.PENDING and call else None,
        }
    before, by_id, by_source = _taker(connection, ref, rank, name) or (None, by_id, by_source)
    delivered = None if before == 0 else _delivering_call(connection, ref, rank[1], received_us, before)
    return {
        "property": name,
        "fate": became,
        "by_event": by_id,
        "by_source": by_source,
        "delivered_before": delivered,
    }


def _taker(connection: Connection, ref: int, rank: tuple[int, int], name: str) -> tuple[int, str, str] | None:
    """The event that took a value's place first, as (when, id, source); when is 0 if it came before the value did."""
    statement = """SELECT e.received_us, e.event_id, e.source FROM asks a JOIN events e ON e.seq = a.event
                    WHERE a.record = :ref AND (a.time_us, a.n) > (:time_us, :n) AND a.n {} :n
                      AND EXISTS (SELECT 1 FROM {{names:a.properties}} AS j WHERE j.value = :name)
                    ORDER BY {} LIMIT 1"""
    for side, order in (("<", "a.time_us DESC, a.n DESC"), (">", "a.n")):
        for received_us, event_id, source in fetch(
            connection, statement.format(side, order), ref=ref, time_us=rank[0], n=rank[1], name=name
        ):
            return (0 if side == "<" else received_us), event_id, source
    return None


def _call(connection: Connection, call: int) -> dict[str, Any] | None:
    rows = fetch(
        connection,
        "SELECT id, started_us, status, correlation_id FROM calls WHERE id = :call",
        call=call,
    )
    if not rows:
        return None
    number, started_us, status, correlation_id = rows[0]
    return {"call": number, "started_us": started_us, "status": status, "correlation_id": correlation_id}


def _delivering_call(
    connection: Connection, ref: int, n: int, from_us: int, until_us: int | None
) -> dict[str, Any] | None:
    """The call that delivered change `n` of a record before a newer event arrived, if one did."""
    rows = fetch(
        connection,
        """SELECT c.id FROM (SELECT * FROM calls WHERE started_us >= :from_us AND started_us < :until_us
                              ORDER BY started_us LIMIT :searched) AS c CROSS JOIN {list:c.inputs} AS input
            WHERE cast(input.value ->> 0 AS bigint) = :ref
              AND cast(input.value ->> 1 AS bigint) >= :n AND input.value ->> 2 = 'delivered'
            LIMIT 1""",
        from_us=from_us,
        until_us=NEVER if until_us is None else until_us,
        searched=CALLS_SEARCHED,
        ref=ref,
        n=n,
    )
    return _call(connection, rows[0][0]) if rows else None


def of_record(connection: Connection, record: str) -> list[dict[str, Any]]:
    """Everything the journal knows about the record(s) with this id, newest event first."""
    stories = []
    for ref, told, object_type, id_property, attempts, category, message, parked_us, retry_us in fetch(
        connection,
        f"""SELECT r.id, coalesce(r.spelling, r.record), l.object_type, l.id_property, r.attempts, r.category,
                  r.message, r.parked_us, r.retry_us
             FROM ({RECORDS_MEANT}) AS meant JOIN records r ON r.id = meant.id JOIN lanes l ON l.id = r.lane
            ORDER BY r.id""",
        **matching.parameters(record),
    ):
        values = fetch(
            connection,
            f"""SELECT d.property, {beginning("d.value")}, d.state, d.time_us, d.settled_us, d.category, d.message,
                      d.call, e.event_id FROM desired d LEFT JOIN events e ON e.seq = d.event
                WHERE d.record = :ref ORDER BY d.property""",
            ref=ref,
        )
        events = fetch(
            connection,
            """SELECT e.event_id, e.source, e.received_us, a.n, a.time_us, a.properties FROM asks a
                 JOIN events e ON e.seq = a.event WHERE a.record = :ref ORDER BY a.n DESC LIMIT 100""",
            ref=ref,
        )
        stories.append(
            {
                "record": told,
                "object_type": object_type,
                "id_property": id_property or None,
                "state": "parked" if parked_us else "retrying" if category else "ok",
                "attempts": attempts,
                "category": category,
                "message": message,
                "next_attempt_us": retry_us if category and not parked_us else None,
                "values": [
                    {
                        "property": name,
                        "value": value,
                        "state": State(state).name.lower(),
                        "time_us": time_us,
                        "settled_us": settled_us if state else None,
                        "category": why,
                        "message": text,
                        "event": event_id,
                        "call": _call(connection, call) if call else None,
                    }
                    for name, value, state, time_us, settled_us, why, text, call, event_id in values
                ],
                "events": [
                    {
                        "event": event_id,
                        "source": source,
                        "received_us": received_us,
                        "n": n,
                        "time_us": time_us,
                        "properties": orjson.loads(names),
                    }
                    for event_id, source, received_us, n, time_us, names in events
                ],
            }
        )
    return stories
