"""Load for the benchmarks: pre-signed webhooks through wrk, so that the client's own work is small."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import orjson

from bridge.intake.signatures import sign
from bridge.settings import Verify

#: Each wrk thread reads its own slice of the prepared requests and sends each once.
_LUA = """
local counter = 0
function setup(thread) thread:set("number", counter); counter = counter + 1 end
function init(args)
  requests = {{}}
  for line in io.lines("{folder}/requests-" .. number .. ".txt") do
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


@dataclass(frozen=True, slots=True)
class Figures:
    """What wrk measured; latencies in milliseconds."""

    per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def event(number: int, *, records: int) -> dict[str, object]:
    """One event with 8 properties."""
    return {
        "id": f"evt_{number}",
        "type": "client.updated",
        "at": time.time(),
        "client": f"c{number % records}",
        "name": f"Company {number}",
        "revenue": number % 100_000,
        "tier": ("gold", "silver", "bronze")[number % 3],
        "notes": f"note {number}",
        "city": "Lugo",
        "active": number % 2 == 0,
        "renews": "2026-12-31",
        "email": f"person{number}@example.com",
    }


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


def prepare(
    folder: Path, verify: Verify, *, url: str, number: int, threads: int, records: int, array: int = 1, first: int = 0
) -> None:
    """Write signed requests for each wrk thread."""
    at = first
    for thread in range(threads):
        with (folder / f"requests-{thread}.txt").open("wb") as out:
            for _ in range(number // threads):
                events = [event(at + place, records=records) for place in range(array)]
                body = orjson.dumps(events[0] if array == 1 else events)
                headers = sign(verify, body=body, url=url, now=time.time(), delivery_id=f"msg_{at}")
                at += array
                line = "".join(f"{name}={value};" for name, value in headers.items())
                out.write(line.encode() + b"\t" + body + b"\n")


def run_wrk(folder: Path, base_url: str, path: str, *, connections: int, seconds: float, threads: int = 1) -> Figures:
    """Send the prepared requests for some seconds."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("wrk is not installed")
    script = folder / "load.lua"
    script.write_text(_LUA.format(folder=folder, path=path), encoding="utf-8")
    out = subprocess.run(
        [wrk, "-t", str(threads), "-c", str(connections), "-d", f"{seconds:g}s", "--latency", "--timeout", "10s",
         "-s", str(script), base_url],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    ).stdout  # fmt: skip
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", out)))
    failed += sum(map(int, re.findall(r"timeout (\d+)", out)))
    return Figures(
        per_s=float(re.findall(r"Requests/sec:\s+([\d.]+)", out)[0]),
        p50_ms=_ms(re.findall(r"50%\s+([\d.]+\w+)", out)[0]),
        p99_ms=_ms(re.findall(r"99%\s+([\d.]+\w+)", out)[0]),
        failed=failed,
    )


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]  # wrk's own format
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]
