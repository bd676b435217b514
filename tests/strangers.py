"""Strangers: clients that send the beginnings of requests, never an end, and come back when they are hung up on."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import threading
import time
from typing import Self

from tests.raw_http import request

#: Open files that this process needs beside its strangers.
OWN_FILES = 200
#: How often it is looked at who was hung up on.
TICK_S = 0.02

JSON = "Content-Type: application/json"
#: A whole head, and one byte of the body.
ONE_BYTE = request("POST", "/webhooks/acme", JSON, "Content-Length: 5000") + b"{"
#: A head that has no end.
HEAD = request("POST", "/webhooks/acme", JSON)[:-2] + b"X-Slow: "
#: A body of a mebibyte, but for its last byte.
LARGE = request("POST", "/webhooks/acme", JSON, f"Content-Length: {1 << 20}") + b" " * ((1 << 20) - 1)


class Strangers:
    """So many of them on one port, each with the same beginning; one thread.

    Those that were hung up on come back, as many a second as `bytes_per_s` allows.
    """

    def __init__(
        self, port: int, beginning: bytes, number: int, *, bytes_per_s: int = 50_000, host: str = "127.0.0.1"
    ) -> None:
        self._address, self._beginning, self._number = (host, port), beginning, number
        self._every_s = len(beginning) / bytes_per_s
        self._selector = selectors.DefaultSelector()
        self._left: dict[socket.socket, bytes] = {}  # what is yet to be sent
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="strangers", daemon=True)
        self.came = 0
        self.hung_up_on = 0

    def __enter__(self) -> Self:
        _allow_files(self._number + OWN_FILES)
        for _ in range(self._number):
            self._come()
            self._look(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        for client in list(self._left):
            self._go(client)
        self._selector.close()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self._look(TICK_S)
            due = max(due, time.monotonic() - 1.0)
            while len(self._left) < self._number and due <= time.monotonic():
                self._come()
                due += self._every_s

    def _come(self) -> None:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        client = socket.socket(family)
        client.setblocking(False)
        client.connect_ex(self._address)
        self._left[client] = self._beginning
        self._selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE)
        self.came += 1

    def _look(self, wait_s: float) -> None:
        for key, events in self._selector.select(wait_s):
            client = key.fileobj
            assert isinstance(client, socket.socket)
            try:
                if events & selectors.EVENT_READ and not client.recv(65_536):
                    raise ConnectionResetError
                if events & selectors.EVENT_WRITE:
                    self._left[client] = self._left[client][client.send(self._left[client]) :]
                    if not self._left[client]:
                        self._selector.modify(client, selectors.EVENT_READ)
            except BlockingIOError:
                continue
            except OSError:
                self._go(client)
                self.hung_up_on += 1

    def _go(self, client: socket.socket) -> None:
        del self._left[client]
        with contextlib.suppress(KeyError):
            self._selector.unregister(client)
        client.close()


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
