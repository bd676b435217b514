"""`job`: the whole of it, until what the CRM holds is what it should hold, record by record and property by property.

Signed webhooks over a tenth as many records; of the records 1 % are unknown to the CRM, of the events 0.5 % have a
value that it refuses. Against Celery with one SDK call for each event, measured on fewer events because at the limit
its time grows with them; and against Celery with batches of 100, which knows neither isolation nor merging and so
never gets there: of it the share of records that are right in the end.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import requests

from tests.bench.crm import CALLS, LATENCY_S, Crm, State, differences, sandbox
from tests.bench.load import SOURCE, Prepared, mapped, payload, secret, send_each
from tests.bench.peers import celery
from tests.bench.row import Row, Sample, Size, at_least
from tests.running import running

WEBHOOKS, CONNECTIONS = 20_000, 32
#: Of one call each so many are tried.
SINGLES = 1_000
UNKNOWN, INVALID = 0.01, 0.005
#: How long the bridge may take until all is right.
PATIENCE_S = 300.0
#: A peer is through when the CRM has written nothing for so long.
QUIET_S = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """Events, and what the CRM holds once each has had its effect. `open_tier` are the records whose newest tier is
    refused: the bridge sends no older one in its place, so what the CRM holds depends on what it had before.
    """

    events: list[dict[str, object]]
    wanted: State
    open_tier: frozenset[str]

    def wrong(self, found: State) -> list[str]:
        """The records that do not hold what they should."""
        return differences(self._comparable(self.wanted), self._comparable(found))

    def _comparable(self, state: State) -> State:
        return {
            record: {name: value for name, value in values.items() if name != "tier" or record not in self.open_tier}
            for record, values in state.items()
        }


def rounds(size: Size) -> Iterator[Sample]:
    webhooks = size.of(WEBHOOKS, least=500)
    chance = random.Random(11)
    while True:
        job, small = make(webhooks, chance), make(size.of(SINGLES, least=100), chance)
        ours = bridge_s(job)
        single_s, single_right = celery_s(small, "single")
        batch_s, batch_right = celery_s(job, "batch")
        yield {
            "× faster than one call each": single_s * len(job.events) / len(small.events) / ours,
            "s": ours,
            "one call each, s for as many": single_s * len(job.events) / len(small.events),
            "one call each, % of records right": single_right,
            "batches, s": batch_s,
            "batches, % of records right": batch_right,
        }


def make(webhooks: int, chance: random.Random) -> Job:
    """The events in their order, dated a millisecond apart."""
    records = webhooks // 10
    names = [f"unknown-{at}" if at < records * UNKNOWN else f"c{at}" for at in range(records)]
    began = time.time() - webhooks / 1000
    events: list[dict[str, object]] = []
    wanted: dict[str, dict[str, str]] = {}
    open_tier: set[str] = set()
    for number in range(webhooks):
        record = chance.choice(names)
        event = {**payload(number, record=record), "at": round(began + number / 1000, 3)}
        open_tier.discard(record)
        if chance.random() < INVALID:
            event["tier"] = "platinum"
            open_tier.add(record)
        events.append(event)
        if not record.startswith("unknown"):
            wanted[record] = mapped(event)
    return Job(events, wanted, frozenset(open_tier))


def bridge_s(job: Job) -> float:
    """Seconds from the first webhook until the CRM holds what it should."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        portal() as crm,
        running(Path(name), crm.url, sources=SOURCE, calls=CALLS, flush_interval="500ms", workers=2) as service,
    ):
        prepared = prepared_for(job, Path(name))
        began = time.monotonic()
        figures = send_each(prepared, f"{service.url}/webhooks/acme", connections=CONNECTIONS)
        assert figures.failed == 0, figures
        wrong = job.wrong(crm.state())
        while wrong and time.monotonic() - began < PATIENCE_S:
            time.sleep(0.25)
            wrong = job.wrong(crm.state())
        took_s = time.monotonic() - began
        assert not wrong, f"{len(wrong)} records are wrong, the first: {wrong[:3]}"
        return took_s


def celery_s(job: Job, way: str) -> tuple[float, float]:
    """Seconds from the first webhook to the end of the last call, and the share of records that are right, in %."""
    with portal() as crm, celery(crm.url, way=way) as peer:
        prepared = prepared_for(job, peer.folder)
        began = time.monotonic()
        figures = send_each(prepared, peer.url, connections=CONNECTIONS)
        assert figures.failed == 0, figures
        wait_until_quiet(crm)
        if way == "batch":
            requests.post(peer.flush_url, timeout=10).raise_for_status()
            wait_until_quiet(crm)
        ended = max(call["ended"] for call in crm.calls())
        return ended - began, 100 * (1 - len(job.wrong(crm.state())) / len(job.wanted))


@contextlib.contextmanager
def portal() -> Iterator[Crm]:
    """A CRM at its limit of calls, which takes three tiers only."""
    with sandbox(limit=CALLS, latency_s=LATENCY_S) as crm:
        crm.declare("tier", "enumeration", options=["gold", "silver", "bronze"])
        yield crm


def prepared_for(job: Job, folder: Path) -> Prepared:
    prepared = Prepared(folder / "job.txt")
    prepared.add(secret(folder), [orjson.dumps(event) for event in job.events])
    return prepared


def wait_until_quiet(crm: Crm) -> None:
    """Return when nothing was called for a while; a queue tries again after a second."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < QUIET_S:
        if (now := len(crm.calls())) != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.5)


ROW = Row(
    name="job",
    measures="20,000 signed webhooks over 2,000 records at 190 calls per 10 s, 300 ms each; 1 % of the records "
    "unknown, 0.5 % of the values refused: time until the CRM holds what it should",
    against="Celery with the official SDK, one call each; Celery with batches of 100",
    goals=(at_least("× faster than one call each", 50),),
    rounds=rounds,
)
