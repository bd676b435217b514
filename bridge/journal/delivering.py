"""Take, settle: what the dispatcher reads from the journal and what it leaves there (G2, G4, G5).

No transaction is open during a call. *Take* reads the values and marks the records as being in a call.
*Settle* turns exactly what was sent, by `(record, property, revision)`, into its outcome. It touches the
record's row first: an append that is under way holds that row, so settle sees what the append brought, and
takes a record out of `due` only when nothing is pending any more.

Doubt. A call without the CRM's answer may still be applied up to 100 s later, over a newer value. Take
marks the record (`doubt_us` = start of the call, `doubt_n` = lowest change it may undo); a call that ends
without doubt puts the mark back to what it was before. While a mark is younger than `DOUBT_US`, a value
confirmed by another call is made due once more at the end of that time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, lock_records, run, select, select_locked
from bridge.journal.due import DOUBT_US, forget_failures, reconcile
from bridge.journal.merging import stored_lanes
from bridge.journal.schema import UNDONE, State
from bridge.model import (
    Call,
    Delivered,
    Ignored,
    Lane,
    Outcome,
    Parked,
    PendingRecord,
    RecordKey,
    Refused,
    RetryLater,
    Taken,
    Value,
    to_us,
)


@dataclass(slots=True)
class Settlement:
    """What one settle or a discard did, in values and records, for metrics: `delays` are (source, seconds)."""

    delivered: int = 0
    refused: int = 0
    unknown: int = 0
    discarded: int = 0
    parked: int = 0
    retrying: int = 0
    delays: list[tuple[str, float]] = field(default_factory=list)


def take(
    connection: Connection,
    lanes: Callable[[int], Lane],
    refs: Sequence[int],
    *,
    began_us: int,
    max_bytes: int,
    only: Collection[str] | None = None,
) -> Taken:
    """Read these records with what is to be delivered to them, and mark them as being in a call.

    As many as `max_bytes` allow, the first in any case, if need be with some of its values; `only` reads no other
    properties. A record that turns out to have nothing to be sent is left out.
    """
    when = {
        "doubt_over": began_us - DOUBT_US,
        "began": began_us,  # a doubt that begins later than now was noted by a clock that was wrong
    }
    columns = "id, lane, record, spelling, n, attempts, failing_since_us, doubt_us, doubt_n, parked_us"
    found = {row[0]: row for row in select_locked(connection, columns, refs, size=_SIZE, **when)}
    sizes: dict[int, int] = {
        ref: found[ref][-1] for ref in refs if ref in found and found[ref][-1] and found[ref][-2] is None
    }
    fitting, size = _fitting(sizes, max_bytes)
    if size > max_bytes and only is None:
        only, size = _oldest(connection, fitting[0], max_bytes, when)
    size = min(size, max_bytes)
    values = _values(connection, fitting, only, when)
    sources: dict[int, list[str]] = {}
    for ref, source in select(
        connection,
        "record, source",
        "SELECT record, source FROM due WHERE record {any_id} AND due_us IS NOT NULL",
        ids=fitting,
    ):
        sources.setdefault(ref, []).append(source)
    taken = [
        PendingRecord(
            ref=ref,
            key=RecordKey(lanes(lane), spelling or record),
            n=n,
            values=values[ref],
            sources=tuple(sources.get(ref, ())),
            attempts=attempts,
            failing_since_us=failing_since_us,
            doubt_at_us=doubt_us,
            doubt_n=doubt_n or 0,
        )
        for ref, lane, record, spelling, n, attempts, failing_since_us, doubt_us, doubt_n, *_ in map(
            found.__getitem__, fitting
        )
        if ref in values
    ]
    run(
        connection,
        """UPDATE records SET doubt_us = :began,
                  doubt_n = CASE WHEN doubt_us IS NOT NULL AND doubt_n < n THEN doubt_n ELSE n END
            WHERE id {any_id}""",
        ids=[record.ref for record in taken],
        began=began_us,
    )
    idle = sorted(ref for ref in refs if ref not in found or not found[ref][-1])
    if idle:
        reconcile(connection, idle, now_us=began_us, settled=idle)
    return Taken(taken, {ref: sizes[ref] for ref in sizes.keys() - fitting}, size)


#: Of `desired d`, what is to be sent to its record `r`: what waits, and what a doubtful call may have undone.
_TO_SEND = f"(d.state = 0 OR ({UNDONE} AND (r.doubt_us <= :doubt_over OR r.doubt_us > :began)))"
#: Bytes of it in a call's body: values and names with quotes, colon and comma. What is to be escaped in JSON counts as
#: it is: to look for it, all would have to be read that does not fit.
_BYTES = "{octets:d.value} + length(d.property) + 6"
_SIZE = f"SELECT sum({_BYTES}) FROM desired d WHERE d.record = r.id AND {_TO_SEND}"


def _fitting(sizes: Mapping[int, int], max_bytes: int) -> tuple[list[int], int]:
    """As many of these records as fit, and their size: the first always, and others may pass one that does not fit. It
    is the first of its source when that has its turn.
    """
    fitting: list[int] = []
    total = 0
    for ref, size in sizes.items():
        if not fitting or total + size <= max_bytes:
            fitting.append(ref)
            total += size
    return fitting, total


def _oldest(connection: Connection, ref: int, max_bytes: int, when: Mapping[str, int]) -> tuple[list[str], int]:
    """As many of a record's properties as fit, those that have waited longest, and their size."""
    names: list[str] = []
    total = 0
    for name, size in fetch(
        connection,
        f"""SELECT d.property, {_BYTES} FROM records r JOIN desired d ON d.record = r.id
             WHERE r.id = :ref AND {_TO_SEND} ORDER BY d.revision, d.property""",
        ref=ref,
        **when,
    ):
        if names and total + size > max_bytes:
            break
        names.append(name)
        total += size
    return names, total


