"""The exposition follows Prometheus' naming, and its labels stay bounded."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge.errors import JournalUnavailableError
from bridge.operations.metrics import MAX_BEGUN, MAX_CATEGORIES, Gauges, Metrics, bounded

PROMTOOL = shutil.which("promtool") or ""

#: Units that Prometheus asks for in place of others: https://prometheus.io/docs/practices/naming
NOT_BASE_UNITS = re.compile(
    r"(?:milli|micro|nano|kilo|mega|giga|kibi|mebi)|_(?:ms|us|ns|minutes|hours|days|percent|kb|mb|gb)(?:_|$)"
)
#: Counted things that are their own unit.
COUNTS = ("records", "entries", "remaining", "limit", "paused", "silent", "successful", "info", "pending")


def gauges(entries: tuple[tuple[str, str, int], ...] = ()) -> Gauges:
    return Gauges(
        pending=3,
        pending_limit=10,
        oldest_pending=1_000.5,
        entries=entries,
        last_event={"acme": 1_000.5},
        silent={"acme": False},
        pauses=(),
        daily_calls_left=7,
        journal_bytes=100,
        journal_limit=1_000,
    )


def exposition(metrics: Metrics | None = None) -> str:
    metrics = metrics or Metrics()
    metrics.expect({"acme": ["name"]})
    return metrics.exposition(gauges).decode()


def test_names_follow_prometheus_rules() -> None:
    """Base units at the end, `_total` on counters and on nothing else, help that is a sentence."""
    families = [each for each in text_string_to_metric_families(exposition()) if not each.name.endswith("_created")]
    assert len(families) > 20
    for family in families:
        name = family.name
        assert re.fullmatch(r"bridge(?:_[a-z]+)+", name), name
        assert not NOT_BASE_UNITS.search(name), name
        assert family.documentation, name
        assert family.documentation.endswith("."), (name, family.documentation)
        assert not name.endswith(("_count", "_sum", "_bucket", "_total")), name
        assert family.type not in name.split("_"), (name, "a name does not hold its type")
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{name}_total"}, name
        else:
            assert name.endswith(("_seconds", "_bytes", *COUNTS)), name
        for sample in family.samples:
            assert not sample.labels.keys() & {"pid", "worker", "job", "instance", "event", "record", "address"}, name


@pytest.mark.skipif(not PROMTOOL, reason="promtool (Debian's package prometheus) is not installed")
def test_prometheus_own_lint_finds_nothing() -> None:
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=exposition(), capture_output=True, text=True, timeout=30, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if not line.split()[0].endswith("_created")]
    assert complaints == []


def test_what_alerts_count_begins_at_zero() -> None:
    """A rate does not see the step from nothing to one."""
    text = exposition()
    for series in (
        'bridge_webhooks_total{code="503",source="acme"}',
        'bridge_events_total{outcome="ignored",source="acme"}',
        'bridge_mapped_properties_total{outcome="present",property="name",source="acme"}',
        'bridge_verifications_total{result="mismatch",secret="",source="acme"}',
        'bridge_values_settled_total{outcome="unknown"}',
        'bridge_journal_errors_total{kind="io"}',
        'bridge_delivery_delay_seconds_count{source="acme"}',
        'bridge_retry_log_entries{category="OBJECT_NOT_FOUND",state="parked"}',
    ):
        assert f"{series} 0.0\n" in text, series
    metrics = Metrics()
    metrics.expect({"acme": ["name"]})
    assert metrics.counted("bridge_webhooks_total") == []  # the console shows what there was


def test_a_configuration_of_a_hundred_thousand_properties_begins_a_bounded_number_of_series() -> None:
    """All that come are counted all the same."""
    metrics = Metrics()
    metrics.expect({"acme": [f"p{number:06}" for number in range(100_000)]})
    assert exposition(metrics).count("bridge_mapped_properties_total{") <= 2 * MAX_BEGUN + 2
    metrics.mapped("acme", {"present": {"p099999": 2}, "invalid": {"p000001": 1}})
    metrics.mapped("acme", {"present": {"p099999": 3}})
    assert sorted(metrics.counted("bridge_mapped_properties_total"), key=lambda each: each[1]) == [
        ({"source": "acme", "property": "p000001", "outcome": "invalid"}, 1),
        ({"source": "acme", "property": "p099999", "outcome": "present"}, 5),
    ]


def test_a_crm_that_invents_categories_adds_a_bounded_number_of_series() -> None:
    """The most frequent ones are told by name, the rest together, and none is lost."""
    entries = tuple(("parked", f"INVENTED_{number}", number) for number in range(1, 1_001))
    found = bounded(entries)
    assert len(found) <= MAX_CATEGORIES + 6
    assert found["parked", "INVENTED_1000"] == 1_000
    assert found["parked", "OTHER"] > 0
    assert sum(found.values()) == sum(number for *_, number in entries)


def test_without_the_journal_the_service_still_tells_that_it_is_there() -> None:
    def fails() -> Gauges:
        raise JournalUnavailableError("the disk is gone")

    metrics = Metrics()
    metrics.reloaded(succeeded=False)
    text = metrics.exposition(fails).decode()
    assert "bridge_build_info{" in text
    assert "bridge_config_last_reload_successful 0.0" in text
    assert "bridge_journal_errors_total" in text
    assert "bridge_records_pending" not in text
