"""A source's mapping, compiled: one request body in, the events that it brings out.

Which id an event has: what `event_id` finds; else the delivery id that the partner signed or sent
along, followed by `#index` where the body holds a list of events; else a hash of the signed bytes
where they include a time; else a random one. Longer ones than 200 characters are hashed.
An `occurred_at` that cannot be read or believed is reported and counts as missing: the event is the newest at its
arrival, and nothing is refused for it.
Several updates of one event for one record become one, in which the later mapping wins.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from decimal import Decimal
from sys import getsizeof
from typing import Any

import orjson

from bridge.errors import PayloadError
from bridge.http.waiting import Wait, wait_in_thread
from bridge.intake.blocks import CompiledBlock, Problems
from bridge.intake.challenges import CompiledChallenge
from bridge.intake.decoding import decode, weigh
from bridge.intake.expressions import ABSENT, CREDENTIALS, Expression, ExpressionError, Frame, Needs, StepsError
from bridge.intake.language import Path, pay_made
from bridge.intake.own_schema import Schemas
from bridge.intake.payload import Breath, parse_json_text, to_canonical_json, to_json
from bridge.intake.schemes import verify_problems
from bridge.intake.texts import check_format, microseconds, show, unstorable
from bridge.intake.values import Found, Gap, Tally
from bridge.model import EARLIEST_US, FUTURE_TOLERANCE_US, Event, PropertyUpdate, RecordKey, to_us
from bridge.settings import OccurredAt, Source

#: Longer event ids are hashed; so are those that no database takes.
MAX_EVENT_ID = 200
#: Events of one request: a megabyte of `{},` would otherwise become most of a gigabyte.
MAX_EVENTS = 10_000
#: Characters of all events that `events` puts together, as each of them may repeat a large part of the body; and of the
#: headers and the query that are kept with each event.
MAX_MADE = 16_000_000
#: Times that what is kept with each event is in memory while a request is journalled: in pieces, joined, and as text.
_COPIES = 3
#: Events between two breaths: a long array must not keep other requests waiting.
_SLICE = 10
#: What `invalid` calls an event's time.
OCCURRED_AT = "occurred_at"


@dataclass(frozen=True, slots=True)
class Mapped:
    """What one body brings. `invalid` lists (index, {property | "record" | "occurred_at": message}).

    `reject`: a mapping says that nothing of the request may be taken. `unlisted` counts names of
    `pairs:` that the configuration does not list, `undated` events whose time was not taken, `found` how many events
    brought each property. `left_out` lists (index, properties without a value), where that was asked for.
    """

    events: list[Event] = field(default_factory=list)
    invalid: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    reject: bool = False
    unlisted: int = 0
    undated: int = 0
    found: Found = field(default_factory=dict)
    left_out: list[tuple[int, tuple[Gap, ...]]] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """How many events have something invalid beside their time."""
        return len([errors for _, errors in self.invalid if errors.keys() != {OCCURRED_AT}])


@dataclass(frozen=True, slots=True)
class EventReading:
    """What one event asks for: no updates and no `unmappable` means that its source ignores it. `reject`: the event has
    errors, and a mapping says that such a request is to be rejected.
    """

    updates: tuple[PropertyUpdate, ...] = ()
    unmappable: str | None = None
    errors: dict[str, str] = field(default_factory=dict)
    reject: bool = False
    unlisted: int = 0


_IGNORED = EventReading()


def compile_source(source: Source, public_url: str | None = None, schemas: Schemas | None = None) -> CompiledSource:
    """The source's mapping. Raises an ExceptionGroup of MappingErrors with everything that is wrong. `schemas` runs the
    users' own, for all sources of a configuration; by default those of this source alone.
    """
    problems = Problems()
    compiled = CompiledSource(source, problems, schemas or Schemas())
    problems.found.extend(verify_problems(source.verify, public_url))
    if problems.found:
        raise ExceptionGroup(f"source {source.name}", problems.found)
    return compiled


class CompiledSource:
    """A source ready for bodies. It never changes, so threads may share it. Made by `compile_source`."""

    def __init__(self, source: Source, problems: Problems, schemas: Schemas) -> None:
        self.source = source
        self.name = source.name
        self._events = problems.expression(source.events, ("events",))
        self._when = problems.expression(source.when, ("when",)) if source.when is not None else None
        self._event_id = _optional(source.event_id, "event_id", problems)
        self._zone = problems.zone(source.timezone, ("timezone",))
        self._time = _Time(source.occurred_at, self._zone, problems) if source.occurred_at is not None else None
        several = len(source.mappings) > 1
        self._blocks = tuple(
            CompiledBlock(block, block.path or (("mappings", index) if several else ()), self._zone, problems, schemas)
            for index, block in enumerate(source.mappings)
        )
        self.queue = schemas.queue() if any(block.schema for block in source.mappings) else None
        again = [expression for block in self._blocks for expression in block.expressions]
        again += [self._when] if self._when is not None else []
        once = [self._events, *([self._event_id] if self._event_id is not None else [])]
        once += [self._time.expression] if self._time is not None else []
        self._kept = Needs(again)
        self._seen = Needs([*again, *once])
        self._hidden = CREDENTIALS | (
            {source.verify.header.lower().replace("-", "_")} if source.verify.scheme == "bearer" else set()
        )
        for fault in self._seen.header_faults(hidden=self._hidden):
            problems.add((), fault)
        self.challenge = (
            CompiledChallenge(source.challenge, problems, hidden=frozenset(self._hidden))
            if source.challenge is not None
            else None
        )

    def decode(self, body: bytes, *, pause: Callable[[], None] | None = None) -> Any:
        """The value of a body in the form that the source sends. Raises PayloadError, and nothing else."""
        return decode(self.source.body, body, payload_field=self.source.payload_field, pause=pause)

    def weigh(
        self, body: bytes, *, headers: Mapping[str, str] | None = None, query: Mapping[str, str] | None = None
    ) -> int:
        """Bytes of memory that a body, no longer packed, takes at most while it is mapped and journalled, with what is
        kept of the request's headers and query.
        """
        if self._events.path == () and self.source.body == "json" and body.lstrip()[:1] == b"{":
            events = 1
        elif self._events.makes:
            events = MAX_EVENTS
        else:
            events = min(body.count(b"{") + body.count(b"%"), MAX_EVENTS)  # in a form it is one of these
        kept = self._kept_context(
            self._seen.headers_of(headers or {}, hidden=self._hidden), self._seen.query_of(query or {})
        )
        copies = _COPIES * min(events, MAX_MADE // len(kept))  # with more events the request is refused
        return weigh(body, events=events) + copies * getsizeof(kept)

    def looked_for(self) -> frozenset[str]:
        """The properties whose presence events decide: all but constants."""
        return frozenset[str]().union(*(block.looked_for for block in self._blocks))

    def identity_paths(self) -> dict[str, Path]:
        """Where an event's id and time stand, for those that are plain paths of a body that is the event."""
        if self.source.events.strip() != "@":
            return {}
        both = {"event_id": self._event_id, OCCURRED_AT: self._time.expression if self._time is not None else None}
        return {
            name: expression.path
            for name, expression in both.items()
            if expression is not None and expression.path and not expression.variables
        }

    def map_body(
        self,
        body: Any,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        delivery_id: str | None = None,
        signed_hash: str | None = None,
        pause: Callable[[], None] | None = None,
        wait: Wait = wait_in_thread,
        now_us: int | None = None,
        explain: bool = False,
    ) -> Mapped:
        """The events of a parsed body. Raises PayloadError when `events` finds no objects, or takes too many steps.
        An event for which there are none left is parked, or lacks the property that needed them.

        `now_us` is when it arrived, by default now. `explain` asks for `left_out`. `pause` is called now and then, so
        that one long array leaves room for other requests; `wait` is how to wait. A source with a `queue` has one
        request mapped at a time.
        """
        seen = self._seen.headers_of(headers or {}, hidden=self._hidden)
        asked = self._seen.query_of(query or {})
        frame = Frame(root=body, query=asked, headers=seen, pause=pause, wait=wait)
        breath = Breath(pause) if pause is not None else None
        events, several = self._find_events(body, frame)
        prefix = delivery_id or signed_hash
        kept = self._kept_context(seen, asked)
        root = None
        if self._kept.root and (several or events[0] is not body):
            root = to_json(self._kept.root_of(body), breath=breath)
        around = _hash(kept, root or "") if root is not None or len(kept) > 2 else ""
        mapped = Mapped()
        reject, unlisted, undated = False, 0, 0
        tally = Tally(explain=explain)
        add_made = _made_counter()
        if len(kept) > 2:
            add_made(len(events) * len(kept), "the headers and the query that are kept with each")
        latest_us = FUTURE_TOLERANCE_US + (to_us(time.time()) if now_us is None else now_us)
        for index, found in enumerate(events):
            if pause is not None and index % _SLICE == _SLICE - 1:
                pause()
            frame.move_to(index)
            if self._events.makes:
                pay_made(found, add_made)  # before its text is there
                payload, event = _kept(found, index, breath)
            else:
                payload, event = to_json(found, breath=breath), found
            fallback = f"{prefix}#{index}" if prefix is not None and several else prefix
            tally.index = index
            reading = self._read(event, frame, tally)
            errors = reading.errors
            event_id, unread = self._read_event_id(event, frame, fallback)
            if unread is not None:
                reading = self._parked(f"event_id {unread}")
                errors = {**reading.errors, "event_id": unread}
            occurred_at_us, complaint = None, None
            if self._time is not None:
                try:
                    occurred_at_us, complaint = self._time.read(event, frame, latest_us)
                except StepsError as error:  # it may be an older one: it waits where people see it
                    reading = self._parked(f"occurred_at {error}")
                    errors = reading.errors
            if complaint is not None:
                errors = {**errors, OCCURRED_AT: complaint}
                undated += 1
            if errors:
                mapped.invalid.append((index, errors))
                reject = reject or reading.reject
            unlisted += reading.unlisted
            mapped.events.append(
                Event(
                    self.name,
                    event_id,
                    _content_hash(event, occurred_at_us, reading, around, breath),
                    occurred_at_us,
                    payload,
                    _with_index(kept, index) if self._kept.index else kept,
                    root,
                    reading.updates,
                    reading.unmappable,
                )
            )
        return Mapped(mapped.events, mapped.invalid, reject, unlisted, undated, tally.found(), tally.left_out)

    def remap(self, payload: str, context: str = "{}", root: str | None = None) -> EventReading:
        """What a kept event (`Event.payload`, `.context`, `.root`) asks for by today's mapping."""
        return self._read(*_kept_frame(payload, context, root))

    def why_ignored(self, event: Event) -> str:
        """Which condition does not hold for an event that is ignored, for people."""
        kept, frame = _kept_frame(event.payload, event.context, event.root)
        if self._when is not None and not self._when.matches(kept, frame):
            return f"`when` does not hold: {self._when.text}"
        conditions = [block.when.text for block in self._blocks if block.when is not None]
        return f"no mapping's `when` holds: {'; '.join(conditions)}"

    def hints(self, mapped: Mapped) -> list[str]:
        """What to look at in values that are read as documented, but hardly as meant: one sentence a property."""
        found: dict[str, str] = {}
        for event in mapped.events:
            if event.updates:
                kept, frame = _kept_frame(event.payload, event.context, event.root)
                for block in self._blocks:
                    for name, hint in block.hints(kept, frame):
                        found.setdefault(name, f"{name} {hint}")
        return list(found.values())

    def _find_events(self, body: Any, frame: Frame) -> tuple[list[dict[str, Any]], bool]:
        """The events, and whether they stand in a list."""
        try:
            found = self._events.get(body, frame)
        except ExpressionError as error:
            raise PayloadError(f"events: {error}") from error
        if type(found) is dict:
            return [found], False
        if type(found) is not list:
            what = "nothing" if found is ABSENT or found is None else "a single value"
            raise PayloadError(f"events: found {what} where an object or a list of objects is expected")
        if len(found) > MAX_EVENTS:
            raise PayloadError(f"events: found {len(found)}; at most {MAX_EVENTS} are taken at once")
        for index, event in enumerate(found):
            if type(event) is not dict:
                raise PayloadError(f"events: element {index} is not an object")
        return found, True

    def _kept_context(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """The JSON text of what a replay will look at again beside the event and the root."""
        context: dict[str, Mapping[str, str]] = {}
        for key, wanted, found in (
            ("headers", self._kept.headers, headers),
            ("query", self._kept.query, query),
        ):
            kept = {name: text for name, text in found.items() if wanted is None or name in wanted}
            if kept:
                context[key] = kept
        return orjson.dumps(context).decode() if context else "{}"

    def _read(self, event: dict[str, Any], frame: Frame, tally: Tally | None = None) -> EventReading:
        try:
            return self._judge(event, frame, tally)
        except StepsError as error:  # whether it is asked for at all is not known: it waits where people see it
            return self._parked(f"`when` {error}")

    def _parked(self, reason: str) -> EventReading:
        return EventReading(
            unmappable=reason, errors={"record": reason}, reject=any(block.rejects for block in self._blocks)
        )

    def _judge(self, event: dict[str, Any], frame: Frame, tally: Tally | None) -> EventReading:
        if self._when is not None and not self._when.matches(event, frame):
            return _IGNORED
        matching = [b for b in self._blocks if b.when is None or b.when.matches(event, frame)]
        if len(matching) == 1:
            update, errors, unmappable, unlisted = matching[0].read(event, frame, tally)
            updates = (update,) if update is not None else ()
            return EventReading(updates, unmappable, errors, matching[0].rejects and bool(errors), unlisted)
        return _combined([(block, block.read(event, frame, tally)) for block in matching])

    def _read_event_id(self, event: dict[str, Any], frame: Frame, fallback: str | None) -> tuple[str, str | None]:
        """The event's id, and why it is not what `event_id` finds, if so."""
        text, unread = fallback, None
        if self._event_id is not None:
            try:
                value = self._event_id.get(event, frame)
            except StepsError as error:
                value, unread = ABSENT, str(error)
            except ExpressionError:
                value = ABSENT
            if type(value) is str:
                text = value.strip() or fallback
            elif type(value) is int or isinstance(value, Decimal):
                text = format(value, "f") if isinstance(value, Decimal) else str(value)
        if text is None:
            text = uuid.uuid4().hex
        elif len(text) > MAX_EVENT_ID or unstorable(text):
            text = "sha256-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return text, unread


def _content_hash(
    event: dict[str, Any], occurred_at_us: int | None, reading: EventReading, around: str, breath: Breath | None
) -> str:
    """See `Event.content_hash`; `around` stands for what else the mapping looked at."""
    payload = hashlib.sha256(to_canonical_json(event, breath=breath)).hexdigest()
    return f"{payload}:{_asked_hash(occurred_at_us, reading)}:{around}"


def _asked_hash(occurred_at_us: int | None, reading: EventReading) -> str:
    """A hash of what an event asks for, or nothing where that is not known for good: by a mended mapping it may ask for
    more tomorrow, and of a long value that is invalid its message tells the beginning only.
    """
    if reading.unmappable is not None:
        return ""
    asked = []
    for update in reading.updates:
        if any("…" in message for message in update.invalid.values()):
            return ""
        lane, values = update.record.lane, (sorted(update.properties.items()), sorted(update.invalid.items()))
        asked.append((lane.object_type, lane.id_property, update.record.sent, values))
    text = orjson.dumps([occurred_at_us if asked else None, sorted(asked)])
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _hash(*texts: str) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


class _Time:
    """`occurred_at`, compiled: when an event happened, as its sender tells."""

    def __init__(self, how: OccurredAt, zone: tzinfo | None, problems: Problems) -> None:
        self.expression = problems.expression(how.source, (OCCURRED_AT, "from"))
        self._zone = problems.zone(how.timezone, (OCCURRED_AT, "timezone")) or zone
        self._formats = how.format
        for pattern in how.format:
            if (complaint := check_format(pattern)) is not None:
                problems.add((OCCURRED_AT, "format"), complaint)

    def read(self, event: dict[str, Any], frame: Frame, latest_us: int) -> tuple[int | None, str | None]:
        """The event's time in microseconds, or why what was found is not taken for it."""
        try:
            value = self.expression.get(event, frame)
            if value is ABSENT or value is None or (type(value) is str and not value.strip()):
                return None, None
            at_us = microseconds(value, self._zone, self._formats)
        except StepsError:
            raise
        except ExpressionError as error:
            return None, str(error)
        except ValueError as error:
            return None, f"is {show(value)}, which {error}"
        if at_us < EARLIEST_US:
            return None, f"is {show(value)}, which lies before 2000: the event counts as of its arrival"
        if at_us > latest_us:
            return None, f"is {show(value)}, which lies ahead of its arrival: the event counts as of its arrival"
        return at_us, None


def _kept_frame(payload: str, context: str, root: str | None) -> tuple[dict[str, Any], Frame]:
    """A kept event, and what else expressions see."""
    event = parse_json_text(payload)
    around = orjson.loads(context)
    frame = Frame(
        root=event if root is None else parse_json_text(root),
        index=around.get("index", 0),
        query=around.get("query"),
        headers=around.get("headers"),
    )
    return event, frame


def _made_counter() -> Callable[..., None]:
    """Counts the characters that events repeat. It raises PayloadError when there are too many."""
    left = MAX_MADE

    def add(made: int, what: str = "put together they") -> None:
        nonlocal left
        left -= made
        if left < 0:
            raise PayloadError(f"events: {what} have more than {MAX_MADE} characters")

    return add


def _kept(event: dict[str, Any], index: int, breath: Breath | None) -> tuple[str, dict[str, Any]]:
    """The JSON text of an event that `events` put together, and the event as a replay will read it: of two halves of a
    surrogate pair that were joined it reads a character. Raises PayloadError where it could read none.
    """
    try:
        text = to_json(event, breath=breath)
        return text, parse_json_text(text, pause=breath.pause if breath is not None else None)
    except (TypeError, PayloadError) as error:
        raise PayloadError(f"events: element {index} cannot be kept: {error}") from error


def _with_index(context: str, index: int) -> str:
    """The context's JSON text with the event's index put in."""
    return f'{context[:-1]},"index":{index}}}' if len(context) > 2 else f'{{"index":{index}}}'


def _optional(text: str | None, name: str, problems: Problems) -> Expression | None:
    return None if text is None else problems.expression(text, (name,))


def _combined(readings: list[tuple[CompiledBlock, Any]]) -> EventReading:
    """What several blocks make of one event: each record is asked once, the later block wins."""
    updates: dict[RecordKey, PropertyUpdate] = {}
    errors: dict[str, str] = {}
    reasons: list[str] = []
    reject, unlisted = False, 0
    for block, (update, block_errors, unmappable, count) in readings:
        errors.update(block_errors)
        reject = reject or (bool(block_errors) and block.rejects)
        unlisted += count
        if unmappable is not None and unmappable not in reasons:
            reasons.append(unmappable)
        if update is not None:
            earlier = updates.get(update.record)
            updates[update.record] = update if earlier is None else _merged(earlier, update)
    return EventReading(tuple(updates.values()), "; ".join(reasons) or None, errors, reject, unlisted)


def _merged(earlier: PropertyUpdate, later: PropertyUpdate) -> PropertyUpdate:
    kept = {name: text for name, text in earlier.properties.items() if name not in later.invalid}
    wrong = {name: text for name, text in earlier.invalid.items() if name not in later.properties}
    return PropertyUpdate(
        later.record,
        {**kept, **later.properties},
        {**wrong, **later.invalid},
        earlier.skip_unchanged and later.skip_unchanged,
    )