def _values(
    connection: Connection, refs: Sequence[int], only: Collection[str] | None, when: Mapping[str, int]
) -> dict[int, dict[str, Value]]:
    """What is to be sent, by record."""
    rows = [[name] for name in only or ()]
    these = "" if only is None else " AND d.property IN (SELECT name FROM {rows:name text} AS given)"
    values: dict[int, dict[str, Value]] = {}
    for ref, name, value, revision, *changed in select(
        connection,
        "record, property, value, revision, time_us, event",
        f"""SELECT d.record, d.property, d.value, d.revision, d.time_us, d.event
              FROM desired d JOIN records r ON r.id = d.record WHERE d.record {{any_id}} AND {_TO_SEND}{these}""",
        ids=refs,
        **({} if only is None else {"rows": rows}),
        **when,
    ):
        values.setdefault(ref, {})[name] = Value(value, revision, tuple(changed))
    return values


def taken_again(record: PendingRecord, before: PendingRecord, *, marks: Collection[int]) -> PendingRecord:
    """What was taken, with its doubt as it was `before` earlier takes that led to no call: they were committed, but the
    answer to the commit was lost. `marks` are the times of these takes.
    """
    if record.doubt_at_us not in marks:
        return record
    return replace(record, doubt_at_us=before.doubt_at_us, doubt_n=before.doubt_n)


#: What became of a value: record, property, revision, state, category and message.
_Done = tuple[int, str, int, int, str | None, str | None]
#: A record's failure: record, `n` as it was read, when it is tried again (None: it is parked), category, message, and
#: how many attempts that counts.
_Failed = tuple[int, int, int | None, str, str, int]


