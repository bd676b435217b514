"""gunicorn around the service: sockets, processes, threads and signals.

The master reads the configuration, takes the service lock, migrates the journal and only then forks; the
workers (`worker.py`) share nothing but the sockets. Each worker builds its own `Service` after the fork, because
threads and open databases do not survive one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import math
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from bridge.config.loading import Watch
from bridge.errors import BridgeError
from bridge.journal import versions
from bridge.journal.store import Journal
from bridge.model import SystemClock
from bridge.operations import logs
from bridge.server.loop import ROOM, LoopSignals, Turns, breathe, wait_for
from bridge.server.port import IDLE_S
from bridge.server.worker import CONNECTIONS, STOP_MARGIN_S, BridgeWorker, Log, stop_service, take_slot
from bridge.settings import Settings

# --- the C library's memory, so that what is freed goes back to the system ---
#
# glibc gives every thread a heap of its own, and after one large text is freed it takes the next ones from there too
# instead of mapping them, so that a dozen threads which each handle some megabytes keep several times as much for ever.

#: glibc's names for `mallopt` (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
#: Bytes from which on a text is mapped by itself, and free ones at a heap's end that go back: glibc's own numbers,
#: which it raises by itself unless they are set.
THRESHOLD = 128 * 1024


def give_back_freed() -> None:
    """Set glibc's numbers for this process and its forks, before any thread; without glibc nothing is done."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, 1)  # the interpreter's lock lets one thread at a time allocate, but for SQLite
    mallopt(M_MMAP_THRESHOLD, THRESHOLD)
    mallopt(M_TRIM_THRESHOLD, THRESHOLD)


# --- gunicorn's master, and what it is told -----------------------------------------------------

#: Open files that the service would like: a usual limit of 1,024 is less than its connections need.
FILES = 4_096
#: Connections that the system takes for us before they are accepted: beyond it a partner's waits for seconds to come
#: again.
BACKLOG = 4_096
#: gunicorn's limits on a request, below its own maxima: what partners send fits easily.
REQUEST_LINE = 4094
HEADER_FIELDS = 100
HEADER_BYTES = 8190
#: A worker whose main loop is silent for this long is killed and replaced.
HEARTBEAT_S = 60

#: What heartbeats and counters of all workers may come to.
SCRATCH_BYTES = 4 << 20
#: Only such folders are ours to remove: the demo has others beside them, and people may too.
COUNTERS_PREFIX = "partner-bridge-counters-"
#: Seconds for which a folder is not taken for one that was left: it may not be locked yet.
COUNTERS_YOUNG_S = 10.0

#: When a worker's garbage is collected. By default all of a large body is gone through again and again while it is
#: parsed, 50 to 80 ms each time; what matters here is freed without the collector.
COLLECT_AT = (10_000, 10, 10)

#: Seconds between two workers that take dead ones' places: one that cannot start must not keep the others from working.
REPLACE_EVERY_S = 1.0

#: Builds a worker's service, given its settings and how its requests wait.
MakeService = Callable[[Settings, LoopSignals], Any]

#: What ends the service.
STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


class _StopError(BaseException):
    """The service is to stop while the master reads a configuration."""


