"""The retry log: its entries, groups of them, what is behind one, and giving some up. Nothing of it is ever pruned.

An entry is one of three things, told apart by its id:

* `record-17`: a record that is retried after a failure of its own, or parked whole;
* `refused-17`: the properties of a record that the CRM refused or the mapping found invalid;
* `event-42`: an event, or a part of it, that could not be mapped to any record.

Entries are chosen by a few columns (`references`, `narrowed`) and described only where they are shown (`described`): a
page of a long log must not read all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast, get_args

import orjson
from sqlalchemy.engine import Connection

from bridge.journal import matching
from bridge.journal.database import fetch, lock_records, portions, run, take_turns
from bridge.journal.due import reconcile
from bridge.journal.matching import RECORDS_MEANT
from bridge.journal.schema import NEVER, State

# --- how much of a long text people are shown: a page must not cost what it tells of (G8) ---

#: Characters of a value.
VALUE = 1_000
#: Characters of a payload, and payloads of one entry: as much as somebody reads.
PAYLOAD, PAYLOADS = 50_000, 20


def beginning(column: str, characters: int = VALUE) -> str:
    """A text column, as SQL: what is longer is cut, and says so."""
    return f"CASE WHEN length({column}) > {characters} THEN substr({column}, 1, {characters}) || '…' ELSE {column} END"


def cut(text: str) -> str:
    """The same of a text that is there already."""
    return text if len(text) <= VALUE else text[:VALUE] + "…"


Kind = Literal["record", "refused", "event"]
#: The parts of the retry log.
KINDS: tuple[Kind, ...] = get_args(Kind)
#: The state of the values behind an entry.
STANDING: dict[Kind, State] = {"record": State.PENDING, "refused": State.REFUSED}
EntryState = Literal["retrying", "parked"]
#: Entries described with one set of statements.
PORTION = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of `retries list`. Times are microseconds since the epoch; `properties` are names."""

    id: str
    state: EntryState
    source: str
    object_type: str | None
    id_property: str | None
    record: str | None
    category: str
    message: str
    properties: tuple[str, ...]
    event_ids: tuple[str, ...]
    attempts: int
    first_failed_us: int | None
    next_attempt_us: int | None


@dataclass(frozen=True, slots=True)
class Reference:
    """An entry by its id; the other two tell whether it waits for a person, and what entries are sorted by."""

    id: str
    state: EntryState
    failed_us: int

    @property
    def place(self) -> str:
        """Where it stands among the others, as `at` reads it."""
        return f"{self.failed_us}.{self.id}"

    @classmethod
    def at(cls, place: str) -> Reference:
        """Raises ValueError."""
        failed_us, _, id_ = place.partition(".")
        if not re.fullmatch(r"[0-9]{1,18}\.(record|refused|event)-[0-9]{1,18}", place):
            raise ValueError(f"{place!r} is not what `next` told")
        return cls(id_, "parked", int(failed_us))


def parsed(id_: str) -> tuple[Kind, int]:
    """The kind and the number in an entry's id."""
    kind, _, number = id_.partition("-")
    return cast("Kind", kind), int(number)


