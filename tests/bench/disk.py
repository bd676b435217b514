"""`disk`: what an event and a record take in the journal, for as long as they are kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson

from bridge.config import load
from bridge.intake.mapping import CompiledSource, compile_source
from bridge.journal import versions
from bridge.model import Event
from tests.bench.load import SOURCE, payload
from tests.bench.row import Row, Sample, Size
from tests.running import Running

EVENTS, RECORDS, STEP = 50_000, 10_000, 1_000
DAYS, A_DAY, CLIENTS = 7, 1_000_000, 100_000


def rounds(size: Size) -> Iterator[Sample]:
    """A journal of as many events as records, and one with more events for the same records."""
    records = size.of(RECORDS, least=STEP)
    events = size.of(EVENTS, least=5 * STEP)
    while True:
        few, many = journal_bytes(records, records), journal_bytes(events, records)
        event = (many - few) / (events - records)
        record = few / records - event
        yield {
            "bytes per event": event,
            "bytes per record": record,
            "GB for 7 days of 10⁶ events, 100,000 records": (DAYS * A_DAY * event + CLIENTS * record) / 1e9,
        }


def journal_bytes(events: int, records: int) -> int:
    """Bytes of a journal after so many events of 8 properties over so many records."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        service = Running(Path(name), "http://127.0.0.1:9", sources=SOURCE)
        source = compile_source(load(service.config).settings.sources["acme"])
        versions.prepare(f"sqlite:///{name}/journal.db")
        with service.journal() as journal:
            for at in range(0, events, STEP):
                journal.append(_events(source, at, min(at + STEP, events), records))
        return sum(file.stat().st_size for file in Path(name).glob("journal.db"))


def _events(source: CompiledSource, start: int, end: int, records: int) -> list[Event]:
    bodies = [payload(number, record=f"c{number % records}") for number in range(start, end)]
    return source.map_body(source.decode(orjson.dumps(bodies))).events


ROW = Row(
    name="disk",
    measures="bytes of the journal per event and per record at the default retention, payloads of 240 bytes",
    against="–",
    goals=(),
    rounds=rounds,
)
