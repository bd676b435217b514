"""gunicorn around the service: sockets, processes, threads and signals.

The master reads the configuration, takes the service lock, migrates the journal and only then forks; the
workers (`worker.py`) share nothing but the sockets. Each worker builds its own `Service` after the fork, because
threads and open databases do not survive one.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from bridge.errors import BridgeError
from bridge.journal import versions
from bridge.loop import LoopSignals, Turns, breathe
from bridge.operations import logs
from bridge.settings import Settings
from bridge.worker import CONNECTIONS, IDLE_S, STOP_MARGIN_S, BridgeWorker, Log, stop_service

#: Open files that the service would like: a usual limit of 1,024 is less than its connections need.
FILES = 4_096
#: gunicorn's limits on a request, below its own maxima: what partners send fits easily.
REQUEST_LINE = 4094
HEADER_FIELDS = 100
HEADER_BYTES = 8190
#: A worker whose main loop is silent for this long is killed and replaced.
HEARTBEAT_S = 60

#: Builds a worker's service, given its settings and how its requests wait.
MakeService = Callable[[Settings, LoopSignals], Any]


class Master(Arbiter):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's, but SIGHUP reaches the workers that are there: they close no connection to reload."""

    def reload(self) -> None:
        self.app.reload_settings()
        self.kill_workers(signal.SIGHUP)

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Of those that wait each once: many reloads must not delay a stop."""
        return list(dict.fromkeys(super().wait_for_signals(timeout)))


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """The server, configured by our settings, never by files or variables of its own."""

    def __init__(
        self,
        settings: Settings,
        load_settings: Callable[[], Settings],
        make_service: MakeService,
        logging_config: dict[str, Any],
        ready: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._ready = ready
        self._logging_config = logging_config
        self._make_service = make_service
        self.load_settings = load_settings
        self.admin_port = settings.server.admin_bind[1]
        super().__init__()

    def load_config(self) -> None:
        server = self._settings.server
        options = {
            "bind": [address(server.bind), address(server.admin_bind)],
            "workers": server.workers,
            "worker_class": BridgeWorker,
            "logger_class": Log,
            "worker_connections": CONNECTIONS,
            "backlog": 1024,
            "keepalive": math.ceil(IDLE_S),
            "timeout": HEARTBEAT_S,
            "graceful_timeout": math.ceil(server.drain_timeout_s) + STOP_MARGIN_S,
            "max_requests": 0,
            "preload_app": False,
            "control_socket_disable": True,
            "worker_tmp_dir": memory_folder(),
            "limit_request_line": REQUEST_LINE,
            "limit_request_fields": HEADER_FIELDS,
            "limit_request_field_size": HEADER_BYTES,
            "forwarded_allow_ips": "",  # nothing here depends on who forwards, so nobody is believed
            "forwarder_headers": "",
            "header_map": "drop",
            "proc_name": "partner-bridge",
            "logconfig_dict": self._logging_config,
            "accesslog": None,
            "worker_exit": stop_service,
            "when_ready": lambda _arbiter: self._ready(),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def run(self) -> None:
        Master(self).run()

    def make_service(self, signals: LoopSignals) -> Any:
        """A worker's service; called after the fork."""
        return self._make_service(self._settings, signals)

    def reload_settings(self) -> None:
        """For workers that are yet to be born; those that live read the file themselves, and tell what is wrong.
        Whatever that is, the master must go on.
        """
        with contextlib.suppress(Exception):
            self._settings, _ = self.load_settings().beside(self._settings)

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


def allow_files() -> None:
    """Raise this process's limit of open files, as far as it may; the workers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def counters_folder() -> Iterator[None]:
    """A folder in which all processes keep their counters; set before prometheus-client is imported."""
    folder = tempfile.mkdtemp(prefix="partner-bridge-", dir=memory_folder())
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(settings: Settings, *, load_settings: Callable[[], Settings], ready: Callable[[], None] = lambda: None) -> int:
    """Serve in the foreground until SIGTERM; returns the exit status. `load_settings` is called at SIGHUP, `ready`
    when the ports are open.
    """
    logging_config = logs.configure(os.environ)
    allow_files()
    refuse_taken_ports(settings)
    versions.check_place(settings.journal.url)
    lock = versions.ServiceLock(settings.journal.url)
    lock.acquire()
    try:
        versions.prepare(settings.journal.url)
        with counters_folder():
            from bridge.service import Service  # counts only from here on, see `counters_folder`

            def make_service(todays: Settings, signals: LoopSignals) -> Service:
                turns = Turns(todays.server.threads)
                return Service(settings=todays, signals=signals, pause=breathe, turns=turns)

            application = Application(settings, load_settings, make_service, logging_config, ready)
            try:
                application.run()
            except SystemExit as stop:
                return int(stop.code or 0)
    finally:
        lock.release()
    return 0