def numbers(ids: Iterable[str]) -> dict[Kind, list[int]]:
    """The numbers in the ids of entries, by kind."""
    found: dict[Kind, list[int]] = {kind: [] for kind in KINDS}
    for kind, number in map(parsed, ids):
        found[kind].append(number)
    return found


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries are meant; empty fields do not narrow. `since`, `before` are on the first failure.

    `search` finds a part of the record's id or of the message, whatever their case, or an event's whole id.
    `seen` is when a person looked: entries, and values within them, that came later are not meant.
    """

    ids: tuple[str, ...] = ()
    state: EntryState | None = None
    source: str | None = None
    category: str | None = None
    message: str | None = None
    record: str | None = None
    search: str | None = None
    since_us: int | None = None
    before_us: int | None = None
    seen_us: int | None = None


# --- which entries are meant --------------------------------------------------------------------

# `<column>` stands where a part is narrowed to some entries: reading all for each step would make a discard
# quadratic. The outer joins are left out by the database where nobody asks for their columns; it does not leave out
# aggregates, which cost more than finding the rows: `_refused` has none that nobody asks for.
_RECORDS = """
SELECT 'record' AS kind, r.id AS ref, CASE WHEN r.parked_us IS NULL THEN 'retrying' ELSE 'parked' END AS state,
       (SELECT min(source) FROM due WHERE due.record = r.id) AS source,
       l.object_type, l.id_property, r.record, r.category, r.message, r.attempts,
       coalesce(r.failing_since_us, r.parked_us) AS failed_us,
       CASE WHEN r.parked_us IS NULL THEN r.retry_us END AS next_us
  FROM records r LEFT JOIN lanes l ON l.id = r.lane WHERE r.category IS NOT NULL <r.id>"""

_REFUSED = """
SELECT 'refused' AS kind, f.record AS ref, 'parked' AS state, f.source, l.object_type, l.id_property,
       r.record,
       f.category, f.message, 1 AS attempts, f.failed_us, cast(NULL AS bigint) AS next_us
  FROM (SELECT d.record, {source} AS source, {category} AS category, {message} AS message,
               min(d.settled_us) AS failed_us
          FROM desired d WHERE d.state = 2 <d.record> GROUP BY d.record) AS f
  LEFT JOIN records r ON r.id = f.record LEFT JOIN lanes l ON l.id = r.lane WHERE 1 = 1"""

_EVENTS = """
SELECT 'event' AS kind, seq AS ref, 'parked' AS state, source, cast(NULL AS text) AS object_type,
       cast(NULL AS text) AS id_property, cast(NULL AS text) AS record, 'UNMAPPABLE' AS category,
       unmappable AS message, 1 AS attempts, received_us AS failed_us, cast(NULL AS bigint) AS next_us
  FROM events WHERE waits = 1 <seq>"""
_PLACE = re.compile(r"<([\w.]+)>")

_LIKE = "lower({}) LIKE :search ESCAPE '!'"
_BEHIND = """SELECT d.record FROM events e JOIN asks a ON a.event = e.seq
               JOIN desired d ON d.record = a.record AND d.event = e.seq AND d.state = {} WHERE e.event_id = :event"""
#: What `search` finds, by part.
_FOUND = {
    "record": f"({_LIKE.format('record')} OR {_LIKE.format('message')} OR ref IN ({_BEHIND.format(0)}))",
    "refused": f"""({_LIKE.format("record")} OR ref IN ({_BEHIND.format(2)})
        OR ref IN (SELECT record FROM desired WHERE state = 2 AND {_LIKE.format("message")}))""",
    "event": f"({_LIKE.format('message')} OR ref IN (SELECT seq FROM events WHERE event_id = :event))",
}


def references(
    connection: Connection,
    chosen: Filter,
    *,
    after: Reference | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Reference]:
    """The entries that `chosen` means, oldest failure first; those that come after one if it is given."""
    parts, parameters = narrowed(chosen, "failed_us, kind, ref, state")
    further = "1 = 1"
    if after is not None:
        kind, number = parsed(after.id)
        further = "(failed_us, kind, ref) > (:after_us, :after_kind, :after_ref)"
        parameters |= {"after_us": after.failed_us, "after_kind": kind, "after_ref": number}
    rows = fetch(
        connection,
        f"""SELECT kind, ref, state, failed_us FROM {parts} WHERE {further}
             ORDER BY failed_us, kind, ref LIMIT :limit OFFSET :offset""",
        limit=NEVER if limit is None else limit,
        offset=offset,
        **parameters,
    )
    return [Reference(f"{kind}-{ref}", state, int(failed_us or 0)) for kind, ref, state, failed_us in rows]


def narrowed(chosen: Filter, columns: str) -> tuple[str, dict[str, object]]:
    """These columns of the entries that `chosen` means, as SQL to select from, and its parameters."""
    conditions, parameters = _conditions(chosen)
    parts = _parts(f"{columns} {conditions}", of_ids=bool(chosen.ids), of_record=chosen.record is not None)
    selected = " UNION ALL ".join(
        f"SELECT {columns} FROM ({part}) AS p WHERE {conditions}"
        + (f" AND {_FOUND[kind]}" if chosen.search is not None else "")
        for kind, part in parts.items()
    )
    return f"({selected}) AS entry", parameters


def count_by_state(connection: Connection) -> list[tuple[EntryState, str, int]]:
    """How many entries there are, by state and category: the metric `bridge_retry_log_entries`."""
    counted = " UNION ALL ".join(
        f"SELECT state, category, count(*) AS entries FROM ({part}) AS p GROUP BY state, category"
        for part in _parts("category").values()
    )
    rows = fetch(connection, f"SELECT state, category, sum(entries) FROM ({counted}) AS c GROUP BY state, category")
    return [(state, category, int(number)) for state, category, number in rows]


def _parts(asked: str, *, of_ids: bool = False, of_record: bool = False) -> dict[Kind, str]:
    """The three parts as SELECTs, in which the columns `asked` for are filled; narrowed to the entries of `:ids`, as
    `_coded`, and to those of `:record`.
    """
    parts = dict(zip(KINDS, (_RECORDS, _refused(asked), _EVENTS), strict=True))
    if asked.startswith("*"):  # else only whether there is such a record counts, for all of a long log
        parts = {
            kind: part.replace("r.record,", "coalesce(r.spelling, r.record) AS record,") for kind, part in parts.items()
        }
    for code, kind in enumerate(KINDS):
        narrowing = rf" AND \1 IN (SELECT id / {len(KINDS)} FROM {{ids}} WHERE id % {len(KINDS)} = {code})"
        of_this = rf" AND \1 IN ({RECORDS_MEANT})" if kind != "event" else " AND 1 = 0"
        parts[kind] = _PLACE.sub((narrowing if of_ids else "") + (of_this if of_record else ""), parts[kind])
    return parts


def _coded(ids: Sequence[str]) -> list[int]:
    """These entries as numbers that tell their kind too, so that one list of them does for all three parts."""
    coded = []
    for text in ids:
        kind, _, number = text.partition("-")
        if kind in KINDS and number.isascii() and number.isdigit():
            coded.append(min(int(number), NEVER // len(KINDS) - 1) * len(KINDS) + KINDS.index(kind))
    return coded


def _refused(asked: str) -> str:
    filled = {
        name: f"min(d.{name})" if asked.startswith("*") or name in asked else "cast(NULL AS text)"
        for name in ("source", "category", "message")
    }
    return _REFUSED.format(**filled)


def _conditions(chosen: Filter) -> tuple[str, dict[str, object]]:
    """The filter, but for its ids and record, as SQL over the columns of the three parts; and all its parameters."""
    conditions, parameters = ["1 = 1"], dict[str, object]()
    for column in ("state", "source", "category", "message"):
        wanted = getattr(chosen, column)
        if wanted is not None:
            conditions.append(f"{column} = :{column}")
            parameters[column] = wanted
    if chosen.ids:
        parameters["ids"] = _coded(chosen.ids)
    if chosen.record is not None:
        parameters |= matching.parameters(chosen.record)
    for bound, sign in (("since_us", ">="), ("before_us", "<"), ("seen_us", "<=")):
        wanted = getattr(chosen, bound)
        if wanted is not None:
            conditions.append(f"failed_us {sign} :{bound}")
            parameters[bound] = wanted
    if chosen.search is not None:
        escaped = re.sub("[!%_]", r"!\g<0>", chosen.search.lower())
        parameters |= {"search": f"%{escaped}%", "event": chosen.search}
    return " AND ".join(conditions), parameters


# --- entries as they are shown ------------------------------------------------------------------


def entries(connection: Connection, chosen: Filter, *, limit: int | None = None, offset: int = 0) -> list[Entry]:
    """The entries that `chosen` means, oldest failure first."""
    found = references(connection, chosen, limit=limit, offset=offset)
    return [
        entry
        for portion in portions(found, PORTION)
        for entry in described(connection, [reference.id for reference in portion])
    ]


def described(connection: Connection, ids: Sequence[str]) -> list[Entry]:
    """These entries, in this order; what is none any more is left out."""
    if not ids:
        return []
    parts, parameters = narrowed(Filter(ids=tuple(ids)), "*")
    rows = {f"{row[0]}-{row[1]}": row for row in fetch(connection, f"SELECT * FROM {parts}", **parameters)}
    behind = _behind(connection, ids)
    return [_entry(rows[id_], behind.get(id_, [])) for id_ in ids if id_ in rows]


#: (property, event id, message) of what is behind an entry.
_Behind = tuple[str | None, str | None, str | None]


def _behind(connection: Connection, ids: Sequence[str]) -> dict[str, list[_Behind]]:
    """The values and events behind these entries, by entry."""
    of_kind = numbers(ids)
    found: dict[str, list[_Behind]] = {}
    for ref, state, name, event_id, why in fetch(
        connection,
        """SELECT d.record, d.state, d.property, e.event_id, d.message FROM desired d
             LEFT JOIN events e ON e.seq = d.event
            WHERE d.record IN (SELECT id FROM {ids}) AND d.state IN (0, 2) ORDER BY d.record, d.property""",
        ids=of_kind["record"] + of_kind["refused"],
    ):
        kind = "record" if state == State.PENDING else "refused"
        found.setdefault(f"{kind}-{ref}", []).append((name, event_id, why))
    for seq, event_id in fetch(
        connection,
        "SELECT seq, event_id FROM events WHERE seq IN (SELECT id FROM {ids})",
        ids=of_kind["event"],
    ):
        found[f"event-{seq}"] = [(None, event_id, None)]
    return found


def _entry(row: Sequence[object], behind: Sequence[_Behind]) -> Entry:
    (
        kind,
        ref,
        state,
        source,
        object_type,
        id_property,
        record,
        category,
        message,
        attempts,
        failed,
        following,
    ) = row
    messages = [str(message)]
    if kind == "refused":
        messages += dict.fromkeys(why for _, _, why in behind if why and why not in str(message))
    return Entry(
        id=f"{kind}-{ref}",
        state="retrying" if state == "retrying" else "parked",
        source=str(source or ""),
        object_type=None if object_type is None else str(object_type),
        id_property=str(id_property) if id_property else None,
        record=None if record is None else str(record),
        category=str(category),
        message="; ".join(messages),
        properties=tuple(name for name, _, _ in behind if name is not None),
        event_ids=tuple(dict.fromkeys(event_id for _, event_id, _ in behind if event_id is not None)),
        attempts=int(str(attempts)),
        first_failed_us=None if failed is None else int(str(failed)),
        next_attempt_us=None if following is None else int(str(following)),
    )


# --- what the console shows of the retry log beyond its rows: groups, the payloads and the calls behind an entry ---

#: Groups of one answer.
GROUPS = 50
#: The parts of the retry log by numbers, in the order in which they are sorted.
_KINDS = sorted(KINDS)
_CODE = "CASE kind " + " ".join(f"WHEN '{kind}' THEN {code}" for code, kind in enumerate(_KINDS)) + " END"
#: Calls looked through for those that carried a record.
CALLS_SEARCHED = 2_000
#: No call lasts longer; it began so long before its failure at most.
CALL_LASTS_US = 60 * 1_000_000


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


def count_entries(connection: Connection, chosen: Filter) -> int:
    """How many entries `chosen` means."""
    parts, parameters = narrowed(chosen, "1 AS one")
    return int(fetch(connection, f"SELECT count(*) FROM {parts}", **parameters)[0][0])


def overview(connection: Connection, chosen: Filter, *, limit: int, offset: int = 0) -> Overview:
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


def payloads(connection: Connection, entry: Entry) -> dict[str, str]:
    """The kept payloads of an entry's events, as JSON texts: of the first few, and of long ones the beginning."""
    rows = fetch(
        connection,
        f"""SELECT event_id, {beginning("payload", PAYLOAD)} FROM events
            WHERE event_id IN (SELECT wanted FROM {{rows:wanted text}} AS given) AND source = :source""",
        rows=[[event_id] for event_id in dict.fromkeys(entry.event_ids[:PAYLOADS])],
        source=entry.source,
    )
    return {str(event_id): str(payload) for event_id, payload in rows}


