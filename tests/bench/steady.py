"""Webhooks at a steady rate, whatever the service does.

A wait counts from the moment at which a request was to be sent: a service that stands still for a second makes all
of that second's requests late, not only one.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles

import orjson

from bridge.intake.signatures import sign
from tests.bench.load import payload, secret
from tests.running import Running

#: How many requests may be on their way at once: at 50 a second enough for answers that take 2 s.
SENDERS = 100


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: its record, its wait, when it was answered (seconds since the epoch) and how (0: not at all)."""

    record: str
    wait_ms: float
    at: float
    status: int


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent do not exceed."""
    return quantiles(values, n=100)[percent - 1] if len(values) > 1 else values[0]


def send_steadily(
    service: Running,
    *,
    name: str,
    per_s: float,
    seconds: float,
    senders: int = SENDERS,
    record: Callable[[int], str] = lambda _: "c0",
    source: str = "acme",
) -> list[Answered]:
    """Send single webhooks to the service, each when its time has come; `name` makes their ids their own."""
    verify = secret(service.folder)
    made = []
    for number in range(round(per_s * seconds)):
        body = orjson.dumps({**payload(number, record=record(number)), "id": f"{name}-{number}"})
        signed = sign(verify, body=body, url="", now=time.time(), delivery_id=f"{name}-{number}")
        made.append((record(number), body, {"Content-Type": "application/json", **signed}))
    answers: list[Answered] = []
    lock = threading.Lock()  # guards `numbers` and `answers`
    numbers = iter(range(len(made)))
    start = time.monotonic() + 0.1

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            due = start + number / per_s
            time.sleep(max(0.0, due - time.monotonic()))
            asked, body, headers = made[number]
            try:
                connection.request("POST", f"/webhooks/{source}", body, headers)
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            answered = Answered(asked, (time.monotonic() - due) * 1000, time.time(), status)
            with lock:
                answers.append(answered)
        connection.close()

    threads = [threading.Thread(target=run, name=f"sender {number}") for number in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers
