"""A TCP proxy between the service and its database that cuts, stalls, refuses and slows down on demand."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Self

#: How soon a connection notices what it is told.
LOOK_S = 0.02
CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Cut:
    """When to cut a connection: it sent `within` since its last BEGIN, and now sends `at`.

    `forwarded`: the database still gets that, and only its answer is lost.
    """

    within: bytes
    at: bytes = b"COMMIT"
    forwarded: bool = False


class TcpProxy:
    """Hands bytes on between clients and one upstream port.

    Attributes may be changed at any time: `stalled` hands nothing on, `delay_s` waits before each piece. Threads: one
    that accepts, and one a connection; `_mutex` guards `_cuts`.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.stalled = False
        self.delay_s = 0.0
        self.refusing = False
        self.connections = 0
        self.cut_short: list[Cut] = []
        self._cuts: list[Cut] = []
        self._mutex = threading.Lock()
        self._age = 0  # connections of an earlier age are reset
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="tcp-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._stopping.set()
        self._thread.join(5)

    def cut(self) -> None:
        """Reset every connection that is open now."""
        self._age += 1

    def cut_at(self, cut: Cut, *, times: int = 1) -> None:
        """Reset the next `times` connections that come to this point; `cut_short` tells which did."""
        with self._mutex:
            self._cuts += [cut] * times

    # --- threads ---

    def _accept(self) -> None:
        while not self._stopping.is_set():
            if self.refusing:
                if self._listener is not None:
                    self._listener.close()
                    self._listener = None
                self._stopping.wait(LOOK_S)
                continue
            if self._listener is None:
                self._listener = socket.create_server(("127.0.0.1", self.port))
            if select.select([self._listener], [], [], LOOK_S)[0]:
                client, _ = self._listener.accept()
                self._take(client, self._age)
        if self._listener is not None:
            self._listener.close()

    def _take(self, client: socket.socket, age: int) -> None:
        if self.refusing:  # since the wait for it began
            reset(client)
            return
        self.connections += 1
        threading.Thread(target=self._serve, args=(client, age), daemon=True).start()

    def _serve(self, client: socket.socket, age: int) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream), timeout=10)
            except OSError:
                reset(client)
                return
            with server, contextlib.suppress(OSError):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._hand_on(client, server, age)
            reset(client)

    def _hand_on(self, client: socket.socket, server: socket.socket, age: int) -> None:
        said = b""  # by the client since its last BEGIN
        while age == self._age:
            ready = [] if self.stalled else select.select([client, server], [], [], LOOK_S)[0]
            if self.stalled:
                time.sleep(LOOK_S)
            for peer in ready:
                data = peer.recv(CHUNK)
                if not data:
                    return
                if self.delay_s:
                    time.sleep(self.delay_s)
                if peer is server:
                    client.sendall(data)
                    continue
                said = (said + data)[-4 * CHUNK :]
                said = said[max(0, said.rfind(b"BEGIN")) :]
                cut = self._reached(said, data)
                if cut is None or cut.forwarded:
                    server.sendall(data)
                if cut is not None:
                    if cut.forwarded:
                        server.recv(CHUNK)  # the database has done it
                    return

    def _reached(self, said: bytes, data: bytes) -> Cut | None:
        with self._mutex:
            for cut in self._cuts:
                if cut.within in said and cut.at in data:
                    self._cuts.remove(cut)
                    self.cut_short.append(cut)
                    return cut
        return None


def reset(peer: socket.socket) -> None:
    """Close with RST: what a machine that vanished, or a load balancer that gave up, answers with."""
    with contextlib.suppress(OSError):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