def calls(connection: Connection, entry: Entry) -> list[dict[str, Any]]:
    """The calls that carried an entry's record since it first failed, newest first; looked for among the newest."""
    kind, record = parsed(entry.id)
    if kind == "event" or entry.first_failed_us is None:
        return []
    found = []
    for number, started_us, duration_us, status, correlation_id, error, inputs in fetch(
        connection,
        """SELECT id, started_us, duration_us, status, correlation_id, error, inputs FROM
             (SELECT * FROM calls WHERE started_us >= :since ORDER BY started_us DESC LIMIT :searched) AS c
            WHERE inputs LIKE :carried ORDER BY started_us DESC""",
        since=entry.first_failed_us - CALL_LASTS_US,
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


# --- what people do about it: here to discard; to replay see `bridge.journal.replay` ---

#: Entries handled in one write transaction, so that intake is not held up by a large replay.
STEP = 200


class Chosen(Protocol):
    """An entry that is acted on."""

    @property
    def id(self) -> str: ...

    @property
    def state(self) -> EntryState: ...


@dataclass(slots=True)
class Discarded:
    """What a discard gave up. `entries` are those that still were what they were when they were chosen."""

    entries: int = 0
    values: int = 0  # and events that could not be mapped


def discard(connection: Connection, ids: Sequence[str], chosen: Filter, *, now_us: int) -> Discarded:
    """Give those of these entries up for good that `chosen` still means, now and in this transaction.

    What was delivered or asked for by newer events is not touched, nor what came after `chosen.seen_us`: a person
    confirmed what was there. Older values stay unsent.
    """
    take_turns(connection)
    found = numbers(ids)
    lock_records(connection, found["record"] + found["refused"])
    still = references(connection, replace(chosen, ids=tuple(ids))) if ids else []
    found = numbers(entry.id for entry in still)
    done = Discarded(entries=len(still))
    for kind, state in STANDING.items():
        done.values += run(
            connection,
            """UPDATE desired SET state = :discarded, settled_us = :now
                WHERE record IN (SELECT id FROM {ids}) AND state = :state AND (:state = 0 OR settled_us <= :seen)
                  AND NOT EXISTS (SELECT 1 FROM events e WHERE e.seq = desired.event AND e.received_us > :seen)""",
            ids=found[kind],
            state=int(state),
            discarded=int(State.DISCARDED),
            seen=NEVER if chosen.seen_us is None else chosen.seen_us,
            now=now_us,
        ).rowcount
    reconcile(connection, found["record"], now_us=now_us, settled=found["record"])
    done.values += run(
        connection, "UPDATE events SET waits = 0 WHERE seq IN (SELECT id FROM {ids})", ids=found["event"]
    ).rowcount
    return done