def settle(
    connection: Connection,
    taken: Sequence[PendingRecord],
    outcomes: Sequence[Outcome],
    *,
    call: Call | None,
    doubtful: bool,
    now_us: int,
) -> Settlement:
    """Write down what one call did. Records without an outcome stay due as they were.

    A record may be in several outcomes (some properties refused, the others delivered), and an outcome may
    judge a record of an earlier call. `call` is None when what was taken was not sent after all.
    """
    settled = Settlement()
    lock_records(connection, {record.ref for record in taken} | {outcome.record.ref for outcome in outcomes})
    call_id = None if call is None else _log_call(connection, taken, outcomes, call)
    _settle_doubt(connection, taken, doubtful=doubtful)
    delivered: list[PendingRecord] = []
    done: list[_Done] = []
    failed: list[_Failed] = []
    for outcome in outcomes:
        record = outcome.record
        match outcome:
            case Delivered():
                delivered.append(record)
                settled.delivered += len(record.values)
                done += _done(record, State.DELIVERED)
            case Ignored():
                settled.unknown += len(record.values)
                done += _done(record, State.UNKNOWN)
            case Refused():
                settled.refused += len(outcome.properties)
                done += [
                    (record.ref, name, record.values[name].n, int(State.REFUSED), reason.category, reason.message)
                    for name, reason in outcome.properties.items()
                    if name in record.values
                ]
            case RetryLater():
                settled.retrying += 1
                at_us, why = now_us + to_us(outcome.delay_s), outcome.reason
                failed.append((record.ref, record.n, at_us, why.category, why.message, int(outcome.own_failure)))
            case Parked():
                settled.parked += 1
                failed.append((record.ref, record.n, None, outcome.reason.category, outcome.reason.message, 1))
            case _:
                assert_never(outcome)
    _settle_values(connection, done, call_id, now_us)
    _settle_records(connection, delivered, failed, now_us)
    _end_doubts(connection, delivered, call_id, now_us if call is None else call.started_at_us)
    confirmed = {record.ref for record in delivered}
    left = reconcile(
        connection,
        {outcome.record.ref for outcome in outcomes},
        now_us=now_us,
        moved={ref for ref, *_ in failed},
        settled=confirmed | {outcome.record.ref for outcome in outcomes if isinstance(outcome, (Ignored, Refused))},
    )
    settled.delays = [
        (source, max(0.0, (now_us - since_us) / 1e6)) for ref, source, since_us in left if ref in confirmed
    ]
    return settled


def was_settled(
    connection: Connection, taken: Sequence[PendingRecord], outcomes: Sequence[Outcome], call: Call
) -> bool:
    """Whether just this was written down before, by a commit whose answer was lost."""
    rows = fetch(
        connection,
        """SELECT 1 FROM calls c JOIN lanes l ON l.id = c.lane WHERE c.started_us = :started AND c.inputs = :inputs
              AND l.object_type = :object_type AND l.id_property = :id_property""",
        started=call.started_at_us,
        inputs=_inputs(taken, outcomes),
        object_type=call.lane.object_type,
        id_property=call.lane.id_property,
    )
    return bool(rows)


def _done(record: PendingRecord, state: State) -> list[_Done]:
    return [(record.ref, name, value.n, int(state), None, None) for name, value in record.values.items()]


def _log_call(connection: Connection, taken: Sequence[PendingRecord], outcomes: Sequence[Outcome], call: Call) -> int:
    inputs = _inputs(taken, outcomes)
    found = _insert_call(connection, call, inputs)
    if not found:  # a lane of which nothing was ever taken
        stored_lanes(connection, {call.lane})
        found = _insert_call(connection, call, inputs)
    return int(found[0][0])


def _insert_call(connection: Connection, call: Call, inputs: str) -> Sequence[Sequence[Any]]:
    return fetch(
        connection,
        """INSERT INTO calls (lane, started_us, duration_us, status, correlation_id, error, inputs)
           SELECT id, :started_us, :duration_us, :status, :correlation_id, :error, :inputs
             FROM lanes WHERE object_type = :object_type AND id_property = :id_property RETURNING id""",
        object_type=call.lane.object_type,
        id_property=call.lane.id_property,
        started_us=call.started_at_us,
        duration_us=to_us(call.duration_s),
        status=call.status,
        correlation_id=call.correlation_id,
        error=call.error,
        inputs=inputs,
    )


def _inputs(taken: Sequence[PendingRecord], outcomes: Sequence[Outcome]) -> str:
    words = {outcome.record.ref: type(outcome).__name__.lower() for outcome in outcomes}
    return orjson.dumps([[record.ref, record.n, words.get(record.ref, "undecided")] for record in taken]).decode()


