"""What people do to delivery: send known values once more, stop it, let it go on.

Resync makes delivered values pending again. They keep their time and `n`, so that newer events win as ever, and
get a new revision, so that a call that is under way cannot settle them. A record that is parked, or waits out a
failure, goes on waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import orjson
from sqlalchemy.engine import Connection

from bridge.journal import matching
from bridge.journal.database import fetch, is_postgresql, run
from bridge.journal.locking import lock_dispatcher, lock_records, take_turns
from bridge.journal.matching import RECORDS_MEANT
from bridge.journal.reconciling import reconcile
from bridge.journal.upkeep import OPERATOR, load_pauses
from bridge.model import Pause, Scope

#: Records looked at in one transaction of a resync, and bytes of values which are written anew in it: both a fraction
#: of a second, for which intake waits.
STEP, STEP_BYTES = 500, 8 << 20


@dataclass(frozen=True, slots=True)
class Known:
    """Which delivered values are meant; empty fields do not narrow."""

    source: str | None = None
    object_type: str | None = None
    record: str | None = None


@dataclass(slots=True)
class Resynced:
    """How much is, or would be, sent once more."""

    records: int = 0
    values: int = 0
    after: int = 0  # where to go on; 0 at the end


def _conditions(chosen: Known) -> tuple[str, dict[str, object]]:
    conditions, parameters = ["d.state = 1"], dict[str, object]()
    for column, wanted in (("d.source", chosen.source), ("l.object_type", chosen.object_type)):
        if wanted is not None:
            name = column.partition(".")[2]
            conditions.append(f"{column} = :{name}")
            parameters[name] = wanted
    if chosen.record is not None:
        conditions.append(f"r.id IN ({RECORDS_MEANT})")
        parameters |= matching.parameters(chosen.record)
    return " AND ".join(conditions), parameters


def count(connection: Connection, chosen: Known) -> Resynced:
    """How much `chosen` means."""
    conditions, parameters = _conditions(chosen)
    [(records, values)] = fetch(
        connection,
        f"""SELECT count(DISTINCT d.record), count(*) FROM lanes l JOIN records r ON r.lane = l.id
              JOIN desired d ON d.record = r.id WHERE {conditions}""",
        **parameters,
    )
    return Resynced(int(records), int(values))


def step(connection: Connection, chosen: Known, *, after: int, now_us: int) -> tuple[Resynced, int]:
    """Send the next `STEP` records once more; returns what that was, and where to go on (0 at the end)."""
    take_turns(connection)
    conditions, parameters = _conditions(chosen)

    def known() -> list[int]:
        rows = run(
            connection,
            f"""SELECT r.id, (SELECT sum({{octets:d.value}}) FROM desired d WHERE d.record = r.id AND d.state = 1)
                  FROM records r JOIN lanes l ON l.id = r.lane
                 WHERE r.id > :after AND EXISTS (SELECT 1 FROM desired d WHERE d.record = r.id AND {conditions})
                 ORDER BY r.id LIMIT :step""",
            after=after,
            step=STEP,
            **parameters,
        )
        found, total = list[int](), 0
        while total < STEP_BYTES and (row := rows.fetchone()) is not None:
            found.append(row[0])
            total += row[1] or 0
        rows.close()
        return found

    refs = known()
    locked: set[int] = set()
    while is_postgresql(connection) and not locked.issuperset(refs):  # what was just delivered is known too
        lock_records(connection, refs)
        locked.update(refs)
        refs = known()
    run(connection, "UPDATE records SET n = n + 1 WHERE id IN (SELECT id FROM {ids})", ids=refs)
    source = "" if chosen.source is None else "AND desired.source = :source"
    values = run(
        connection,
        f"""UPDATE desired SET state = 0, revision = r.n FROM records r
             WHERE desired.record = r.id AND r.id IN (SELECT id FROM {{ids}}) AND desired.state = 1 {source}""",
        ids=refs,
        **({} if chosen.source is None else {"source": chosen.source}),
    ).rowcount
    reconcile(connection, refs, now_us=now_us, moved=refs)
    return Resynced(len(refs), values), refs[-1] if refs else 0


# --- pauses -------------------------------------------------------------------------------------


def pause(connection: Connection, object_type: str | None, detail: str, *, now_us: int) -> Pause:
    """Stop delivery, or that of one object type; a stop that holds already gets the new detail."""
    scope = Scope.ALL if object_type is None else Scope.OBJECT_TYPE
    made = Pause(scope, object_type or "", OPERATOR, detail, since_us=now_us, until_us=None)
    lock_dispatcher(connection)
    stored = load_pauses(connection)
    for held in stored:
        if _address(held) == _address(made):
            made = replace(made, since_us=held.since_us)
    _save(connection, [*(held for held in stored if _address(held) != _address(made)), made])
    return made


def resume(connection: Connection, object_type: str | None) -> list[Pause]:
    """End people's pauses, all of them or that of one object type; returns those that ended."""
    lock_dispatcher(connection)
    stored = load_pauses(connection)
    over = [
        held
        for held in stored
        if held.reason == OPERATOR
        and (object_type is None or (held.scope is Scope.OBJECT_TYPE and held.target == object_type))
    ]
    if over:
        _save(connection, [held for held in stored if held not in over])
    return over


def _address(held: Pause) -> tuple[Scope, str, str]:
    return held.scope, held.target, held.reason


def _save(connection: Connection, pauses: Sequence[Pause]) -> None:
    run(
        connection,
        "UPDATE dispatcher SET pauses = :pauses WHERE id = 1",
        pauses=orjson.dumps([asdict(held) for held in pauses]).decode(),
    )
