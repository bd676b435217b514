"""The sandbox on a socket: HTTP/1.1 with keep-alive, one thread a connection; and `/sandbox/…`, which steers it."""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson

from bridge.errors import BridgeError
from bridge.sandbox.answers import Response, Wire, json_answer
from bridge.sandbox.batch import Behaviour
from bridge.sandbox.crm import Crm, Request
from bridge.sandbox.faults import Fault

# --- an answer on its way to the client: whole, or broken as a broken network breaks it ---

#: `SO_LINGER` on, for 0 s: closing the socket sends a reset instead of a goodbye.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
#: How often a silent or slow answer looks whether its client has left.
LOOK_S = 0.02
#: 64 KiB of spaces as one chunk of a chunked body.
SPACES = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class ResponseWriter:
    """Sends answers on one connection. `connected` may be asked by any thread, the rest belongs to the
    connection's own. `stopping` cuts short whatever is slow.
    """

    def __init__(self, connection: socket.socket, stopping: threading.Event) -> None:
        self._connection = connection
        self._stopping = stopping

    def connected(self) -> bool:
        """Whether the client has neither closed nor reset the connection."""
        try:
            poll = select.poll()
            poll.register(self._connection, select.POLLRDHUP)
            events = poll.poll(0)
        except (OSError, ValueError):
            return False
        return not any(event & _GONE for _, event in events)

    def send(self, answer: Response, before_end: Callable[[], None] = lambda: None) -> bool:
        """Put an answer on the wire, as one piece where it is whole, so that no part waits for an ACK.

        `before_end` is called before the last byte leaves: by then the client may already call again.
        Returns whether the connection can serve another request.
        """
        match answer.wire:
            case Wire.PLAIN:
                before_end()
                return self._write(_head(answer, keep=True) + answer.body)
            case Wire.TRUNCATE:
                before_end()
                self._write(_head(answer) + answer.body[: len(answer.body) // 2])
            case Wire.DRIP:
                self._drip(answer, before_end)
            case Wire.ENDLESS:
                self._endless(answer)
                before_end()
                self._reset()
            case Wire.HOLD:
                self._still_there(answer.hold_s)
                before_end()
                self._reset()
            case Wire.RESET:
                before_end()
                self._reset()
        return False

    def _write(self, data: bytes) -> bool:
        try:
            self._connection.sendall(data)
        except OSError:  # the client has left
            return False
        return True

    def _drip(self, answer: Response, before_end: Callable[[], None]) -> None:
        going = self._write(_head(answer))
        for place in range(len(answer.body)):
            if not going or not self._still_there(answer.pace_s):
                return
            if place == len(answer.body) - 1:
                before_end()
            going = self._write(answer.body[place : place + 1])

    def _endless(self, answer: Response) -> None:
        first = f"{len(answer.body):x}\r\n".encode() + answer.body + b"\r\n"
        going = self._write(_head(answer, length="Transfer-Encoding: chunked") + first)
        ends = time.monotonic() + answer.hold_s
        while going and time.monotonic() < ends and not self._stopping.is_set():
            going = self._write(SPACES)

    def _still_there(self, seconds: float) -> bool:
        """Wait, but not for a client that has left; True when all the time has passed."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if self._stopping.wait(min(left, LOOK_S)) or not self.connected():
                return False
        return True

    def _reset(self) -> None:
        with suppress(OSError):
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            # Taken from the server, which would say goodbye (FIN) before closing.
            os.close(self._connection.detach())


def _head(answer: Response, *, keep: bool = False, length: str | None = None) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines.append(length or f"Content-Length: {len(answer.body)}")
    if not keep:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1")


# --- `/sandbox/…`: look into a sandbox of another process, and steer it. No authentication: bind to loopback ---
#
# GET  /sandbox                     {calls, statuses, applied, violations, records, dropped_calls}
# GET  /sandbox/state               ?id_property=  → {object type: {id as addressed: {property: value}}}
# GET  /sandbox/calls               ?after=SEQ&endpoint=update&inputs=false → {calls: […]}
# GET  /sandbox/applied             ?after=SEQ&limit=10000 → {applied: […], last: SEQ}
# GET  /sandbox/violations          → {violations: [{call, kind, detail}]}
# GET  /sandbox/faults              → {next, always, rates}
# POST /sandbox/faults              {clear: true, stop: [KIND], rates: {KIND: RATE},
#                                    next: [{kind, times, …}], always: [{kind, …}]}, in this order
# POST /sandbox/records             {object_type, ids, id_property, properties} adds; with
#                                   archive: true archives; with merge_into: ID, silent: bool merges
# POST /sandbox/properties          {object_type, name, type, options, unique, …} declares
# POST /sandbox/behaviour           any field of Behaviour, beside limit and daily (null: none) and fold_case: ids that
#                                   differ in letter case only are one record
# POST /sandbox/tokens              {accept: […], revoke: […], expire: […], forbid: […], allow: […]}
# POST /sandbox/reset               forgets records, logs, faults and used limits

PREFIX = "/sandbox"
DEFAULT_APPLIED_LIMIT = 10_000


def control(crm: Crm, request: Request) -> Response:
    """Serve one `/sandbox` request: 400 with a `message` for what cannot be understood, 404 else."""
    handler = _HANDLERS.get((request.method, request.path.rstrip("/")))
    if handler is None:
        return json_answer(404, {"message": f"no {request.method} {request.path} in the sandbox"})
    try:
        body = orjson.loads(request.body) if request.body else {}
        if not isinstance(body, dict):
            return json_answer(400, {"message": "the body is not a JSON object"})
        return json_answer(200, handler(crm, {**request.query, **body}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return json_answer(400, {"message": f"{type(error).__name__}: {error}"})


def _overview(crm: Crm, _asked: dict[str, Any]) -> Any:
    statuses = crm.ledger.counts()
    return {
        "calls": sum(statuses.values()),
        "statuses": statuses,
        "applied": crm.ledger.last_applied,
        "violations": len(crm.ledger.violations()),
        "records": {object_type: len(records) for object_type, records in crm.state().items()},
        "dropped_calls": crm.ledger.dropped_calls,
    }


def _calls(crm: Crm, asked: dict[str, Any]) -> Any:
    calls = crm.ledger.calls(asked.get("endpoint"), after=int(asked.get("after", 0)))
    with_inputs = asked.get("inputs") != "false"
    listed = []
    for call in calls:
        shown = {name: getattr(call, name) for name in _CALL_FIELDS}
        shown["inputs"] = [item._asdict() for item in call.inputs] if with_inputs else len(call.inputs)
        listed.append(shown)
    return {"calls": listed}


_CALL_FIELDS = (
    "seq", "endpoint", "path", "object_type", "started", "started_at", "ended", "status", "fault",
    "correlation_id",
)  # fmt: skip


def _applied(crm: Crm, asked: dict[str, Any]) -> Any:
    limit = int(asked.get("limit", DEFAULT_APPLIED_LIMIT))
    found = crm.ledger.applied(after=int(asked.get("after", 0)), limit=limit)
    return {"applied": [entry._asdict() for entry in found], "last": crm.ledger.last_applied}


def _faults(crm: Crm, asked: dict[str, Any]) -> Any:
    scripted = [
        (Fault.from_json({key: value for key, value in item.items() if key != "times"}), item.get("times", 1))
        for item in asked.get("next", ())
    ]
    standing = [Fault.from_json(item) for item in asked.get("always", ())]
    if asked.get("clear"):
        crm.faults.clear()
    for kind in asked.get("stop", ()):
        crm.faults.stop(kind)
    if "rates" in asked:
        crm.faults.set_rates({str(kind): float(rate) for kind, rate in asked["rates"].items()})
    for fault, times in scripted:
        crm.faults.next(fault, times=int(times))
    for fault in standing:
        crm.faults.always(fault)
    return crm.faults.as_json()


def _records(crm: Crm, asked: dict[str, Any]) -> Any:
    object_type, id_property = asked.get("object_type", "partner_clients"), asked.get("id_property", "")
    ids = [str(id_) for id_ in asked["ids"]]
    for id_ in ids:
        if asked.get("archive"):
            crm.records.archive(object_type, id_, id_property=id_property)
        elif "merge_into" in asked:
            into, silent = str(asked["merge_into"]), bool(asked.get("silent", True))
            crm.records.merge(object_type, id_, into, id_property=id_property, silent=silent)
        else:
            crm.records.add(object_type, id_, id_property=id_property, properties=asked.get("properties"))
    return {"records": len(ids)}


def _properties(crm: Crm, asked: dict[str, Any]) -> Any:
    more = {key: value for key, value in asked.items() if key not in {"object_type", "name", "type"}}
    more["options"] = tuple(more.get("options", ()))
    object_type = asked.get("object_type", "partner_clients")
    crm.define(object_type, asked["name"], asked.get("type", "string"), **more)
    return {"properties": sorted(crm.properties.table(object_type))}


def _behaviour(crm: Crm, asked: dict[str, Any]) -> Any:
    known = {item.name for item in fields(Behaviour)}
    unknown = set(asked) - known - {"limit", "daily", "fold_case"}
    if unknown:
        raise ValueError(f"no such behaviour: {', '.join(sorted(unknown))}")
    crm.limits.calls = asked.get("limit", crm.limits.calls)
    crm.limits.daily = asked.get("daily", crm.limits.daily)
    crm.records.fold_case = bool(asked.get("fold_case", crm.records.fold_case))
    for name in known & set(asked):
        setattr(crm.behaviour, name, asked[name])
    limits = {"limit": crm.limits.calls, "daily": crm.limits.daily}
    return {**asdict(crm.behaviour), **limits, "fold_case": crm.records.fold_case}


def _tokens(crm: Crm, asked: dict[str, Any]) -> Any:
    if "accept" in asked:
        crm.access.accept_only(*asked["accept"])
    crm.access.revoke(*asked.get("revoke", ()))
    for token in asked.get("expire", ()):
        crm.access.expire(token)
    crm.access.forbid(*asked.get("forbid", ()))
    crm.access.allow(*asked.get("allow", ()))
    return {}


def _reset(crm: Crm, _asked: dict[str, Any]) -> Any:
    crm.reset()
    return {}


_HANDLERS: dict[tuple[str, str], Callable[[Crm, dict[str, Any]], Any]] = {
    ("GET", PREFIX): _overview,
    ("GET", f"{PREFIX}/state"): lambda crm, asked: crm.state(id_property=asked.get("id_property")),
    ("GET", f"{PREFIX}/calls"): _calls,
    ("GET", f"{PREFIX}/applied"): _applied,
    ("GET", f"{PREFIX}/violations"): lambda crm, _: {
        "violations": [asdict(violation) for violation in crm.ledger.violations()]
    },
    ("GET", f"{PREFIX}/faults"): lambda crm, _: crm.faults.as_json(),
    ("POST", f"{PREFIX}/faults"): _faults,
    ("POST", f"{PREFIX}/records"): _records,
    ("POST", f"{PREFIX}/properties"): _properties,
    ("POST", f"{PREFIX}/behaviour"): _behaviour,
    ("POST", f"{PREFIX}/tokens"): _tokens,
    ("POST", f"{PREFIX}/reset"): _reset,
}


# --- the server ---------------------------------------------------------------------------------

MAX_BODY = 64 * 1024 * 1024


class SandboxAddressError(BridgeError):
    """The sandbox cannot listen where it was told to: the port is taken, or the host is not ours."""


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._writer = ResponseWriter(self.connection, self.server.stopping)

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self._writer.send(json_answer(413 if length.isdigit() else 411, {"message": "body length"}))
            self.close_connection = True  # the body was not read
            return
        body = self.rfile.read(int(length))
        if len(body) == int(length):
            self._serve(body)

    def do_PUT(self) -> None:
        self.do_POST()

    def do_PATCH(self) -> None:
        self.do_POST()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Be quiet: what happened is in the ledger."""

    def _serve(self, body: bytes) -> None:
        parts = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=unquote(parts.path),
            body=body,
            query=dict(parse_qsl(parts.query)),
            headers={name.lower(): value for name, value in self.headers.items()},
            connected=self._writer.connected,
        )
        crm = self.server.crm
        if request.path == PREFIX or request.path.startswith(f"{PREFIX}/"):
            if not self._writer.send(control(crm, request)):
                self.close_connection = True
            return
        answer, call = crm.handle(request)
        status = None if answer.is_silent else answer.status
        try:
            if not self._writer.send(answer, lambda: crm.ledger.finish(call, status)):
                self.close_connection = True
        finally:
            crm.ledger.finish(call, status)


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that stopping ends them too. `_lock` guards `_connections`."""

    request_queue_size = 1024
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, crm: Crm, address: tuple[str, int]) -> None:
        self.crm = crm
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for the host's name, which may take seconds.
        super(ThreadingHTTPServer, self).server_bind()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that breaks its connection; anything else is a fault of ours, and shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def end_connections(self, timeout_s: float = 2.0) -> None:
        """Shut every connection and wait until its thread is through with it."""
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            with self._lock:
                left = list(self._connections)
            if not left:
                return
            for connection in left:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            time.sleep(0.01)


class SandboxServer:
    """A `Crm` served over HTTP, in threads of this process.

        with SandboxServer(Crm()) as server:
            requests.post(f"{server.url}/crm/v3/objects/partner_clients/batch/update", …)

    Port 0 takes a free one. Raises SandboxAddressError at `start` when it cannot listen. After `stop` it
    can be started again, on the port it had: an outage that clients see as refused connections. Not for
    use by several threads at once.
    """

    def __init__(self, crm: Crm, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.crm = crm
        self.host = host
        self.port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """`http://host:port`; the port is known once started."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", ""} else self.host  # noqa: S104 (compared, not bound)
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Listen and serve until `stop`."""
        try:
            self._server = _Server(self.crm, (self.host, self.port))
        except OSError as error:
            raise SandboxAddressError(
                f"the sandbox cannot listen on {self.host}:{self.port} ({error.strerror}): choose another port or host"
            ) from error
        self.port = int(self._server.server_address[1])
        self.crm.open()
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="sandbox", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, end every connection, also those that a fault holds open. What is to be applied
        late still will be.
        """
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is None or thread is None:
            return
        server.stopping.set()
        server.shutdown()
        server.server_close()
        server.end_connections()
        thread.join(5)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.crm.close()
        self.stop()
