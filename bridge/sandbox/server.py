"""The sandbox on a socket: HTTP/1.1 with keep-alive, one thread a connection."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from bridge.errors import BridgeError
from bridge.sandbox import control
from bridge.sandbox.answers import Answer, json_answer
from bridge.sandbox.crm import Crm
from bridge.sandbox.routes import Request
from bridge.sandbox.wire import Sender

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
        self._sender = Sender(self.connection, self.server.stopping)

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self._sender.send(json_answer(413 if length.isdigit() else 411, {"message": "body length"}))
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
            connected=self._sender.connected,
        )
        crm = self.server.crm
        if request.path == control.PREFIX or request.path.startswith(f"{control.PREFIX}/"):
            self._send(control.answer(crm, request))
            return
        answer, call = crm.handle(request)
        status = None if answer.is_silent else answer.status
        try:
            if not self._sender.send(answer, lambda: crm.ledger.finish(call, status)):
                self.close_connection = True
        finally:
            crm.ledger.finish(call, status)

    def _send(self, answer: Answer) -> None:
        if not self._sender.send(answer):
            self.close_connection = True


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
        """A client that breaks its connection is no news; anything else is a fault of ours, and shown."""
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.crm.close()
        self.stop()
