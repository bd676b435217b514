"""`large`: memory while records with the longest values that a property takes wait, and while they are delivered.

The memory is that of all processes of the service together, and the most that was seen at any time. Values of an
ordinary length go the same way beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.bench.crm import CALLS, Crm, sandbox
from tests.bench.row import Row, Sample, Size, at_most, never_over
from tests.memory import watched
from tests.running import Running

#: Records that wait, and characters of the longest value.
RECORDS, LONGEST = 200, 65_536
EMOJI = "\N{GRINNING FACE}" * LONGEST
#: The properties of a record.
NAMES = ("first", "second", "third")
SOURCE = """\
  acme:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: {first: first, second: second, third: third}
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What was seen of one delivery."""

    peak_mb: float
    pauses: int
    calls: int
    took_s: float


def delivered(folder: Path, crm: Crm, *, records: int, text: str, journal_url: str = "") -> Found:
    """Let so many records with this text in every property wait, then deliver them. Raises AssertionError unless the
    CRM holds them all.
    """
    service = Running(folder, crm.url, sources=SOURCE, calls=CALLS, journal_url=journal_url)
    try:
        service.start()
        with watched(service.pids) as seen, requests.Session() as session:
            assert service.run("pause", "--reason", "until all wait").returncode == 0
            for number in range(records):
                event = {"id": f"e{number}", "client": f"c{number}", **dict.fromkeys(NAMES, text)}
                assert service.post(event, session=session).status_code == 202
            assert crm.written() == 0
            began = time.monotonic()
            assert service.run("resume").returncode == 0
            crm.wait_written(records * len(NAMES))
            took_s = time.monotonic() - began
    finally:
        service.stop()
    held = crm.state()
    assert held.keys() == {f"c{number}" for number in range(records)}
    assert all(record == dict.fromkeys(NAMES, text) for record in held.values())
    pauses = service.log.read_text(encoding="utf-8").count('"delivery paused"')
    return Found(seen.peak_mb, pauses - 1, len(crm.calls()), took_s)  # without the one that is ours


def rounds(size: Size) -> Iterator[Sample]:
    records = size.of(RECORDS, least=10)
    while True:
        found = {}
        for text in (EMOJI, "small"):
            with tempfile.TemporaryDirectory(prefix="bench-") as name, sandbox() as crm:
                found[text] = delivered(Path(name), crm, records=records, text=text)
        large, small = found[EMOJI], found["small"]
        yield {
            "MB in all": large.peak_mb,
            "MB more than small values": large.peak_mb - small.peak_mb,
            "pauses": large.pauses,
            "calls": large.calls,
            "MB/s delivered": records * len(NAMES) * len(EMOJI.encode()) / 1e6 / large.took_s,
        }


ROW = Row(
    name="large",
    measures="memory with 200 records of three values of 65,536 emoji waiting and delivered",
    against="the same with small values",
    goals=(at_most("MB in all", 320), never_over("pauses", 0)),
    rounds=rounds,
)
