"""Each alert of the chart fires on its trouble, once however many replicas tell of it, and on no other's.

Prometheus' own evaluator runs the rendered rules over made-up series, a sample a minute for four hours.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.chart.rendering import objects

PROMTOOL = shutil.which("promtool") or ""
MINUTES = 240
PODS = ("rel-partner-bridge-0", "rel-partner-bridge-1")

needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="promtool (Debian's package prometheus) is not installed")


def steady(value: float) -> str:
    return f"{value}x{MINUTES}"


def growing(by: float) -> str:
    return f"0+{by}x{MINUTES}"


def at_the_end(value: float, *, minutes: int = 30, before: float = 0) -> str:
    """As before, then this value for the last minutes."""
    return f"{before}x{MINUTES - minutes} {value}x{minutes - 1}"


def step(by: float, *, minutes: int = 30) -> str:
    """Nothing, then so much more each of the last minutes."""
    return f"0x{MINUTES - minutes} 0+{by}x{minutes - 1}"


def until(by: float, *, minutes: int = 50) -> str:
    """So much more each minute at first, then no more."""
    return f"0+{by}x{minutes - 1} {by * (minutes - 1)}x{MINUTES - minutes}"


def mapped(outcome: str, name: str = "tier", source: str = "acme") -> str:
    return f'bridge_mapped_properties_total{{source="{source}",property="{name}",outcome="{outcome}"}}'


#: A sound deployment of two pods: metric and labels → values.
SOUND = {
    'bridge_build_info{version="1"}': steady(1),
    'bridge_webhooks_total{source="acme",code="202"}': growing(60),
    'bridge_webhooks_total{source="acme",code="503"}': steady(0),
    'bridge_webhook_duration_seconds_bucket{le="0.1"}': growing(60),
    'bridge_webhook_duration_seconds_bucket{le="5"}': growing(60),
    'bridge_webhook_duration_seconds_bucket{le="+Inf"}': growing(60),
    'bridge_journal_errors_total{kind="full"}': steady(0),
    "bridge_journal_size_bytes": steady(10),
    "bridge_journal_limit_bytes": steady(100),
    "bridge_records_pending": steady(10),
    "bridge_records_pending_limit": steady(100),
    "bridge_oldest_pending_timestamp_seconds": steady(0),
    'bridge_delivery_delay_seconds_bucket{source="acme",le="10"}': growing(60),
    'bridge_delivery_delay_seconds_bucket{source="acme",le="3600"}': growing(60),
    'bridge_delivery_delay_seconds_bucket{source="acme",le="+Inf"}': growing(60),
    'bridge_delivery_delay_seconds_count{source="acme"}': growing(60),
    'bridge_retry_log_entries{state="parked",category="VALIDATION_ERROR"}': steady(0),
    'bridge_retry_log_entries{state="retrying",category="UNCONFIRMED"}': steady(3),
    'bridge_verifications_total{source="acme",result="accepted",secret="0"}': growing(60),
    'bridge_verifications_total{source="acme",result="mismatch",secret=""}': growing(1),
    'bridge_source_silent{source="acme"}': steady(0),
    'bridge_events_total{source="acme",outcome="accepted"}': growing(60),
    'bridge_events_total{source="acme",outcome="duplicate"}': growing(1),
    'bridge_events_total{source="acme",outcome="ignored"}': growing(30),
    mapped("present"): growing(40),
    mapped("absent"): growing(20),
    'bridge_values_settled_total{outcome="unknown"}': steady(0),
    "bridge_crm_daily_calls_remaining": steady(100_000),
    "bridge_config_last_reload_successful": steady(1),
}

ACME = {"source": "acme"}
Case = tuple[dict[str, str | None], str, dict[str, str]]

#: Alert → what differs from a sound deployment (None: gone), its severity, its own labels.
TROUBLE: dict[str, Case] = {
    "Down": (dict.fromkeys(SOUND), "critical", {"namespace": "prod"}),
    "RefusesWebhooks": ({'bridge_webhooks_total{source="acme",code="503"}': step(1, minutes=3)}, "critical", {}),
    "JournalErrors": ({'bridge_journal_errors_total{kind="full"}': step(1, minutes=3)}, "critical", {"kind": "full"}),
    "JournalNearlyFull": ({"bridge_journal_size_bytes": at_the_end(95, minutes=40, before=10)}, "warning", {}),
    "BacklogNearlyFull": ({"bridge_records_pending": at_the_end(85, before=10)}, "critical", {}),
    "DeliveryLate": ({"bridge_oldest_pending_timestamp_seconds": at_the_end(60 * (MINUTES - 30))}, "warning", {}),
    "DeliverySlow": ({'bridge_delivery_delay_seconds_bucket{source="acme",le="10"}': growing(50)}, "warning", {}),
    "DeliveryPaused": (
        {'bridge_crm_paused{reason="unauthorized",scope="all"}': at_the_end(1)},
        "critical",
        {"reason": "unauthorized", "scope": "all"},
    ),
    "Parked": (
        {'bridge_retry_log_entries{state="parked",category="VALIDATION_ERROR"}': at_the_end(1)},
        "warning",
        {"category": "VALIDATION_ERROR"},
    ),
    "RetryLogGrowing": (
        {'bridge_retry_log_entries{state="retrying",category="UNCONFIRMED"}': at_the_end(200, before=3)},
        "warning",
        {},
    ),
    "SignaturesRefused": (
        {'bridge_verifications_total{source="acme",result="mismatch",secret=""}': growing(30)},
        "warning",
        ACME,
    ),
    "SourceSilent": ({'bridge_source_silent{source="acme"}': at_the_end(1)}, "warning", ACME),
    "SourceIgnored": (
        {'bridge_events_total{source="shop",outcome="ignored"}': growing(1)},
        "warning",
        {"source": "shop"},
    ),
    "SourceUnknown": (
        {
            'bridge_events_total{source="shop",outcome="accepted"}': growing(1),
            'bridge_delivery_delay_seconds_count{source="shop"}': steady(0),
            'bridge_values_settled_total{outcome="unknown"}': growing(1),
        },
        "warning",
        {"source": "shop"},
    ),
    "PropertyStopped": (
        {mapped("present"): until(40), mapped("absent"): growing(20), mapped("null"): step(40, minutes=MINUTES - 50)},
        "warning",
        ACME | {"property": "tier"},
    ),
    "DailyCallsLow": ({"bridge_crm_daily_calls_remaining": at_the_end(9_000, before=100_000)}, "warning", {}),
    "AnswersSlowly": ({'bridge_webhook_duration_seconds_bucket{le="0.1"}': growing(50)}, "warning", {}),
    "ConfigurationRefused": ({"bridge_config_last_reload_successful": at_the_end(0, before=1)}, "warning", {}),
}

#: What is no trouble, though it looks like it.
SOUND_ALL_THE_SAME: dict[str, dict[str, str | None]] = {
    "nothing happens": {},
    "the rate limit holds delivery up": {'bridge_crm_paused{reason="rate_limited",scope="all"}': at_the_end(1)},
    "a short outage": {'bridge_crm_paused{reason="outage",scope="all"}': at_the_end(1, minutes=10)},
    "a source of which nothing came": {
        'bridge_events_total{source="shop",outcome="ignored"}': steady(0),
        'bridge_events_total{source="shop",outcome="accepted"}': steady(0),
    },
    "a backlog during an outage": {
        'bridge_events_total{source="shop",outcome="accepted"}': growing(1),
        'bridge_delivery_delay_seconds_count{source="shop"}': steady(0),
    },
    "a property that never came": {mapped("absent", "new"): growing(60), mapped("present", "new"): steady(0)},
    "a property that few events had": {
        mapped("present", "seldom"): until(20),
        mapped("absent", "seldom"): growing(60),
    },
    "a property that still comes now and then": {
        mapped("present"): f"0+40x49 1960x{MINUTES - 70} 1961x19",
        mapped("absent"): growing(60),
    },
    "a source of few events": {
        mapped("present", source="shop"): f"0x20 30x{MINUTES - 20}",
        mapped("absent", source="shop"): f"0x200 9x{MINUTES - 200}",
    },
    "a source of few events before": {
        mapped("present", source="shop"): f"0x20 4x{MINUTES - 20}",
        mapped("absent", source="shop"): f"0x{MINUTES - 120} 0+60x119",
    },
    "a source that has gone silent": {mapped("present"): until(40), mapped("absent"): until(20)},
    "counters that begin anew with their pod": {
        mapped("present"): f"0+40x150 0+40x{MINUTES - 150}",
        mapped("absent"): f"0+20x150 0+20x{MINUTES - 150}",
    },
    "no budget": {"bridge_crm_daily_calls_remaining": None},
    "a pod was replaced": {"bridge_records_pending": f"10x{MINUTES - 60} _x20 10x40"},
}


@cache
def specification() -> dict[str, Any]:
    spec: dict[str, Any] = objects({"prometheusRule": {"enabled": True}})["prometheusrule"]["spec"]
    return spec


def rules() -> dict[str, dict[str, Any]]:
    (group,) = specification()["groups"]
    return {rule["alert"].removeprefix("PartnerBridge"): rule for rule in group["rules"]}


def firing(tmp_path: Path, changes: dict[str, str | None], expected: list[dict[str, str]]) -> str:
    """Prometheus' words if other alerts than these fire at the end; empty if these do."""
    (tmp_path / "rules.yaml").write_text(json.dumps(specification()), encoding="utf-8")
    series = [
        {"series": labelled(name, pod), "values": values}
        for name, values in (SOUND | changes).items()
        if values is not None
        for pod in PODS
    ]
    samples = [{"labels": "ALERTS" + as_labels(labels | {"alertstate": "firing"}), "value": 1} for labels in expected]
    wanted = {"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{MINUTES}m", "exp_samples": samples}
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [wanted]}
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "5m", "tests": [test]}
    (tmp_path / "test.yaml").write_text(json.dumps(document), encoding="utf-8")
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def labelled(name: str, pod: str) -> str:
    """The series of one pod, as the operator's scrape labels it."""
    metric, _, labels = name.partition("{")
    own = f'namespace="prod",pod="{pod}"'
    return f"{metric}{{{own},{labels}" if labels else f"{metric}{{{own}}}"


