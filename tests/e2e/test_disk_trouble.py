"""What a disk can do wrong to the journal of a real service, one row of the fault list at a time.

Never a 202 without a commit: what was answered 202 reaches the CRM in the end, and nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests import forked
from tests.running import Running, eventually, free_port

#: Nobody listens there: what is taken waits.
NO_CRM = "http://127.0.0.1:9"
#: Some 2 KiB of journal each.
NOTES = "n" * 1_500


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory, gone at the end."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mount needs root and CAP_SYS_ADMIN")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def serving(folder: Path, crm_url: str, journal: Path | None = None, **options: Any) -> Iterator[Running]:
    """A service that is not started yet, with its journal in a folder of its own; ended at the end."""
    journal = journal or folder / "volume"
    journal.mkdir(exist_ok=True)
    environ = {"BRIDGE_JOURNAL_URL": f"sqlite:///{journal}/journal.db"}
    service = Running(folder, crm_url, environ=environ, drain_timeout="1s", **options)
    try:
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            try:
                service.stop()
            except subprocess.TimeoutExpired:
                service.kill_all()


def payload(number: int, notes: str = NOTES) -> dict[str, Any]:
    return {"id": f"e{number}", "at": time.time(), "client": str(number), "name": f"name {number}", "notes": notes}


def post(service: Running, number: int) -> requests.Response:
    answer = service.post(payload(number))
    assert answer.status_code in {202, 503}, answer.text
    if answer.status_code == 503:
        assert int(answer.headers["Retry-After"]) >= 1
        assert "Nothing of the request was taken" in answer.json()["detail"]
    return answer


def is_taken(service: Running, number: int) -> bool:
    return post(service, number).status_code == 202


def readiness(service: Running) -> tuple[int, str]:
    answer = requests.get(f"{service.admin_url}/readyz", timeout=5)
    return answer.status_code, answer.text


def is_unready(service: Running, why: str) -> bool:
    """Whether it comes to say so; a verdict may be a moment old, and each worker has its own."""

    def says_so() -> bool:
        status, text = readiness(service)
        return status == 503 and why in text

    return eventually(says_so)


def errors(service: Running, kind: str) -> float:
    """`bridge_journal_errors_total` of this kind."""
    text = requests.get(f"{service.admin_url}/metrics", timeout=5).text
    [line] = [line for line in text.splitlines() if line.startswith(f'bridge_journal_errors_total{{kind="{kind}"}}')]
    return float(line.rsplit(" ", 1)[1])


def refused(service: Running, *, within_s: float = 15.0, prefix: tuple[str, ...] = ()) -> str:
    """The one line with which a start is refused."""
    arguments = ["serve", "--config", str(service.config)]
    env = os.environ | dict(service.environ)
    if prefix:
        command = [*prefix, sys.executable, "-m", "bridge", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False, env=env)
    else:
        done = forked.run(*arguments, env=env, within_s=within_s)
    assert done.returncode == 1, done
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("partner-bridge: ")
    return line


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The journal as it lies on disk; an empty log, and the index beside it, are left by whoever looks into it."""
    files = (folder / "journal.db", folder / "journal.db-wal")
    found = {file.name: file.read_bytes() for file in files if file.exists()}
    return {name: content for name, content in found.items() if content or name == "journal.db"}


# --- F06 ----------------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Running]:
    """A stopped service with a few hundred records in its journal."""
    with serving(tmp_path, NO_CRM) as service:
        service.start()
        answers = service.post_all([payload(number) for number in range(200)])
        assert all(answer is not None and answer.status_code == 202 for answer in answers)
        service.stop()
        yield service


