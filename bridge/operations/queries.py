"""What operators ask for over HTTP, read with marshmallow: filters from a query string or a JSON body.

The names are those of the command line's options. A time is ISO 8601 (UTC unless it names a zone), or an age
such as `2h`. `as_query` writes a filter the way it is read here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields as fields_of
from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, validate

from bridge.journal.entries import NEVER
from bridge.journal.event_log import OUTCOMES, EventFilter
from bridge.journal.retry_log import Filter, Reference
from bridge.journal.steering import Known
from bridge.showing import MICROSECONDS, exact_iso, microseconds_of

_AGES_US = {"s": MICROSECONDS, "m": 60 * MICROSECONDS, "h": 3_600 * MICROSECONDS, "d": 86_400 * MICROSECONDS}
#: The longest text of a query; ids and names are shorter.
_TEXT = 1_000
#: Ids of one request: each of their events is mapped before it is answered, some seconds' work.
MAX_IDS = 10_000
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


class _Moment(fields.Field[int]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if not isinstance(value, str):
            raise ValidationError("write a text such as 2026-01-31T12:00:00Z, or 2h")
        try:
            return moment_us(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error


class _Place(fields.Field[Reference]):
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


class RetriesQuery(Schema):
    """The filters of `retries`."""

    ids = _ids()
    state = fields.String(validate=validate.OneOf(["retrying", "parked"]))
    source = _text()
    category = _text()
    message = _text()
    record = _text()
    search = _text()
    since = _Moment(attribute="since_us")
    before = _Moment(attribute="before_us")

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> tuple[Filter, dict[str, Any]]:
        return _split(Filter, data)


class RetriesPage(RetriesQuery):
    """What `GET /api/retries` takes."""

    limit = fields.Integer(validate=validate.Range(1, 10_000))
    offset = fields.Integer(validate=validate.Range(0, NEVER))


class RetriesAct(RetriesQuery):
    """What acts on the retry log take; acting on everything must be said. `seen` is when a person counted what they
    confirm: what came later is not meant. `limit` bounds how many are acted on at once, `after` goes on after them.
    """

    all = fields.Boolean()
    dry_run = fields.Boolean()
    seen = _Moment(attribute="seen_us")
    limit = fields.Integer(validate=validate.Range(1, 10_000))
    after = _Place()


class EventsQuery(Schema):
    """The filters of `events`."""

    ids = _ids()
    source = _text()
    since = _Moment(attribute="since_us")
    until = _Moment(attribute="until_us")
    outcome = fields.String(validate=validate.OneOf(OUTCOMES))
    record = _text()

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> tuple[EventFilter, dict[str, Any]]:
        return _split(EventFilter, data)


class EventsPage(EventsQuery):
    """What `GET /api/events` takes; `after` is the `seq` of the last event seen."""

    limit = fields.Integer(validate=validate.Range(1, 10_000))
    after = fields.Integer(validate=validate.Range(0, NEVER))


class EventsAct(EventsQuery):
    """What `POST /api/events/replay` takes; `limit` bounds the differences in the answer."""

    all = fields.Boolean()
    dry_run = fields.Boolean()
    limit = fields.Integer(validate=validate.Range(0, 100_000))
    seconds = _seconds()
    after = fields.Integer(validate=validate.Range(0, NEVER))


class ResyncAct(Schema):
    """What `POST /api/resync` takes."""

    source = _text()
    object_type = _text()
    record = _text()
    all = fields.Boolean()
    dry_run = fields.Boolean()
    seconds = _seconds()
    after = fields.Integer(validate=validate.Range(0, NEVER))

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> tuple[Known, dict[str, Any]]:
        return _split(Known, data)


class PauseAct(Schema):
    """What `POST /api/pause` takes; `DELETE` takes the object type."""

    object_type = _text()
    reason = fields.String(validate=validate.Length(max=_TEXT))


def _split(kind: type[Any], data: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The filter, and what else was asked."""
    names = {field.name for field in fields_of(kind)}
    chosen = {name: tuple(value) if name == "ids" else value for name, value in data.items() if name in names}
    return kind(**chosen), {name: value for name, value in data.items() if name not in names}


def as_query(chosen: Filter | EventFilter | Known) -> dict[str, Any]:
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
