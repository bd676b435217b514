"""gunicorn's worker process: connections, their deadlines, and a clean end.

An idle connection is kept for `IDLE_S`; from its first byte on a request has `REQUEST_S` to be there whole, else it
is answered 408, or closed while its head is not there. Both ports are served by every worker: webhooks in the
loop itself, health and the admin port in threads of their own, so that they answer whatever the others wait for.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import socket as plain_socket
import sys
import threading
import time
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import gevent
from gevent import hub as gevent_hub
from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.http import errors
from gunicorn.http.parser import RequestParser
from gunicorn.workers.base_async import AsyncWorker

from bridge.config.watching import EVERY_S
from bridge.intake.unreadable import AnswersUnreadable
from bridge.loop import LoopSignals, Threads

#: Seconds that a connection may be idle: longer than the proxies in front keep theirs.
IDLE_S = 75.0
#: Seconds from the first byte of a request to its last.
REQUEST_S = 20.0
#: Seconds for an answer to be fetched.
ANSWER_S = 20.0
#: Seconds, and bytes, for the rest of a body that nobody wants, before the connection is closed.
REST_S, REST_BYTES = 1.0, 65_536
#: Bytes of requests that one worker holds at once; all but the oldest wait while it is more.
HELD_BYTES = 64 << 20
#: Connections of one worker. Beyond that a new one takes the place of the one that has waited longest for a request
#: to be there, and is turned away only when as many again are being answered.
CONNECTIONS = 1_000
#: Seconds in which a connection is not hung up on for a newer one, unless there are twice as many; nor at a stop, if it
#: is new.
YOUNG_S = 1.0
#: Open files that a worker keeps for itself, for the journal and the CRM. Connections get what the limit leaves.
OWN_FILES = 48
#: Threads of one worker for the admin port, and for health on both ports.
ADMIN_THREADS, HEALTH_THREADS = 4, 2
#: After `drain_timeout` the process may take this long to end; then the master kills its workers.
STOP_MARGIN_S = 3
#: Seconds for which the interpreter's lock is kept from another thread that wants it. By default 5 ms: the journal's
#: writer, which gives it up at each of its ten statements, would wait 50 ms for a commit beside a long request.
SWITCH_S = 0.0005
#: Seconds between two looks at whether the worker is to end.
BEAT_S = 0.2
#: A worker that has not been alive for so long ends, and the master starts another: enough for a probe to see it.
GIVE_UP_S = 10.0


class Connection(socket.socket):
    """A client's socket with deadlines. Raises TimeoutError at the end of each."""

    worker: BridgeWorker
    deadline: float | None = None  # of the request that has begun; None: idle
    is_used = False  # a request on it was answered

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        if self.deadline is None:
            gevent.sleep(0)  # a client that always has more to say must not keep the others waiting
            self.settimeout(IDLE_S)
        else:
            while self.worker.holds_back(self) and time.monotonic() < self.deadline:
                gevent.sleep(BEAT_S)
            self.settimeout(max(0.001, self.deadline - time.monotonic()))
        received: bytes = super().recv(bufsize, flags)
        if self.deadline is None:
            self.deadline = time.monotonic() + REQUEST_S
        self.worker.hold(self, len(received))
        return received

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.settimeout(ANSWER_S)
        super().sendall(data, flags)

    def rest(self) -> None:
        """Between two requests."""
        self.deadline = None
        self.worker.let_go(self)

    def hang_up(self) -> None:
        """Read no more than has come already. gevent's own shutdown would forget that and raise in the reader."""
        with contextlib.suppress(OSError), plain_socket.socket(fileno=os.dup(self.fileno())) as same:
            same.shutdown(plain_socket.SHUT_RD)


