"""What `listen` serves: the public routes by the service's own code, with neither journal nor CRM behind them.

Every request is looked at on its way: as it came, the verdict on its signature, what it maps to, the answer.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson
from flask import Flask, Response
from werkzeug.serving import WSGIRequestHandler, make_server

from bridge.cli.sending import LISTENING
from bridge.errors import BridgeError, PayloadError
from bridge.http.bodies import coding_of, inflate, read_body
from bridge.http.problems import Refusal, register_problem_handlers
from bridge.intake.blocks import Problems
from bridge.intake.mapping import CompiledSource, Mapped
from bridge.intake.own_schema import Schemas
from bridge.intake.signatures import SignedRequest, Verification, Verifier
from bridge.intake.webhooks import WSGI, Counts, Webhooks
from bridge.model import Event, Receipt
from bridge.operations.health import Health, health_blueprint
from bridge.settings import MIB, Settings, Source
from bridge.tryout.dry_run import KnownIds

#: Seconds that a client may be silent within a request.
_SILENCE_S = 60
_ZEROS = {"accepted": 0, "duplicates": 0, "ignored": 0, "parked": 0, "ids": [], "invalid": []}


@dataclass(slots=True)
class Seen:
    """One request and what became of it, filled in while it is answered. `body` is as it was sent.

    `mapped` of a request that was refused is what it would have brought.
    """

    path: str
    method: str = "POST"
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    received_at: float = 0.0
    body: bytes = b""
    signed: SignedRequest | None = None
    verdict: Verification | None = None
    mapped: Mapped | None = None
    status: int = 0
    answer: bytes = b""

    def header(self, name: str) -> str:
        """A header's value; "" where it is not there."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def content(self) -> bytes:
        """The body, inflated if it is sound gzip."""
        with suppress(Refusal):
            return inflate(self.body, 64 * MIB) if coding_of(self.header("content-encoding")) else self.body
        return self.body


_seen: ContextVar[Seen] = ContextVar("seen")


class _Verifier(Verifier):
    """Notes its verdict in the request that is looked at."""

    def verify(self, request: SignedRequest, now: float) -> Verification:
        verdict = super().verify(request, now)
        seen = _seen.get()
        seen.signed, seen.verdict = request, verdict
        return verdict


class _Source(CompiledSource):
    """Notes what it maps in the request that is looked at."""

    def map_body(self, body: Any, **context: Any) -> Mapped:
        mapped = super().map_body(body, **context | {"explain": True})
        _seen.get().mapped = mapped
        return mapped


class _Memory:
    """In place of a journal: what came before, so that second deliveries are answered as such.

    `_lock` guards `_ids`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids = KnownIds()

    def append(self, events: Sequence[Event]) -> Sequence[Receipt]:
        with self._lock:
            return [self._ids.receipt(event) for event in events]


class _Unobserved:
    """An observer that counts nothing."""

    def webhook(self, source: str, code: int, duration_s: float, counts: Counts) -> None: ...

    def verification(self, source: str, result: str, secret: int | None) -> None: ...


class _Well:
    """Always healthy: nothing is kept that could fail."""

    def alive(self) -> Health:
        return Health(ok=True)

    ready = alive


def configured_app(settings: Settings, source: Source) -> Flask:
    """The public routes for one source, answering as the service would."""
    from bridge.server.service import endpoints

    alone = dataclasses.replace(settings, sources={source.name: source})
    watched = {
        name: dataclasses.replace(
            endpoint,
            source=_Source(source, Problems(), Schemas()),
            verifier=_Verifier(source.verify, settings.server.public_url),
        )
        for name, endpoint in endpoints(alone).items()
    }
    return _public(Webhooks(sources=lambda: watched, journal=_Memory(), observer=_Unobserved()))


def raw_app(name: str) -> Flask:
    """The route of a source that is not configured yet: whatever comes is fine."""
    app = _public(None)
    app.add_url_rule(
        f"/webhooks/{name}",
        view_func=lambda: Response(orjson.dumps(_ZEROS), status=202, mimetype="application/json"),
        methods=["POST"],
        provide_automatic_options=False,
    )
    return app


def would_map(endpoint: CompiledSource, seen: Seen) -> Mapped | str:
    """What a request that was refused unread would bring, or why nothing."""
    try:
        body = endpoint.decode(seen.content)
        headers = {name.lower(): value for name, value in seen.headers}
        return endpoint.map_body(body, headers=headers, delivery_id="refused", explain=True)
    except PayloadError as error:
        return str(error)


def _public(webhooks: Webhooks | None) -> Flask:
    app = Flask("bridge.listen", static_folder=None)
    if webhooks is not None:
        app.register_blueprint(webhooks.blueprint())
    app.register_blueprint(health_blueprint(_Well(), detail=False))
    register_problem_handlers(app)
    return app


class _Recorder:
    """A request's input that keeps what is read of it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.parts: list[bytes] = []

    def read(self, size: int = -1) -> bytes:
        part: bytes = self._stream.read(size)
        self.parts.append(part)
        return part


def watched(app: WSGI, look: Callable[[Seen], None], max_body: int) -> WSGI:
    """The app, every request of which is shown to `look` before it is answered."""

    def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        recorder = environ["wsgi.input"] = _Recorder(environ["wsgi.input"])
        seen = Seen(
            path=environ["PATH_INFO"],
            method=environ["REQUEST_METHOD"],
            query=environ.get("QUERY_STRING", ""),
            headers=environ[_HEADERS],
            received_at=time.time(),
        )
        token = _seen.set(seen)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            seen.status = int(status[:3])
            return start_response(status, headers, exc_info)

        try:
            seen.answer = b"".join(app(environ, start))
            if not recorder.parts:  # refused before its body was read: let us see it all the same
                with suppress(Refusal):
                    read_body(environ, max_body)
            seen.body = b"".join(recorder.parts)
            look(seen)
        finally:
            _seen.reset(token)
        return [seen.answer]

    return wsgi


_HEADERS = "partner_bridge.headers"


class _Handler(WSGIRequestHandler):
    """Quiet, and keeps the headers as they were written."""

    timeout: ClassVar[float] = _SILENCE_S

    def version_string(self) -> str:
        return LISTENING  # so that `send` knows that nothing was kept

    def make_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().make_environ()
        environ[_HEADERS] = tuple(self.headers.items())
        return environ

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Log nothing: the request is shown."""


@contextmanager
def served(app: WSGI, bound: socket.socket) -> Iterator[None]:
    """Serve on a bound socket, in threads of this process."""
    host, port = bound.getsockname()[:2]
    server = make_server(host, port, app, threaded=True, request_handler=_Handler, fd=bound.fileno())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="listen", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; a free port for 0. Raises BridgeError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise BridgeError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; stop what uses it (`serve`?), "
            "or choose another with --port"
        ) from error
