"""Bodies from the WSGI stream: whole or refused, and never more in memory than the limit."""

from __future__ import annotations

import gzip
import io
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from gunicorn.http.errors import ChunkMissingTerminator, InvalidChunkSize, LimitRequestHeaders, NoMoreData

from bridge.http.bodies import inflate, read_body
from bridge.http.problems import Refusal

LIMIT = 1_000


class Broken(io.RawIOBase):
    """A stream that gives some bytes and then the server's error."""

    def __init__(self, begin: bytes, error: Exception) -> None:
        super().__init__()
        self._begin, self._error = begin, error

    def read(self, size: int | None = -1) -> bytes:
        begin, self._begin = self._begin, b""
        if not begin:
            raise self._error
        assert len(begin) <= (size or 0)
        return begin


def environ(body: bytes | io.RawIOBase, **more: str) -> dict[str, Any]:
    stream = io.BytesIO(body) if isinstance(body, bytes) else body
    return {"wsgi.input": stream, "wsgi.input_terminated": True, **more}


def refusal(request: dict[str, Any]) -> int:
    with pytest.raises(Refusal) as caught:
        read_body(request, LIMIT)
    return caught.value.status


@pytest.mark.parametrize(
    "error, status",
    [
        (NoMoreData(), 400),
        (ConnectionResetError(), 400),
        (OSError("broken"), 400),
        (InvalidChunkSize(b"zz"), 400),
        (ChunkMissingTerminator(b"xx"), 400),
        (LimitRequestHeaders("trailers"), 400),
        (TimeoutError("timed out"), 408),
    ],
)
def test_f40_whatever_breaks_a_body_refuses_it(error: Exception, status: int) -> None:
    """At the beginning, in the middle and where its JSON is complete already."""
    for begin in (b"", b'{"id":', b'{"id": 7}'):
        assert refusal(environ(Broken(begin, error), HTTP_TRANSFER_ENCODING="chunked")) == status
        assert refusal(environ(Broken(begin, error), CONTENT_LENGTH="500")) == status


def test_f40_an_error_of_our_own_is_no_refusal() -> None:
    """It must show, not be blamed on the sender."""
    with pytest.raises(ZeroDivisionError):
        read_body(environ(Broken(b"", ZeroDivisionError())), LIMIT)


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity, chunked", "gzip", "x", "chunked, chunked", ","])
def test_f45_no_other_transfer_coding_is_undone_or_ignored(coding: str) -> None:
    """501, as the body is not what it seems."""
    assert refusal(environ(b"{}", HTTP_TRANSFER_ENCODING=coding)) == 501


@pytest.mark.parametrize("length", ["1073741824", "9" * 18, "9" * 19, "9" * 4000])
def test_f40_a_body_that_says_it_is_too_large_is_not_read(length: str) -> None:
    """Not a byte of it."""
    assert refusal(environ(Broken(b"", AssertionError("was read")), CONTENT_LENGTH=length)) == 413


@pytest.mark.parametrize("length", ["-1", "+1", "1,1", "0x1", "1.0", "\u0661", "\xb2", "1 1", "x"])
def test_f40_a_length_that_is_no_number_is_refused(length: str) -> None:
    """Should the server ever let it pass."""
    assert refusal(environ(b"{}", CONTENT_LENGTH=length)) == 400


def bomb(megabytes: int) -> bytes:
    """A gzip body of zeros, about a thousandth of what comes out; its end is missing."""
    block = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = block.compress(bytes(1 << 20)) + block.flush(zlib.Z_FULL_FLUSH)
    again = block.compress(bytes(1 << 20)) + block.flush(zlib.Z_FULL_FLUSH)
    return first + again * (megabytes - 1)


def test_f42_a_gzip_bomb_is_cut_at_the_limit_with_flat_memory() -> None:
    """1 MB that would be a gigabyte costs no more than the limit."""
    body = bomb(1_000)
    assert 900_000 < len(body) < 1_200_000
    tracemalloc.start()
    try:
        with pytest.raises(Refusal) as caught:
            inflate(body, 1 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 4 << 20


def test_f42_thousands_of_members_take_no_time() -> None:
    """A megabyte of empty ones is read in one pass, not one for each."""
    began = time.process_time()
    assert inflate(gzip.compress(b"") * 50_000, LIMIT) == b""
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_f42_every_cut_of_a_gzip_body_is_seen(size: int) -> None:
    """Within the first member and the second one."""
    content = bytes(index % 251 for index in range(size))
    member = gzip.compress(content)
    assert inflate(member, LIMIT) == content
    assert inflate(member + gzip.compress(b""), LIMIT) == content
    for whole in (member, gzip.compress(b"") + member):
        for cut in {1, 2, 4, 8, 9, 12, len(member) - 1}:
            with pytest.raises(Refusal) as caught:
                inflate(whole[:-cut], LIMIT)
            assert caught.value.status == 400


def test_f42_what_was_inflated_is_not_inflated_again() -> None:
    """A body compressed twice comes out compressed once, which is no JSON."""
    assert inflate(gzip.compress(gzip.compress(b"{}")), LIMIT) != b"{}"
