"""What a service is told from outside: gunicorn's own variables and signals, little room, and stops amid trouble.

Clean stops in good weather are test_stopping.py, reloads test_reload.py, threads that die test_survival.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import bridge
from bridge.sandbox import Crm, SandboxServer
from bridge.server.master import COUNTERS_PREFIX
from tests.e2e.test_stopping import Load, event, held
from tests.history import dispatcher_pid
from tests.running import Running, eventually, running

TERM = signal.SIGTERM


# --- gunicorn's own settings and signals --------------------------------------------------------


def test_gunicorns_variables_change_nothing_and_are_told(tmp_path: Path) -> None:
    """Neither `max_requests`, which would end workers, nor `preload`, whose threads would not survive the fork, nor
    a number that is none. As settings of ours they are unknown: test_config_mistakes.py.
    """
    (tmp_path / "gunicorn.conf.py").write_text("max_requests = 3\npreload_app = True\nworkers = 5\n", encoding="utf-8")
    environ = {
        "GUNICORN_CMD_ARGS": f"--config {tmp_path}/gunicorn.conf.py --max-requests 3 --preload --workers 5 --timeout 1",
        "WEB_CONCURRENCY": "auto",
        "SENDFILE": "perhaps",
        "FORWARDED_ALLOW_IPS": "*",
        "LISTEN_FDS": "2",
    }
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server, running(tmp_path, server.url, workers=2, environ=environ) as service:
        pids = service.pids()
        assert len(pids) == 1 + 2
        answers = service.post_all([event(f"c{at}") for at in range(40)])
        assert {answer.status_code if answer else None for answer in answers} == {202}
        assert eventually(service.idle)
        assert held(crm) == {f"c{at}" for at in range(40)}
        assert service.pids() == pids
        for name in environ:
            assert service.log_has(f"warning: {name} is not used")


def test_gunicorns_signals_do_no_harm(tmp_path: Path) -> None:
    """Under load: reopen logs, replace the program, fewer and more workers, a window's size."""
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server, running(tmp_path, server.url, workers=2) as service:
        assert service.process is not None
        with Load(service, per_s=60, senders=3, kept=False) as load:
            for each in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTOU, signal.SIGTTIN):
                time.sleep(0.3)
                service.process.send_signal(each)
            assert eventually(lambda: service.log_has("SIGUSR2 is not used"))
            time.sleep(0.5)
            assert eventually(lambda: len(service.pids()) == 1 + 2)
            one, other = service.pids()[1:]
            os.kill(one, TERM)  # a worker that ends by itself is replaced, and takes nothing with it
            assert eventually(lambda: one not in service.pids() and len(service.pids()) == 1 + 2)
            assert other in service.pids()
        assert len(load.answers) == len(load.sent) > 50
        assert {answer.status_code for _, answer in load.answers} <= {202, 503}  # by the worker that went
        assert eventually(service.idle)
        assert held(crm) == load.accepted()
        assert not service.log_has("Traceback")
        assert not service.log_has("Listening at", times=2)  # each line is written by the process that logged it


# --- too little room for what is kept in memory -------------------------------------------------


@contextlib.contextmanager
def little_room(service: Running, *folders: str) -> Iterator[subprocess.Popen[bytes]]:
    """The service in a mount namespace of its own, where these folders hold 1 MiB and /dev/shm is full; ended at the
    end.
    """
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare (util-linux)")
    mounts = " && ".join(f"mount -t tmpfs -o size=1m tmpfs {folder}" for folder in ("/dev/shm", *folders))
    fill = "{ cat /dev/zero >/dev/shm/zeros 2>/dev/null || true; }"
    command = f'{mounts} && {fill} && exec "$0" -m bridge serve --config "$1"'
    with service.log.open("ab") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", command, sys.executable, str(service.config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | dict(service.environ),
        )
    service.process = process
    try:
        yield process
    finally:
        if process.poll() is None:
            service.stop()


def test_without_room_in_dev_shm_another_folder_is_used(tmp_path: Path) -> None:
    """Counters in a full memory file system would end their process by SIGBUS at the first request."""
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server:
        service = Running(tmp_path, server.url)
        with little_room(service):
            assert eventually(service.is_ready)
            pids = service.pids()
            assert service.post(event("c1")).status_code == 202
            assert eventually(lambda: held(crm) == {"c1"})
            text = requests.get(f"{service.admin_url}/metrics", timeout=5).text
            assert 'bridge_webhooks_total{code="202",source="acme"} 1.0' in text
            assert service.pids() == pids


def test_without_room_anywhere_a_start_is_refused_in_one_line(tmp_path: Path) -> None:
    little = tmp_path / "little"
    little.mkdir()
    service = Running(tmp_path, "http://127.0.0.1:9", environ={"TMPDIR": str(little)})
    with little_room(service, str(little)) as process:
        assert process.wait(20) == 1
    [line] = service.log.read_text(encoding="utf-8").splitlines()
    assert line.startswith("partner-bridge: heartbeats and counters need 4 MiB")
    assert f"/dev/shm or {little}: free some" in line


