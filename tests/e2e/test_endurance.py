"""Bounded in memory, descriptors and disk (G8): a long backlog, a record that changes all the time, a soak (F55)."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from bridge.journal import versions
from bridge.sandbox import Crm, SandboxServer
from tests import builders, large_journal
from tests.running import Running, eventually, running

pytestmark = [pytest.mark.heavy, pytest.mark.alone]


def event(name: str, record: str) -> dict[str, Any]:
    return {"id": name, "client": record, "at": time.time(), "name": f"name by {name}"}


def held(crm: Crm) -> dict[str, dict[str, str]]:
    return crm.state(id_property="acme_client_id").get("partner_clients", {})


def median_ms(act: Callable[[], object], times: int = 9) -> float:
    """Milliseconds that `act` takes in the median."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        took.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(took), 2)


def fill(service: Running, numbers: range) -> None:
    """Changes of these records, past the service but through its journal."""
    versions.prepare(f"sqlite:///{service.folder}/journal.db")
    with service.journal() as journal:
        for at in range(0, len(numbers), 5000):
            journal.append(
                [builders.event(f"e{each}", f"c{each}", {"company_name": "n"}) for each in numbers[at : at + 5000]]
            )


def measured(service: Running, crm: Crm, level: int) -> dict[str, float]:
    """Milliseconds of what must not grow with the backlog, the CRM calls of 3 s, and megabytes."""
    found: dict[str, float] = {}
    with service.journal() as journal:
        rows = journal.due(limit=500, exclude=())
        assert len(rows) == min(500, level)
        found["due"] = median_ms(lambda: journal.due(limit=500, exclude=()))
        found["count"] = median_ms(journal.refresh_figures)
        found["prune"] = median_ms(journal.prune)
    service.start()
    try:
        for path in ("metrics", "status"):
            found[path] = median_ms(lambda: requests.get(f"{service.admin_url}/{path}", timeout=30).raise_for_status())  # noqa: B023 (run at once)
        assert eventually(lambda: service.status()["pending"] <= level)
        before = len(crm.ledger.calls("update"))
        began = time.monotonic()
        number = 0
        took = []
        with requests.Session() as session:
            while time.monotonic() - began < 3:
                number += 1
                name = f"{level}-{number}"
                at = time.perf_counter()
                assert service.post(event(name, name), session=session).status_code == 202
                took.append((time.perf_counter() - at) * 1000)
        found["webhook"] = round(statistics.median(took), 2)
        found["webhook p99"] = round(statistics.quantiles(took, n=100)[98], 1)
        found["calls"] = len(crm.ledger.calls("update")) - before
        found["MB"] = round(service.rss_mb(), 1)
    finally:
        assert service.stop() == 0
    return found


def test_a_million_records_that_wait_cost_neither_memory_nor_time(tmp_path: Path) -> None:
    """Claims, counts, /metrics, /status, webhooks and delivery go on at 1,000,000 as at 100,000."""
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.05
    with SandboxServer(crm) as server:
        service = Running(tmp_path, server.url, max_pending=2_000_000, drain_timeout="1s")
        found: dict[int, dict[str, float]] = {}
        filled = 0
        for level in (100_000, 1_000_000):
            fill(service, range(filled, level))
            filled = level
            with service.journal() as journal:
                found[level] = measured(service, crm, journal.refresh_figures().pending)
            print(level, found[level])  # noqa: T201
    few, many = found[100_000], found[1_000_000]
    for kind in ("due", "prune", "metrics", "status", "webhook"):
        assert many[kind] < 3 * few[kind] + 5, kind
    assert many["count"] < 500
    assert many["calls"] > few["calls"] / 2 > 0
    assert many["MB"] - few["MB"] < 30
    assert many["MB"] < 200
    assert crm.ledger.violations() == []


