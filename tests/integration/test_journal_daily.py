"""The journal's count of the day's calls, which the daily budget begins with after a restart."""

from __future__ import annotations

from bridge.journal.store import Journal
from bridge.model import Call, Lane, to_us
from bridge.settings import Journal as JournalSettings
from tests.fakes import FakeClock

NOON = 20_000 * 86_400 + 43_200.0


def test_retention_keeps_todays_calls(journal_url: str) -> None:
    """Also where `retention` is shorter than a day."""
    clock = FakeClock(NOON)
    journal = Journal(settings=JournalSettings(url=journal_url, retention_s=3_600), clock=clock)
    midnight_us = to_us(NOON - 43_200)
    for hours in (13, 11, 2):
        began_us = to_us(NOON - hours * 3_600)
        call = Call(Lane("partner_clients"), began_us, 0.1, 200, None, records=1)
        journal.settle([], [], call=call, doubtful=False)
    assert journal.calls_since(midnight_us) == 2
    assert journal.calls_since(0) == 3
    journal.prune()
    assert journal.calls_since(0) == 2
    clock.advance(86_400)
    journal.prune()
    assert journal.calls_since(0) == 0
    journal.close()
