"""Threads that die (F48), a machine that gives too little (F49), a log that nobody reads (F50)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.e2e.test_disk_trouble import injected
from tests.history import dispatcher_pid
from tests.running import Running, eventually, running
from tests.stopwatch import Stopwatch, processor_s


def event(name: str) -> dict[str, Any]:
    return {"id": name, "client": name, "at": time.time(), "name": f"name of {name}"}


def held(crm: Crm) -> set[str]:
    return set(crm.state(id_property="acme_client_id").get("partner_clients", {}))


def alive(service: Running) -> bool:
    return requests.get(f"{service.url}/livez", timeout=30).status_code == 200


@contextlib.contextmanager
def mortal(folder: Path, crm: Crm, **options: Any) -> Iterator[Running]:
    """A service whose threads can be made to die."""
    with (
        SandboxServer(crm) as server,
        running(folder, server.url, module="tests.mortal", environ={"MORTAL": f"{folder}/mortal"}, **options) as made,
    ):
        yield made


def strike(service: Running, *orders: str) -> None:
    """Raise exceptions in threads: `<thread> <exception>` each."""
    order = service.folder / "mortal"
    order.with_suffix(".new").write_text("\n".join(orders), encoding="utf-8")
    order.with_suffix(".new").rename(order)
    assert eventually(lambda: not order.exists())


# --- F48 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("exception", [pytest.param("SystemExit", marks=pytest.mark.heavy), "MemoryError"])
def test_f48_a_dispatcher_whose_thread_dies_is_replaced(tmp_path: Path, exception: str) -> None:
    """Wherever in its loop it dies, again and again: what comes meanwhile is delivered, nobody is restarted."""
    crm = Crm(open_properties=False)
    with mortal(tmp_path, crm) as service:
        pids = service.pids()
        for turn in range(2):
            strike(service, f"dispatcher {exception}")
            assert service.post(event(f"c{turn}")).status_code == 202
            assert eventually(lambda: f"c{turn}" in held(crm))  # noqa: B023 (run at once)
            assert alive(service)
        assert service.log_has("a new one takes over") or service.log_has("dispatcher stumbled")
        assert service.pids() == pids
        assert crm.ledger.violations() == []


def test_f48_threads_that_die_in_a_call_are_replaced(tmp_path: Path) -> None:
    """More of them than there are: the call is made again by another, its record is in no other call meanwhile."""
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.2
    with mortal(tmp_path, crm) as service:
        for turn in range(9):  # eight are the most that there are
            assert service.post(event(f"c{turn}")).status_code == 202
            time.sleep(0.1)
            strike(service, "crm-call SystemExit")
        assert eventually(lambda: held(crm) == {f"c{turn}" for turn in range(9)})
        assert eventually(service.idle)
        assert alive(service)
        assert crm.ledger.violations() == []


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.heavy)])
def test_f48_a_worker_that_can_start_no_dispatcher_is_not_alive_and_makes_place_for_another(
    tmp_path: Path, workers: int
) -> None:
    """`/livez` tells Kubernetes while it is the only one. Of several a probe asks any: whichever it is, another takes
    over within seconds. Nothing is lost by that.
    """
    crm = Crm(open_properties=False)
    orders = ("duty SystemExit", "dispatcher SystemExit")
    with mortal(tmp_path, crm, workers=workers) as service:
        assert eventually(lambda: service.log_has("this process delivers"))
        dispatcher = dispatcher_pid(tmp_path)
        strike(service, *orders)
        if workers == 1:
            assert eventually(lambda: not alive(service))
            assert service.post(event("c1")).status_code == 202
            assert not alive(service)

        def is_gone() -> bool:
            if workers > 1:
                strike(service, *orders)  # whichever worker looks first
            return dispatcher not in service.pids()

        assert eventually(is_gone, within_s=60, every_s=0.5)
        assert service.log_has("this worker ends, another takes its place")
        assert eventually(lambda: len(service.pids()) == 1 + workers and alive(service))
        assert eventually(lambda: is_taken(service, "c2"))
        assert eventually(lambda: "c2" in held(crm))
        assert workers > 1 or "c1" in held(crm)
        assert crm.ledger.violations() == []


@pytest.mark.heavy
def test_f48_a_worker_that_can_write_nothing_is_not_alive_and_makes_place_for_another(tmp_path: Path) -> None:
    crm = Crm(open_properties=False)
    with mortal(tmp_path, crm, drain_timeout="2s") as service, ThreadPoolExecutor(1) as pool:
        old = service.pids()[1]
        strike(service, "journal-writer SystemExit")
        sent = pool.submit(is_taken, service, "c1")  # by which it wakes and dies
        assert eventually(lambda: not alive(service))
        assert eventually(lambda: old not in service.pids() and len(service.pids()) == 2 and alive(service))
        assert not sent.result()
        assert eventually(lambda: is_taken(service, "c2"))
        assert eventually(lambda: held(crm) == {"c2"})


def test_f48_a_probe_whose_thread_dies_is_answered_by_another(tmp_path: Path) -> None:
    """Else the service would be unready for ever, and no restart cure it: it is alive."""
    with mortal(tmp_path, Crm(open_properties=False)) as service:
        for _ in range(2):
            strike(service, "readiness SystemExit")
            time.sleep(0.5)  # an answer from before does not count any more
            service.is_ready()  # by which it wakes and dies
            assert eventually(service.is_ready)


def is_taken(service: Running, name: str) -> bool:
    """Whether it is answered 202; a worker that ends may close the connection."""
    with contextlib.suppress(requests.RequestException):
        return service.post(event(name)).status_code == 202
    return False


# --- F49 ----------------------------------------------------------------------------------------


@pytest.mark.heavy  # tests/e2e/test_main_job.py does the same in passing
@pytest.mark.parametrize("workers", [1, 2])
def test_f49_a_worker_that_the_kernel_kills_is_replaced_and_loses_nothing(tmp_path: Path, workers: int) -> None:
    """SIGKILL, as the OOM killer sends it: another delivers what the journal holds, also what was in a call."""
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.3
    with SandboxServer(crm) as server, running(tmp_path, server.url, workers=workers) as service:
        for turn in range(2):
            before = service.pids()
            assert service.post([event(f"c{turn}-{at}") for at in range(50)]).status_code == 202
            time.sleep(0.2)
            for pid in before[1:]:
                os.kill(pid, signal.SIGKILL)
            assert eventually(lambda: len(service.pids()) == workers + 1 and not {*service.pids()[1:]} & {*before})  # noqa: B023 (run at once)
            assert eventually(service.is_ready)
        assert eventually(service.idle)
        assert held(crm) == {f"c{turn}-{at}" for turn in range(2) for at in range(50)}
        assert eventually(lambda: service.log_has("was sent SIGKILL"))


@pytest.mark.parametrize(
    "refused, told",
    [
        pytest.param("clone,clone3,fork,vfork", "no process for a worker can be started", id="processes"),
        pytest.param("clone3", "Exception in worker process", id="threads"),  # of a new worker: it ends at once
    ],
)
def test_f49_a_limit_of_processes_or_threads_is_told_and_got_over(tmp_path: Path, refused: str, told: str) -> None:
    """A worker that dies is not replaced meanwhile; the other goes on, and the master does not give up."""
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server, running(tmp_path, server.url, workers=2) as service:
        master, old, other = service.pids()
        with injected(master, f"{refused}:error=EAGAIN", tmp_path / "strace.txt"):
            os.kill(old, signal.SIGKILL)
            assert eventually(lambda: service.log_has(told, times=2))
            assert service.pids()[:2] == [master, other]
            assert eventually(lambda: is_taken(service, "c1"))
        booting = service.log.read_text(encoding="utf-8").count("Booting worker")
        assert eventually(lambda: len(service.pids()) == 3)
        assert other in service.pids()
        assert eventually(lambda: held(crm) == {"c1"})
        time.sleep(1.5)
        assert service.log.read_text(encoding="utf-8").count("Booting worker") <= booting + 1  # it stays


def test_f49_with_64_descriptors_webhooks_are_answered_and_a_rush_is_got_over(tmp_path: Path) -> None:
    """More silent clients than descriptors: nothing crashes, and all goes on when they leave."""
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server:
        service = Running(tmp_path, server.url, module="tests.cramped")
        service.start()
        try:
            pids = service.pids()
            assert service.post_all([event(f"c{at}") for at in range(50)])[-1] is not None
            with contextlib.ExitStack() as stack:
                for _ in range(100):
                    stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
                time.sleep(0.5)
                assert eventually(lambda: alive(service) and service.is_ready())
            assert service.post(event("afterwards")).status_code == 202
            assert eventually(lambda: held(crm) == {"afterwards", *(f"c{at}" for at in range(50))})
            assert service.pids() == pids
            assert not service.log_has("Traceback")
        finally:
            service.stop()


@contextlib.contextmanager
def throttled(service: Running, *, share: float, period_s: float = 0.1) -> Iterator[None]:
    """As CPU quotas do it: of each period the processes run for a share, and then stand still. What counts is how long
    they did run: other work on the machine takes no more away from them.
    """
    over = threading.Event()

    def throttle() -> None:
        while not over.is_set():
            before_s = processor_s(service.pids())
            time.sleep(period_s * share)
            tell(signal.SIGSTOP)
            time.sleep(max(0.0, processor_s(service.pids()) - before_s) * (1 - share) / share)
            tell(signal.SIGCONT)

    def tell(number: signal.Signals) -> None:
        for pid in service.pids():
            os.kill(pid, number)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.heavy
@pytest.mark.alone
def test_f49_a_tenth_of_a_core_is_enough_for_probes(tmp_path: Path) -> None:
    """Kubernetes waits a second for a probe; webhooks are taken and delivered, slowly."""
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server, running(tmp_path, server.url) as service:
        pids = service.pids()
        slowest_s = 0.0
        with throttled(service, share=0.1):
            for turn in range(10):
                assert service.post(event(f"c{turn}")).status_code == 202
                for probe in ("livez", "readyz"):
                    watch = Stopwatch(service.pids())
                    assert requests.get(f"{service.url}/{probe}", timeout=30).status_code == 200
                    slowest_s = max(slowest_s, watch.seconds)
            assert eventually(lambda: held(crm) == {f"c{turn}" for turn in range(10)}, within_s=60)
        assert slowest_s < 1.0
        assert service.pids() == pids


# --- F50 ----------------------------------------------------------------------------------------


def lines_until(reader: int, *events: str, within_s: float = 10.0) -> list[dict[str, Any]]:
    """The log's lines that can be read until one of each of these events is there; all of them are JSON."""
    read, lines = b"", list[dict[str, Any]]()

    def told() -> bool:
        nonlocal read, lines
        with contextlib.suppress(BlockingIOError):
            read += os.read(reader, 1 << 20)
        whole = read.rpartition(b"\n")[0]  # without a line that was read in part
        lines = [orjson.loads(line) for line in whole.splitlines() if line]
        return {line["event"] for line in lines} >= set(events)

    assert eventually(told, within_s=within_s)
    return lines


