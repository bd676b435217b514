"""An answer on its way to the client: whole, or broken as a broken network breaks it."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

from bridge.sandbox.answers import Answer, Wire

#: `SO_LINGER` on, for 0 s: closing the socket sends a reset instead of a goodbye.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
#: How often a silent or slow answer looks whether its client has left.
LOOK_S = 0.02
#: 64 KiB of spaces as one chunk of a chunked body.
SPACES = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Sender:
    """Sends answers on one connection. `connected` may be asked by any thread, the rest belongs to the
    connection's own. `stopping` cuts short whatever is slow.
    """

    def __init__(self, connection: socket.socket, stopping: threading.Event) -> None:
        self._connection = connection
        self._stopping = stopping

    def connected(self) -> bool:
        """Whether the client has neither closed nor reset the connection."""
        try:
            poll = select.poll()
            poll.register(self._connection, select.POLLRDHUP)
            events = poll.poll(0)
        except (OSError, ValueError):
            return False
        return not any(event & _GONE for _, event in events)

    def send(self, answer: Answer, before_end: Callable[[], None] = lambda: None) -> bool:
        """Put an answer on the wire, as one piece where it is whole, so that no part waits for an ACK.

        `before_end` is called before the last byte leaves: by then the client may already call again.
        Returns whether the connection can serve another request.
        """
        match answer.wire:
            case Wire.PLAIN:
                before_end()
                return self._write(_head(answer, keep=True) + answer.body)
            case Wire.TRUNCATE:
                before_end()
                self._write(_head(answer) + answer.body[: len(answer.body) // 2])
            case Wire.DRIP:
                self._drip(answer, before_end)
            case Wire.ENDLESS:
                self._endless(answer)
                before_end()
                self._reset()
            case Wire.HOLD:
                self._still_there(answer.hold_s)
                before_end()
                self._reset()
            case Wire.RESET:
                before_end()
                self._reset()
        return False

    def _write(self, data: bytes) -> bool:
        try:
            self._connection.sendall(data)
        except OSError:  # the client has left
            return False
        return True

    def _drip(self, answer: Answer, before_end: Callable[[], None]) -> None:
        going = self._write(_head(answer))
        for place in range(len(answer.body)):
            if not going or not self._still_there(answer.pace_s):
                return
            if place == len(answer.body) - 1:
                before_end()
            going = self._write(answer.body[place : place + 1])

    def _endless(self, answer: Answer) -> None:
        first = f"{len(answer.body):x}\r\n".encode() + answer.body + b"\r\n"
        going = self._write(_head(answer, length="Transfer-Encoding: chunked") + first)
        ends = time.monotonic() + answer.hold_s
        while going and time.monotonic() < ends and not self._stopping.is_set():
            going = self._write(SPACES)

    def _still_there(self, seconds: float) -> bool:
        """Wait, but not for a client that has left; True when all the time has passed."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if self._stopping.wait(min(left, LOOK_S)) or not self.connected():
                return False
        return True

    def _reset(self) -> None:
        with suppress(OSError):
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            # Taken from the server, which would say goodbye (FIN) before closing.
            os.close(self._connection.detach())


def _head(answer: Answer, *, keep: bool = False, length: str | None = None) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines.append(length or f"Content-Length: {len(answer.body)}")
    if not keep:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1")
