"""The console through its Flask app, on a real journal: what it shows, what it does, and whom it lets in."""

from __future__ import annotations

import html
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
import pytest
from flask import Response
from werkzeug.serving import make_server
from werkzeug.test import Client, TestResponse

from bridge.cli.admin_client import ROWS, AdminClient, in_process, over_http
from bridge.config import load_settings
from bridge.errors import BridgeError
from bridge.journal.control import Act
from bridge.journal.event_log import EventFilter, Remap
from bridge.journal.retry_log import Filter
from bridge.journal.upkeep import minutes_of
from bridge.model import Delivered, Outcome, Parked, Pause, Reason, Refused, Scope, to_us
from bridge.operations.admin_api import application
from bridge.operations.console import retries
from bridge.operations.queries import MAX_IDS
from bridge.server.service import Service, make_remap
from bridge.settings import Secret
from tests.backends import postgresql
from tests.builders import LANE, call, event
from tests.empty_journal import prepare
from tests.running import eventually

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HOSTILE = "<script>alert('ä')</script>"
TOKEN = "an-admin-token-of-sixteen-or-more"
CONFIG = """\
crm: {base_url: "http://127.0.0.1:1", token: {env: CRM_TOKEN}}
journal: {url: "sqlite:///FOLDER/journal.db"}
sources:
  acme:
    verify: {scheme: bearer, secrets: [{env: ACME_SECRET}]}
    when: "type != 'ping'"
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: {company_name: name, tier: {from: plan, type: enumeration, values: {Gold: gold}}}
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with filled(tmp_path, monkeypatch, CONFIG.replace("FOLDER", str(tmp_path))) as made:
        yield made


@contextmanager
def filled(folder: Path, monkeypatch: pytest.MonkeyPatch, config: str) -> Iterator[Service]:
    """Three clients: one delivered, one that HubSpot does not know, one with a refused value; and a lost event."""
    monkeypatch.setenv("CRM_TOKEN", "a-token-for-the-sandbox")
    monkeypatch.setenv("ACME_SECRET", "a-secret-of-the-partner-acme")
    (folder / "bridge.yaml").write_text(config, encoding="utf-8")
    settings = load_settings(folder / "bridge.yaml")
    prepare(settings.journal.url)
    made = Service(settings=settings)
    payload = '{"id": "%s", "client": "%s", "name": "New"}'
    made.journal.append(
        [
            event("evt-1", "7", {"company_name": "Globex"}, payload=payload % ("evt-1", "7")),
            event("evt-2", "8", {"company_name": HOSTILE}, payload=payload % ("evt-2", HOSTILE)),
            event("evt-3", "9", {"tier": "unicorn"}, payload=payload % ("evt-3", "9")),
            event("evt-4", updates=(), unmappable=f"the record id is {HOSTILE}"),
        ]
    )
    deliver(made)
    made.journal.refresh_figures(sources=settings.sources, delivery={"limiter": {"calls": 10, "per_s": 1, "used": 5}})
    yield made
    made.journal.close()


def deliver(service: Service) -> None:
    due = service.journal.due(limit=100, exclude=())
    taken = service.journal.take([one.ref for one in due], began_at_us=to_us(time.time())).records
    of = {record.key.id: record for record in taken}
    outcomes: list[Outcome] = [
        Delivered(of["7"]),
        Parked(of["8"], Reason("OBJECT_NOT_FOUND", f"no {HOSTILE} here")),
        Refused(of["9"], {"tier": Reason("VALIDATION_ERROR", "unicorn is no option")}),
    ]
    service.journal.settle(taken, outcomes, call=call(taken, began=time.time(), lane=LANE), doubtful=False)


class Browser(Client):
    """Asks for pages, as browsers do."""

    def open(self, *args: Any, **options: Any) -> TestResponse:
        options["environ_base"] = {"REMOTE_ADDR": "127.0.0.1"} | dict(options.get("environ_base") or {})
        accept = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
        return super().open(*args, **options | {"headers": accept | dict(options.get("headers") or {})})


def client(service: Service, *, host: str = "127.0.0.1", token: bool = False) -> Client:
    """A browser; a service bound to `host`, with or without the admin token."""
    settings = service._settings
    secret = Secret(env="UNSET_IN_TESTS", default=TOKEN) if token else None
    service._settings = replace(settings, server=replace(settings.server, admin_bind=(host, 9090), admin_token=secret))
    return Browser(service._admin_app())


def post(browser: Client, path: str, *, page: str = "/", **fields: Any) -> TestResponse:
    """Send a form as its page would."""
    found = re.search(r'name="form_token" value="(\w+)"', browser.get(page).text)
    assert found
    return browser.post(path, data={"form_token": found[1], **fields})


PAGES = [
    ("/", ["Flow", "Parked", "3", "The last hour"]),
    ("/sources", ["acme", "bearer"]),
    ("/sources/acme", ["company_name", "Gold → gold", "acme_client_id", "type != &#39;ping&#39;"]),
    ("/retries", ["OBJECT_NOT_FOUND", "VALIDATION_ERROR", "UNMAPPABLE", "Replay all 3", "Make the record in HubSpot"]),
    ("/retries?category=VALIDATION_ERROR", ["unicorn is no option", "1 match"]),
    ("/retries?record=nobody", ["Nothing matches"]),
    ("/retries?search=EVT-3", ["Nothing matches"]),
    ("/retries?search=evt-3", ["1 matches", "unicorn is no option"]),
    ("/retries?search=unicorn", ["1 matches"]),
    ("/retries/record-2", ["evt-2", "c0ffee", "&#34;client&#34;", "Make the record in HubSpot"]),
    ("/trace", ["What came last", "evt-4", "evt-1"]),
    ("/trace?id=evt-1", ["delivered", "c0ffee", "Globex"]),
    ("/trace?id=9", ["refused", "unicorn", "evt-3"]),
    ("/trace?id=nobody", ["no event and no record"]),
]


@pytest.mark.parametrize("path, shown", PAGES)
def test_every_page_shows_what_is_there(service: Service, path: str, shown: list[str]) -> None:
    """With a strict policy, nothing inline, and a partner's script as text."""
    answer = client(service).get(path)
    assert answer.status_code == 200
    assert [text for text in shown if text not in answer.text] == []
    assert HOSTILE not in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=", answer.text)
    assert answer.headers["Cache-Control"] == "no-store"


