"""The values that cross the rooms of the house: lanes, records, events, batches and outcomes.

Times are integers in microseconds since the Unix epoch (UTC) where they are stored or compared
(`…_us`), and floats in seconds where they are waited for (`…_s`).
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

MICROSECONDS = 1_000_000

#: A partner's time stamp is not believed further ahead of its arrival than this, nor before 2000: its clock was wrong,
#: or something else stands there.
FUTURE_TOLERANCE_US = 300 * MICROSECONDS
EARLIEST_US = 946_684_800 * MICROSECONDS


class Clock(Protocol):
    """Where time comes from; tests pass their own."""

    def now(self) -> float:
        """Seconds since the Unix epoch. May jump either way: never used to measure a wait."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back: for waits, limits and deadlines."""
        ...


class SystemClock:
    """The machine's clocks. Stateless, so that threads can share them."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def to_us(seconds: float) -> int:
    """Seconds since the epoch as whole microseconds."""
    return round(seconds * MICROSECONDS)


@dataclass(frozen=True, slots=True, order=True)
class Lane:
    """What may share one batch call: an object type and the property that its ids are values of.

    `id_property` is "" where ids are HubSpot's record ids. Mixing id properties within one call is
    not documented by HubSpot, so a call serves one lane.
    """

    object_type: str
    id_property: str = ""

    def __str__(self) -> str:
        return f"{self.object_type}/{self.id_property or 'record id'}"


@dataclass(frozen=True, slots=True, order=True)
class RecordKey:
    """The address of one CRM record: `id` as it is compared (`comparable`), `spelling` as a source writes it where that
    is another text. Keys that differ in spelling alone are equal.
    """

    lane: Lane
    id: str
    spelling: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, lane: Lane, record_id: str, *, caseless: bool) -> RecordKey:
        """The key of the record that a source calls so."""
        sent, compared = (comparable(record_id, caseless=how) for how in (False, caseless))
        return cls(lane, compared, sent if sent != compared else None)

    @property
    def sent(self) -> str:
        """The id as the CRM is told it."""
        return self.spelling or self.id


def comparable(record_id: str, *, caseless: bool) -> str:
    """The text by which record ids are compared: in NFC, as accents may come as characters of their own, and in lower
    case where letter case does not tell records apart (`record.match`).
    """
    text = unicodedata.normalize("NFC", record_id)
    return unicodedata.normalize("NFC", text.lower()) if caseless else text


class Category(StrEnum):
    """Our own categories beside HubSpot's (`VALIDATION_ERROR`, `OBJECT_NOT_FOUND`, …)."""

    UNCONFIRMED = "UNCONFIRMED"  # the CRM stayed silent about this record, alone, twice
    UNMAPPABLE = "UNMAPPABLE"  # the payload could not be mapped
    GAVE_UP = "GAVE_UP"  # failed alone until retry.give_up_after


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something waits: a category of bounded vocabulary and a message for people."""

    category: str
    message: str


@dataclass(frozen=True, slots=True)
class PropertyUpdate:
    """What one event asks of one record.

    `properties` hold HubSpot's own strings ("" clears the property). `invalid` names the properties
    whose values cannot be sent, with the reason; their older values are not sent in their place.
    """

    record: RecordKey
    properties: Mapping[str, str]
    invalid: Mapping[str, str] = field(default_factory=dict)
    skip_unchanged: bool = False


class Intake(StrEnum):
    """What became of one event at the door (metric label and answer field)."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"
    PARKED = "parked"


#: Hexadecimal digits that tell apart events of one id.
CONFLICT_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Event:
    """One partner event as it is handed to the journal.

    `unmappable` says why (a part of) it asks nothing of any record: the record id is missing, say.
    An event without updates and without `unmappable` is one that its source ignores.
    `content_hash` is `payload:asked:around`: hashes of its payload, of what it asks for, and of what else its mapping
    looks at, the last two empty where that is not known for good or nothing: see `same_content`.
    `payload` is the event's JSON text, `context` the JSON text of what else its mapping may look at
    (`headers`, `query`, `index`), `root` the whole body where that differs from the payload and the
    mapping looks at it.
    """

    source: str
    id: str
    content_hash: str
    occurred_at_us: int | None
    payload: str
    context: str = "{}"
    root: str | None = None
    updates: tuple[PropertyUpdate, ...] = ()
    unmappable: str | None = None

    @property
    def intake(self) -> Intake:
        """What this event counts as when the journal has not seen it before."""
        return intake_of(self.updates, self.unmappable)


def intake_of(updates: Sequence[PropertyUpdate], unmappable: str | None) -> Intake:
    """What an event counts as that asks for this; see `Event`."""
    if any(update.properties for update in updates):
        return Intake.ACCEPTED
    if unmappable is not None or any(update.invalid for update in updates):
        return Intake.PARKED
    return Intake.ACCEPTED if updates else Intake.IGNORED


