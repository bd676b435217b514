"""HTTP by the byte: requests that no client library would send, and what exactly came back."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

#: How long one more answer, which should not be there, is waited for.
_MOMENT_S = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """One response as it stood on the wire; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self) -> dict[str, Any]:
        """The problem document that it holds, checked for its members."""
        assert self.headers["content-type"] == "application/problem+json", self
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        assert document["type"].startswith("urn:partner-bridge:problem:")
        assert document["title"]
        assert document["detail"]
        assert document["instance"].startswith("/")
        return document


@dataclass(slots=True)
class Exchange:
    """What a connection brought: its answers, and whether the server closed it."""

    answers: list[Answer] = field(default_factory=list)
    closed: bool = False

    @property
    def only(self) -> Answer:
        """The one answer there was; interim ones do not count."""
        (answer,) = (answer for answer in self.answers if answer.status >= 200)
        return answer


def request(
    method: str = "POST",
    target: str = "/webhooks/open",
    *headers: str,
    body: bytes | None = None,
    host: str | None = "bridge.test",
    version: str = "HTTP/1.1",
) -> bytes:
    """A request with exactly these header lines; a Content-Length only where there is a body."""
    lines = [f"{method} {target} {version}", *([] if host is None else [f"Host: {host}"]), *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(*chunks: bytes) -> bytes:
    """A body in chunks, with its end."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def exchange(
    port: int, *parts: bytes, answers: int = 1, wait_s: float = 5.0, ends: bool = False, head: bool = False
) -> Exchange:
    """Send the parts and read so many answers, and what comes a moment later, or until the server closes.

    An answer that says that the connection is closed is waited upon to be true. `ends`: the sending side is closed
    behind the parts. `head`: the answer to HEAD has no body. A server may answer and close before it has read
    everything.
    """
    data, closed = exchange_bytes(port, *parts, answers=answers, wait_s=wait_s, ends=ends, head=head)
    found, rest = split(data, head=head)
    assert not rest, f"no response: {rest[:200]!r}"
    return Exchange(found, closed)


def exchange_bytes(
    port: int, *parts: bytes, answers: int = 1, wait_s: float = 5.0, ends: bool = False, head: bool = False
) -> tuple[bytes, bool]:
    """The same with the bytes that came, whatever they are, and whether the server closed the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        data = b""
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            found, rest = split(data, head=head)
            complete = len(statuses(found)) >= answers and not rest and found[-1].headers.get("connection") != "close"
            connection.settimeout(_MOMENT_S if complete else max(deadline - time.monotonic(), 0.001))
            try:
                part = connection.recv(65_536)
            except TimeoutError:
                return data, False
            except ConnectionError:
                return data, True
            if not part:
                return data, True
            data += part
        return data, False


def split(data: bytes, *, head: bool = False) -> tuple[list[Answer], bytes]:
    """The responses in the bytes, and what is left of them."""
    answers: list[Answer] = []
    while data.startswith(b"HTTP/1.") and b"\r\n\r\n" in data:
        text, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = text.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if head else int(headers.get("content-length", 0))
        if "transfer-encoding" in headers:  # proxies answer in chunks; nobody here looks into those
            body, _, rest = rest.partition(b"0\r\n\r\n")
        elif len(rest) < length:
            return answers, data
        else:
            body, rest = rest[:length], rest[length:]
        answers.append(Answer(int(first.split()[1]), headers, body))
        data = rest
    return answers, data


def statuses(answers: Iterable[Answer]) -> list[int]:
    """The final statuses among the answers."""
    return [answer.status for answer in answers if answer.status >= 200]