def test_every_page_on_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows the same."""
    with postgresql(tmp_path) as url:
        config = CONFIG.replace("sqlite:///FOLDER/journal.db", url)
        with filled(tmp_path, monkeypatch, config) as service:
            browser = client(service)
            for path, shown in PAGES:
                text = browser.get(path).text
                assert [told for told in shown if told not in text] == [], path


def test_hostile_texts_are_shown_as_text(service: Service) -> None:
    """In values, messages, payloads and what a query says."""
    browser = client(service)
    for path in ("/retries", "/retries/record-2", "/trace?id=8", f"/trace?id={HOSTILE}", f"/retries?record={HOSTILE}"):
        text = browser.get(path).text
        assert "&lt;script&gt;" in text
        assert "<script>" not in text


@pytest.mark.parametrize(
    "path, status", [("/retries/record-99", 404), ("/sources/nobody", 404), ("/retries?since=soon", 422)]
)
def test_what_is_not_there_is_told_as_a_page(service: Service, path: str, status: int) -> None:
    answer = client(service).get(path)
    assert (answer.status_code, answer.mimetype) == (status, "text/html")


def test_programs_are_told_as_problems(service: Service) -> None:
    """Who does not ask for a page gets none, and the challenge that goes with a missing token."""
    asked = client(service, token=True).get("/", headers={"Accept": "*/*"})
    assert (asked.status_code, asked.mimetype) == (401, "application/problem+json")
    assert asked.headers["WWW-Authenticate"] == "Bearer"


def test_the_last_hour_is_counted_by_minutes(service: Service) -> None:
    """Nothing twice, however often it is counted."""
    for _ in range(3):
        figures = service.journal.refresh_figures(delivery={"limiter": {"calls": 10, "per_s": 1, "used": 2}})
    minutes = minutes_of(figures.history)
    sums = [sum(getattr(minute, name) for minute in minutes) for name in ("events", "calls", "records", "failed")]
    assert sums == [4, 1, 3, 0]
    assert max(minute.limit_used for minute in minutes) == 0.5
    assert max(minute.delay_s for minute in minutes) < 10
    assert minutes_of(service.journal.figures().history) == minutes


def test_a_minute_in_which_nobody_counted_is_no_zero(service: Service) -> None:
    """A line breaks there: a new minute must not look as if the backlog were gone."""
    told = re.findall(r'data-chart="([^"]*)"', client(service).get("/").text)
    drawn = [orjson.loads(html.unescape(each)) for each in told]
    assert len(drawn) == 6
    for chart in drawn:
        assert len(chart["times"]) == 60
        for values in chart["values"]:
            assert len(values) == 60
            assert 1 <= sum(value is not None for value in values) <= 2


def test_a_payload_is_tried_without_being_taken(service: Service) -> None:
    browser = client(service)
    payload = f'{{"id": "t1", "client": "1", "name": "{HOSTILE}", "plan": "Lead"}}'
    answer = post(browser, "/sources/acme/try", page="/sources/acme", payload=payload)
    assert answer.status_code == 200
    assert "1 event, 1 input" in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "tier" in answer.text
    assert "would be ignored" in post(
        browser, "/sources/acme/try", page="/sources/acme", payload='{"id": "t2", "type": "ping"}'
    ).text  # fmt: skip
    mistyped = post(
        browser, "/sources/acme/try", page="/sources/acme", payload='{"id": "t3", "client": "1", "nmae": "A"}'
    )
    assert "left out: <code>company_name</code> (nothing at name)" in mistyped.text
    assert "left out: <code>tier</code> (nothing at plan)" in mistyped.text
    assert "left out" not in answer.text
    assert "not JSON" in post(browser, "/sources/acme/try", page="/sources/acme", payload="{").text
    assert service.journal.trace_event("t1") == []


def test_trying_a_payload_points_at_a_day_that_was_written_as_its_midnight_in_utc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `map` does."""
    dated = CONFIG.replace("{company_name: name, ", "{company_name: name, renewal_date: {from: day, type: date}, ")
    zoned = dated.replace("FOLDER", str(tmp_path)) + "    timezone: America/New_York\n"
    with filled(tmp_path, monkeypatch, zoned) as service:
        payload = '{"id": "t1", "client": "1", "day": "2026-01-05T00:00:00Z"}'
        answer = post(client(service), "/sources/acme/try", page="/sources/acme", payload=payload)
    assert "midnight in UTC, which is 2026-01-04 in America/New_York" in answer.text


