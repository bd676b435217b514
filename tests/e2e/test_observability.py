"""What operators see of a loaded service with two workers: metrics that add up, and logs that tell no secrets."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from bridge.sandbox import Crm, SandboxServer
from tests.chart.rendering import CHART
from tests.running import ACME, SECRET, Running, eventually, running
from tests.unit.test_alerts import rules
from tests.unit.test_readme import exposed, log_fields

TOKEN = "an-admin-token-nobody-may-log"
VALUE = "a-value-nobody-may-log"
WEBHOOKS = 60

SHOP = """\
  shop:
    verify: {scheme: bearer, secrets: [{file: shop.secret}]}
    event_id: id
    when: "type == 'wanted'"
    record: {id: client, id_property: acme_client_id, on_unknown: ignore}
    properties: {company_name: name}
    expect_every: 1h
"""

#: What only grows; the rest are gauges.
COUNTED = re.compile(r"_(?:total|count|sum|bucket)$")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Loaded:
    """A service after a day's work in a few seconds."""

    service: Running
    crm: Crm

    def scrape(self) -> Samples:
        """Every series once, or the exposition is wrong."""
        text = requests.get(f"{self.service.admin_url}/metrics", timeout=10).text
        found: Samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series = (sample.name, frozenset(sample.labels.items()))
                assert series not in found, series
                found[series] = sample.value
        return found

    def value(self, name: str, **labels: str) -> float:
        return self.scrape()[name, frozenset(labels.items())]

    def lines(self) -> list[dict[str, Any]]:
        text = self.service.log.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder = tmp_path_factory.mktemp("loaded")
    (folder / "shop.secret").write_text(f"{SECRET}-of-the-shop\n", encoding="utf-8")
    (folder / "wrong.secret").write_text("whsec_" + "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmc=\n", encoding="utf-8")
    crm = Crm(open_properties=False)
    environ = {"BRIDGE_ADMIN_TOKEN": TOKEN}
    with (
        SandboxServer(crm) as sandbox,
        running(folder, sandbox.url, sources=ACME + SHOP, workers=2, daily=100_000, environ=environ) as service,
    ):
        made = Loaded(service, crm)
        work(made)
        yield made


def work(loaded: Loaded) -> None:
    """Delivered, duplicated, refused by the CRM, unknown, ignored, unmappable, forged; then a person's acts."""
    service = loaded.service
    payloads: list[Any] = [
        {"id": f"e{n}", "client": f"c{n}", "name": f"{VALUE} {n}", "at": f"2026-01-02T03:04:{n:02}Z"}
        for n in range(WEBHOOKS - 4)
    ]
    payloads.append([{"id": f"b{n}", "client": f"b{n % 3}", "name": VALUE} for n in range(12)])
    payloads.append({"id": "e0", "client": "c0", "name": f"{VALUE} 0", "at": "2026-01-02T03:04:00Z"})
    payloads.append({"id": "refused", "client": "c0", "tier": VALUE})
    payloads.append({"id": "unmappable", "name": VALUE})
    assert [answer.status_code if answer else None for answer in service.post_all(payloads)] == [202] * WEBHOOKS
    assert service.post({"id": "forged", "name": VALUE}, secret=service.folder / "wrong.secret").status_code == 401
    for event_id, kind, client in (("s1", "wanted", "unknown-1"), ("s2", "noise", "c1")):
        answer = requests.post(
            f"{service.url}/webhooks/shop",
            json={"id": event_id, "type": kind, "client": client, "name": VALUE},
            headers={"Authorization": f"Bearer {SECRET}-of-the-shop"},
            timeout=10,
        )
        assert answer.status_code == 202
    assert requests.post(f"{service.url}/webhooks/nobody?{VALUE}", data=VALUE, timeout=10).status_code == 404
    assert eventually(lambda: service.idle() and len(service.entries()) == 2)
    for act in (
        ("retries", "replay", "--all"),
        ("pause", "--object-type", "partner_clients"),
        ("resync", "--all", "--yes"),
    ):
        done = service.run(*act, "--admin-url", service.admin_url)
        assert done.returncode == 0, done.stderr
    assert eventually(lambda: service.log_has('"event":"operator acted"', times=3))
    assert eventually(lambda: service.log_has('"event":"delivery paused"'))