def test_f50_a_log_that_nobody_reads_holds_up_nothing(tmp_path: Path) -> None:
    """Lines beyond what memory keeps are dropped and counted; a worker that dies meanwhile is replaced, and the
    service stops in time.
    """
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server:
        service = Running(tmp_path, server.url, module="tests.mortal")
        os.mkfifo(service.log)
        reader = os.open(service.log, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        try:
            service.start()
            answers = service.post_all([event(f"c{at}") for at in range(600)])
            assert {answer.status_code if answer else None for answer in answers} == {202}
            took_s = [answer.elapsed.total_seconds() for answer in answers if answer]
            # The pipe is full after a score of lines: a log that held up requests would hold up nearly all of these.
            assert statistics.quantiles(took_s, n=10)[8] < 1.0
            assert eventually(lambda: len(held(crm)) == 600)

            lines = lines_until(reader, "log lines dropped")
            dropped = sum(line["lines"] for line in lines if line["event"] == "log lines dropped")
            assert dropped > 100
            assert sum(line["event"] == "webhook" for line in lines) + dropped >= 600

            service.post_all([event(f"d{at}") for at in range(200)])  # stuck again
            old = service.pids()[1]
            os.kill(old, signal.SIGKILL)
            assert eventually(lambda: len(service.pids()) == 2 and service.pids()[1] != old)
            service.post_all([event(f"e{at}") for at in range(100)])
            assert eventually(lambda: alive(service))
            began = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - began < 12
        finally:
            os.close(reader)
            if service.process is not None and service.process.poll() is None:
                service.kill_all()


def test_f50_a_reader_of_the_log_that_goes_away_costs_only_its_lines(tmp_path: Path) -> None:
    """As a full disk does: each write fails. The next reader gets what is logged from then on, and how much is not."""
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server:
        service = Running(tmp_path, server.url)
        os.mkfifo(service.log)
        reader = os.open(service.log, os.O_RDONLY | os.O_NONBLOCK)
        try:
            service.start()
            os.close(reader)
            for at in range(3):  # each after the last was written, or was not
                assert service.post(event(f"c{at}")).status_code == 202
                time.sleep(0.2)
            reader = os.open(service.log, os.O_RDONLY | os.O_NONBLOCK)
            assert service.post(event("c3")).status_code == 202

            lines = lines_until(reader, "log lines dropped", "webhook")
            assert sum(line["lines"] for line in lines if line["event"] == "log lines dropped") >= 3
            assert eventually(lambda: held(crm) == {f"c{at}" for at in range(4)})
            assert service.stop() == 0
        finally:
            os.close(reader)
            if service.process is not None and service.process.poll() is None:
                service.kill_all()