def test_a_property_that_has_stopped_is_told_where_its_mapping_stands(service: Service) -> None:
    """With the share of before and when it came last; what still comes is just counted."""
    before = client(service).get("/sources/acme").text
    assert "has stopped" not in before
    assert "1 of 3" in before  # tier, of the three events that ask for something
    numbers = range(130)
    service.journal.append([event(f"both-{n}", f"c{n}", {"company_name": "A", "tier": "gold"}) for n in numbers])
    service.journal.append([event(f"one-{n}", f"c{n}", {"company_name": "A"}) for n in range(40)])
    page = client(service).get("/sources/acme").text
    told = " ".join(re.sub("<[^>]+>", "", page).split())
    assert "tier has stopped: it came in 98 % of earlier events; in none of the last 40, last at 20" in told
    assert "company_name has stopped" not in told
    assert "10 of 50" in told
    assert "50 of 50" in told


def test_the_box_to_try_payloads_holds_the_first_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indented, with its headers, and as text."""
    example = """\
    examples:
      - payload: {id: e1, client: "7", plan: "</textarea><b>"}
        headers: {X-Kind: gold}
        invalid: {tier: "is"}
"""
    with filled(tmp_path, monkeypatch, CONFIG.replace("FOLDER", str(tmp_path)) + example) as service:
        text = client(service).get("/sources/acme").text
    assert "{\n  &#34;id&#34;: &#34;e1&#34;,\n" in text
    assert "&lt;/textarea&gt;&lt;b&gt;" in text
    assert "\nX-Kind: gold</textarea>" in text


def test_a_group_is_counted_then_replayed(service: Service) -> None:
    browser = client(service)
    group = {"category": "OBJECT_NOT_FOUND", "message": f"no {HOSTILE} here"}
    asked = post(browser, "/retries/confirm", page="/retries", act="replay", **group)
    assert "Replay 1 entry?" in asked.text
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', asked.text.split("<main")[1]))
    done = post(browser, "/retries/act", page="/retries", **fields | group | {"act": "replay"})
    assert done.status_code == 303
    assert "1 of 1 replayed" in browser.get(done.location).text
    assert service.journal.entries(Filter(category="OBJECT_NOT_FOUND")) == []
    assert len(service.journal.entries(Filter())) == 2


def test_a_selection_is_discarded_and_nothing_else(service: Service) -> None:
    """What came after the count is spared, and no selection is not everything."""
    browser = client(service)
    nothing = post(browser, "/retries/confirm", page="/retries", act="discard:selected", all="true")
    assert nothing.status_code == 422
    assert "Discard 2 entries?" in post(
        browser, "/retries/confirm", page="/retries", act="discard:selected", ids=["record-2", "event-4"], all="true"
    ).text  # fmt: skip
    uncounted = post(browser, "/retries/act", page="/retries", act="discard", ids="record-2")
    assert uncounted.status_code == 422
    early = post(browser, "/retries/act", page="/retries", act="discard", ids="record-2", counted=1, seen="1h")
    assert "0 of 1 discarded" in browser.get(early.location).text
    meant = post(
        browser, "/retries/act", page="/retries", act="discard", ids=["record-2", "event-4"], counted=2, seen="0s"
    )
    assert "2 of 2 discarded" in browser.get(meant.location).text
    assert [entry.id for entry in service.journal.entries(Filter())] == ["refused-3"]
    assert 'bridge_values_settled_total{outcome="discarded"} 2.0' in client(service).get("/metrics").text


def park(service: Service, number: int) -> None:
    """Events that no mapping takes to a record."""
    service.journal.append([event(f"lost-{n}", updates=(), unmappable="no id") for n in range(number)])


@contextmanager
def answering(service: Service) -> Iterator[str]:
    """The admin port on a socket."""
    server = make_server("127.0.0.1", 0, service.admin, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def begun(browser: Client, act: str, **chosen: Any) -> str:
    """Where the browser is led that counted and confirmed an act."""
    asked = post(browser, "/retries/confirm", page="/retries", act=act, **chosen)
    assert "4\u202f00" in asked.text.split("<h1>")[1][:40]
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', asked.text.split("<main")[1]))
    done = post(browser, "/retries/act", page="/retries", **fields | {"act": act})
    assert done.status_code == 303
    return str(done.location)


def test_thousands_are_acted_on_in_the_background(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer comes at once; a page that reads itself anew tells how far it is, whichever process is asked; the log
    tells who did what to how many.
    """
    monkeypatch.setattr(retries, "SOON_S", 0.0)
    park(service, 4_000)
    browser = client(service)
    gate, remap = threading.Event(), service._desk._make_remap

    def late() -> Remap:  # asked for while no transaction is open
        gate.wait(10)
        return remap()

    service._desk._make_remap = late
    other = Service(settings=service._settings)
    location = begun(browser, "replay", search="no id")
    assert location.startswith("/retries/act/")
    progress = Browser(other.admin).get(location)
    assert (progress.status_code, progress.headers["Refresh"]) == (200, "1")
    assert "of 4\u202f000 done" in progress.text
    assert "Replaying 4\u202f000 entries" in browser.get("/retries").text
    assert post(browser, "/retries/act", act="replay", all="true", counted=1, seen="0s").status_code == 409
    gate.set()
    assert eventually(lambda: browser.get(location).status_code == 303)
    done = browser.get(browser.get(location).location)
    assert "4\u202f000 of 4\u202f000 replayed" in done.text
    assert "4\u202f000 still cannot be mapped" in done.text
    other.journal.close()
    logged = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    [line] = [line for line in logged.splitlines() if "operator acted" in line]
    for told in ("retries replay", "who=loopback", "address=127.0.0.1", "entries=4000", "(hidden)"):
        assert told in line