# --- metrics ------------------------------------------------------------------------------------


def test_counters_add_up_over_the_workers(loaded: Loaded) -> None:
    assert loaded.value("bridge_webhooks_total", source="acme", code="202") == WEBHOOKS
    assert loaded.value("bridge_webhooks_total", source="acme", code="401") == 1
    assert loaded.value("bridge_webhooks_total", source="unknown", code="404") == 1
    assert loaded.value("bridge_webhook_duration_seconds_count") == WEBHOOKS + 4
    assert loaded.value("bridge_verifications_total", source="acme", result="accepted", secret="0") == WEBHOOKS
    assert loaded.value("bridge_verifications_total", source="acme", result="mismatch", secret="") == 1
    outcomes = {"accepted": WEBHOOKS - 4 + 12 + 1, "duplicate": 1, "ignored": 0, "parked": 1}
    for outcome, number in outcomes.items():
        assert loaded.value("bridge_events_total", source="acme", outcome=outcome) == number, outcome
    assert loaded.value("bridge_events_total", source="shop", outcome="ignored") == 1
    assert loaded.value("bridge_values_settled_total", outcome="unknown") == 1
    assert loaded.value("bridge_values_settled_total", outcome="refused") >= 1
    calls = sum(number for (name, _), number in loaded.scrape().items() if name == "bridge_crm_calls_total")
    assert calls == len(loaded.crm.ledger.calls("update"))


def test_gauges_are_the_same_whichever_worker_answers(loaded: Loaded) -> None:
    """Every connection may reach another one."""

    def agree() -> bool:
        scrapes = [
            {series: value for series, value in loaded.scrape().items() if not COUNTED.search(series[0])}
            for _ in range(8)
        ]
        return all(each == scrapes[0] for each in scrapes)

    assert eventually(agree)  # the journal's size may change between two of them
    assert loaded.value("bridge_source_silent", source="shop") == 0
    assert loaded.value("bridge_crm_paused", reason="operator", scope="object_type") == 1
    assert loaded.value("bridge_retry_log_entries", state="parked", category="UNMAPPABLE") == 1


def test_dashboard_and_alerts_name_only_what_a_loaded_service_exposes(loaded: Loaded) -> None:
    samples = {name for name, _ in loaded.scrape()}
    board = (CHART / "files" / "dashboard.json").read_text(encoding="utf-8")
    wanted = set(re.findall(r"\bbridge_\w+", board + json.dumps(rules())))
    assert len(wanted) > 20
    assert wanted <= samples
    # and the other way round: whatever is exposed can be looked at
    assert {re.sub(r"_(?:bucket|count|sum)$", "", name) for name in wanted} >= exposed() - {"bridge_build_info"}


def test_a_worker_that_dies_takes_no_count_with_it_and_leaves_no_gauge_behind(loaded: Loaded) -> None:
    """Nor does the one in its place forget that the configuration was refused."""
    service = loaded.service
    assert service.process is not None
    service.sources = ACME.replace("notes: notes", "notes: '[[['")
    service.configure()
    service.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: service.log_has("the configuration was not reloaded", times=2))
    before = loaded.scrape()
    old = service.pids()[1:]
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    service.sources = ACME + SHOP  # a new worker starts with what the master read last
    service.configure()
    assert eventually(lambda: len(service.pids()) == 3 and not set(old) & set(service.pids()) and service.is_ready())
    after = loaded.scrape()
    for series, value in before.items():
        if COUNTED.search(series[0]):
            assert after[series] >= value, series
        elif "timestamp" not in series[0]:
            assert after.keys() >= {series}, series
    assert all(loaded.value("bridge_config_last_reload_successful") == 0 for _ in range(6))
    mapped = "".join(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8") for pid in service.pids()[1:])
    assert set(re.findall(r"/(counter_\w+\.db)", mapped)) == {"counter_0.db", "counter_1.db"}  # they go on with these
    assert service.post({"id": "later", "client": "c1", "name": VALUE}).status_code == 202
    one_more = before["bridge_webhooks_total", frozenset({("source", "acme"), ("code", "202")})] + 1
    assert loaded.value("bridge_webhooks_total", source="acme", code="202") == one_more
    service.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: loaded.value("bridge_config_last_reload_successful") == 1)


