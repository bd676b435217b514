"""gunicorn's worker process: its two ports, its signals, and a clean end (G9).

Webhooks are served in the main thread's event loop, the admin port in that of a thread of its own, with a room of its
own: whatever fills the public port or holds its loop, probes, metrics and the console are accepted and answered. Apps
that may block, health and the admin port's, run in further threads beside their loop.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import socket as plain_socket
import sys
import threading
import time
from queue import Empty, SimpleQueue
from typing import Any

import gevent
from gevent import hub as gevent_hub
from gunicorn.glogging import Logger
from gunicorn.workers.base_async import AsyncWorker

from bridge.config.loading import EVERY_S
from bridge.http.problems import AnswersUnreadable
from bridge.server.loop import WSGI, LoopSignals, Threads
from bridge.server.port import BEAT_S, Port
from bridge.server.room import Limits, Room

#: Connections at one worker's public port, and at its admin port.
CONNECTIONS, ADMIN_CONNECTIONS = 1_000, 100
#: Bytes of requests that nobody has verified: the slowest of the large ones give way beyond it.
STRANGE_BYTES = 16 << 20
#: Bytes of verified requests that wait for their turn or are worked on: beyond it no more of a large one is read.
VERIFIED_BYTES = 32 << 20
#: The same at the admin port, where the largest body is a megabyte.
ADMIN_BYTES = 4 << 20
#: Open files that a worker keeps for itself, for the journal and the CRM. Connections get what the limit leaves.
OWN_FILES = 48
#: Paths that answer whatever the others wait for.
HEALTH = frozenset({"/livez", "/readyz"})
#: Threads of one worker for the admin port, and for health on each of the ports.
ADMIN_THREADS, HEALTH_THREADS = 4, 2
#: After `drain_timeout` the process may take this long to end; then the master kills its workers.
STOP_MARGIN_S = 3
#: Seconds for which the interpreter's lock is kept from another thread that wants it. By default 5 ms: the journal's
#: writer, which gives it up at each of its ten statements, would wait 50 ms for a commit beside a long request.
SWITCH_S = 0.0005
#: Seconds that requests at the admin port have to end in, once all that fits into a stop was flushed.
ADMIN_CLOSING_S = 0.4
#: A worker that has not been alive for so long ends, and the master starts another: enough for a probe to see it.
GIVE_UP_S = 10.0


class Log(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's, without its line for each request: the service writes a better one."""

    def access(self, *_args: Any) -> None:
        pass