def same_content(one: str, other: str) -> bool:
    """Whether two events of one id, by their `content_hash`, are one delivered twice: the payload is the same and what
    its mapping looks at beside it, or what they ask for. Events journalled by older versions tell their payload only.
    """
    payload, _, more = one.partition(":")
    other_payload, _, other_more = other.partition(":")
    if not more or not other_more:
        return payload == other_payload
    (asked, _, around), (other_asked, _, other_around) = more.partition(":"), other_more.partition(":")
    return (payload, around) == (other_payload, other_around) or (asked != "" and asked == other_asked)


def other_id(event: Event, digits: int = CONFLICT_DIGITS) -> str:
    """The id of an event whose own id another one has that asks for something else: the same at each delivery."""
    payload, _, more = event.content_hash.partition(":")
    return f"{event.id}~{(more.replace(':', '') or payload)[:digits]}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The journal's answer for one event: the id it is kept under, and what it was taken as."""

    event_id: str
    intake: Intake
    conflict: bool = False  # its own id is that of another event, which asks for something else


# --- delivery -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Due:
    """A record that has something to deliver, as the dispatcher's buffer holds it: no values."""

    ref: int  # the journal's key of the record
    lane: Lane
    source: str
    due_at_us: int


@dataclass(frozen=True, slots=True)
class Value:
    """One desired value and the change (`n`) that set it. `changed` is the time of that and the number of its event: of
    two values that one property may have the higher one is the newer.
    """

    value: str
    n: int
    changed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PendingRecord:
    """One record with everything that is to be delivered to it now.

    `n` is the record's change counter as read with the values: whatever is settled is settled for
    this `n` only. `attempts` counts failures that are the record's own; `failing_since_us` dates the
    first of them. `doubt_at_us`, `doubt_n` tell of an earlier call that may still be applied.
    """

    ref: int
    key: RecordKey
    n: int
    values: Mapping[str, Value]
    sources: tuple[str, ...] = ()
    attempts: int = 0
    failing_since_us: int | None = None
    doubt_at_us: int | None = None
    doubt_n: int = 0

    @property
    def changed(self) -> tuple[int, ...]:
        """When the newest of its values changed."""
        return max((value.changed for value in self.values.values()), default=())


#: Bytes of the values and names in a call's body: four values of the longest text that a property takes (65,536
#: characters of four bytes), and thirty times what 100 records of eight ordinary properties are.
CALL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken for one call: `size` is about the bytes of its body. `left` are those of the records asked for
    that did not fit, with their sizes; they are due as before. Of a record that is too large by itself some values are
    left.
    """

    records: Sequence[PendingRecord]
    left: Mapping[int, int] = field(default_factory=dict)
    size: int = 0


@dataclass(frozen=True, slots=True)
class Delivered:
    """The CRM confirmed that it wrote this record."""

    record: PendingRecord


@dataclass(frozen=True, slots=True)
class Refused:
    """The CRM will not take these properties; the record's other values are still to be sent."""

    record: PendingRecord
    properties: Mapping[str, Reason]


@dataclass(frozen=True, slots=True)
class RetryLater:
    """To be sent again after `delay_s`. `own_failure`: it counts against the record's patience."""

    record: PendingRecord
    reason: Reason
    delay_s: float
    own_failure: bool = True


@dataclass(frozen=True, slots=True)
class Parked:
    """Not to be sent again before a person or a newer event asks for it."""

    record: PendingRecord
    reason: Reason


@dataclass(frozen=True, slots=True)
class Ignored:
    """The CRM knows no such record and the source says that this is fine (`on_unknown: ignore`)."""

    record: PendingRecord


Outcome = Delivered | Refused | RetryLater | Parked | Ignored


@dataclass(frozen=True, slots=True)
class Call:
    """One finished CRM call, for `trace` and the console. `status` is None when nothing came back."""

    lane: Lane
    started_at_us: int
    duration_s: float
    status: int | None
    correlation_id: str | None
    records: int
    error: str | None = None


class Scope(StrEnum):
    """How much a pause stops."""

    ALL = "all"
    OBJECT_TYPE = "object_type"
    LANE = "lane"


@dataclass(frozen=True, slots=True)
class Pause:
    """A stop of delivery: `target` names the object type or lane ("" for all).

    `reason` is a bounded word (`unauthorized`, `rate_limited`, `outage`, `forbidden`,
    `misconfigured`, `operator`, …), `until_us` the time of the next probe, None when only a person
    ends it.
    """

    scope: Scope
    target: str
    reason: str
    detail: str
    since_us: int
    until_us: int | None
