"""The CRM side of a benchmark: the sandbox in a process of its own, so that its work is not counted as ours."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import requests

from bridge.cli.serving import sandbox_process
from bridge.sandbox.server import DEFAULT_APPLIED_LIMIT

#: What records are expected to hold, or found to: {record: {property: value}}.
State = Mapping[str, Mapping[str, str]]
#: The limit of a portal without an add-on, and the time that an update takes.
CALLS, PER_S, LATENCY_S = 190, 10.0, 0.3
#: How long nothing may happen before a wait is given up.
STALLED_S = 60.0


@dataclass(frozen=True, slots=True)
class Crm:
    """A running sandbox, seen from outside."""

    url: str

    def state(self, id_property: str = "acme_client_id") -> State:
        """What each record holds."""
        found: dict[str, State] = self._get("state", id_property=id_property)
        return found.get("partner_clients", {})

    def calls(self, *, after: int = 0) -> list[dict[str, Any]]:
        """The update calls, `inputs` as a number; times are seconds on the machine's monotonic clock."""
        found: list[dict[str, Any]] = self._get("calls", after=after, endpoint="update", inputs="false")["calls"]
        return found

    def applied(self, *, after: int = 0) -> Iterator[dict[str, Any]]:
        """Every value that was written, in order, `at` in seconds since the epoch."""
        while True:
            page = self._get("applied", after=after, limit=DEFAULT_APPLIED_LIMIT)["applied"]
            if not page:
                return
            yield from page
            after = page[-1]["seq"]

    def written(self) -> int:
        """How many values were written."""
        return int(self._get("applied", after=1 << 60, limit=1)["last"])

    def behave(self, **changes: Any) -> None:
        """Change the behaviour, `limit` or `daily`."""
        requests.post(f"{self.url}/sandbox/behaviour", json=changes, timeout=10).raise_for_status()

    def declare(self, name: str, kind: str = "string", **more: Any) -> None:
        """Declare a property."""
        body = {"name": name, "type": kind, **more}
        requests.post(f"{self.url}/sandbox/properties", json=body, timeout=10).raise_for_status()

    def fail(self, kind: str | None) -> None:
        """Answer every update with this fault; None: no more."""
        body = {"clear": True, "always": [{"kind": kind}] if kind else []}
        requests.post(f"{self.url}/sandbox/faults", json=body, timeout=10).raise_for_status()

    def wait_written(self, values: int) -> None:
        """Return when so many values were written. Raises AssertionError when nothing happens any more."""
        seen, since = -1, time.monotonic()
        while (now := self.written()) < values:
            if now != seen:
                seen, since = now, time.monotonic()
            assert time.monotonic() - since < STALLED_S, f"{now} of {values} values were written"
            time.sleep(0.1)

    def _get(self, path: str, **query: Any) -> Any:
        answer = requests.get(f"{self.url}/sandbox/{path}", params=query, timeout=120)
        answer.raise_for_status()
        return answer.json()


@contextlib.contextmanager
def sandbox(*, limit: int = 0, latency_s: float = 0.0) -> Iterator[Crm]:
    """A fresh sandbox: `limit` calls in 10 s, 0 for no limit."""
    with sandbox_process("--latency", f"{latency_s:g}s", "--limit", str(limit)) as url:
        yield Crm(url)


def differences(expected: State, found: State) -> list[str]:
    """Records that do not hold exactly the expected properties, each with both states."""
    return [
        f"{record}: {dict(found.get(record, {}))} in place of {dict(expected.get(record, {}))}"
        for record in expected.keys() | found.keys()
        if expected.get(record) != found.get(record)
    ]


def check(expected: State, found: State) -> None:
    """Raise AssertionError unless both are the same, record by record and property by property."""
    wrong = differences(expected, found)
    assert not wrong, f"{len(wrong)} records differ, the first: {wrong[:3]}"


def refusals(calls: list[dict[str, Any]]) -> int:
    """How many calls were answered 429."""
    return sum(call["status"] == 429 for call in calls)


def span_s(calls: list[dict[str, Any]]) -> float:
    """Seconds from the start of the first call to the end of the last."""
    return float(max(call["ended"] for call in calls) - min(call["started"] for call in calls))


def starts_per_s(calls: list[dict[str, Any]]) -> float:
    """The rate at which calls began."""
    starts: list[float] = [call["started"] for call in calls]
    return (len(starts) - 1) / (starts[-1] - starts[0])
