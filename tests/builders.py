"""Builders of valid values, so that a test states only what it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge.model import Call, Event, Lane, PendingRecord, PropertyUpdate, RecordKey, to_us

LANE = Lane("partner_clients", "acme_client_id")


def key(record: str = "7", lane: Lane = LANE) -> RecordKey:
    return RecordKey(lane, record)


def event(
    event_id: str = "e1",
    record: str = "7",
    properties: Mapping[str, str] | None = None,
    *,
    at: float | None = None,
    source: str = "acme",
    invalid: Mapping[str, str] | None = None,
    skip_unchanged: bool = False,
    payload: str | None = None,
    unmappable: str | None = None,
    updates: Sequence[PropertyUpdate] | None = None,
    lane: Lane = LANE,
) -> Event:
    """One event that asks one record for some properties; `at` is its time in epoch seconds."""
    if updates is None:
        asked = {"tier": "gold"} if properties is None else properties
        updates = (PropertyUpdate(key(record, lane), asked, invalid or {}, skip_unchanged),)
    return Event(
        source=source,
        id=event_id,
        content_hash=f"hash of {event_id}",
        occurred_at_us=None if at is None else to_us(at),
        payload=payload if payload is not None else f'{{"id":"{event_id}"}}',
        updates=tuple(updates),
        unmappable=unmappable,
    )


def call(records: Sequence[PendingRecord], *, began: float, status: int | None = 200, lane: Lane = LANE) -> Call:
    """A finished call that carried these records."""
    return Call(lane, to_us(began), 0.05, status, "c0ffee", len(records), None if status else "time-out")
