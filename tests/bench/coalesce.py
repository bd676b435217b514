"""`coalesce`: CRM calls for 100,000 events over 1,000 records, few of which get most of them, at a tight limit.

Ideal: in each window of the limit every record that was asked for anything since it was last sent goes out once, a
hundred to a call. The way of the official SDK is one call for each event; it is counted by the CRM for some of them.
"""

from __future__ import annotations

import math
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.crm import PER_S, Crm, check, sandbox
from tests.bench.load import SOURCE, mapped, payload
from tests.bench.peers import peer_python, script
from tests.bench.row import Row, Sample, Size, at_least, at_most
from tests.running import Running, running

EVENTS, RECORDS, ARRAY, BATCH = 100_000, 1_000, 100, 100
#: Calls of a window: as many as it takes to send each record once.
CALLS = RECORDS // BATCH
#: Windows that the events are spread over. What is left at their end takes one window's calls more.
WINDOWS = 10
#: Events that the SDK's way is tried with.
SDK_EVENTS = 500
#: How the events spread over the records: the exponent of Zipf's law.
SKEW = 1.1


def rounds(size: Size) -> Iterator[Sample]:
    events = size.of(EVENTS, least=2_000)
    windows = WINDOWS * min(1.0, 2 * size.share)
    chance = random.Random(7)
    while True:
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as name,
            sandbox(limit=CALLS) as crm,
            running(Path(name), crm.url, sources=SOURCE, calls=CALLS, flush_interval="500ms") as service,
        ):
            sent = send_all(service, events, windows * PER_S, chance)
            wait_for(crm, sent)
            calls = len(crm.calls())
        sdk = calls_of_sdk(size.of(SDK_EVENTS, least=20))
        yield {
            "calls ÷ ideal": calls / sent.ideal(),
            "the SDK's calls ÷ ours": sdk * events / calls,
            "events per call": events / calls,
            "calls": calls,
        }


@dataclass(slots=True)
class Sent:
    """What the CRM is to hold, and which records were asked for something in which window."""

    wanted: dict[str, dict[str, str]] = field(default_factory=dict)
    windows: dict[int, set[str]] = field(default_factory=dict)

    def ideal(self) -> int:
        return sum(math.ceil(len(records) / BATCH) for records in self.windows.values())


def zipf(number: int, records: int, skew: float, chance: random.Random) -> list[str]:
    """So many records, the first far more often than the last."""
    weights = [1 / rank**skew for rank in range(1, records + 1)]
    return [f"c{at}" for at in chance.choices(range(records), weights, k=number)]


def send_all(
    service: Running, events: int, seconds: float, chance: random.Random, *, records: int = RECORDS, skew: float = SKEW
) -> Sent:
    """Post the events in arrays, evenly over the time."""
    sent = Sent()
    asked = zipf(events, records, skew, chance)
    began = time.monotonic()
    for at in range(0, events, ARRAY):
        time.sleep(max(0.0, began + seconds * at / events - time.monotonic()))
        array = [payload(at + place, record=record) for place, record in enumerate(asked[at : at + ARRAY])]
        for event in array:
            sent.wanted[str(event["client"])] = mapped(event)
            window = int((time.monotonic() - began) / PER_S)
            sent.windows.setdefault(window, set()).add(str(event["client"]))
        answer = service.post(array)
        assert answer.status_code == 202, answer.text
    return sent


def wait_for(crm: Crm, sent: Sent) -> None:
    """Return when the CRM holds everything. Raises AssertionError when it does not within some windows."""
    deadline = time.monotonic() + 4 * PER_S
    while crm.state() != sent.wanted and time.monotonic() < deadline:
        time.sleep(0.5)
    check(sent.wanted, crm.state())


def calls_of_sdk(events: int) -> float:
    """Calls for each event when every one is sent by the official SDK, as the CRM counts them."""
    with sandbox() as crm:
        command = [peer_python(), script("sdk_singles.py"), crm.url, events]
        subprocess.run([str(part) for part in command], check=True, timeout=600)
        return len(crm.calls()) / events


ROW = Row(
    name="coalesce",
    measures="CRM calls for 100,000 events over 1,000 records (Zipf, 1.1) at 10 calls per 10 s",
    against="distinct changed records ÷ 100 in each window; and one call per event through the official SDK",
    goals=(at_most("calls ÷ ideal", 1.1), at_least("the SDK's calls ÷ ours", 100)),
    rounds=rounds,
)
