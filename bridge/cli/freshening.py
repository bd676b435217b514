"""A source's example as payloads to send: each an event of its own, in the form in which the partner sends."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from bridge.errors import PayloadError
from bridge.intake.payload import parse_json, to_json
from bridge.intake.times import write

if TYPE_CHECKING:
    from bridge.intake.mapping import CompiledSource
    from bridge.settings import OccurredAt, Source


def examples(compiled: CompiledSource, count: int) -> tuple[str, Iterator[bytes]]:
    """What is said of the first example, and its payloads: each an event of its own if it can be."""
    source = compiled.source
    payload = source.examples[0].body
    paths = {
        name: steps for name, steps in compiled.identity_paths().items() if _fresh(compiled, payload, {name: steps})
    }
    told = " and ".join(f"a fresh {name} ({'.'.join(map(str, steps))})" for name, steps in paths.items())
    note = f"sending the first example of {source.name} with {told or 'its own event id and time'}"
    return note, (_fresh(compiled, payload, paths) or payload for _ in range(count))


def wire(source: Source, content: bytes) -> bytes:
    """A JSON payload in the source's form; what is no JSON has that form already."""
    if source.body == "json":
        return content
    try:
        value = parse_json(content)
    except PayloadError:
        return content
    if source.body == "ndjson":
        return b"".join(to_json(row).encode() + b"\n" for row in (value if isinstance(value, list) else [value]))
    if source.payload_field is not None:
        return urlencode({source.payload_field: to_json(value)}).encode()
    if not isinstance(value, dict):
        return content
    fields = {
        name: field if isinstance(field, (str, list)) else "" if field is None else to_json(field)
        for name, field in value.items()
    }
    # of half a surrogate pair, which no form can carry, the bytes go out and the service answers 400
    return urlencode(fields, doseq=True, errors="surrogatepass").encode()


def _fresh(compiled: CompiledSource, payload: bytes, paths: dict[str, tuple[str | int, ...]]) -> bytes | None:
    """The payload with new values at these paths of each event, or None where one of them is not there."""
    if not paths:
        return None
    try:
        body = compiled.decode(payload)
    except PayloadError:
        return None  # an example may show what is refused
    for event in body if isinstance(body, list) else [body]:
        for name, steps in paths.items():
            holder = event
            for step in steps[:-1]:
                holder = holder.get(step) if isinstance(holder, dict) else None
            if not steps or not isinstance(holder, dict) or steps[-1] not in holder:
                return None
            old = holder[steps[-1]]
            holder[steps[-1]] = _now_like(old, compiled.source.occurred_at) if name == "occurred_at" else _id_like(old)
    return wire(compiled.source, to_json(body).encode())


def _id_like(old: object) -> object:
    return time.time_ns() if isinstance(old, (int, Decimal)) else f"send-{uuid.uuid4().hex}"


def _now_like(old: object, written: OccurredAt | None) -> object:
    """Now, in the form of the time that stands there."""
    now = datetime.now(UTC)
    if written is not None and written.format:
        here = now.astimezone(ZoneInfo(written.timezone)) if written.timezone is not None else now
        at = write(here, written.format[0])
        return str(at) if isinstance(old, str) else at
    if isinstance(old, (int, Decimal)):
        return int(now.timestamp() * 1000) if old >= 10**11 else int(now.timestamp())
    if isinstance(old, str) and old.strip().isdigit():
        return str(_now_like(int(old), None))
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