# --- logs ---------------------------------------------------------------------------------------


def test_there_is_one_line_for_each_webhook_and_each_call(loaded: Loaded) -> None:
    """With ids and counts, and HubSpot's id of the call."""
    lines = loaded.lines()
    webhooks = [line for line in lines if line["event"] == "webhook" and line["event_ids"] != ["later"]]
    assert Counter(line["source"] for line in webhooks) == {"acme": WEBHOOKS + 1, "shop": 2, "unknown": 1}
    (bulk,) = (line for line in webhooks if "b0" in line["event_ids"])
    assert bulk["event_ids"] == ["b0", "b1", "b2", "b3", "b4"]  # the first few
    assert (bulk["accepted"], bulk["records"], bulk["code"]) == (12, 3, "202")
    calls = [line for line in lines if line["event"] == "crm call"]
    assert len(calls) >= len({call.correlation_id for call in loaded.crm.ledger.calls("update")}) > 0
    assert {line["correlation_id"] for line in calls} <= {
        call.correlation_id for call in loaded.crm.ledger.calls("update")
    }
    assert {source for line in calls for source in line["sources"]} == {"acme", "shop"}
    assert sum(line["delivered"] for line in calls) >= WEBHOOKS - 4 + 3
    pauses = {(line["reason"], line["target"]) for line in lines if line["event"] == "delivery paused"}
    assert pauses == {("operator", "partner_clients")}
    assert [line["act"] for line in lines if line["event"] == "operator acted"] == ["retries replay", "pause", "resync"]


def test_fields_are_those_of_the_readme_and_have_one_type_each(loaded: Loaded) -> None:
    """A collector that learned a field from one line must be able to read it in the next."""
    types: dict[str, set[type]] = {}
    for line in loaded.lines():
        for name, value in line.items():
            if value is not None:
                types.setdefault(name, set()).add(float if isinstance(value, int | float) else type(value))
    assert types.keys() <= log_fields()
    assert {name: kinds for name, kinds in types.items() if len(kinds) > 1} == {}


def test_no_secret_and_no_value_is_logged_or_measured(loaded: Loaded) -> None:
    shown = loaded.service.log.read_text(encoding="utf-8")
    shown += requests.get(f"{loaded.service.admin_url}/metrics", timeout=10).text
    tokens = (SECRET, SECRET.removeprefix("whsec_"), "a-token-for-the-sandbox", TOKEN, VALUE, "Bearer")
    assert [secret for secret in tokens if secret in shown] == []


def test_the_level_is_told_by_the_environment(tmp_path: Path) -> None:
    """And lines for people hold the same fields."""
    environ = {"BRIDGE_LOG_LEVEL": "warning", "BRIDGE_LOG_FORMAT": "console"}
    with SandboxServer(Crm()) as sandbox, running(tmp_path, sandbox.url, environ=environ) as service:
        assert service.post({"id": "e1", "client": "c1", "name": VALUE}).status_code == 202
        assert eventually(service.idle)
        assert requests.post(f"{service.url}/webhooks/acme", json={}, timeout=10).status_code == 401
        assert eventually(lambda: service.log_has("webhook refused"))
    text = service.log.read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if "webhook refused" in line)
    assert re.search(r"\[warning *\] webhook refused +.*reason=missing_header source=acme", line)
    assert "crm call" not in text
    assert "\x1b" not in text