def as_labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


@needs_promtool
@pytest.mark.parametrize("alert", TROUBLE)
def test_an_alert_fires_on_its_trouble_once_and_no_other_does(tmp_path: Path, alert: str) -> None:
    changes, severity, labels = TROUBLE[alert]
    expected = {"alertname": f"PartnerBridge{alert}", "severity": severity, **labels}
    assert firing(tmp_path, changes, [expected]) == ""


@needs_promtool
@pytest.mark.parametrize("what", SOUND_ALL_THE_SAME)
def test_no_alert_fires_on_what_is_sound(tmp_path: Path, what: str) -> None:
    assert firing(tmp_path, SOUND_ALL_THE_SAME[what], []) == ""


def test_every_alert_has_its_trouble_here() -> None:
    assert rules().keys() == TROUBLE.keys()


def test_every_alert_tells_what_is_what_to_do_and_where_more_is_said() -> None:
    for name, rule in rules().items():
        told = rule["annotations"]
        assert told.keys() == {"summary", "description", "runbook_url"}
        assert told["runbook_url"] == f"README.md#partnerbridge{name.lower()}"
        assert all(text.strip().endswith((".", "pause")) for text in (told["summary"], told["description"])), name


def test_no_gauge_is_added_up_over_replicas() -> None:
    """Each tells of the whole deployment: a sum would count every entry once a replica."""
    for name, rule in rules().items():
        for found in re.finditer(r"(\w+)(?: by \([\w, ]+\))? ?\((bridge_\w+)\{", rule["expr"]):
            aggregate, metric = found.groups()
            if not metric.endswith(("_total", "_bucket", "_count")):
                assert aggregate in {"max", "min", "absent"}, (name, metric)
