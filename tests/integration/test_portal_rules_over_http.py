"""`crm.validate: portal` against a CRM that answers 400 and never says which input is bad."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.journal.event_log import Remapped
from bridge.journal.retry_log import Filter
from bridge.model import PropertyUpdate, RecordKey
from bridge.sandbox import Crm
from tests.builders import LANE
from tests.rig import Rig, rigged


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    crm = Crm(open_properties=False)
    crm.behaviour.multi_status, crm.behaviour.naming = False, "none"
    with rigged(tmp_path, crm, validates=True) as rig:
        yield rig


def errors(rig: Rig) -> int:
    return sum(call.status not in (200, 207) for call in rig.calls())


def test_bad_values_cost_no_refused_call(rig: Rig) -> None:
    """One in a hundred is no option: the good ones arrive, the bad ones wait with the reason, no call is refused."""
    rig.ask_all({f"c{at}": {"tier": "gold" if at % 100 else "platinum", "company_name": "A"} for at in range(1_000)})
    rig.until(rig.idle, within_s=60)
    assert errors(rig) == 0
    assert rig.held()["c1"] == {"tier": "gold", "company_name": "A"}
    assert rig.held()["c100"] == {"company_name": "A"}
    assert len(rig.parked()) == 10
    assert all("platinum was not one of the allowed options" in entry.message for entry in rig.parked().values())


def test_an_option_that_is_added_and_replayed_is_sent_at_once(rig: Rig) -> None:
    """Who mends the portal and replays need not wait."""
    rig.ask("c1", {"tier": "platinum"})
    rig.until(lambda: len(rig.parked()) == 1)
    rig.crm.define("partner_clients", "tier", "enumeration", options=("gold", "platinum"))
    remapped = Remapped((PropertyUpdate(RecordKey(LANE, "c1"), {"tier": "platinum"}),))
    rig.journal.replay(rig.journal.entries(Filter()), lambda _: remapped)
    rig.until(lambda: rig.held().get("c1") == {"tier": "platinum"} and rig.idle())  # the answer comes after the value
    assert errors(rig) == 0
    assert rig.parked() == {}


def test_a_property_that_becomes_read_only_costs_one_refused_search_at_most(rig: Rig) -> None:
    """Until the definitions are read again, HubSpot tells it; nothing else is refused for it."""
    rig.ask("c1", {"notes": "first"})
    rig.until(lambda: "c1" in rig.held())
    rig.crm.define("partner_clients", "notes", read_only=True)
    rig.clock.ahead_s += 700
    rig.ask_all({f"c{at}": {"notes": "second", "company_name": "A"} for at in range(2, 50)})
    rig.until(rig.idle, within_s=60)
    assert errors(rig) == 0
    assert {rig.held()[f"c{at}"]["company_name"] for at in range(2, 50)} == {"A"}
    assert len(rig.parked()) == 48


def test_who_takes_over_counts_in_what_was_read(rig: Rig) -> None:
    """A reading is a call to the rate limit, though it stands in no list of calls."""
    rig.ask("c1", {"tier": "gold"})
    rig.until(lambda: "c1" in rig.held() and rig.idle())
    read, updates = (len(rig.crm.ledger.calls(endpoint)) for endpoint in ("properties", "update"))
    assert (read, updates) == (1, 1)
    assert len(rig.journal.call_starts(0)) == 2
    assert rig.journal.calls_since(0) == 1
