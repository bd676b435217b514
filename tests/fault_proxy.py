"""A proxy between the service and the sandbox that misbehaves on demand, down to single bytes."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

#: What is done on a connection after a request was read, in place of an answer.
Play = Callable[[socket.socket, threading.Event], None]


@dataclass
class FaultProxy:
    """Hands each request on and its answer back; while `play` is set, that happens instead.

    `context` makes it speak TLS. `heads` are the request heads seen. Threads: one that accepts, and one a
    connection; `play` may be changed at any time.
    """

    upstream: str
    play: Play | None = None
    context: ssl.SSLContext | None = None
    heads: list[str] = field(default_factory=list)
    refused_tls: int = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._stop = threading.Event()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self._listener.close()
        for peer in list(self._open):
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                plain, _ = self._listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        self._open.add(plain)
        with contextlib.suppress(OSError), plain:
            plain.settimeout(60)
            try:
                peer = self.context.wrap_socket(plain, server_side=True) if self.context else plain
            except ssl.SSLError:
                self.refused_tls += 1
                return
            with peer:
                while request := read_message(peer):
                    self.heads.append(request.partition(b"\r\n\r\n")[0].decode("latin-1"))
                    if self.play is not None:
                        self.play(peer, self._stop)
                        break
                    peer.sendall(self._answered(request))
        self._open.discard(plain)

    def _answered(self, request: bytes) -> bytes:
        parts = urlsplit(self.upstream)
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=60) as upstream:
            upstream.sendall(request)
            return read_message(upstream)


def read_message(peer: socket.socket) -> bytes:
    """A request or an answer whose length is told; nothing when the peer has left."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = peer.recv(65_536)
        if not part:
            return b""
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while lengths and len(body) < int(lengths[0]):
        part = peer.recv(65_536)
        if not part:
            return b""
        body += part
    return head + b"\r\n\r\n" + body


# --- plays ---


def sends(answer: bytes) -> Play:
    return lambda peer, _: peer.sendall(answer)


def hangs(peer: socket.socket, stop: threading.Event) -> None:
    """Silence until the other side leaves."""
    peer.settimeout(0.05)
    while not stop.is_set():
        try:
            if not peer.recv(1):
                return
        except TimeoutError:
            continue


def resets(peer: socket.socket, _: threading.Event) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def half_closes(peer: socket.socket, stop: threading.Event) -> None:
    """Says goodbye without an answer, and goes on reading."""
    peer.shutdown(socket.SHUT_WR)
    hangs(peer, stop)


def drips(answer: bytes) -> Play:
    """A byte a second."""

    def play(peer: socket.socket, stop: threading.Event) -> None:
        for byte in answer:
            peer.sendall(bytes([byte]))
            if stop.wait(1):
                return

    return play


def resets_within(answer: bytes) -> Play:
    def play(peer: socket.socket, stop: threading.Event) -> None:
        peer.sendall(answer)
        resets(peer, stop)

    return play


def pours(peer: socket.socket, stop: threading.Event) -> None:
    """A body of spaces that never ends."""
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not stop.is_set():
        peer.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n")


def pours_two_gigabytes(peer: socket.socket, stop: threading.Event) -> None:
    size = 2 * 1024**3
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size)
    for _ in range(size // 65_536):
        if stop.is_set():
            return
        peer.sendall(b" " * 65_536)


@contextlib.contextmanager
def blackhole() -> Iterator[int]:
    """A port on which connections come up never: neither refused nor accepted."""
    waiting = []
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = int(listener.getsockname()[1])
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            waiting.append(client)
        try:
            yield port
        finally:
            for client in waiting:
                client.close()