def test_f06_a_damaged_file_is_refused_with_one_line_and_left_as_it_is(filled: Running) -> None:
    volume = filled.folder / "volume"
    file = volume / "journal.db"
    whole = file.read_bytes()
    assert len(whole) > 40 * 4096
    for damage, said in (
        (whole[: 20 * 4096] + bytes(4096) + whole[21 * 4096 :], "is damaged"),  # a page of zeros
        (
            whole[: 10 * 4096] + bytes(byte ^ 0xFF for byte in whole[10 * 4096 : 11 * 4096]) + whole[11 * 4096 :],
            "is damaged",
        ),
        (bytes(16) + whole[16:], "is damaged"),
        (whole[: len(whole) // 2], "is damaged"),
        (b"", "the file is empty, and there was a journal in it"),
    ):
        file.write_bytes(damage)
        before = bytes_of(volume)
        line = refused(filled)
        assert said in line
        assert str(file) in line
        assert "restore a backup" in line
        assert ".recover" in line
        assert bytes_of(volume) == before
        check = filled.run("journal", "verify")
        assert check.returncode == 1
        assert str(file) in check.stderr
        assert "Traceback" not in check.stderr
        assert bytes_of(volume) == before
    file.write_bytes(whole)
    assert filled.run("journal", "verify").returncode == 0
    filled.start()


def test_f06_damage_that_is_met_while_serving_stops_intake(tmp_path: Path) -> None:
    """Also for the other process, and at the next start, until a person has seen to it."""
    with serving(tmp_path, NO_CRM, workers=2) as service:
        service.start()
        assert post(service, 1).status_code == 202
        file = tmp_path / "volume" / "journal.db"
        with contextlib.closing(sqlite3.connect(file)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            whole = file.read_bytes()
            file.write_bytes(whole[: 2 * 4096] + b"\xee" * (len(whole) - 2 * 4096))
            other.execute("PRAGMA user_version = 1")  # the service's pages in memory are out of date now
        assert eventually(lambda: post(service, 2).status_code == 503)
        assert {post(service, number).status_code for number in range(3, 20)} == {503}
        assert is_unready(service, "damaged")
        assert errors(service, "damaged") > 0
        assert eventually(lambda: "damaged" in str(service.status()["degraded"]))
        assert service.stop() == 0
        assert "damaged" in refused(service)
        assert '"kind":"damaged"' in service.log.read_text(encoding="utf-8")


# --- F07 ----------------------------------------------------------------------------------------


def test_f07_a_full_disk_is_answered_503_and_intake_goes_on_when_there_is_room(tmp_path: Path) -> None:
    crm = Crm(open_properties=False)
    with (
        SandboxServer(crm) as sandbox,
        mounted(tmp_path / "small", "size=1m") as volume,
        serving(tmp_path, sandbox.url, volume) as service,
    ):
        service.start()
        taken = set()
        for number in range(5):
            assert post(service, number).status_code == 202
            taken.add(str(number))
        ballast = volume / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        answers = {number: post(service, number).status_code for number in range(10, 80)}
        taken |= {str(number) for number, status in answers.items() if status == 202}
        assert list(answers.values())[-20:] == [503] * 20
        assert is_unready(service, "disk is full")
        assert requests.get(f"{service.admin_url}/livez", timeout=5).status_code == 200
        assert errors(service, "full") > 0
        assert any("disk is full" in reason for reason in service.status()["degraded"])
        ballast.unlink()
        assert eventually(lambda: readiness(service)[0] == 200)
        for number in range(100, 105):
            assert eventually(partial(is_taken, service, number))
            taken.add(str(number))

        def held() -> set[str]:
            return set(crm.state(id_property="acme_client_id").get("partner_clients", {}))

        assert eventually(lambda: held() == taken), (held() ^ taken, service.log.read_text(encoding="utf-8")[-3000:])
        assert service.run("journal", "verify").returncode == 0
        assert '"kind":"full"' in service.log.read_text(encoding="utf-8")


def test_f07_the_log_never_takes_the_room_that_it_needs_to_be_emptied(tmp_path: Path) -> None:
    """Sixty webhooks write nearly 4 MiB of log, and of journal no more than the disk holds."""
    with mounted(tmp_path / "small", "size=1m") as volume, serving(tmp_path, NO_CRM, volume) as service:
        service.start()
        assert [post(service, number).status_code for number in range(60)] == [202] * 60


def test_f07_a_start_on_a_full_disk_is_refused_until_there_is_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=1m") as volume, serving(tmp_path, NO_CRM, volume) as service:
        ballast = volume / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert f"the disk of the journal {volume}/journal.db is full: free space or enlarge" in refused(service)
        assert [file.name for file in volume.iterdir()] == ["ballast"]
        ballast.unlink()
        service.start()
        assert is_taken(service, 1)


@pytest.mark.heavy
def test_f07_a_disk_without_room_for_a_copy_is_told_and_nothing_is_left_or_changed(filled: Running) -> None:
    """Neither of a backup nor of a restore, whose journal stays as it was."""
    assert filled.run("journal", "backup", str(filled.folder / "copy.db")).returncode == 0
    with mounted(filled.folder / "small", "size=250k") as small:
        made = filled.run("journal", "backup", str(small / "copy.db"))
        assert made.returncode == 1
        assert made.stderr == f"partner-bridge: {small}/copy.db cannot be written: its disk is full; free space there\n"
        assert list(small.iterdir()) == []
    with mounted(filled.folder / "full", "size=2m") as volume:
        filled.environ = {"BRIDGE_JOURNAL_URL": f"sqlite:///{volume}/journal.db"}
        filled.start()
        assert post(filled, 1_000).status_code == 202
        assert filled.stop() == 0
        ballast = volume / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(ballast, ballast.stat().st_size - 250_000)
        before = bytes_of(volume)
        restored = filled.run("journal", "restore", str(filled.folder / "copy.db"))
        assert restored.returncode == 1
        assert f"{volume}/journal.db cannot be written: its disk is full" in restored.stderr
        assert bytes_of(volume) == before
        ballast.unlink()
        filled.start()
        assert eventually(lambda: filled.status()["pending"] == 1)  # counted once a second
        assert filled.stop() == 0


# --- F08 ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def injected(pid: int, inject: str, out: Path) -> Iterator[None]:
    """Let system calls of a running process fail."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    calls = inject.partition(":")[0]
    with out.with_suffix(".err").open("w+", encoding="utf-8") as said:
        tracer = subprocess.Popen(
            [
                "strace",
                "-f",
                "-y",
                "-o",
                str(out),
                "-e",
                f"trace={calls},ftruncate",
                "-e",
                f"inject={inject}",
                "-p",
                str(pid),
            ],
            stderr=said,
        )
        try:
            assert eventually(lambda: "attached" in out.with_suffix(".err").read_text(encoding="utf-8"))
            yield
        finally:
            tracer.send_signal(signal.SIGINT)  # lets the process go on without it
            tracer.wait(10)


FAILURES = {
    "fsync": "fsync,fdatasync:error=EIO",
    "write": "pwrite64:error=EIO",
    "remounted read-only": "pwrite64:error=EROFS",
}


@pytest.mark.parametrize("inject", FAILURES.values(), ids=FAILURES)
def test_f08_a_failing_disk_is_answered_503_until_it_is_well_again(tmp_path: Path, inject: str) -> None:
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as sandbox, serving(tmp_path, sandbox.url) as service:
        service.start()
        assert post(service, 1).status_code == 202
        [worker] = service.pids()[1:]
        with injected(worker, inject, tmp_path / "strace.txt"):
            assert [post(service, number).status_code for number in range(2, 8)] == [503] * 6
            assert is_unready(service, "disk fails")
            assert requests.get(f"{service.admin_url}/livez", timeout=5).status_code == 200
            assert errors(service, "io") > 0
            assert service.status()["degraded"]
        assert eventually(lambda: readiness(service)[0] == 200)
        assert post(service, 9).status_code == 202
        assert eventually(lambda: {"1", "9"} <= set(crm.state(id_property="acme_client_id").get("partner_clients", {})))
        log = service.log.read_text(encoding="utf-8")
        assert '"kind":"io"' in log
        assert "Traceback" not in log
        assert service.run("journal", "verify").returncode == 0


def test_f08_locks_that_the_kernel_does_not_grant_are_answered_503_until_it_does(tmp_path: Path) -> None:
    with serving(tmp_path, NO_CRM) as service:
        service.start()
        assert post(service, 1).status_code == 202
        with injected(service.pids()[1], "flock:error=ENOLCK", tmp_path / "strace.txt"):
            assert [post(service, number).status_code for number in range(2, 8)] == [503] * 6
            assert is_unready(service, "lock file")
        assert eventually(lambda: readiness(service)[0] == 200)
        assert post(service, 9).status_code == 202
        assert "Traceback" not in service.log.read_text(encoding="utf-8")


def test_f08_what_cannot_be_read_is_answered_503_and_counts_as_damage_until_a_person_has_checked_it(
    tmp_path: Path,
) -> None:
    """SQLite itself takes a failed read for a damaged file, and what was not read cannot be told from what is gone."""
    with serving(tmp_path, NO_CRM) as service:
        service.start()
        assert post(service, 1).status_code == 202
        with injected(service.pids()[1], "pread64:error=EIO", tmp_path / "strace.txt"):
            assert [post(service, number).status_code for number in range(2, 8)] == [503] * 6
            assert is_unready(service, "journal")
            assert eventually(lambda: errors(service, "damaged") > 0)
        assert post(service, 8).status_code == 503
        assert is_unready(service, "damaged")
        assert service.run("journal", "verify").returncode == 0
        assert eventually(lambda: readiness(service)[0] == 200)
        assert post(service, 9).status_code == 202
        assert "Traceback" not in service.log.read_text(encoding="utf-8")


def test_f08_after_one_failed_fsync_the_file_is_rewritten_before_it_is_trusted(tmp_path: Path) -> None:
    """The kernel tells of a failed fsync once, and calls the lost pages clean: the next success proves nothing."""
    with serving(tmp_path, NO_CRM) as service:
        service.start()
        assert post(service, 1).status_code == 202
        [worker] = service.pids()[1:]
        trace = tmp_path / "strace.txt"

        def since() -> list[str]:
            """The calls on the journal since the last one that failed: strace counts for each thread."""
            lines = [line for line in trace.read_text(encoding="utf-8").splitlines() if ".lock>" not in line]
            failed = [number for number, line in enumerate(lines) if "INJECTED" in line]
            return lines[failed[-1] + 1 :] if failed else []

        def emptied() -> int | None:
            """Where the write-ahead log was emptied, what it held being elsewhere."""
            found = (at for at, line in enumerate(since()) if "ftruncate" in line and "journal.db-wal>" in line)
            return next(found, None)

        def taken_again() -> bool:
            return post(service, time.time_ns()).status_code == 202 and emptied() is not None

        with injected(worker, "fsync,fdatasync:error=EIO:when=1", trace):
            assert eventually(taken_again)
        lines, at = since(), emptied()
        assert at is not None
        synced = [line for line in lines[:at] if "sync(" in line and "journal.db" in line and line.endswith("= 0")]
        assert [("journal.db-wal>" in line, "journal.db>" in line) for line in synced] == [(True, False), (False, True)]
        assert any("sync(" in line and "journal.db-wal>" in line for line in lines[at + 1 :]), lines  # the 202's


# --- F09 ----------------------------------------------------------------------------------------


def test_f09_a_read_only_volume_is_refused_at_the_start(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "size=1m,ro") as volume, serving(tmp_path, NO_CRM, volume) as service:
        line = refused(service)
        assert f"{volume}/journal.db cannot be written: Read-only file system" in line
        assert "mount its volume writable" in line


def test_f09_a_missing_volume_is_refused_at_the_start(tmp_path: Path) -> None:
    with serving(tmp_path, NO_CRM) as service:
        (tmp_path / "volume").rmdir()
        assert "volume does not exist; create or mount it" in refused(service)
        assert not (tmp_path / "volume").exists()


def test_f09_a_volume_of_another_owner_is_refused_at_the_start(tmp_path: Path) -> None:
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv (util-linux)")
    powers = "-dac_override,-dac_read_search,-fowner"
    with serving(tmp_path, NO_CRM) as service:
        volume = tmp_path / "volume"
        os.chown(volume, 65534, 65534)
        volume.chmod(0o700)
        line = refused(service, prefix=("setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", "--"))
        assert f"{volume}/journal.db cannot be written: Permission denied" in line
        assert "for the user that runs partner-bridge" in line
        assert list(volume.iterdir()) == []


def test_f09_a_volume_that_goes_missing_while_serving_takes_intake_with_it(tmp_path: Path) -> None:
    """What is written to a file that was removed would be gone with the process."""
    with serving(tmp_path, NO_CRM, workers=2) as service:
        service.start()
        assert post(service, 1).status_code == 202
        volume = tmp_path / "volume"
        volume.rename(tmp_path / "elsewhere")
        assert {post(service, number).status_code for number in range(2, 12)} == {503}
        volume.mkdir()  # the folder beneath a mount that came off
        assert {post(service, number).status_code for number in range(2, 12)} == {503}
        assert is_unready(service, "moved, removed or replaced")
        assert errors(service, "gone") > 0
        assert list(volume.iterdir()) == []  # nothing is begun anew
        volume.rmdir()
        (tmp_path / "elsewhere").rename(volume)
        assert eventually(lambda: readiness(service)[0] == 200)
        assert post(service, 20).status_code == 202


# --- F10 ----------------------------------------------------------------------------------------


def test_f10_a_newer_journal_is_refused_with_one_line_and_left_as_it_is(filled: Running) -> None:
    volume = filled.folder / "volume"
    with contextlib.closing(sqlite3.connect(volume / "journal.db")) as newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
        newer.commit()
    before = bytes_of(volume)
    line = refused(filled)
    assert "written by a newer Partner Bridge (version 9999" in line
    assert filled.run("retries", "list").returncode == 1
    assert bytes_of(volume) == before


# --- F11 ----------------------------------------------------------------------------------------


def test_f11_a_second_service_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    with serving(tmp_path, NO_CRM, workers=2) as service:
        service.start()
        assert post(service, 1).status_code == 202
        other_folder = tmp_path / "other"
        other_folder.mkdir()
        with serving(other_folder, NO_CRM, tmp_path / "volume") as other:
            for _ in range(2):
                assert "is in use by another partner-bridge service: stop that one first" in refused(other)
            master = service.process
            assert master is not None
            master.kill()  # its workers still write: they hold the lock until they are gone
            master.wait(10)
            began = time.monotonic()
            while (line := _start_refused(other)) and time.monotonic() - began < 20:
                assert "in use by another" in line
            assert other.is_ready()
            assert post(other, 2).status_code == 202
            other.kill_all()
            other.start()
            assert post(other, 3).status_code == 202
            with contextlib.closing(sqlite3.connect(f"file:{tmp_path}/volume/journal.db?mode=ro", uri=True)) as journal:
                found = journal.execute("SELECT event_id FROM events ORDER BY seq").fetchall()
            assert found == [("e1",), ("e2",), ("e3",)]


def _start_refused(service: Running) -> str | None:
    """Start it; the line with which that was refused, None when it serves."""
    at = service.log.stat().st_size if service.log.exists() else 0
    service.port, service.admin_port = free_port(), free_port()
    service.configure()
    service.start(ready=False)
    process = service.process
    assert process is not None

    def ended_or_ready() -> bool:
        return process.poll() is not None or service.is_ready()

    assert eventually(ended_or_ready)
    return service.log.read_text(encoding="utf-8")[at:] if process.poll() is not None else None
