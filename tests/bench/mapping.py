"""`mapping`: what one event costs, for plain paths, `pairs` and filters; against functions written by hand.

Both sides get the parsed body and make the same events, which is checked: id, time, content hash, kept payload and
the properties as HubSpot's strings.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from bridge.config import load
from bridge.intake.mapping import CompiledSource, compile_source
from bridge.intake.payload import to_canonical_json, to_json
from bridge.model import Event, PropertyUpdate, RecordKey
from tests.bench import load as loads
from tests.bench.row import Row, Sample, Size, at_most
from tests.builders import LANE
from tests.running import Running

EVENTS = 100
REPEATS = 100
#: Custom fields of an event, and how many of them are mapped.
FIELDS, MAPPED = 20, 8

_HEAD = loads.SOURCE.partition("    properties:\n")[0]
SOURCES = {
    "plain paths": loads.SOURCE,
    "pairs": _HEAD
    + "    pairs: {in: fields, name: key, value: value, properties: {"
    + ", ".join(f"f{number}: p{number}" for number in range(MAPPED))
    + "}}\n",
    "filters": _HEAD
    + "    properties:\n"
    + "".join(f"      p{number}: \"fields[?key=='f{number}'].value | [0]\"\n" for number in range(MAPPED)),
}
_EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ByHand = Callable[[dict[str, Any]], dict[str, str]]


def rounds(size: Size) -> Iterator[Sample]:
    compiled = {kind: compiled_source(text) for kind, text in SOURCES.items()}
    bodies = {kind: body(kind) for kind in SOURCES}
    while True:
        sample: dict[str, float] = {}
        for kind, source in compiled.items():
            events, by_hand = source.decode(orjson.dumps(bodies[kind])), BY_HAND[kind]
            assert source.map_body(events).events == [written(event, by_hand) for event in events]
            repeats = size.of(REPEATS, least=3)
            ours = seconds(lambda: source.map_body(events), repeats)  # noqa: B023 (called at once)
            hand = seconds(lambda: [written(event, by_hand) for event in events], repeats)  # noqa: B023
            sample |= {
                f"{kind} ÷ by hand": ours / hand,
                f"{kind} µs": ours / EVENTS * 1e6,
                f"{kind} by hand µs": hand / EVENTS * 1e6,
            }
        yield sample


def seconds(act: Callable[[], object], repeats: int) -> float:
    """Seconds that one act takes."""
    began = time.perf_counter()
    for _ in range(repeats):
        act()
    return (time.perf_counter() - began) / repeats


def compiled_source(text: str) -> CompiledSource:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        service = Running(Path(name), "http://127.0.0.1:9", sources=text)
        return compile_source(load(service.config).settings.sources["acme"])


def body(kind: str) -> list[dict[str, object]]:
    events = [loads.payload(number, record=f"c{number}") for number in range(EVENTS)]
    if kind == "plain paths":
        return events
    fields = [{"key": f"f{number}", "value": f"value {number}"} for number in range(FIELDS)]
    return [{name: event[name] for name in ("id", "at", "client")} | {"fields": fields} for event in events]


def written(event: dict[str, Any], properties_of: ByHand) -> Event:
    """What somebody would write who needs this one partner only."""
    update = PropertyUpdate(RecordKey(LANE, str(event["client"])), properties_of(event))
    at_us = microseconds(event["at"])
    values: tuple[list[tuple[str, str]], list[Any]] = (sorted(update.properties.items()), [])
    asked = orjson.dumps([at_us, [(LANE.object_type, LANE.id_property, update.record.id, values)]])
    hashes = hashlib.sha256(to_canonical_json(event)), hashlib.blake2b(asked, digest_size=16)
    return Event(
        source="acme",
        id=str(event["id"]),
        content_hash=f"{hashes[0].hexdigest()}:{hashes[1].hexdigest()}:",
        occurred_at_us=at_us,
        payload=to_json(event),
        updates=(update,),
    )


def microseconds(at: Decimal) -> int:
    return (_EPOCH + timedelta(microseconds=int(at * 1_000_000)) - _EPOCH) // timedelta(microseconds=1)


def plain(event: dict[str, Any]) -> dict[str, str]:
    email = str(event["email"]).strip()
    if not _EMAIL.fullmatch(email):
        raise ValueError(email)
    return {
        "company_name": str(event["name"]),
        "annual_revenue": format(Decimal(event["revenue"]), "f"),
        "tier": str(event["tier"]).strip(),
        "notes": str(event["notes"]),
        "city": str(event["city"]),
        "active": "true" if event["active"] else "false",
        "renewal_date": date.fromisoformat(event["renews"]).isoformat(),
        "contact_email": email,
    }


def custom_fields(event: dict[str, Any]) -> dict[str, str]:
    found = {field["key"]: field["value"] for field in event["fields"]}
    return {f"p{number}": str(found[f"f{number}"]) for number in range(MAPPED)}


BY_HAND: dict[str, ByHand] = {"plain paths": plain, "pairs": custom_fields, "filters": custom_fields}

ROW = Row(
    name="mapping",
    measures="one event of 8 properties, from parsed JSON: plain paths; `pairs` and filters over 20 custom fields",
    against="functions written by hand that make the same event",
    goals=tuple(at_most(f"{kind} ÷ by hand", 3) for kind in SOURCES),
    rounds=rounds,
)