def _settle_doubt(connection: Connection, taken: Sequence[PendingRecord], *, doubtful: bool) -> None:
    """Touch every record of the call first; without doubt its mark is put back to what it was, unless twins of the
    record have joined it meanwhile (`bridge.journal.matching`, which marks all of it): their calls may not be over.
    """
    if doubtful:
        run(
            connection,
            "UPDATE records SET n = n WHERE id {any_id}",
            ids=sorted(record.ref for record in taken),
        )
        return
    run(
        connection,
        """UPDATE records SET doubt_us = r.doubt_us, doubt_n = r.doubt_n
             FROM {rows:ref int, doubt_us int, doubt_n int} r
            WHERE records.id = r.ref AND (records.doubt_us IS NULL OR records.doubt_n >= r.doubt_n)""",
        rows=sorted((record.ref, record.doubt_at_us, record.doubt_n) for record in taken),
    )


def shift_doubts(connection: Connection, by_us: int) -> None:
    """Date every doubt anew. What is due at a doubt's end finds its time by itself: it is due now, or too far ahead,
    and `reconcile` puts it off again.
    """
    run(connection, "UPDATE records SET doubt_us = doubt_us + :by WHERE doubt_us IS NOT NULL", by=by_us)


def _settle_values(
    connection: Connection,
    rows: Sequence[_Done],
    call_id: int | None,
    now_us: int,
) -> None:
    if rows:
        run(
            connection,
            """UPDATE desired SET state = r.state, category = r.category, message = r.message, settled_us = :now,
                      call = :call
                 FROM {rows:record int, property text, revision int, state int, category text, message text} r
                WHERE desired.record = r.record AND desired.property = r.property
                  AND desired.revision = r.revision AND (desired.state <> :discarded OR r.state = :delivered)""",
            rows=rows,
            discarded=int(State.DISCARDED),  # meanwhile, by a person: so it stays, unless the CRM has it by now
            delivered=int(State.DELIVERED),
            now=now_us,
            call=call_id,
        )


def _settle_records(
    connection: Connection, delivered: Sequence[PendingRecord], failed: Sequence[_Failed], now_us: int
) -> None:
    """Failures of the record's own: forget them after success, else note why, and when it is tried again."""
    failed_before = [record.ref for record in delivered if record.attempts or record.failing_since_us is not None]
    if failed_before:
        forget_failures(connection, failed_before)
    if failed:
        # Of what is to be parked a change that arrived meanwhile raised n: the record goes on with it.
        run(
            connection,
            """UPDATE records SET attempts = attempts + r.own, retry_us = r.at, category = r.category,
                      message = r.message, failing_since_us = coalesce(records.failing_since_us, :now),
                      parked_us = CASE WHEN r.at IS NULL THEN :now ELSE records.parked_us END
                 FROM {rows:ref int, n int, at int, category text, message text, own int} r
                WHERE records.id = r.ref AND (r.at IS NOT NULL OR records.n = r.n)""",
            rows=failed,
            now=now_us,
        )


def _end_doubts(connection: Connection, delivered: Sequence[PendingRecord], call_id: int | None, began_us: int) -> None:
    """Forget the doubts that were over when this call began. What it did not send once more, because only a part of the
    record was in it, waits from now on like any other value.
    """
    over = [
        (record.ref, record.doubt_at_us, record.doubt_n)
        for record in delivered
        if record.doubt_at_us is not None and not record.doubt_at_us <= began_us < record.doubt_at_us + DOUBT_US
    ]
    if not over:
        return
    # Not those that were marked anew meanwhile, when twins joined them.
    given = "{rows:ref int, doubt_us int, doubt_n int} g"
    run(
        connection,
        f"""UPDATE desired AS d SET state = 0 FROM {given} JOIN records r
                 ON r.id = g.ref AND r.doubt_us = g.doubt_us AND r.doubt_n = g.doubt_n
             WHERE d.record = r.id AND {UNDONE} AND (d.call IS NULL OR d.call <> :call)""",
        rows=over,
        call=call_id,
    )
    run(
        connection,
        f"""UPDATE records SET doubt_us = NULL, doubt_n = NULL FROM {given}
             WHERE records.id = g.ref AND records.doubt_us = g.doubt_us AND records.doubt_n = g.doubt_n""",
        rows=over,
    )
