"""The client of our own: `python -m tests.bench.client FILE URL` sends prepared requests and prints what it met.

Some processes with greenlets, each with a connection that it opens again when it breaks. Each request is sent once,
until they are through or `--seconds` are over; what breaks counts as failed and is not sent again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

import gevent
import orjson
from gevent import socket

TIMEOUT_S = 60.0


@dataclass(slots=True)
class Load:
    """One process's share of the requests, and what came of them; `seconds` is how long it may go on."""

    address: tuple[str, int]
    requests: list[bytes]
    connections: int
    seconds: float
    waits_s: list[float] = field(default_factory=list)
    failed: int = 0
    took_s: float = 0.0

    def run(self) -> Load:
        """Send them."""
        began = time.monotonic()
        left = iter(self.requests)
        senders = [gevent.spawn(self._send, left, began + self.seconds) for _ in range(self.connections)]
        gevent.joinall(senders, raise_error=True)
        self.took_s = time.monotonic() - began
        self.requests = []  # they need not go back
        return self

    def _send(self, requests: Iterator[bytes], deadline: float) -> None:
        """One connection's work."""
        connection = None
        for request in requests:
            began = time.monotonic()
            if began > deadline:
                break
            try:
                connection = connection or socket.create_connection(self.address, timeout=TIMEOUT_S)
                connection.sendall(request)
                status = answer(connection)
            except OSError:
                status, connection = 0, None
            self.failed += not 200 <= status < 300
            self.waits_s.append(time.monotonic() - began)


def answer(connection: socket.socket) -> int:
    """Read one answer to its end; returns its status."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (chunk := connection.recv(65_536)):
            raise ConnectionError
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
    while len(body) < length:
        if not (chunk := connection.recv(65_536)):
            raise ConnectionError
        body += chunk
    return int(head[9:12])


def requests(file: Path, host: str, path: str) -> list[bytes]:
    """The prepared requests as they go over the wire."""
    made = []
    for line in file.read_bytes().splitlines():
        signed, _, body = line.partition(b"\t")
        headers = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
        headers += [pair.replace("=", ": ", 1) for pair in signed.decode().split(";") if pair]
        headers.append(f"Content-Length: {len(body)}")
        made.append("\r\n".join(headers).encode() + b"\r\n\r\n" + body)
    return made


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("file", type=Path)
    options.add_argument("url")
    options.add_argument("--connections", type=int, default=32)
    options.add_argument("--seconds", type=float, default=float("inf"))
    chosen = options.parse_args()
    parts = urlsplit(chosen.url)
    made = requests(chosen.file, parts.netloc, parts.path)
    number = min(max(1, (os.cpu_count() or 1) // 2), chosen.connections)
    address, each = (parts.hostname or "", parts.port or 80), chosen.connections // number
    loads = [Load(address, made[place::number], each, chosen.seconds) for place in range(number)]
    with multiprocessing.get_context("spawn").Pool(number) as pool:
        loads = pool.map(Load.run, loads)
    waits_s = [wait_s for load in loads for wait_s in load.waits_s]
    failed, took_s = sum(load.failed for load in loads), max(load.took_s for load in loads)
    cuts = quantiles(waits_s, n=100) if len(waits_s) > 1 else waits_s * 100
    figures = {
        "answered": len(waits_s),
        "per_s": (len(waits_s) - failed) / took_s,
        "p50_ms": cuts[49] * 1000,
        "p99_ms": cuts[98] * 1000,
        "failed": failed,
    }
    sys.stdout.buffer.write(orjson.dumps(figures))


if __name__ == "__main__":
    main()