def test_a_million_settled_records_cost_neither_memory_nor_time(tmp_path: Path) -> None:
    """Claims, counts, /metrics, /status, webhooks and delivery go on at 2,000,000 settled values as at 20,000."""
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.05
    found: dict[int, dict[str, float]] = {}
    with SandboxServer(crm) as server:
        for settled in (10_000, 1_000_000):
            folder = tmp_path / str(settled)
            folder.mkdir()
            service = Running(folder, server.url, drain_timeout="1s")
            large_journal.fill(folder / "journal.db", settled=settled, parked=1_000)
            fill(service, range(settled * 10, settled * 10 + 1_000))
            found[settled] = measured(service, crm, 1_000)
            print(settled, found[settled])  # noqa: T201
            (folder / "journal.db").unlink()  # half a gigabyte
    few, many = found[10_000], found[1_000_000]
    for kind in ("due", "count", "prune", "metrics", "status", "webhook"):
        assert many[kind] < 3 * few[kind] + 5, kind
    assert many["calls"] > few["calls"] / 2 > 0
    assert many["MB"] - few["MB"] < 30
    assert crm.ledger.violations() == []


def test_a_record_with_a_hundred_thousand_changes_costs_as_little_as_another(tmp_path: Path) -> None:
    """While it is delivered: few calls, the last word in the CRM, flat memory."""
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.05
    with SandboxServer(crm) as server, running(tmp_path, server.url) as service:
        assert service.post(event("first", "c")).status_code == 202
        assert eventually(service.idle)
        before_mb = service.rss_mb()
        began = time.monotonic()
        with service.journal() as journal:
            for at in range(0, 100_000, 1000):
                journal.append(
                    [builders.event(f"e{each}", "c", {"company_name": f"n{each}"}) for each in range(at, at + 1000)]
                )
            due_ms = median_ms(lambda: journal.due(limit=500, exclude=()))
        appended_s = time.monotonic() - began
        assert service.post(event("last", "c")).status_code == 202
        assert eventually(service.idle)
        assert held(crm)["c"]["company_name"] == "name by last"
        print(f"{appended_s:.1f} s, due {due_ms} ms, {service.rss_mb() - before_mb:+.1f} MB")  # noqa: T201
        assert len(crm.ledger.calls("update")) < 30 * appended_s + 10
        assert service.rss_mb() - before_mb < 30
        assert median_ms(lambda: requests.get(f"{service.admin_url}/status", timeout=10)) < 200
        assert crm.ledger.violations() == []


def test_f55_a_soak_leaves_memory_descriptors_and_disk_flat(tmp_path: Path) -> None:
    """30 s of arrays at full speed with a retention of 8 s: what is settled is pruned as fast as it comes, and the
    file gives its room back.
    """
    crm = Crm(open_properties=False, max_log=1000)
    with SandboxServer(crm) as server, running(tmp_path, server.url, retention="8s", remember="8s") as service:
        over = threading.Event()
        accepted: list[int] = []

        def send(number: int) -> None:
            turn = 0
            with requests.Session() as session:
                while not over.is_set():
                    turn += 1
                    names = [f"{number}-{turn}-{at}" for at in range(50)]
                    answer = service.post([event(name, f"c{hash(name) % 5000}") for name in names], session=session)
                    assert answer.status_code == 202
                    accepted.append(len(names))

        senders = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for sender in senders:
            sender.start()
        seen: list[tuple[float, float, int]] = []
        for _ in range(30):
            time.sleep(1)
            seen.append((service.rss_mb(), service.status()["journal"]["size_bytes"] / 2**20, service.fds()))
        over.set()
        for sender in senders:
            sender.join()
        early, late = seen[12:17], seen[-5:]
        print(f"{sum(accepted)} events; MB of memory, of journal, descriptors: {seen[::5]}")  # noqa: T201
        assert statistics.median(each[0] for each in late) - statistics.median(each[0] for each in early) < 15
        assert max(each[2] for each in late) - max(each[2] for each in early) <= 5
        assert statistics.median(each[1] for each in late) < 1.5 * statistics.median(each[1] for each in early)

        assert eventually(service.idle)
        peak_mb = max(each[1] for each in seen)
        with contextlib.closing(sqlite3.connect(service.folder / "journal.db")) as journal:

            def pruned() -> bool:
                events = journal.execute("SELECT count(*) FROM events").fetchone()[0]
                return bool(events == 0 and journal.execute("PRAGMA freelist_count").fetchone()[0] < 300)

            assert eventually(pruned, every_s=0.5)
        # What is left is the day's calls, and the write-ahead log until the service stops.
        assert service.stop() == 0
        end_mb = (service.folder / "journal.db").stat().st_size / 2**20
        print(f"peak {peak_mb:.0f} MB, at the end {end_mb:.0f} MB")  # noqa: T201
        assert end_mb < peak_mb / 4
        assert crm.ledger.violations() == []
