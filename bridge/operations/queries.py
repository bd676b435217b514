"""What operators ask for over HTTP, read with marshmallow: filters from a query string or a JSON body.

The names are those of the command line's options. A time is ISO 8601 (UTC unless it names a zone), or an age
such as `2h`. `as_query` writes a filter the way it is read here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields as fields_of
from datetime import UTC, datetime
from typing import Any, ClassVar, get_args

from marshmallow import Schema, ValidationError, fields, post_load, validate

from bridge.journal.control import ValueFilter
from bridge.journal.event_log import OUTCOMES, EventFilter
from bridge.journal.retry_log import EntryState, Filter, Reference
from bridge.journal.schema import NEVER
from bridge.showing import MICROSECONDS, exact_iso, microseconds_of

_AGES_US = {"s": MICROSECONDS, "m": 60 * MICROSECONDS, "h": 3_600 * MICROSECONDS, "d": 86_400 * MICROSECONDS}
#: The longest text of a query; ids and names are shorter.
_TEXT = 1_000
#: Ids of one request: each of their events is mapped before it is answered, some seconds' work.
MAX_IDS = 10_000
#: Differences told of by a replay unless more are asked for; they are always counted.
DIFFERENCES = 1_000
#: Rows of one answer at most.
MOST_ROWS = 10_000
#: What can be written: the years 1 to 9999.
_FIRST_US = microseconds_of(datetime.min.replace(tzinfo=UTC))
_LAST_US = microseconds_of(datetime.max.replace(tzinfo=UTC))


def moment_us(text: str, *, now: float | None = None) -> int:
    """A point in time in microseconds. Raises ValueError, with what to write."""
    text = text.strip()
    try:
        if text[:-1].isascii() and text[:-1].isdigit() and text[-1] in _AGES_US:
            now_us = round((time.time() if now is None else now) * MICROSECONDS)
            return max(0, now_us - int(text[:-1]) * _AGES_US[text[-1]])
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; write 2026-01-31T12:00:00Z, or an age such as 2h") from None
    return max(_FIRST_US, min(microseconds_of(found if found.tzinfo else found.replace(tzinfo=UTC)), _LAST_US))


class _MomentField(fields.Field[int]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if not isinstance(value, str):
            raise ValidationError("write a text such as 2026-01-31T12:00:00Z, or 2h")
        try:
            return moment_us(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error


class _ReferenceField(fields.Field[Reference]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Reference:
        try:
            return Reference.at(str(value))
        except ValueError as error:
            raise ValidationError(str(error)) from error


def _text(**options: Any) -> fields.String:
    return fields.String(validate=validate.Length(min=1, max=_TEXT), **options)


def _seconds() -> fields.Integer:
    """How long an act may take before it answers with where to go on."""
    return fields.Integer(validate=validate.Range(1, 600))


def _ids() -> fields.List[str]:
    too_many = f"name at most {MAX_IDS} at a time, or narrow by source, record or time"
    return fields.List(_text(), validate=validate.Length(max=MAX_IDS, error=too_many))


def _told(help_text: str) -> dict[str, str]:
    """Makes a filter an option of the command line too, with this help."""
    return {"help": help_text}


class Query(Schema):
    """What a request asks: loads to the filter that it means, a `kind`, and a mapping of what else it asks."""

    kind: ClassVar[type[Any]]

    @post_load
    def _split(self, data: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]]:
        names = {field.name for field in fields_of(self.kind)}
        chosen = {name: tuple(value) if name == "ids" else value for name, value in data.items() if name in names}
        return self.kind(**chosen), {name: value for name, value in data.items() if name not in names}


class RetriesQuery(Query):
    """The filters of `retries`."""

    kind = Filter

    ids = _ids()
    state = fields.String(validate=validate.OneOf(get_args(EntryState)), metadata=_told("Only entries in this state."))
    source = _text(metadata=_told("Only entries of this source."))
    category = _text(metadata=_told("Only this category, e.g. OBJECT_NOT_FOUND."))
    message = _text()
    record = _text(metadata=_told("Only this record id."))
    search = _text()
    since = _MomentField(attribute="since_us", metadata=_told("First failed at or after this time (ISO 8601, or 2h)."))
    before = _MomentField(attribute="before_us", metadata=_told("First failed before this time."))


class RetriesPage(RetriesQuery):
    """What `GET /api/retries` takes; `after` is the place that the link to the next page tells."""

    limit = fields.Integer(validate=validate.Range(1, MOST_ROWS))
    offset = fields.Integer(validate=validate.Range(0, NEVER))
    after = _ReferenceField()


class RetriesAct(RetriesQuery):
    """What acts on the retry log take; acting on everything must be said. `seen` is when a person counted what they
    confirm: what came later is not meant. `limit` bounds how many are acted on at once, `after` goes on after them.
    """

    all = fields.Boolean()
    dry_run = fields.Boolean()
    seen = _MomentField(attribute="seen_us")
    limit = fields.Integer(validate=validate.Range(1, MOST_ROWS))
    after = _ReferenceField()


class EventsQuery(Query):
    """The filters of `events`."""

    kind = EventFilter

    ids = _ids()
    source = _text(metadata=_told("Only events of this source."))
    since = _MomentField(attribute="since_us", metadata=_told("Received at or after this time (ISO 8601, or 2h)."))
    until = _MomentField(attribute="until_us", metadata=_told("Received at or before this time."))
    outcome = fields.String(validate=validate.OneOf(OUTCOMES), metadata=_told("Only events that this became of."))
    record = _text(metadata=_told("Only events that asked this record id."))


class EventsPage(EventsQuery):
    """What `GET /api/events` takes; `after` is the `seq` of the last event seen."""

    limit = fields.Integer(validate=validate.Range(1, MOST_ROWS))
    after = fields.Integer(validate=validate.Range(0, NEVER))


class EventsAct(EventsQuery):
    """What `POST /api/events/replay` takes; `limit` bounds the differences in the answer."""

    all = fields.Boolean()
    dry_run = fields.Boolean()
    limit = fields.Integer(validate=validate.Range(0, 100_000))
    seconds = _seconds()
    after = fields.Integer(validate=validate.Range(0, NEVER))


class ResyncQuery(Query):
    """The filters of `resync`."""

    kind = ValueFilter

    source = _text(metadata=_told("Only values that this source set."))
    object_type = _text(metadata=_told("Only records of this object type."))
    record = _text(metadata=_told("Only this record id."))


class ResyncAct(ResyncQuery):
    """What `POST /api/resync` takes."""

    all = fields.Boolean()
    dry_run = fields.Boolean()
    seconds = _seconds()
    after = fields.Integer(validate=validate.Range(0, NEVER))


class PauseAct(Schema):
    """What `POST /api/pause` takes; `DELETE` takes the object type."""

    object_type = _text()
    reason = fields.String(validate=validate.Length(max=_TEXT))


def as_query(chosen: Filter | EventFilter | ValueFilter) -> dict[str, Any]:
    """The filter as its schema reads it; what does not narrow is left out."""
    query: dict[str, Any] = {}
    for field in fields_of(chosen):
        value = getattr(chosen, field.name)
        if value is None or value == ():
            continue
        if field.name.endswith("_us"):
            query[field.name.removesuffix("_us")] = exact_iso(value)
        else:
            query[field.name] = list(value) if isinstance(value, tuple) else value
    return query


def of_arguments(arguments: Mapping[str, list[str]]) -> dict[str, Any]:
    """A query string's arguments: `ids` may be given several times, anything else once."""
    return {name: values if name == "ids" else values[-1] for name, values in arguments.items()}
