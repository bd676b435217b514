"""What people do to delivery: send known values once more, stop it, let it go on; and acts that take a while.

Resync makes delivered values pending again. They keep their time and `n`, so that newer events win as ever, and
get a new revision, so that a call that is under way cannot settle them. A record that is parked, or waits out a
failure, goes on waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

import orjson
from sqlalchemy.engine import Connection

from bridge.errors import JournalFullError
from bridge.journal import matching
from bridge.journal.database import (
    fetch,
    is_postgresql,
    load_meta,
    lock_dispatcher,
    lock_records,
    run,
    save_meta,
    take_turns,
)
from bridge.journal.due import reconcile
from bridge.journal.matching import RECORDS_MEANT
from bridge.model import Pause, Scope

# --- how much people's acts may make pending: no more than intake can do with (G7) ---
#
# A replay or a resync makes records pending as events do. Beyond `max_pending` intake answers 503, so an act ends
# there with a JournalFullError that tells how far it came. What it did stays done: acts may be repeated, and what
# is pending already is not counted twice.

#: Seconds for which a count of what is pending is believed.
COUNTED_S: Final = 1.0


class Headroom:
    """Asked between the steps of one act. Not thread-safe."""

    def __init__(self, *, count: Callable[[], int], max_pending: int, monotonic: Callable[[], float]) -> None:
        self._count = count
        self._max_pending = max_pending
        self._monotonic = monotonic
        self._counted_at = float("-inf")
        self._pending = 0

    def made_pending(self, records: int) -> None:
        """A step made so many records pending at most."""
        self._pending += records

    def check(self, *, wanted: int = 0, done: str = "") -> None:
        """Raise JournalFullError unless so many records more, and at least one, may be made pending."""
        if self._pending + wanted >= self._max_pending or self._monotonic() - self._counted_at >= COUNTED_S:
            self._pending, self._counted_at = self._count(), self._monotonic()
        if self._pending + wanted >= self._max_pending:
            more = f"{wanted} records to send and {self._pending}" if wanted else f"{self._pending} records"
            raise JournalFullError(
                f"{more} that wait are more than journal.max_pending ({self._max_pending}) lets in{done}: narrow it "
                "down, wait until more is delivered, or raise that"
            )


# --- What a person does to many entries of the retry log, told while it goes on: kept where every worker and replica
# reads it. One act at a time; the latest is remembered.

#: Its name in `meta`.
NAME = "act"
#: One that has not been told of for this long died with its process.
STALLED_US = 30 * 1_000_000


@dataclass(frozen=True, slots=True)
class Act:
    """An act and how far it came. Times are microseconds since the epoch; `chosen` is the filter as a query."""

    id: str
    what: str  # replay, discard
    who: str
    chosen: dict[str, Any]
    counted: int  # entries, when the person confirmed
    began_us: int
    told_us: int
    done: int = 0  # entries
    ended: bool = False
    result: dict[str, int] = field(default_factory=dict)
    problem: str = ""  # why it ended early

    def stalled(self, now_us: int) -> bool:
        """Whether its process must have died."""
        return not self.ended and now_us - self.told_us > STALLED_US


def latest_act(connection: Connection) -> Act | None:
    """The act that began last."""
    text = load_meta(connection, NAME)
    if text is None:
        return None
    known = {each.name for each in fields(Act)}
    return Act(**{name: value for name, value in orjson.loads(text).items() if name in known})


def begin_act(connection: Connection, act: Act) -> bool:
    """Remember this act; False while another one goes on."""
    take_turns(connection)  # two may begin at once
    before = latest_act(connection)
    if before is not None and not before.ended and not before.stalled(act.began_us):
        return False
    save_meta(connection, NAME, orjson.dumps(asdict(act)).decode())
    return True


def tell_act(connection: Connection, act: Act) -> None:
    """How far it came; nothing if another act has taken its place."""
    take_turns(connection)
    before = latest_act(connection)
    if before is not None and before.id == act.id:
        save_meta(connection, NAME, orjson.dumps(asdict(act)).decode())


#: Records looked at in one transaction of a resync, and bytes of values which are written anew in it: both a fraction
#: of a second, for which intake waits.
STEP, STEP_BYTES = 500, 8 << 20


@dataclass(frozen=True, slots=True)
class ValueFilter:
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


def _conditions(chosen: ValueFilter) -> tuple[str, dict[str, object]]:
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


def count_delivered(connection: Connection, chosen: ValueFilter) -> Resynced:
    """How much `chosen` means."""
    conditions, parameters = _conditions(chosen)
    [(records, values)] = fetch(
        connection,
        f"""SELECT count(DISTINCT d.record), count(*) FROM lanes l JOIN records r ON r.lane = l.id
              JOIN desired d ON d.record = r.id WHERE {conditions}""",
        **parameters,
    )
    return Resynced(int(records), int(values))


def step(connection: Connection, chosen: ValueFilter, *, after: int, now_us: int) -> tuple[Resynced, int]:
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


# --- pauses: those of the dispatcher and those of people, which only people write and end ---

#: The reason of a pause that a person made.
OPERATOR = "operator"


def load_pauses(connection: Connection) -> Sequence[Pause]:
    """The pauses last saved."""
    rows = fetch(connection, "SELECT pauses FROM dispatcher WHERE id = 1")
    return [Pause(**(pause | {"scope": Scope(pause["scope"])})) for pause in orjson.loads(rows[0][0] if rows else "[]")]


def save_pauses(connection: Connection, pauses: Sequence[Pause]) -> None:
    """Save the dispatcher's pauses in place of those that it saved before."""
    people = [held for held in load_pauses(connection) if held.reason == OPERATOR]
    _save(connection, [*people, *(pause for pause in pauses if pause.reason != OPERATOR)])


def pause(connection: Connection, object_type: str | None, detail: str, *, now_us: int) -> Pause:
    """Stop delivery, or that of one object type; a stop that holds already gets the new detail."""
    scope = Scope.ALL if object_type is None else Scope.OBJECT_TYPE
    made = Pause(scope, object_type or "", OPERATOR, detail, since_us=now_us, until_us=None)
    lock_dispatcher(connection)
    others = []
    for held in load_pauses(connection):
        if (held.scope, held.target, held.reason) == (made.scope, made.target, made.reason):
            made = replace(made, since_us=held.since_us)
        else:
            others.append(held)
    _save(connection, [*others, made])
    return made


def resume(connection: Connection, object_type: str | None = None) -> list[Pause]:
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


def _save(connection: Connection, pauses: Sequence[Pause]) -> None:
    run(
        connection,
        "UPDATE dispatcher SET pauses = :pauses WHERE id = 1",
        pauses=orjson.dumps([asdict(held) for held in pauses]).decode(),
    )
