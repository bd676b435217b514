"""One source's long backlog delays another's single change by a few calls, whichever record or lane it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.model import Lane
from bridge.sandbox import Crm
from tests.builders import LANE, event
from tests.rig import rigged

SERVICES = Lane("partner_services")
#: Calls that the backlog takes.
BACKLOG, BATCH = 3_000, 50


@pytest.mark.parametrize(
    "record, lane",
    [
        pytest.param("of b alone", LANE, id="a-record-of-its-own"),
        pytest.param(f"c{BACKLOG - 1}", LANE, id="a-record-that-both-have-pending"),
        pytest.param("7", SERVICES, id="another-lane"),
    ],
)
def test_a_single_change_is_delivered_within_a_few_calls_of_anothers_backlog(
    tmp_path: Path, record: str, lane: Lane
) -> None:
    """Counted in calls, so that the machine's speed does not matter; one call at a time."""
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.05
    with rigged(tmp_path, crm, batch_size=BATCH, in_flight=1) as rig:
        rig.journal.append([event(f"a{at}", f"c{at}", {"notes": "of a"}, source="a") for at in range(BACKLOG)])
        rig.dispatcher.notify()
        rig.until(lambda: len(rig.calls()) >= 3)
        before = rig.calls()[-1].seq
        rig.journal.append([event("b", record, {"company_name": "of b"}, source="b", lane=lane)])
        rig.dispatcher.notify()

        def mine() -> list[int]:
            return [one.call for one in crm.ledger.applied() if one.value == "of b"]

        rig.until(lambda: len(mine()) > 0)
        [call] = mine()
        assert call - before <= 5
        assert rig.journal.refresh_figures().pending > BACKLOG / 2  # the backlog lasted
        if record.startswith("c"):  # it took the other's change along
            [sent] = [each for each in rig.calls() if each.seq == call]
            [found] = [each for each in sent.inputs if each.id == record]
            assert found.properties == {"notes": "of a", "company_name": "of b"}
