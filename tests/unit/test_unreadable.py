"""What is answered where the HTTP parser refuses: a problem that repeats nothing, and the end of the connection."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import errors

from bridge.http.problems import AnswersUnreadable, answer_to
from bridge.server.port import Parser
from tests.raw_http import split

SAID = "what the sender wrote"


class Told:
    """The service as the server sees it."""

    def __init__(self) -> None:
        self.refusals: list[tuple[int, str, str]] = []

    def unreadable(self, code: int, error: str, address: str) -> None:
        self.refusals.append((code, error, address))


@pytest.mark.parametrize(
    "error, status",
    [
        (errors.InvalidRequestLine(SAID), 400),
        (errors.InvalidRequestMethod(SAID), 400),
        (errors.InvalidHTTPVersion(SAID), 400),
        (errors.InvalidHeader(SAID), 400),
        (errors.InvalidHeaderName(SAID), 400),
        (errors.ObsoleteFolding(SAID), 400),
        (errors.InvalidSchemeHeaders(), 400),
        (errors.InvalidChunkSize(SAID), 400),
        (errors.InvalidProxyLine(SAID), 400),
        (errors.LimitRequestLine(5000, 4094), 414),
        (errors.ExpectationFailed(SAID), 417),
        (errors.LimitRequestHeaders(SAID), 431),
        (errors.UnsupportedTransferCoding(SAID), 501),
        (errors.ConfigurationProblem(SAID), 500),
        (errors.InvalidResponseHeader(SAID), 500),
        (errors.InvalidResponseHeaderName(SAID), 500),
        (ZeroDivisionError(SAID), 500),
        (SystemExit(SAID), 500),
    ],
)
def test_every_refusal_of_the_parser_is_a_problem(
    error: BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One whole response on the wire; the service counts it, and nothing tells what was sent."""
    worker, told = AnswersUnreadable(), Told()
    worker.service = told
    here, there = socket.socketpair()
    with here, there:
        worker.handle_error(None, here, ("203.0.113.9", 1), error)
        data = there.recv(65_536)
    (answer,), rest = split(data)
    assert rest == b""
    assert answer.status == status == answer_to(error)[0]
    assert answer.problem()["status"] == status
    assert answer.headers["connection"] == "close"
    assert told.refusals == [(status, type(error).__name__, "203.0.113.9")]
    assert SAID not in data.decode() + capsys.readouterr().out


def test_a_client_that_is_gone_is_no_accident() -> None:
    """Nobody is left to be answered."""
    worker, told = AnswersUnreadable(), Told()
    worker.service = told
    here, there = socket.socketpair()
    there.close()
    with here:
        worker.handle_error(None, here, "", errors.InvalidHeader(SAID))
    assert told.refusals == [(400, "InvalidHeader", "")]


# --- with whichever of gunicorn's parsers is installed ------------------------------------------

HEADS = (
    b"POST /webhooks/acme?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nX-A: b c\r\n\r\n{}GET / HTTP/1.1\r\n\r\n",
    b"\r\nPOST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
)
#: What is put in, or in the place of a byte.
PUT = (
    *(bytes([byte]) for byte in b"\0\t\n\v\r +-_,;:?#%*/1A\x7f\x80\xa0\xff"),
    b"  ",
    b"\r\n",
    b"\r\n ",
    b"\r\n\r\n",
    b"Content-Length: 2\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b\r\n",
    b"HTTP/1.1",
)


@functools.cache
def configured(parser: str) -> Any:
    cfg = Config()
    cfg.set("http_parser", parser)
    cfg.set("header_map", "drop")
    return cfg


def read_by(parser: str, data: bytes) -> tuple[Any, ...] | None:
    """All that is seen of the first request, and what is left for the next; None where it is refused."""
    requests = Parser(configured(parser), iter([data]), ("203.0.113.9", 1))
    try:
        request = next(requests)
    except (errors.ParseException, errors.NoMoreData, StopIteration):
        return None
    framing = (type(request.body.reader), getattr(request.body.reader, "length", None), request.must_close)
    seen = (request.method, request.uri, request.version, request.headers, framing)
    return (*seen, requests.unreader.take_buffered())


def changed(head: bytes) -> Iterator[bytes]:
    for at in range(len(head) + 1):
        for put in PUT:
            yield head[:at] + put + head[at:]
            yield head[:at] + put + head[at + 1 :]
        yield head[:at] + head[at + 1 :]


@pytest.mark.parametrize("head", HEADS)
def test_the_parser_that_is_installed_takes_no_more_than_gunicorns_in_python_and_reads_the_same(head: bytes) -> None:
    """What it refuses beyond that is refused."""
    assert read_by("auto", HEADS[0]) is not None
    other = [data for data in changed(head) if (read := read_by("auto", data)) and read != read_by("python", data)]
    assert other == []


@pytest.mark.parametrize("line", [b"POST  / HTTP/1.1", b"POST /  HTTP/1.1", b"POST / HTTP/1.1 ", b" POST / HTTP/1.1"])
def test_a_request_line_has_two_spaces(line: bytes) -> None:
    """Whoever sees another target or version in it sees another request."""
    assert read_by("auto", line + b"\r\nX-A: b  c\r\n\r\n") is None
    assert read_by("auto", b"\r\n" + line + b"\r\n\r\n") is None
    assert read_by("auto", b"POST / HTTP/1.1\r\nX-A: b  c\r\n\r\n") is not None


@pytest.mark.parametrize("coding", ["x", "chunked, x", "gzip, x", '"chunked"'])
def test_a_coding_that_nobody_knows_is_told_from_a_header_that_is_wrong(coding: str) -> None:
    data = f"POST / HTTP/1.1\r\nTransfer-Encoding: {coding}\r\n\r\n".encode()
    with pytest.raises(errors.UnsupportedTransferCoding):
        next(Parser(configured("auto"), iter([data]), ("203.0.113.9", 1)))