def test_counters_of_a_service_that_was_killed_as_a_whole_are_removed_by_the_next(tmp_path: Path) -> None:
    """They lie in memory, and each kill would cost some of it; those of a service that runs stay."""

    def counters(service: Running) -> Path:
        maps = Path(f"/proc/{service.pids()[1]}/maps").read_text(encoding="utf-8").splitlines()
        [folder] = {Path(line.split()[-1]).parent for line in maps if f"/{COUNTERS_PREFIX}" in line}
        return folder

    (tmp_path / "other").mkdir()
    with running(tmp_path / "other", "http://127.0.0.1:9") as other, running(tmp_path, "http://127.0.0.1:9") as service:
        left, kept = counters(service), counters(other)
        service.kill_all()
        assert left.is_dir()
        long_ago = time.time() - 60
        for folder in (left, kept):
            os.utime(folder, (long_ago, long_ago))
        service.start()
        assert not left.exists()
        assert list(kept.iterdir()) != []
        mine = counters(service)
        assert service.stop() == 0
        assert not mine.exists()


# --- stops amid trouble -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    ["down", pytest.param("hang", marks=pytest.mark.heavy), pytest.param("429", marks=pytest.mark.heavy)],
)
def test_f13_f14_sigterm_twice_under_load_while_the_crm_is_in_trouble(tmp_path: Path, trouble: str) -> None:
    """It ends in time with status 0, and what was accepted is there when the CRM is well again."""
    crm = Crm(open_properties=False)
    server = SandboxServer(crm)
    server.start()
    try:
        with running(tmp_path, server.url, workers=2, drain_timeout="2s") as service:
            if trouble == "down":
                server.stop()
            else:
                crm.faults.always("timeout" if trouble == "hang" else "429")
            with Load(service, per_s=100, senders=4) as load:
                time.sleep(1)
                assert service.process is not None
                began = time.monotonic()
                for _ in range(2):
                    service.process.send_signal(TERM)
                    time.sleep(0.2)
                assert service.process.wait(20) == 0
                took_s = time.monotonic() - began
            assert took_s < 2 + 4
            assert {answer.status_code for _, answer in load.answers} <= {202, 503}
            assert not service.log_has("Traceback")
            accepted = load.accepted()
            assert len(accepted) > 30
            assert held(crm) == set()
            if trouble == "down":
                server.start()
            else:
                crm.faults.clear()
            service.start()
            assert eventually(service.idle)
            assert accepted <= held(crm) <= load.sent
    finally:
        server.stop()


def test_who_takes_over_after_a_reload_begins_with_the_new_configuration_at_once(tmp_path: Path) -> None:
    """A worker that was not on duty at a reload has no dispatcher that would be outdated."""
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server, running(tmp_path, server.url, workers=2) as service:
        assert eventually(lambda: service.log_has("this process delivers"))
        service.batch_size = 50
        service.configure()
        assert service.process is not None
        service.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: service.log_has("the configuration was reloaded", times=2))
        assert eventually(lambda: service.log_has("delivery goes on with the new configuration"))
        pid = dispatcher_pid(tmp_path)
        assert pid in service.pids()[1:]
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: service.log_has("this process delivers", times=2))
        assert service.post([event(f"c{at}") for at in range(120)]).status_code == 202
        assert eventually(service.idle)
        assert max(len(call.inputs) for call in crm.ledger.calls("update")) <= 50
        time.sleep(1.2)  # a step of the duty
        assert not service.log_has("delivery goes on with the new configuration", times=2)


@pytest.mark.heavy
def test_f53_another_program_takes_over_a_full_journal_under_load_and_gives_it_back(tmp_path: Path) -> None:
    """An upgrade and a rollback: of two programs one stops, and the other goes on with what waits. Images that
    differ in more than their version are test_image_versions.py.
    """
    versions = {}
    for version in ("8.0.0", "9.0.0"):
        versions[version] = tmp_path / version
        shutil.copytree(Path(bridge.__file__).parent, versions[version] / "bridge")
        own = versions[version] / "bridge" / "__init__.py"
        own.write_text(own.read_text(encoding="utf-8").replace(bridge.__version__, version), encoding="utf-8")
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.8
    with SandboxServer(crm) as server:
        service = Running(tmp_path, server.url, workers=2, batch_size=2, drain_timeout="1s")
        try:
            with Load(service, per_s=100, senders=4, kept=False) as load:
                for version in ("8.0.0", "9.0.0", "8.0.0"):
                    service.environ = {"PYTHONPATH": str(versions[version]), "PYTHONSAFEPATH": "1"}
                    service.start()
                    assert service.status()["versions"]["partner_bridge"] == version
                    before = len(load.accepted())
                    assert eventually(lambda: len(load.accepted()) >= before + 40)  # noqa: B023 (run at once)
                    assert service.stop() == 0
                    assert not service.idle()  # it was full
            crm.behaviour.latency_s = 0.01
            service.start()
            assert eventually(service.idle)
            assert load.accepted() <= held(crm) <= load.sent
            assert not service.log_has("Traceback")
            assert crm.ledger.violations() == []
        finally:
            if service.process is not None and service.process.poll() is None:
                service.stop()