class Master(Arbiter):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's, but SIGHUP reaches the workers that are there: they close no connection to reload."""

    reading = False
    replaced_at = float("-inf")  # monotonic

    def reload(self) -> None:
        """The workers first: what they serve with need not wait for what the master reads, which own schemas may draw
        out, and which a stop cuts short.
        """
        self.kill_workers(signal.SIGHUP)
        with contextlib.suppress(_StopError):
            self.reading = True
            try:
                self.app.reload_settings()
            finally:
                self.reading = False

    def signal(self, sig: int, frame: object) -> None:
        """Called by the interpreter."""
        super().signal(sig, frame)
        if self.reading and sig in STOPS:
            self.reading = False
            raise _StopError

    def spawn_worker(self) -> int | None:
        """None when the system grants no process now, a limit being reached, or when another one was replaced a moment
        ago: those that live go on, and the next beat of the master's loop tries again.
        """
        if self.worker_age >= self.cfg.workers:
            if time.monotonic() - self.replaced_at < REPLACE_EVERY_S:
                return None
            self.replaced_at = time.monotonic()
        try:
            return int(super().spawn_worker())
        except OSError as error:
            self.log.error("no process for a worker can be started: %s; it is tried again", error.strerror)  # noqa: TRY400 (where from is plain)
            return None

    def handle_usr2(self) -> None:
        """Refuse: one service holds the journal, which a second master beside this one would not get."""
        self.log.warning("SIGUSR2 is not used: to change the program, stop this service and start the new one")

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Each kind of signal that waits, once: many reloads must not delay a stop."""
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
        watch: Watch | None,
    ) -> None:
        self._settings = settings
        self._ready = ready
        self._logging_config = logging_config
        self._make_service = make_service
        self.load_settings = load_settings
        self.watch = watch
        super().__init__()

    def load_config(self) -> None:
        server = self._settings.server
        options = {
            # In the order that the worker knows.
            "bind": [address(server.bind), address(server.admin_bind)],
            "workers": server.workers,
            "worker_class": BridgeWorker,
            "logger_class": Log,
            "worker_connections": CONNECTIONS,
            "backlog": BACKLOG,
            "keepalive": math.ceil(IDLE_S),
            "timeout": HEARTBEAT_S,
            "graceful_timeout": math.ceil(server.drain_timeout_s) + STOP_MARGIN_S,
            "max_requests": 0,
            "preload_app": False,
            "control_socket_disable": True,
            "worker_tmp_dir": scratch_folder(),
            "limit_request_line": REQUEST_LINE,
            "limit_request_fields": HEADER_FIELDS,
            "limit_request_field_size": HEADER_BYTES,
            "forwarded_allow_ips": "",  # nothing here depends on who forwards, so nobody is believed
            "forwarder_headers": "",
            "header_map": "drop",
            "proc_name": "partner-bridge",
            "logconfig_dict": self._logging_config,
            "accesslog": None,
            "pre_fork": take_slot,
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
        if self.watch is not None:
            self.watch.changed()  # from here on this is what they know
        with contextlib.suppress(Exception):
            self._settings, _ = self.load_settings().beside(self._settings)

    def load(self) -> Any:
        raise NotImplementedError("the worker builds its own service")


def address(bind: tuple[str, int]) -> str:
    """`host:port` as gunicorn reads it."""
    host, port = bind
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def scratch_folder() -> str:
    """A folder for heartbeats and counters, in memory if there is room: a disk that hangs must not look like a dead
    worker, and a counter that finds no room ends its process. Raises BridgeError when there is none anywhere.
    """
    folders = ["/dev/shm"]  # noqa: S108 (the point is that it is memory)
    with contextlib.suppress(FileNotFoundError):
        folders.append(tempfile.gettempdir())
    for folder in folders:
        if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= SCRATCH_BYTES:
            return folder
    raise BridgeError(
        f"heartbeats and counters need {SCRATCH_BYTES >> 20} MiB in a folder that can be written, and there is no such "
        f"room in {' or '.join(folders)}: free some, or name another folder by the environment variable TMPDIR"
    )


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
    """A folder in which all processes keep their counters; set before prometheus-client is imported.

    A worker that ends comes by here too: it leaves the folder to the others, unless the master is gone.
    """
    master = os.getpid()
    remove_left_counters(scratch := scratch_folder())
    folder = tempfile.mkdtemp(prefix=COUNTERS_PREFIX, dir=scratch)
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        if os.getpid() == master or os.getppid() != master:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_left_counters(scratch: str) -> None:
    """Remove the counters of services that were killed as a whole: of any other, some process holds the lock."""
    for left in Path(scratch).glob(f"{COUNTERS_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime < COUNTERS_YOUNG_S:
                continue
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(lock)


def match_ids(settings: Settings) -> None:
    """Let the journal compare record ids as the configuration says, before anything else reads it."""
    with contextlib.closing(Journal(settings=settings.journal, clock=SystemClock())) as journal:
        if united := journal.match_ids(settings.caseless()):
            structlog.get_logger("bridge").warning("records that differ in spelling alone are one now", records=united)


def run(
    settings: Settings,
    *,
    load_settings: Callable[[], Settings],
    ready: Callable[[], None] = lambda: None,
    watch: Watch | None = None,
) -> int:
    """Serve in the foreground until SIGTERM; returns the exit status. `load_settings` is called at SIGHUP, `ready`
    when the ports are open. With `watch`, made before the settings were loaded, a change has the effect of SIGHUP.
    """
    logging_config = logs.configure(os.environ)
    allow_files()
    give_back_freed()
    refuse_taken_ports(settings)
    versions.check_place(settings.journal.url)
    lock = versions.service_lock(settings.journal.url)
    lock.acquire()
    try:
        versions.prepare(settings.journal.url)
        match_ids(settings)
        for weakness in versions.weaknesses(settings.journal.url):
            structlog.get_logger("bridge").warning(weakness)
        with counters_folder():
            from bridge.server.service import Service  # counts only from here on, see `counters_folder`

            def make_service(todays: Settings, signals: LoopSignals) -> Service:
                gc.set_threshold(*COLLECT_AT)
                server = todays.server
                turns = Turns(server.threads, room=ROOM // server.workers)
                return Service(settings=todays, signals=signals, pause=breathe, wait=wait_for, turns=turns)

            application = Application(settings, load_settings, make_service, logging_config, ready, watch)
            gc.collect()
            gc.freeze()  # what is there stays shared with the workers, whose collector would write to all of it
            try:
                application.run()
            except SystemExit as stop:
                return int(stop.code or 0)
    finally:
        # The interpreter takes its handlers back while it ends: a second signal then would be its death.
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        lock.release()
    return 0
