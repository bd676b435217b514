"""gunicorn around the service: sockets, processes, threads and signals.

The master reads the configuration, takes the service lock, migrates the journal and only then forks; the
workers share nothing but the sockets. Each worker builds its own `Service` after the fork, because threads and
open databases do not survive one. Both ports are served by every worker, but requests to the admin port have
threads of their own: probes and metrics answer while all intake threads are busy.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.workers.gthread import ThreadWorker

from bridge.errors import BridgeError
from bridge.journal import versions
from bridge.operations import logs
from bridge.settings import Settings

#: Threads that answer the admin port of one worker.
ADMIN_THREADS = 4
#: After `drain_timeout` the process may take this long to end; then the master kills its workers.
STOP_MARGIN_S = 3
#: gunicorn's limits on a request, below its own maxima: what partners send fits easily.
REQUEST_LINE = 4094
HEADER_FIELDS = 100
HEADER_BYTES = 8190
#: A worker whose main loop is silent for this long is killed and replaced.
HEARTBEAT_S = 60

MakeService = Callable[[], Any]


class BridgeWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """gthread with threads of its own for the admin port, and a service that hears of SIGTERM at once."""

    service: Any = None
    admin_pool: ThreadPoolExecutor

    def init_process(self) -> None:
        self.admin_pool = ThreadPoolExecutor(ADMIN_THREADS, thread_name_prefix="admin")
        super().init_process()

    def load_wsgi(self) -> None:
        self.service = self.app.make_service()
        self.wsgi = self.service.wsgi
        self.service.start()

    def enqueue_req(self, conn: Any) -> None:
        pool = self.admin_pool if conn.server[1] == self.app.admin_port else self.tpool
        future = pool.submit(self.handle, conn)
        future.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.service is not None:
            self.service.begin_drain()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        # Ctrl-C and SIGQUIT: stop as cleanly as SIGTERM does; the master cuts it short if it must.
        self.handle_exit(sig, frame)


def stop_service(_arbiter: object, worker: BridgeWorker) -> None:
    """The hook `worker_exit`: requests are finished, now flush what fits and close."""
    if worker.service is not None:
        worker.service.stop()


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """The server, configured by our settings, never by files or variables of its own."""

    def __init__(
        self,
        settings: Settings,
        make_service: MakeService,
        logging_config: dict[str, Any],
        ready: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._ready = ready
        self._logging_config = logging_config
        self.make_service = make_service
        self.admin_port = settings.server.admin_bind[1]
        super().__init__()

    def load_config(self) -> None:
        server = self._settings.server
        options = {
            "bind": [address(server.bind), address(server.admin_bind)],
            "workers": server.workers,
            "threads": server.threads,
            "worker_class": BridgeWorker,
            "worker_connections": 1000 + server.threads,
            "backlog": 1024,
            "keepalive": 75,
            "timeout": HEARTBEAT_S,
            "graceful_timeout": math.ceil(server.drain_timeout_s) + STOP_MARGIN_S,
            "max_requests": 0,
            "preload_app": False,
            "control_socket_disable": True,
            "worker_tmp_dir": memory_folder(),
            "limit_request_line": REQUEST_LINE,
            "limit_request_fields": HEADER_FIELDS,
            "limit_request_field_size": HEADER_BYTES,
            "forwarded_allow_ips": "127.0.0.1,::1",
            "header_map": "drop",
            "proc_name": "partner-bridge",
            "logconfig_dict": self._logging_config,
            "accesslog": None,
            "worker_exit": stop_service,
            "when_ready": lambda _arbiter: self._ready(),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        raise NotImplementedError("the worker builds its own service")


def address(bind: tuple[str, int]) -> str:
    """`host:port` as gunicorn reads it."""
    host, port = bind
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def memory_folder() -> str | None:
    """A folder in memory for heartbeats and counters: a disk that hangs must not look like a dead worker."""
    shared = Path("/dev/shm")  # noqa: S108 (the point is that it is memory)
    return str(shared) if shared.is_dir() and os.access(shared, os.W_OK) else None


def refuse_taken_ports(settings: Settings) -> None:
    """Raise BridgeError, naming the setting, when a port cannot be bound."""
    for name, (host, port) in (("bind", settings.server.bind), ("admin_bind", settings.server.admin_bind)):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise BridgeError(
                    f"cannot listen on {address((host, port))}: {error.strerror}; stop what uses it or change "
                    f"server.{name}"
                ) from error


@contextmanager
def counters_folder() -> Iterator[None]:
    """A folder in which all processes keep their counters; set before prometheus-client is imported."""
    folder = tempfile.mkdtemp(prefix="partner-bridge-", dir=memory_folder())
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(settings: Settings, *, ready: Callable[[], None] = lambda: None) -> int:
    """Serve in the foreground until SIGTERM; returns the exit status. `ready` is called when the ports are open."""
    logging_config = logs.configure(os.environ)
    refuse_taken_ports(settings)
    versions.check_place(settings.journal.url)
    lock = versions.ServiceLock(settings.journal.url)
    lock.acquire()
    try:
        versions.prepare(settings.journal.url)
        with counters_folder():
            from bridge.service import Service  # counts only from here on, see `counters_folder`

            application = Application(settings, lambda: Service(settings=settings), logging_config, ready)
            try:
                application.run()
            except SystemExit as stop:
                return int(stop.code or 0)
    finally:
        lock.release()
    return 0
