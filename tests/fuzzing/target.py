"""The fuzz target: one message through the real front door, verify → parse → map, up to the journal.

A message is text for people, so that what was found can be read and kept:

    init-stripe:stripe signed gzip
    X-Some-Header: value
    ?query=string

    {"the": "body"}

The first line names a source of `tests.configurations` and how the request is sent: `signed` by the secret,
`forged` (signed, and then the body changed) or `unsigned` with the headers as they stand. Whatever the bytes
are, they are a message: what cannot be read is left out or chosen by its hash.
"""

from __future__ import annotations

import functools
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Flask

from bridge.intake.blocks import MAX_ID
from bridge.intake.decoding import media_type
from bridge.intake.mapping import MAX_EVENT_ID, compile_source
from bridge.intake.signatures import Verifier, sign
from bridge.intake.texts import MAX_TEXT
from bridge.intake.webhooks import Counts, Endpoint, Webhooks, register_problem_handlers
from bridge.model import Event, Intake, Receipt
from bridge.settings import Source
from tests.configurations import sources
from tests.fakes import FakeClock

MODES = ("signed", "unsigned", "forged")
MAX_BODY = 100_000
#: What a sender may be answered; anything else is a bug.
ACCEPTABLE = frozenset({200, 202, 400, 401, 413, 415, 422})
_INT64 = 2**63


