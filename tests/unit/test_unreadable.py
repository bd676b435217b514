"""What is answered where the HTTP parser refuses: a problem that repeats nothing, and the end of the connection."""

from __future__ import annotations

import socket

import pytest
from gunicorn.http import errors

from bridge.intake.unreadable import AnswersUnreadable, answer_to
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
