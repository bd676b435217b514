"""PgBouncer in transaction mode before a database server, as deployments have it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.postgres import PASSWORD, ROLE, UNPRIVILEGED, Server
from tests.running import eventually, free_port

CONFIGURATION = """\
[databases]
* = host=127.0.0.1 port={upstream}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 200
query_wait_timeout = {wait_s}
"""


@contextlib.contextmanager
def bouncing(server: Server, *, pool: int = 4, wait_s: int = 120) -> Iterator[int]:
    """A PgBouncer before `server` with so many connections per database, for which a client waits so long; yields its
    port.
    """
    binary = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        pytest.skip("pgbouncer is not installed (apt install pgbouncer)")
    user = pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    folder.chmod(0o755)
    port = free_port()
    (folder / "users.txt").write_text(f'"{ROLE}" "{PASSWORD}"\n', encoding="utf-8")
    (folder / "pgbouncer.ini").write_text(
        CONFIGURATION.format(upstream=server.port, port=port, folder=folder, pool=pool, wait_s=wait_s), encoding="utf-8"
    )
    log = folder / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [binary, str(folder / "pgbouncer.ini")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else [],
        )

    def answers() -> bool:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(server.url("postgres", port=port), prepare_threshold=None).close()
            return True
        return False

    try:
        assert eventually(answers, within_s=20), log.read_text(encoding="utf-8")
        yield port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
