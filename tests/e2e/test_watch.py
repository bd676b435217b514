"""BRIDGE_RELOAD=watch: a configuration that changes in its mount is taken over, and nobody sends a signal."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.e2e.test_reload import event, metric
from tests.running import ACME, SECRET, Running, eventually
from tests.watchful import LOOKS_EVERY_S

SECOND = ACME.replace("acme:", "second:")
RELOADED = "the configuration was reloaded"
REFUSED = "the configuration was not reloaded"
NOTICED = "the configuration has changed"
#: until the next look, and the reload, on a machine that is busy
SOON_S = LOOKS_EVERY_S + 20


@pytest.fixture
def crm() -> Iterator[SandboxServer]:
    with SandboxServer(Crm()) as server:
        yield server


class Mounted(Running):
    """A service that reads its configuration, and what that includes, from a mounted ConfigMap."""

    @property
    def volume(self) -> Path:
        return self.folder / "volume"

    @property
    def config(self) -> Path:
        return self.volume / "bridge.yaml"

    def configure(self) -> None:
        """What the kubelet does with a ConfigMap: a new folder, then one rename of the link to it."""
        self.volume.mkdir(exist_ok=True)
        folder = self.volume / f"..{time.time_ns()}"
        folder.mkdir()
        written = Running(folder, self.crm_url, workers=self.workers, port=self.port, admin_port=self.admin_port)
        text = written.config.read_text(encoding="utf-8").replace(str(folder), str(self.folder))
        main, _, _ = text.partition("sources:")
        for name, content in {"bridge.yaml": f"{main}include: sources*.yaml\n", "sources.yaml": self.sources}.items():
            (folder / name).write_text(content.replace("file: ", f"file: {self.folder}/"), encoding="utf-8")
            if not (self.volume / name).is_symlink():
                (self.volume / name).symlink_to(f"..data/{name}")
        (self.volume / "..new").symlink_to(folder.name)
        (self.volume / "..new").replace(self.volume / "..data")

    def change(self, sources: str) -> None:
        self.sources = sources
        self.configure()

    def said(self, text: str) -> int:
        return self.log.read_text(encoding="utf-8").count(text)

    def reloads(self, sources: str) -> bool:
        """Change the sources: whether all workers take them over."""
        before = self.said(RELOADED)
        self.change(sources)
        return eventually(lambda: self.said(RELOADED) >= before + self.workers, within_s=SOON_S)

    def has_reloaded(self, *, times: int) -> bool:
        """Whether all workers have done so, so often and no more."""
        return eventually(lambda: self.said(RELOADED) == times * self.workers, within_s=SOON_S)

    def is_quiet(self) -> bool:
        """Whether the next look finds nothing new."""
        before = self.said(NOTICED)
        time.sleep(LOOKS_EVERY_S + 2)
        return self.said(NOTICED) == before

    def answers(self, source: str) -> set[int]:
        """How some webhooks of this source are answered, by whichever worker."""
        return {self.post(event(time.time_ns()), source=source).status_code for _ in range(8)}


@contextmanager
def watching(folder: Path, crm: SandboxServer, *, workers: int = 1, reload: str = "watch") -> Iterator[Mounted]:
    service = Mounted(folder, crm.url, workers=workers, module="tests.watchful", environ={"BRIDGE_RELOAD": reload})
    service.start()
    try:
        yield service
        assert service.stop() == 0
        assert not service.log_has("Traceback")
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill_all()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.heavy)])
def test_a_changed_mount_is_taken_over_and_no_request_is_refused(
    tmp_path: Path, crm: SandboxServer, workers: int
) -> None:
    with watching(tmp_path, crm, workers=workers) as service:
        assert service.is_quiet()
        pids = service.pids()
        stop = threading.Event()
        codes: list[int] = []
        numbers = iter(range(1_000_000))

        def load() -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    codes.append(service.post(event(next(numbers)), session=session).status_code)

        senders = [threading.Thread(target=load) for _ in range(2)]
        for sender in senders:
            sender.start()
        try:
            assert service.answers("second") == {404}
            assert service.reloads(ACME + SECOND)
            assert service.answers("second") == {202}
            assert eventually(lambda: len(codes) > 50)
        finally:
            stop.set()
            for sender in senders:
                sender.join()
        assert set(codes) == {202}
        assert service.is_quiet()
        assert (service.said(NOTICED), service.said(RELOADED)) == (1, workers)
        assert service.pids() == pids


def test_one_with_problems_is_refused_and_the_mended_one_is_taken_over(tmp_path: Path, crm: SandboxServer) -> None:
    with watching(tmp_path, crm, workers=2) as service:
        service.change(ACME.replace("notes: notes", "notes: '[[['").replace("tier: {from", "tier: {form"))
        assert eventually(lambda: service.said(REFUSED) >= 2, within_s=SOON_S)
        text = service.log.read_text(encoding="utf-8")
        assert "sources.acme.properties.notes" in text  # all of its problems, not the first
        assert "sources.acme.properties.tier" in text
        assert metric(service, "bridge_config_last_reload_successful") == 0
        assert service.answers("acme") == {202}
        assert eventually(service.is_quiet)
        refused = service.said(REFUSED)
        assert service.is_quiet()
        assert service.said(REFUSED) == refused, "not again and again"
        assert service.reloads(ACME + SECOND)
        assert metric(service, "bridge_config_last_reload_successful") == 1
        assert service.answers("second") == {202}


@pytest.mark.heavy
def test_a_secret_that_arrives_later_than_the_configuration_is_awaited(tmp_path: Path, crm: SandboxServer) -> None:
    with watching(tmp_path, crm) as service:
        service.change(ACME + SECOND.replace("acme.secret", "second.secret"))
        assert eventually(lambda: service.said(REFUSED) == 1, within_s=SOON_S)
        secret = tmp_path / "second.secret"
        secret.touch(mode=0o600)
        secret.write_text(SECRET, encoding="utf-8")
        assert eventually(lambda: service.said(RELOADED) == 1, within_s=SOON_S)
        assert service.answers("second") == {202}
        assert metric(service, "bridge_config_last_reload_successful") == 1


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [1, 2])
def test_the_death_of_the_worker_that_watches_misses_no_change(
    tmp_path: Path, crm: SandboxServer, workers: int
) -> None:
    """It never sees the change; its successor, begun with the settings from before, does, and goes on watching."""
    with watching(tmp_path, crm, workers=workers) as service:
        assert service.is_quiet()
        watcher = service.pids()[1]
        for number, (sources, answer) in enumerate([(ACME + SECOND, 202), (ACME, 404)], start=1):
            os.kill(watcher, signal.SIGSTOP)
            service.change(sources)
            os.kill(watcher, signal.SIGKILL)
            assert service.has_reloaded(times=number)
            assert watcher not in service.pids()
            assert service.answers("second") == {answer}
            watcher = service.pids()[-1]
        assert service.reloads(ACME + SECOND)
        assert service.answers("second") == {202}


@pytest.mark.heavy
def test_every_worker_that_is_born_looks_once(tmp_path: Path, crm: SandboxServer) -> None:
    """Also one that does not watch: the signal may have come before it could hear of it."""
    with watching(tmp_path, crm, workers=2) as service:
        assert service.is_quiet()
        first, second = service.pids()[1:]
        os.kill(first, signal.SIGSTOP)
        service.change(ACME + SECOND)
        os.kill(second, signal.SIGKILL)
        assert eventually(lambda: service.said(NOTICED) == 1, within_s=SOON_S)
        os.kill(first, signal.SIGCONT)
        assert eventually(lambda: service.said(RELOADED) >= 2, within_s=SOON_S)
        assert service.answers("second") == {202}


@pytest.mark.heavy
def test_nothing_is_watched_unless_it_is_asked_for(tmp_path: Path, crm: SandboxServer) -> None:
    with watching(tmp_path, crm, reload="") as service:
        service.change(ACME + SECOND)
        assert service.is_quiet()
        assert service.answers("second") == {404}
        assert service.said(RELOADED) == 0


def test_a_way_to_reload_that_is_not_there_ends_the_start(tmp_path: Path, crm: SandboxServer) -> None:
    service = Mounted(tmp_path, crm.url, environ={"BRIDGE_RELOAD": "always"})
    done = service.run("serve")
    assert done.returncode == 1
    assert "BRIDGE_RELOAD" in done.stderr
    assert "watch" in done.stderr