class Log(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's, without its line for each request: the service writes a better one."""

    def access(self, *_args: Any) -> None:
        pass


class BridgeWorker(AnswersUnreadable, AsyncWorker):  # type: ignore[misc]  # gunicorn ships no types
    """Serves connections as greenlets, without monkey-patching, and tells the service of SIGTERM at once."""

    service: Any = None
    slot: int = 0  # which of the workers it is: one that takes a dead one's place has the same
    sockets: list[Any]

    def init_process(self) -> None:
        # What keeps one of the first from starting ends the service, with one reason. One that takes a dead one's place
        # must not end those that live: a limit that is reached just now passes, and the master tries again.
        self.booted = self.age > self.cfg.workers
        gevent_hub.reinit()
        # The same descriptors, but waited for by the loop.
        self.sockets = [
            socket.socket(each.FAMILY, socket.SOCK_STREAM, fileno=each.sock.detach()) for each in self.sockets
        ]
        self._idle: dict[Connection, float] = {}  # no whole head is there yet, since when; the longest first
        self._connections = 0
        self._dead_since: float | None = None
        self._room = room_for_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._hang_ups: SimpleQueue[None] = SimpleQueue()  # unlike an Event it may be used in a signal handler
        self._held: dict[Connection, int] = {}  # bytes of the requests at hand, the oldest first
        self._held_bytes = 0
        self._admin, self._health = Threads(ADMIN_THREADS), Threads(HEALTH_THREADS)
        super().init_process()

    def load_wsgi(self) -> None:
        from bridge.operations.metrics import count_as  # counts only from here on, see `server.counters_folder`

        count_as(self.slot)
        self.service = self.app.make_service(LoopSignals())
        self.wsgi = self._route
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()  # what is here stays: full collections need not look at it, which takes 30 ms each time
        self.service.start()
        # Reading and compiling takes a while, and the loop must go on.
        threading.Thread(target=self._reload, name="reload", daemon=True).start()

    def _reload(self) -> None:
        self._look()  # what changed while it was born, before it could hear of it
        while True:
            try:
                self._hang_ups.get(timeout=EVERY_S if self.app.watch is not None and self.slot == 0 else None)
            except Empty:
                self._look()
                continue
            with contextlib.suppress(Empty):  # however many there were, the file is read once
                while True:
                    self._hang_ups.get_nowait()
            self.service.reload(self.app.load_settings)

    def _look(self) -> None:
        """Have all processes read a configuration that has changed, as SIGHUP does from outside."""
        if self.app.watch is None or not self.app.watch.changed():
            return
        master = os.getppid()
        if self.alive and master == self.ppid:  # never whoever adopts orphans
            self.log.info("the configuration has changed: it is read again")
            os.kill(master, signal.SIGHUP)

    def _route(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Which app answers is decided by the port of the socket, which no request can choose."""
        is_admin = environ["SERVER_PORT"] == str(self.app.admin_port)
        app = self.service.admin if is_admin else self.service.public
        if environ["PATH_INFO"] in {"/livez", "/readyz"}:
            return self._health.serve(app, environ, start_response)
        if is_admin:
            return self._admin.serve(app, environ, start_response)
        return app(environ, start_response)

    # --- life ---

    def run(self) -> None:
        servers: list[Any] = []
        for listener in self.sockets:
            listener.setblocking(True)
            server = StreamServer(listener, handle=partial(self.handle, listener), spawn=Pool())
            server.max_accept = 1  # leave some to the other workers
            server.start()
            servers.append(server)
        while self.alive and self.ppid == os.getppid():
            self.notify()
            self._give_up()
            gevent.sleep(BEAT_S)
        self.handle_exit(0, None)  # also when the master is gone
        for server in servers:
            server.close()
        deadline = time.monotonic() + self.cfg.graceful_timeout - STOP_MARGIN_S
        while any(len(server.pool) for server in servers) and time.monotonic() < deadline:
            for connection, since in list(self._idle.items()):  # each time: one may have been accepted just before
                # On a new connection a request is on its way, which its sender cannot tell from one that was taken.
                if connection.is_used or time.monotonic() - since > YOUNG_S:
                    connection.hang_up()
            self.notify()
            gevent.sleep(BEAT_S / 4)

    def _give_up(self) -> None:
        """End if this process is of no use any more. Of several workers a probe asks any, and Kubernetes would hardly
        ever hear of the one that may deliver and does not.
        """
        verdict = self.service.alive()
        if verdict.ok:
            self._dead_since = None
        elif self._dead_since is None:
            self._dead_since = time.monotonic()
        elif time.monotonic() - self._dead_since > GIVE_UP_S:
            self.log.error("this worker ends, another takes its place: %s", verdict.why)
            self.alive = False

    def init_signals(self) -> None:
        super().init_signals()
        signal.signal(signal.SIGHUP, self.handle_hup)

    def handle_hup(self, _sig: int, _frame: Any) -> None:
        self._hang_ups.put(None)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.service is not None:
            self.service.begin_drain()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        # Ctrl-C and SIGQUIT: stop as cleanly as SIGTERM does; the master cuts it short if it must.
        self.handle_exit(sig, frame)

    # --- one connection ---

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        connection = Connection(client.family, client.type, client.proto, fileno=client.detach())
        connection.worker = self
        self._connections += 1
        try:
            if self._make_room() and not self._serve(listener.getsockname(), connection, addr):
                # The answer must not be lost in a reset because of what was not read.
                connection.deadline = time.monotonic() + REST_S
                util.close_graceful(connection, REST_S, REST_BYTES)
        finally:
            self._connections -= 1
            connection.rest()
            util.close(connection)

    def _make_room(self) -> bool:
        """Whether there is room for the newest connection, if need be by hanging up on one that waits."""
        most = 2 * self._room
        if self._connections > self._room and self._idle:
            longest, since = next(iter(self._idle.items()))
            # Newcomers must not drive each other out while there are others to wait for.
            if self._connections > most or time.monotonic() - since > YOUNG_S:
                del self._idle[longest]
                longest.hang_up()
                most += 1  # it closes in a moment
        return self._connections <= most

    def _serve(self, listener_name: Any, connection: Connection, addr: Any) -> bool:
        """Answer its requests until it ends; False when the last one was not read to its end."""
        request = None
        try:
            parser = RequestParser(self.cfg, connection, addr)
            while self.alive or parser.req_count == 0:
                connection.rest()
                self._idle[connection] = time.monotonic()
                request = None
                try:
                    request = next(parser)
                finally:
                    self._idle.pop(connection, None)
                self.handle_request(listener_name, request, connection, addr)
                connection.is_used = True
                connection.deadline = time.monotonic() + REST_S
                if not parser.finish_body(connection.deadline, REST_BYTES):
                    return False
        except (StopIteration, errors.NoMoreData):
            pass  # the end of the connection, as either side may have it
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, None}:
                self.log.exception("connection failed")
        except Exception as error:  # noqa: BLE001 (whatever it is, this connection ends and the others go on)
            self.handle_error(request, connection, addr, error)
            return False
        return True

    # --- memory ---

    def hold(self, connection: Connection, size: int) -> None:
        """So many bytes more of a request are here."""
        self._held[connection] = self._held.get(connection, 0) + size
        self._held_bytes += size

    def let_go(self, connection: Connection) -> None:
        """The request is done with."""
        self._held_bytes -= self._held.pop(connection, 0)

    def holds_back(self, connection: Connection) -> bool:
        """Whether this one must wait before more of it is read, lest many large bodies fill the memory."""
        return self._held_bytes > HELD_BYTES and next(iter(self._held)) is not connection


def room_for_connections(files: int) -> int:
    """How many connections may wait, twice as many being open, when so many files may be."""
    return max(1, min(CONNECTIONS, (files - OWN_FILES) // 2)) if files >= 0 else CONNECTIONS


def take_slot(arbiter: Any, worker: BridgeWorker) -> None:
    """The hook `pre_fork`: the lowest number that no living worker has."""
    taken = {each.slot for each in arbiter.WORKERS.values()}
    worker.slot = min(set(range(len(taken) + 1)) - taken)


def stop_service(_arbiter: object, worker: BridgeWorker) -> None:
    """The hook `worker_exit`: requests are finished, now flush what fits and close."""
    if worker.service is not None:
        worker.service.stop()