class BridgeWorker(AnswersUnreadable, AsyncWorker):  # type: ignore[misc]  # gunicorn ships no types
    """Serves connections as greenlets, without monkey-patching, and tells the service of SIGTERM at once."""

    service: Any = None
    slot: int = 0  # which of the workers it is: one that takes a dead one's place has the same
    sockets: list[Any]
    alive: bool

    def init_process(self) -> None:
        # What keeps one of the first from starting ends the service, with one reason. One that takes a dead one's place
        # must not end those that live: a limit that is reached just now passes, and the master tries again.
        self.booted = self.age > self.cfg.workers
        gevent_hub.reinit()
        # A request asks for some twenty settings, and gunicorn looks each of them up anew; none changes from here on.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        self._dead_since: float | None = None
        self._is_flushed = False
        self._hang_ups: SimpleQueue[None] = SimpleQueue()  # unlike an Event it may be used in a signal handler
        super().init_process()

    def load_wsgi(self) -> None:
        from bridge.operations.metrics import count_as  # counts only from here on, see `master.counters_folder`

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

    # --- what answers ---

    def _route(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Which app answers is decided by the port that accepted the connection, which no request can choose."""
        body = environ["wsgi.input"]

        def start(*answer: Any) -> Any:
            body.settle()
            return start_response(*answer)

        return environ["gunicorn.socket"].port.app(environ, start)

    def _public_app(self) -> WSGI:
        health = Threads(HEALTH_THREADS)

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            if environ["PATH_INFO"] in HEALTH:
                return health.serve(self.service.public, environ, start_response)
            environ["bridge.proved"] = environ["gunicorn.socket"].prove
            return self.service.public(environ, start_response)

        return app

    def _admin_app(self) -> WSGI:
        health, others = Threads(HEALTH_THREADS), Threads(ADMIN_THREADS)

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            threads = health if environ["PATH_INFO"] in HEALTH else others
            return threads.serve(self.service.admin, environ, start_response)

        return app

    # --- life ---

    def run(self) -> None:
        public, *others = self._ports()
        threads = [threading.Thread(target=self._serve_beside, args=(port,), name="admin-port") for port in others]
        public.open()
        for thread in threads:
            thread.daemon = True  # the journal is closed in time also beside a request that has no end
            thread.start()
        while self.alive and self.ppid == os.getppid():
            self.notify()
            self._give_up()
            gevent.sleep(BEAT_S)
        self.handle_exit(0, None)  # also when the master is gone
        public.close(self._deadline(), beat=self.notify)
        self.service.flush()
        self._is_flushed = True
        until = time.monotonic() + ADMIN_CLOSING_S
        while any(thread.is_alive() for thread in threads) and time.monotonic() < until:
            self.notify()
            gevent.sleep(BEAT_S / 4)

    def _ports(self) -> list[Port]:
        """The public one and the admin port: in the order in which they are bound."""
        limits = shares(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        listeners = [plain_socket.socket(fileno=each.sock.detach()) for each in self.sockets]
        rooms = [Room(limits[0], largest=self._largest_body), Room(limits[1])]
        apps = (self._public_app, self._admin_app)
        return [Port(self, *each) for each in zip(listeners, rooms, apps, strict=False)]

    def _largest_body(self) -> int:
        return 0 if self.service is None else int(self.service.largest_body())

    def _serve_beside(self, port: Port) -> None:
        """Serve a port in this thread, also while what waits is flushed at a stop: probes hear that this process takes
        nothing any more, and people see what is left. Without it the worker is of no use, and ends.
        """
        try:
            port.open()
            while not self._is_flushed:
                gevent.sleep(BEAT_S / 4)
            port.close(time.monotonic() + ADMIN_CLOSING_S)
        except Exception:
            self.log.exception("this worker ends, another takes its place: its admin port failed")
        finally:
            self.alive = False

    def _deadline(self) -> float:
        """When a stop that begins now is over, with time left to close the journal."""
        return time.monotonic() + float(self.cfg.graceful_timeout) - STOP_MARGIN_S

    def _give_up(self) -> None:
        """End if this process is of no use any more. Of several workers a probe asks any, and Kubernetes would hardly
        ever hear of the one that may deliver and does not.
        """
        health = self.service.alive()
        if health.ok:
            self._dead_since = None
        elif self._dead_since is None:
            self._dead_since = time.monotonic()
        elif time.monotonic() - self._dead_since > GIVE_UP_S:
            self.log.error("this worker ends, another takes its place: %s", health.why)
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


def shares(files: int) -> tuple[Limits, Limits]:
    """What the public and the admin port may hold when so many files may be open: the latter's share is reserved."""
    public, admin = CONNECTIONS, ADMIN_CONNECTIONS
    if files >= 0:
        left = max(0, files - OWN_FILES) // 2  # up to twice as many as in the limits come in
        admin = max(1, min(admin, left // 4))
        public = max(1, min(public, left - admin))
    return Limits(public, STRANGE_BYTES, VERIFIED_BYTES), Limits(admin, ADMIN_BYTES, ADMIN_BYTES)


def take_slot(arbiter: Any, worker: BridgeWorker) -> None:
    """The hook `pre_fork`: the lowest number that no living worker has."""
    taken = {each.slot for each in arbiter.WORKERS.values()}
    worker.slot = min(set(range(len(taken) + 1)) - taken)


def stop_service(_arbiter: object, worker: BridgeWorker) -> None:
    """The hook `worker_exit`, which is called whatever ended the worker."""
    if worker.service is not None:
        worker.service.stop()
