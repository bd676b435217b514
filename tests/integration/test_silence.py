"""`expect_every`: a source from which nothing comes is noticed, over restarts, floods and jumps of the clock."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import requests

from bridge.journal import upkeep
from bridge.journal.store import Journal
from bridge.model import to_us
from bridge.settings import Journal as JournalSettings
from tests.builders import event
from tests.fakes import FakeClock
from tests.running import ACME, Running, eventually, free_port, running

DAY_S = 86_400.0


def reopened(journal: Journal, clock: FakeClock) -> Journal:
    journal.close()
    return Journal(settings=JournalSettings(url=str(journal._settings.url)), clock=clock)


def test_one_event_is_seen_among_thousands_of_another_source(journal: Journal, clock: FakeClock) -> None:
    """All that came since the last count, not only the newest of it."""
    journal.refresh_figures()
    clock.advance(0.2)
    journal.append([event("rare", source="rare")])
    at = clock.now()
    clock.advance(0.2)
    journal.append([event(f"e{n}", str(n % 100), source="flood") for n in range(3000)])
    clock.advance(0.6)
    assert journal.refresh_figures().last_event_us == {"rare": to_us(at), "flood": to_us(at + 0.2)}


def test_a_first_look_at_many_events_is_taken_in_steps(
    journal: Journal, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells the same as one look would: arrivals, also those of one moment, and rates of late."""
    monkeypatch.setattr(upkeep, "ARRIVALS_STEP", 7)
    journal.append([event(f"old{n}", source="gone") for n in range(20)])
    gone = to_us(clock.now())
    clock.advance(3600)
    for n in range(12):
        clock.advance(0.1)
        sources = ("a", "b") if n < 9 else ("a",)
        journal.append([event(f"{source}{n}-{m}", source=source) for source in sources for m in range(5)])
    newest = to_us(clock.now())
    clock.advance(0.1)
    figures = journal.refresh_figures()
    assert figures.last_event_us == {"gone": gone, "a": newest, "b": newest - 300_000}
    assert figures.rates == {"a": 6.0, "b": 4.5}
    assert journal.refresh_figures().last_event_us == figures.last_event_us


def test_the_last_event_is_known_after_a_restart(journal: Journal, clock: FakeClock) -> None:
    """Also one that nobody counted before the end, and when it has long been pruned."""
    journal.refresh_figures()
    clock.advance(0.5)
    journal.append([event("e1", updates=())])
    at = to_us(clock.now())
    clock.advance(2 * DAY_S)
    journal = reopened(journal, clock)
    assert journal.refresh_figures().last_event_us == {"acme": at}
    clock.advance(30 * DAY_S)
    assert journal.prune() > 0
    journal = reopened(journal, clock)
    assert journal.refresh_figures().last_event_us == {"acme": at}
    journal.close()


def test_a_source_without_events_is_watched_from_when_it_was_configured(journal: Journal, clock: FakeClock) -> None:
    """Not from the epoch, and not anew with every restart; one that was taken out and comes back begins anew."""
    first = to_us(clock.now())
    assert journal.refresh_figures(sources=["a"]).watched_since_us == {"a": first}
    clock.advance(DAY_S)
    journal = reopened(journal, clock)
    second = to_us(clock.now())
    assert journal.refresh_figures(sources=["a", "b"]).watched_since_us == {"a": first, "b": second}
    clock.advance(1)
    assert journal.refresh_figures(sources=["b"]).watched_since_us == {"b": second}
    assert journal.refresh_figures().watched_since_us == {"b": second}
    clock.advance(1)
    assert journal.refresh_figures(sources=["a", "b"]).watched_since_us == {"a": to_us(clock.now()), "b": second}
    journal.close()


def test_a_clock_that_was_ahead_hides_no_silence(journal: Journal, clock: FakeClock) -> None:
    """F31: what was dated a day ahead counts as heard when the clock came back, no later."""
    clock.jump(DAY_S)
    journal.append([event("e1")])
    journal.refresh_figures(sources=["acme", "mute"])
    clock.jump(-DAY_S)
    back = to_us(clock.now())
    for _ in range(3):
        figures = journal.refresh_figures(sources=["acme", "mute"])
        clock.advance(5)
        assert (figures.last_event_us, figures.watched_since_us) == (
            {"acme": back},
            {"acme": back, "mute": back},
        )
    journal.append([event("e2")])
    assert journal.refresh_figures().last_event_us == {"acme": to_us(clock.now())}


SOURCES = (
    ACME
    + "    expect_every: 2s\n"
    + ACME.replace("  acme:", "  mute:")
    + "    expect_every: 2s\n"
    + ACME.replace("  acme:", "  calm:")
)


def silent(service: Running) -> dict[str, float]:
    """`bridge_source_silent` by source."""
    text = requests.get(f"{service.admin_url}/metrics", timeout=5).text
    return {name: float(value) for name, value in re.findall(r'bridge_source_silent\{source="(\w+)"\} (\S+)', text)}


def heard(service: Running) -> dict[str, float]:
    """`bridge_source_last_event_timestamp_seconds` by source."""
    text = requests.get(f"{service.admin_url}/metrics", timeout=5).text
    found = re.findall(r'bridge_source_last_event_timestamp_seconds\{source="(\w+)"\} (\S+)', text)
    return {name: float(value) for name, value in found}


def goes_on(service: Running) -> bool:
    """Whether acme could send one more event."""
    name = f"e{time.time_ns()}"
    return service.post({"id": name, "client": "c1", "name": name}).status_code == 202


def test_silence_shows_in_status_and_metrics(tmp_path: Path) -> None:
    """Also of a source that never had an event, and after a restart; a source without `expect_every` has none."""
    with running(tmp_path, f"http://127.0.0.1:{free_port()}", sources=SOURCES) as service:
        assert silent(service) == {"acme": 0, "mute": 0}
        assert goes_on(service)
        assert eventually(lambda: "acme" in heard(service))
        assert eventually(lambda: goes_on(service) and silent(service) == {"acme": 0, "mute": 1}, every_s=0.2)
        assert eventually(lambda: silent(service) == {"acme": 1, "mute": 1})
        last = heard(service)
        status = service.status()
        assert {"source acme is silent", "source mute is silent"} <= set(status["degraded"])
        assert {name: source["silent"] for name, source in status["sources"].items()} == {
            "acme": True,
            "mute": True,
            "calm": False,
        }
        assert status["sources"]["mute"]["last_event_at"] is None
        said = service.run("status", "--admin-url", service.admin_url)
        assert said.returncode == 1
        assert "acme is silent" in said.stdout + said.stderr

        service.stop()
        service.start()
        assert heard(service) == last
        assert silent(service) == {"acme": 1, "mute": 1}
        assert goes_on(service)
        assert eventually(lambda: silent(service) == {"acme": 0, "mute": 1}, within_s=1.9)