@dataclass(frozen=True)
class Message:
    key: str
    body: bytes
    mode: str = "signed"
    gzipped: bool = False
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def write(self) -> bytes:
        """As a file of the corpus."""
        head = [f"{self.key} {self.mode}{' gzip' if self.gzipped else ''}"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        head += [f"?{self.query}"] if self.query else []
        return "\n".join([*head, "", ""]).encode("latin-1") + self.body


def read(data: bytes) -> Message:
    """The message that any bytes are."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    key, *flags = first.split(" ")
    keys = sorted(sources())
    if key not in sources():
        key = keys[zlib.crc32(key.encode()) % len(keys)]
    headers: dict[str, str] = {}
    query = ""
    for line in lines:
        name, colon, value = line.partition(":")
        if line.startswith("?"):
            query = "".join(character for character in line[1:] if "!" <= character <= "~" and character != "#")
        elif colon and name.replace("-", "").isalnum() and name.isascii():
            # what an HTTP server lets through: no control characters, no blanks around
            text = "".join(character for character in value if character == "\t" or character.isprintable())
            headers[name] = text.strip()
    mode = next((mode for mode in MODES if mode in flags), "signed")
    return Message(key, body[: MAX_BODY + 1], mode, "gzip" in flags, query, headers)


class Kept:
    """A journal that looks at what it is given as closely as a database would."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def append(self, events: Sequence[Event]) -> Sequence[Receipt]:
        for event in events:
            _check_event(event)
        self.events.extend(events)
        return [Receipt(event.id, event.intake) for event in events]


class Watching:
    """Remembers the counts of the last request."""

    counts = Counts()

    def webhook(self, source: str, code: int, duration_s: float, counts: Counts) -> None:
        self.counts = counts

    def verification(self, source: str, result: str, secret: int | None) -> None:
        pass


class Front:
    """The front door with all sources behind it."""

    def __init__(self) -> None:
        self.journal, self.seen, self.clock = Kept(), Watching(), FakeClock()
        self._numbers = itertools.count()
        self._names = {key: f"s{number}" for number, key in enumerate(sorted(sources()))}
        self._endpoints = {}
        for key, (settings, source) in sources().items():
            url = settings.server.public_url
            compiled = compile_source(source, url)
            self._endpoints[self._names[key]] = Endpoint(compiled, Verifier(source.verify, url), MAX_BODY)
        app = Flask("fuzzing")
        register_problem_handlers(app)
        webhooks = Webhooks(sources=lambda: self._endpoints, journal=self.journal, observer=self.seen, clock=self.clock)
        app.register_blueprint(webhooks.blueprint())
        self._app = webhooks.before(app)  # as the service has it

    def send(self, message: Message) -> tuple[int, bytes]:
        """The answer to a message: status and body. Raises whatever goes wrong."""
        statuses: list[str] = []

        def start_response(status: str, _headers: Any, *_: Any) -> Any:
            statuses.append(status)
            return lambda _data: None

        chunks = self._app(self._environ(message), start_response)
        return int(statuses[0][:3]), b"".join(chunks)

    def kept_by(self, key: str, event: Event) -> tuple[Any, Any]:
        """What a replay makes of a kept event."""
        reading = self._endpoints[self._names[key]].source.remap(event.payload, event.context, event.root)
        return reading.updates, reading.unmappable

    def _environ(self, message: Message) -> dict[str, Any]:
        settings, source = sources()[message.key]
        path = f"/webhooks/{self._names[message.key]}"
        body = gzip.compress(message.body, mtime=0) if message.gzipped else message.body
        headers = dict(message.headers)
        if message.mode != "unsigned":
            url = (
                f"{(settings.server.public_url or '').rstrip('/')}{path}{'?' + message.query if message.query else ''}"
            )
            delivery = f"d{next(self._numbers)}"
            signed = sign(source.verify, body=body, url=url, now=self.clock.now(), delivery_id=delivery)
            lowered = {name.lower() for name in signed}
            headers = {name: value for name, value in headers.items() if name.lower() not in lowered} | signed
        if message.mode == "forged":
            body += b" "
        headers.setdefault("Content-Type", media_type(source.body))
        environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
        environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE")
        environ.pop("HTTP_CONTENT_LENGTH", None)
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        if message.gzipped:
            environ["HTTP_CONTENT_ENCODING"] = "gzip"
        return {
            **environ,
            "REQUEST_METHOD": "POST",
            "PATH_INFO": path,
            "QUERY_STRING": message.query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }


@functools.cache
def front() -> Front:
    return Front()


def judge(message: Message) -> int:
    """Send one message, and raise AssertionError unless the answer is right and the journal agrees with it."""
    door = front()
    door.journal.events.clear()
    source = sources()[message.key][1]
    status, answer = door.send(message)
    kept = door.journal.events
    assert status in ACCEPTABLE, f"answered {status}: {answer[:300]!r}"
    if status >= 400:
        assert not kept, f"answered {status}, and kept {len(kept)} events"
        found = json.loads(answer)
        assert found["status"] == status
        assert found["type"].startswith("urn:partner-bridge:problem:")
        return status
    if not _is_genuine(source, message) or (source.challenge is not None and status != source.reply.status):
        assert source.challenge is not None, f"taken, though {message.mode}"
        assert not kept
        return status
    for event in kept:
        assert door.kept_by(message.key, event) == (event.updates, event.unmappable), "a replay maps it otherwise"
    counted = dict.fromkeys(Intake, 0)
    for event in kept:
        counted[event.intake] += 1
    counts = door.seen.counts
    found_counts = (counts.accepted, counts.ignored, counts.parked)
    assert found_counts == (counted[Intake.ACCEPTED], counted[Intake.IGNORED], counted[Intake.PARKED])
    if source.reply.body == "counts":
        said = json.loads(answer)
        assert (said["accepted"], said["ignored"], said["parked"]) == found_counts
        assert said["ids"] == [event.id for event in kept[:100]]
    return status


def _is_genuine(source: Source, message: Message) -> bool:
    """Whether it must be taken for the partner's: tokens do not cover the body, `none` covers nothing."""
    match source.verify.scheme:
        case "none":
            return True
        case "bearer" | "basic":
            return message.mode != "unsigned"
        case _:
            return message.mode == "signed"


def _check_event(event: Event) -> None:
    """That any database takes it, and HubSpot could."""
    assert 0 < len(event.id) <= MAX_EVENT_ID
    assert event.occurred_at_us is None or -_INT64 <= event.occurred_at_us < _INT64
    assert re.fullmatch(r"[0-9a-f]{64}:([0-9a-f]{32})?:([0-9a-f]{16})?", event.content_hash)
    assert isinstance(json.loads(event.payload), dict)
    assert isinstance(json.loads(event.context), dict)
    assert event.root is None or json.loads(event.root) is not ...
    for text in _texts(event):
        text.encode()  # no lone surrogate
        assert "\0" not in text
    for update in event.updates:
        assert 0 < len(update.record.id) <= MAX_ID
        assert not set(update.properties) & set(update.invalid)
        for value in update.properties.values():
            assert type(value) is str
            assert len(value) <= MAX_TEXT
            assert not value.lstrip(" ").startswith(";")


def _texts(event: Event) -> Iterator[str]:
    yield from (event.id, event.payload, event.context, event.root or "", event.unmappable or "")
    for update in event.updates:
        yield update.record.id
        yield from (*update.properties, *update.properties.values(), *update.invalid, *update.invalid.values())
