"""Payloads to try: kept as they came in, or made from an example."""

from __future__ import annotations

import base64
import binascii
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode
from zoneinfo import ZoneInfo

from bridge.errors import PayloadError
from bridge.intake.payload import parse_json, to_json
from bridge.intake.texts import write

if TYPE_CHECKING:
    from bridge.intake.mapping import CompiledSource
    from bridge.settings import OccurredAt, Source


#: what stands in a file beside `headers` and the body, which is `body` (text) or `body_base64` (any bytes)
_MORE = frozenset({"method", "path", "query", "received_at", "source", "verdict"})
_BODIES = frozenset({"body", "body_base64"})
#: what is kept in place of a credential
MASK = "***"


@dataclass(frozen=True, slots=True)
class SavedRequest:
    """`body` is the content, inflated where it came with gzip; `query` what follows the question mark.

    `verdict` is what was said of its signature, for people: nothing reads it.
    """

    body: bytes
    headers: Mapping[str, str]
    method: str = "POST"
    path: str = ""
    query: str = ""
    received_at: str = ""
    source: str = ""
    verdict: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, str]:
        """The query's parameters as mappings see them: of those given twice, the first."""
        return dict(reversed(parse_qsl(self.query, keep_blank_values=True)))

    def as_json(self) -> dict[str, Any]:
        """The document to be written."""
        document: dict[str, Any] = {
            "source": self.source,
            "received_at": self.received_at,
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "verdict": dict(self.verdict),
            "headers": dict(self.headers),
        }
        try:
            document["body"] = self.body.decode()
        except UnicodeDecodeError:
            document["body_base64"] = base64.b64encode(self.body).decode()
        return document


def read_saved(content: bytes) -> SavedRequest | None:
    """The request that a file holds, or None if it is anything else, such as a bare payload."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    keys = set(document)
    headers = document.get("headers")
    if len(keys & _BODIES) != 1 or not keys <= _MORE | _BODIES | {"headers"} or not isinstance(headers, dict):
        return None
    body = _body(document)
    if body is None:
        return None
    texts = {key: document[key] for key in _MORE - {"verdict"} if isinstance(document.get(key), str)}
    return SavedRequest(body, {str(key): str(value) for key, value in headers.items()}, **texts)


def _body(document: Mapping[str, Any]) -> bytes | None:
    text = document.get("body", document.get("body_base64"))
    if not isinstance(text, str):
        return None
    try:
        return text.encode() if "body" in document else base64.b64decode(text, validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None


# --- a source's example as payloads to send: each an event of its own, in the form in which the partner sends ---


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
