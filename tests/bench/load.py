"""Load for the benchmarks: webhooks signed before, sent by wrk or by the client of our own, in a process beside us."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import orjson

from bridge.intake.signatures import sign
from bridge.settings import Secret, Verify
from tests.bench.processes import module

#: wrk sends the prepared requests in turn.
_LUA = """
function init(args)
  requests = {{}}
  for line in io.lines("{file}") do
    local split = line:find("\\t")
    local headers = {{["Content-Type"] = "application/json"}}
    for name, value in line:sub(1, split - 1):gmatch("([^=]+)=([^;]+);") do headers[name] = value end
    requests[#requests + 1] = wrk.format("POST", "{path}", headers, line:sub(split + 1))
  end
  at = 0
end
function request()
  at = at % #requests + 1
  return requests[at]
end
"""

#: More requests a second than any side answers here: those prepared for a time must not run out.
MOST_PER_S = 12_000

#: One partner: eight properties of six types.
SOURCE = """\
  acme:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}], tolerance: 1h}
    event_id: id
    occurred_at: at
    record: {id: client, id_property: acme_client_id}
    properties:
      company_name: name
      annual_revenue: {from: revenue, type: number}
      tier: {from: tier, type: enumeration}
      notes: notes
      city: city
      active: {from: active, type: bool}
      renewal_date: {from: renews, type: date}
      contact_email: {from: email, format: email}
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load met; latencies in milliseconds. `failed` are time-outs and answers that are not 2xx."""

    answered: int
    per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def payload(number: int, *, record: str) -> dict[str, object]:
    """One event with 8 properties."""
    return {
        "id": f"evt_{number}",
        "type": "client.updated",
        "at": time.time(),
        "client": record,
        "name": f"Company {number}",
        "revenue": number % 100_000,
        "tier": ("gold", "silver", "bronze")[number % 3],
        "notes": f"note {number}",
        "city": "Lugo",
        "active": number % 2 == 0,
        "renews": "2026-12-31",
        "email": f"person{number}@example.com",
    }


def mapped(event: dict[str, object]) -> dict[str, str]:
    """What the CRM holds once a payload's values are there."""
    return {
        "company_name": str(event["name"]),
        "annual_revenue": str(event["revenue"]),
        "tier": str(event["tier"]),
        "notes": str(event["notes"]),
        "city": str(event["city"]),
        "active": "true" if event["active"] else "false",
        "renewal_date": str(event["renews"]),
        "contact_email": str(event["email"]),
    }


def secret(folder: Path) -> Verify:
    """How the service in that folder verifies."""
    return Verify("standard-webhooks", (Secret(file=folder / "acme.secret"),))


@dataclass(slots=True)
class Prepared:
    """Signed requests in a file, one a line: headers, a tab, the body."""

    file: Path
    requests: int = 0

    def add(self, verify: Verify, bodies: list[bytes]) -> None:
        """Sign these bodies and write them."""
        with self.file.open("ab") as out:
            for body in bodies:
                headers = sign(verify, body=body, url="", now=time.time(), delivery_id=f"msg_{time.time_ns()}")
                line = "".join(f"{name}={value};" for name, value in headers.items())
                out.write(line.encode() + b"\t" + body + b"\n")
        self.requests += len(bodies)


def prepare(
    folder: Path, *, number: int, records: int = 10_000, array: int = 1, first: int = 0, name: str = "requests"
) -> Prepared:
    """Signed requests of `array` events each, whose ids are counted from `first`; records come in turn."""
    prepared = Prepared(folder / f"{name}.txt")
    prepared.file.unlink(missing_ok=True)
    bodies = []
    for at in range(first, first + number * array, array):
        events = [payload(at + place, record=f"c{(at + place) % records}") for place in range(array)]
        bodies.append(orjson.dumps(events[0] if array == 1 else events))
    prepared.add(secret(folder), bodies)
    return prepared


def send(prepared: Prepared, url: str, *, connections: int, seconds: float) -> Figures:
    """Send the prepared requests for some seconds, each connection one after the other."""
    if shutil.which("wrk"):
        return _wrk(prepared, url, connections, seconds)
    return _client(prepared, url, "--connections", connections, "--seconds", seconds)


def send_each(prepared: Prepared, url: str, *, connections: int) -> Figures:
    """Send each prepared request once."""
    return _client(prepared, url, "--connections", connections)


def _client(prepared: Prepared, url: str, *options: object) -> Figures:
    command = module("tests.bench.client", prepared.file, url, *options)
    return Figures(**orjson.loads(subprocess.run(command, capture_output=True, check=True, timeout=3600).stdout))


def _wrk(prepared: Prepared, url: str, connections: int, seconds: float) -> Figures:
    base, _, path = url.partition("/webhooks")
    script = prepared.file.with_suffix(".lua")
    script.write_text(_LUA.format(file=prepared.file, path=f"/webhooks{path}"), encoding="utf-8")
    out = subprocess.run(
        ["wrk", "-t", "1", "-c", str(connections), "-d", f"{max(1.0, seconds):.0f}s", "--latency", "--timeout", "10s",
         "-s", str(script), base],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    ).stdout  # fmt: skip
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", out)))
    failed += sum(sum(map(int, found)) for found in re.findall(r"connect (\d+), read (\d+), .* timeout (\d+)", out))
    return Figures(
        answered=int(re.findall(r"(\d+) requests in", out)[0]),
        per_s=float(re.findall(r"Requests/sec:\s+([\d.]+)", out)[0]),
        p50_ms=_ms(re.findall(r"50%\s+([\d.]+\w+)", out)[0]),
        p99_ms=_ms(re.findall(r"99%\s+([\d.]+\w+)", out)[0]),
        failed=failed,
    )


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]  # wrk's own format
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[unit]
