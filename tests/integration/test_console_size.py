"""The console over a long history: a million settled records, 100,000 entries in the retry log."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator

import pytest

from bridge.config import load_settings
from bridge.journal.event_log import Presence
from bridge.journal.retry_log import Filter
from bridge.operations.queries import as_query
from bridge.server.service import Service
from tests.integration.test_console import CONFIG, Browser
from tests.large_journal import fill
from tests.statements import scans, written

SETTLED, PARKED = 1_000_000, 100_000
#: Seconds of a processor that a page may take, warm: this machine may have other things to do.
PAGE_S = 0.3
#: Work for SQLite that tells how fast this processor is just now, and its seconds where that bound was set.
PACE = """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200000)
          SELECT count(*) FROM (SELECT i % 5000 AS k, count(*) FROM n GROUP BY k)"""
PACE_S = 0.085
#: Seconds that intake may wait for a step of an act.
STEP_S = 0.1

pytestmark = [pytest.mark.heavy, pytest.mark.alone]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRM_TOKEN", "a-token-for-the-sandbox")
        patch.setenv("ACME_SECRET", "a-secret-of-the-partner-acme")
        (folder / "bridge.yaml").write_text(CONFIG.replace("FOLDER", str(folder)), encoding="utf-8")
        fill(folder / "journal.db", settled=SETTLED, parked=PARKED)
        made = Service(settings=load_settings(folder / "bridge.yaml"))
        made.journal.refresh_figures(sources=made._settings.sources)
        yield made
        made.journal.close()
        for file in folder.iterdir():
            file.unlink()  # half a gigabyte


CATEGORIES = ("VALIDATION_ERROR", "OBJECT_NOT_FOUND", "UNMAPPABLE")

PAGES = [
    "/",
    "/sources",
    "/sources/acme",
    "/trace",
    "/trace?id=evt_17",
    "/trace?id=c17",
    f"/trace?id=c{SETTLED + 7}",
    "/retries",
    f"/retries?offset={PARKED // 2}",
    f"/retries?offset={PARKED - 10}",
    "/retries?category=VALIDATION_ERROR",
    "/retries?category=OBJECT_NOT_FOUND&state=parked",
    "/retries?source=shop",
    "/retries?since=2h",
    "/retries?search=options",
    f"/retries?search=evt_{SETTLED + 7}",
    f"/retries?record=c{SETTLED + 7}",
    f"/retries/record-{SETTLED + 7}",
    f"/retries/refused-{SETTLED + PARKED // 2}",
]


def page_s() -> float:
    """What a page may take on this machine: no less than the bound, and more where the processor is slower."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        began = time.process_time()
        connection.execute(PACE).fetchall()
        return PAGE_S * max(1.0, (time.process_time() - began) / PACE_S)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_answers_at_once(service: Service, path: str) -> None:
    browser = Browser(service.admin)
    assert browser.get(path).status_code == 200
    assert any(took(browser, path) < page_s() for _ in range(3))


@pytest.mark.parametrize("source", ["acme", "a-source-that-is-quiet"])
def test_what_came_of_late_is_looked_for_no_further_than_a_page_may_cost(service: Service, source: str) -> None:
    """Though nothing is found: the newest events are lost ones, which ask for nothing, or other sources'."""
    began = time.process_time()
    found = service.journal.presence(source)
    assert time.process_time() - began < PAGE_S
    assert found == Presence()


def test_a_group_is_counted_at_once(service: Service) -> None:
    browser = Browser(service.admin)
    form_token = re.search(r'name="form_token" value="(\w+)"', browser.get("/").text)
    assert form_token
    asked = {"form_token": form_token[1], "act": "replay", **as_query(Filter(category="OBJECT_NOT_FOUND"))}
    counted = f"Replay {PARKED // 3:,} entries?".replace(",", "\u202f")
    assert counted in browser.post("/retries/confirm", data=asked).text
    began = time.process_time()
    assert counted in browser.post("/retries/confirm", data=asked).text
    assert time.process_time() - began < page_s()


def test_a_scan_would_be_noticed(service: Service) -> None:
    for statement in ("SELECT 1 FROM events e WHERE e.payload = 'x'", "DELETE FROM desired WHERE value = 'x'"):
        assert scans(file_of(service), [statement])


def test_no_page_scans_a_table_under_the_write_lock(service: Service) -> None:
    browser = Browser(service.admin)
    with written() as statements:
        for path in PAGES:
            assert browser.get(path).status_code == 200
    assert statements  # readiness is tried by a write
    assert scans(file_of(service), statements) == set()


def test_an_act_holds_up_nobody(service: Service) -> None:
    """Its steps find their entries by their numbers, however many others there are."""
    found = service.journal.references(Filter(category="VALIDATION_ERROR"))
    assert len(found) == PARKED // 3
    began, longest = time.process_time(), 0.0

    def step(_number: int) -> None:
        nonlocal began, longest
        longest, began = max(longest, time.process_time() - began), time.process_time()

    service.journal.discard(found[:1_000], Filter(category="VALIDATION_ERROR"), progress=step)
    assert longest < STEP_S


@pytest.mark.parametrize("act", ["replay", "discard"])
def test_no_act_scans_a_table_under_the_write_lock(service: Service, act: str) -> None:
    """Whichever kind of entry it is meant for, named one by one or as a group of one cause."""
    kinds = [service.journal.references(Filter(category=category))[-40:] for category in CATEGORIES]
    ids = tuple(reference.id for references in kinds for reference in references[:20])
    [last] = service.journal.entries(Filter(ids=(kinds[0][-1].id,)))
    group = Filter(category=last.category, message=last.message)
    with written() as statements:
        done = [service._desk.act_on_retries(act, chosen)["entries"] for chosen in (Filter(ids=ids), group)]
    assert sum(done) == len(ids) + 1
    assert len(statements) > 10
    assert scans(file_of(service), statements) == set()


def file_of(service: Service) -> str:
    return service._settings.journal.url.removeprefix("sqlite:///")


def took(browser: Browser, path: str) -> float:
    began = time.process_time()
    browser.get(path)
    return time.process_time() - began