def test_an_act_ends_with_the_service(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two transactions; what it did stays done, and the page says so."""
    monkeypatch.setattr(retries, "SOON_S", 0.0)
    park(service, 4_000)
    browser = client(service)
    location = begun(browser, "discard", category="UNMAPPABLE")
    service._acts.stop()
    page = browser.get(browser.get(location).location).text
    assert "The service was stopped" in page
    act = service.journal.latest_act()
    assert act is not None
    assert service.journal.count_entries(Filter(category="UNMAPPABLE")) == 4_001 - act.done
    assert post(browser, "/retries/act", act="discard", all="true", counted=1, seen="0s").status_code == 503


def test_an_act_whose_process_died_has_ended(service: Service) -> None:
    long_ago = to_us(time.time() - 60)
    act = Act("gone", "replay", "session", {}, 4_000, began_us=long_ago, told_us=long_ago, done=600)
    assert service.journal.begin_act(act)
    page = client(service).get("/retries?act=gone").text
    assert "600 of 4\u202f000 replayed" in page
    assert "The process that worked at it ended" in page


def test_wrong_tokens_are_bounded_but_the_right_one_is_always_let_in(service: Service) -> None:
    """At the form and as a bearer together, by address; sessions go on."""
    browser, other = client(service, token=True), client(service, token=True)
    signed_in = Browser(browser.application)
    assert post(signed_in, "/login", page="/login", token=TOKEN).status_code == 303
    found = [post(browser, "/login", page="/login", token=f"guess {n}").status_code for n in range(6)]
    found += [browser.get("/api/pause", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(4)]
    assert found == [401] * 10
    for refused in (
        post(browser, "/login", page="/login", token=TOKEN),
        browser.get("/api/pause", headers={"Authorization": "Bearer guess"}),
    ):
        assert refused.status_code == 429
        assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert browser.get("/api/pause", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert signed_in.get("/").status_code == 200
    elsewhere = {"REMOTE_ADDR": "10.1.2.3"}
    form_token = re.search(r'name="form_token" value="(\w+)"', other.get("/login", environ_base=elsewhere).text)
    assert form_token
    sent = {"form_token": form_token[1], "token": TOKEN}
    assert other.post("/login", data=sent, environ_base=elsewhere).status_code == 303


def test_the_api_counts_and_acts_in_portions(service: Service) -> None:
    """Each request goes on where the last one stopped; what fails anew meanwhile is not met again."""
    park(service, 7)
    api = Client(client(service).application)
    counted = api.post("/api/retries/discard", json={"dry_run": True, "source": "acme"})
    assert counted.json == {"dry_run": True, "entries": 10}
    asked: dict[str, Any] = {"category": "UNMAPPABLE", "limit": 3}
    sizes = []
    while True:
        done = api.post("/api/retries/replay", json=asked).json
        assert done
        sizes.append((done["entries"], done["unmapped"]))
        if done["next"] is None:
            break
        asked |= {"after": done["next"], "seen": done["seen"]}
        park(service, 1)
    assert sizes == [(3, 3), (3, 3), (2, 2)]
    assert api.post("/api/retries/replay", json=asked | {"after": "nonsense"}).status_code == 422
    found = api.get("/api/retries?search=evt-3&limit=1").json
    assert found
    assert found[0]["record"] == "9"


def test_other_long_acts_answer_in_portions_too(service: Service) -> None:
    """Replay of events, and resync: what is told adds up, and the end is told."""
    api = Client(client(service).application)
    resynced = api.post("/api/resync", json={"all": True, "seconds": 60}).json
    assert resynced == {"dry_run": False, "records": 1, "values": 1, "next": None}
    assert "next" not in (api.post("/api/resync", json={"all": True}).json or {"next": 1})
    park(service, 450)
    sizes, after = [], 0
    while True:
        done = service._desk.replay_events(EventFilter(), dry_run=False, shown=1_000, after=after, enough=lambda: True)
        sizes.append(done["events"])
        if done["next"] is None:
            break
        after = done["next"]
    assert (len(sizes), sum(sizes)) == (3, 454)
    replayed = api.post("/api/events/replay", json={"source": "acme", "seconds": 60}).json
    assert replayed
    assert (replayed["events"], replayed["next"], bool(replayed["until"])) == (454, None, True)


def test_very_many_ids_are_looked_up_once_and_asked_for_in_portions(service: Service) -> None:
    """A request names so many and no more, and says what to do; the command goes on by itself, from either side."""
    park(service, 1_200)
    ids = tuple(f"lost-{n}" for n in range(1_200))
    api = Client(client(service).application)
    more = (*ids, *(f"nobody-{n}" for n in range(MAX_IDS)))
    refused = api.post("/api/events/replay", json={"ids": more, "dry_run": True})
    assert refused.status_code == 422
    assert f"at most {MAX_IDS} at a time" in refused.text
    own = application(service.journal, lambda: make_remap(service._settings))
    with answering(service) as url, over_http(url, None) as desk, in_process(own) as local:
        for found in (desk, local):
            assert [event["id"] for event in found.events(EventFilter(ids=ids))] == list(ids)
            done = found.replay_events(EventFilter(ids=more), dry_run=True)
            assert (done["events"], done["dry_run"]) == (1_200, True)
            entries = tuple(entry["id"] for entry in found.retries(Filter(category="UNMAPPABLE")))
            assert found.count_retries(Filter(ids=entries)) == len(entries) == 1_201
        assert desk.act_on_retries("discard", Filter(ids=entries))["entries"] == 1_201


def test_a_page_begins_after_the_last_entry_shown_whatever_was_settled_meanwhile(service: Service) -> None:
    """The link leads on with the same filter; what left the log does not hide what follows."""
    park(service, 5)
    api = Client(client(service).application)
    first = api.get("/api/retries?category=UNMAPPABLE&search=no+id&limit=2")
    following = first.headers["Link"].partition(">")[0].removeprefix("<")
    assert first.json
    api.post("/api/retries/discard", json={"ids": [row["id"] for row in first.json]})
    shown = [row["event_ids"][0] for row in first.json]
    while following:
        page = api.get(following)
        assert page.json is not None
        shown += [row["event_ids"][0] for row in page.json]
        following = page.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert shown == [f"lost-{n}" for n in range(5)]


def test_a_service_that_does_not_lead_on_is_no_short_list(service: Service) -> None:
    """One of before, which pages otherwise: its first page must not look like all of the retry log."""
    park(service, ROWS + 1)
    app = service._admin_app()

    def as_before(answer: Response) -> Response:
        answer.headers.pop("Link", None)
        return answer

    app.after_request(as_before)
    with in_process(app) as desk, pytest.raises(BridgeError, match="older than this command"):
        list(AdminClient(desk._session, "http://localhost").retries(Filter()))


def test_delivery_is_stopped_and_resumed(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """The banner says why and offers the way back; both acts are logged with who did them."""
    browser = client(service)
    assert post(browser, "/pause", reason=HOSTILE).status_code == 303
    page = browser.get("/").text
    assert "stopped by a person" in page
    assert "&lt;script&gt;" in page
    assert post(browser, "/resume", object_type="").status_code == 303
    assert list(service.journal.load_pauses()) == []
    assert post(browser, "/resume", object_type="").status_code == 404
    logged = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert logged.count("operator acted") == 2
    assert logged.count("who=loopback") == 2


@pytest.mark.parametrize("path", ["/pause", "/resume", "/retries/act", "/sources/acme/try", "/login"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_forms_of_other_sites_are_refused(service: Service, path: str, headers: dict[str, str]) -> None:
    """Without our token; and with it, when the browser tells that another site sent it."""
    browser = client(service)
    form_token = re.search(r'name="form_token" value="(\w+)"', browser.get("/").text)
    assert form_token
    sent = form_token[1] if headers else "0" * 64
    answer = browser.post(path, data={"form_token": sent, "act": "discard", "all": "true"}, headers=headers)
    assert (answer.status_code, answer.mimetype) == (403, "text/html")
    assert len(service.journal.entries(Filter())) == 3
    assert list(service.journal.load_pauses()) == []


def test_the_token_opens_a_session_that_a_logout_ends(service: Service) -> None:
    """HttpOnly, strict, for the console only: the API goes on asking for the bearer."""
    browser = client(service, host="0.0.0.0", token=True)  # noqa: S104 (the case that is tested)
    for path in ("/", "/sources", "/retries", "/trace"):
        assert (browser.get(path).status_code, browser.get(path).location) == (303, "/login")
    wrong = post(browser, "/login", page="/login", token=TOKEN + "x")
    assert (wrong.status_code, "not the admin token" in wrong.text) == (401, True)
    signed_in = post(browser, "/login", page="/login", token=TOKEN)
    [cookie] = [text for text in signed_in.headers.getlist("Set-Cookie") if "session" in text]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert browser.get("/retries").status_code == 200
    assert browser.get("/api/retries").status_code == 401
    assert post(browser, "/pause", reason="x").status_code == 303
    assert post(browser, "/logout").location == "/login"
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize("session", ["", "x", "a.b.c", "Indvbmci.aaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbb"])
def test_a_made_up_session_is_none(service: Service, session: str) -> None:
    browser = client(service, token=True)
    browser.set_cookie("partner_bridge_session", session)
    assert browser.get("/").status_code == 303


def test_a_bearer_sees_the_pages_too(service: Service) -> None:
    browser = client(service, token=True)
    assert browser.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert browser.get("/", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_it_is_off_where_others_could_reach_it_without_a_token(service: Service) -> None:
    """And on loopback for a name that is not this machine's."""
    browser = client(service, host="0.0.0.0")  # noqa: S104 (the case that is tested)
    for path in ("/", "/login", "/retries", "/static/console.css"):
        assert browser.get(path).status_code == 403
    assert client(service).get("/", headers={"Host": "evil.test"}).status_code == 403


def cookies(answer: TestResponse) -> dict[str, str]:
    """The cookies that an answer sets or takes back, by name."""
    return {text.partition("=")[0]: text for text in answer.headers.getlist("Set-Cookie")}


@pytest.mark.parametrize(
    "headers, by_tls",
    [
        ({}, False),
        ({"X-Forwarded-Proto": "https"}, True),
        ({"X-Forwarded-Proto": "HTTPS, http"}, True),
        ({"X-Forwarded-Proto": "http"}, False),
        ({"X-Forwarded-Proto": "nonsense"}, False),
        ({"Origin": "https://127.0.0.1"}, True),
        ({"Origin": "http://127.0.0.1", "X-Forwarded-Proto": "https"}, True),
        ({"Origin": "https://127.0.0.1", "X-Forwarded-Proto": "http"}, True),
    ],
)
def test_behind_a_proxy_that_ends_tls_the_session_goes_by_tls_alone(
    service: Service, headers: dict[str, str], by_tls: bool
) -> None:
    """What is told of the way makes a cookie stricter, never laxer; the session holds, and a logout takes it back."""
    app = client(service, host="0.0.0.0", token=True).application  # noqa: S104 (the case that is tested)

    def over_plain_http(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return app(environ | {"wsgi.url_scheme": "http"}, start_response)

    browser = Browser(over_plain_http)
    url = "https://127.0.0.1" if by_tls else "http://127.0.0.1"  # as the browser knows it
    always = {name: text for name, text in headers.items() if name != "Origin"}

    def send(path: str, page: str, **fields: str) -> TestResponse:
        found = re.search(r'name="form_token" value="(\w+)"', browser.get(page, base_url=url, headers=always).text)
        assert found
        return browser.post(path, data={"form_token": found[1], **fields}, base_url=url, headers=headers)

    signed_in = cookies(send("/login", "/login", token=TOKEN))
    name = "__Host-partner_bridge_session" if by_tls else "partner_bridge_session"
    assert list(signed_in) == [name]
    assert [word in signed_in[name] for word in ("Secure", "Path=/", "Domain")] == [by_tls, True, False]
    assert browser.get("/retries", base_url=url).status_code == 200
    assert name in cookies(send("/logout", "/retries"))
    assert browser.get("/retries", base_url=url).status_code == 303


def test_status_quotes_nobody_to_whoever_does_not_know_the_token(service: Service) -> None:
    """Reasons, counts and configured names for anybody; the texts with the token, a session, or on this machine."""
    service.journal.save_pauses([Pause(Scope.LANE, "partner_clients", "misconfigured", HOSTILE, 0, None)])
    service.journal.pause("deals", detail=HOSTILE)
    assert HOSTILE in client(service).get("/status").text  # loopback, no token configured
    assert HOSTILE not in client(service).get("/status", headers={"Host": "evil.test"}).text
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 (the case that is tested)
        browser = client(service, host=host, token=True)
        told = browser.get("/status")
        assert (told.status_code, HOSTILE in told.text) == (200, False)
        assert told.json
        assert [(one["reason"], one["target"], one["detail"]) for one in told.json["pauses"]] == [
            ("misconfigured", "partner_clients", None),
            ("operator", "deals", None),
        ]
        assert (told.json["crm"], told.json["parked"]) == ("127.0.0.1", 3)
        assert HOSTILE not in browser.get("/status", headers={"Authorization": "Bearer guess"}).text
        assert HOSTILE in browser.get("/status", headers={"Authorization": f"Bearer {TOKEN}"}).text
        assert HOSTILE not in browser.get("/metrics").text
        assert post(browser, "/login", page="/login", token=TOKEN).status_code == 303
        assert HOSTILE in browser.get("/status").text
    anywhere = client(service, host="0.0.0.0")  # noqa: S104 (the case that is tested)
    assert HOSTILE not in anywhere.get("/status").text


def test_a_page_shows_what_cannot_be_seen_and_a_group_of_it_is_acted_on(service: Service) -> None:
    """ESC, marks of direction and the like are escaped in texts and attributes; what a form hands on is meant."""
    steering = "\x1b[2J\u202e\x9b\u200b;\r\n\t\u2028"
    service.journal.append([event(steering, updates=(), unmappable=f"no id: {steering}")])
    browser = client(service)
    page = browser.get("/retries", query_string={"search": steering}).text
    assert r'value="\x1b[2J\u202e\x9b\u200b;' in page
    assert r"no id: \x1b[2J\u202e\x9b\u200b;" in page
    [asked] = re.findall(r'name="asked" value="([^"]*message[^"]*)"', page)
    confirm = post(browser, "/retries/confirm", page="/retries", act="discard", asked=html.unescape(asked))
    assert "Discard 1 entry?" in confirm.text
    for path in ("/retries", "/trace", f"/trace?id={quote(steering)}", "/retries/event-5"):
        text = browser.get(path).text
        assert [char for char in text if not char.isprintable() and char not in "\n\r\t\u202f"] == [], path


def test_a_source_is_shown_as_its_configuration_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words of the file, never in those of the program."""
    text = CONFIG.replace("FOLDER", str(tmp_path)).replace(
        "{company_name: name, ",
        '{company_name: name, paid: {from: paid, type: number, decimal: ",", thousands: "."}, '
        'renewal_date: {from: day, type: date, format: ["%d/%m/%Y", excel]}, ',
    )
    text = text.replace("id_property: acme_client_id", "id_property: email")
    text = text.replace(
        "    event_id: id\n", "    event_id: id\n    occurred_at: {from: at, format: epoch_ms, timezone: UTC}\n"
    )
    assert "epoch_ms" in text
    with filled(tmp_path, monkeypatch, text) as service:
        page = client(service).get("/sources/acme").text
    assert "at; format epoch_ms; timezone UTC" in page
    assert "format %d/%m/%Y, excel" in page
    assert "decimal ,; thousands ." in page
    assert "email, in any letter case" in page
    assert not re.search(r"\w+\(\w+=|\('|&#39;,\)", page)
