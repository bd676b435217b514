"""One of the two ports, as the event loop of one thread serves it: connections, their deadlines, and how they end.

An idle connection is kept for `IDLE_S`; from its first byte on a request has `REQUEST_S` to be there whole, else it
is answered 408, or closed while its head is not there. A connection on which a body was not read to its end says so in
its answer and is closed: the rest is thrown away for a while, so that no reset destroys the answer, and never parsed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as plain_socket
import time
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn import util
from gunicorn.http import body, errors, message, parser

from bridge.http.problems import GaveWayError, answer_to
from bridge.server.loop import WSGI
from bridge.server.room import YOUNG_S, Room, Seat

#: Seconds that a connection may be idle: longer than the proxies in front keep theirs.
IDLE_S = 75.0
#: Seconds from the first byte of a request to its last.
REQUEST_S = 20.0
#: Seconds for an answer to be fetched.
ANSWER_S = 20.0
#: Bytes of a request's head: beyond it the parser, which looks at all of it at each piece, would take too long.
HEAD_BYTES = 65_536
#: Seconds, and bytes, for the rest of a body that nobody wants: if it is there by then, the connection is kept.
REST_S, REST_BYTES = 0.05, 65_536
#: The same for a connection that is closed, which is when it takes that long to read the answer: a proxy sends all of
#: the body first.
LINGER_S, LINGER_BYTES = 2.0, 16 << 20
#: What the parser in C says of a transfer coding that it does not know.
UNKNOWN_CODING = "Unsupported Transfer-Encoding"
#: Bytes that are read at once.
PIECE = 65_536
#: Seconds between two looks at whether a request may go on, or a thread is to end.
BEAT_S = 0.2
#: Seconds between two lines of the log about connections that had to give way.
TELL_EVERY_S = 10.0

_NO_ROOM = answer_to(GaveWayError())[1]
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: What a client may do to a connection, and no reason to log.
_GONE = {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, None}


class Worker(Protocol):
    """gunicorn's worker, as a port sees it."""

    alive: bool
    cfg: Any
    log: Any

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """Answer it; raises StopIteration when the connection ends with it."""
        ...

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None: ...


class Connection(socket.socket):
    """A client's socket with deadlines. Raises TimeoutError at the end of each, GaveWayError when it is hung up on."""

    room: Room
    seat: Seat
    port: Port
    deadline: float | None = None  # of the request that has begun; None: idle
    awaits_since: float | None = None  # since when there is no whole head
    is_used = False  # a request on it was answered
    is_hung_up = False
    _sends = False
    _keeps_head = False  # what is sent next is an answer's head, which waits for the body
    _head = b""

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        if self.deadline is None:
            self.settimeout(IDLE_S)
        else:
            self._wait_for_room(self.deadline)
        received: bytes = super().recv(min(bufsize, PIECE), flags)
        if self.is_hung_up and not received:
            raise GaveWayError
        if self.deadline is None and received:
            self.begin()
        self.room.hold(self, len(received))
        if self.awaits_since is not None and self.seat.held > HEAD_BYTES:
            raise errors.LimitRequestHeaders("limit request head")
        return received

    def _wait_for_room(self, deadline: float) -> None:
        while not self.is_hung_up and self.room.holds_back(self) and (began := time.monotonic()) < deadline:
            gevent.sleep(BEAT_S)
            self.room.excuse(self, time.monotonic() - began)
        if self.is_hung_up:
            raise GaveWayError
        self.settimeout(max(0.001, deadline - time.monotonic()))

    def begin(self) -> None:
        """A request begins."""
        self.deadline = time.monotonic() + REQUEST_S
        self.room.wait(self)

    def begin_answer(self) -> None:
        """What is sent next is the head of an answer: it goes in one packet with what follows, or at `end_answer`."""
        self._keeps_head = True

    def end_answer(self) -> None:
        """There is no more of it."""
        self._keeps_head = False
        if self._head:
            self.sendall(b"")

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self._keeps_head:
            self._keeps_head, self._head = False, data
            return
        data, self._head = self._head + data, b""
        self.settimeout(ANSWER_S)
        self.room.answer(self)
        self._sends = True
        try:
            super().sendall(data, flags)
        finally:
            self._sends = False

    def rest(self) -> None:
        """Between two requests."""
        self.deadline = None
        self.awaits_since = time.monotonic()
        self.room.let_go(self)
        self.room.wait(self)

    def prove(self) -> None:
        """The signature of its request was verified."""
        self.room.prove(self)

    def hang_up(self) -> None:
        """End at once, whatever it is about to do. What is worked on already gets its answer."""
        self.is_hung_up = True
        self.shut(plain_socket.SHUT_RDWR if self._sends else plain_socket.SHUT_RD)

    def shut(self, how: int) -> None:
        """Shut down without losing what has come. gevent's own way would forget it and raise in the reader."""
        with contextlib.suppress(OSError), plain_socket.socket(fileno=os.dup(self.fileno())) as same:
            same.shutdown(how)

    def linger(self) -> None:
        """Throw away what still comes, until the other side closes too or the time is over."""
        self.rest()
        self.awaits_since = None
        self.shut(plain_socket.SHUT_WR)
        until, left = time.monotonic() + LINGER_S, LINGER_BYTES
        with contextlib.suppress(OSError):
            while left > 0 and not self.is_hung_up and (wait_s := until - time.monotonic()) > 0:
                self.settimeout(wait_s)
                received = super().recv(PIECE)
                if not received:
                    return
                left -= len(received)
                gevent.sleep(0)


class Request(message.Request):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's. Its parser in C, taken where the extra `fast` is installed, passes over any number of spaces in a
    request line, in which others may see another target or version, and does not tell codings that it does not know
    from headers that are wrong.
    """

    def _parse_fast(self, unreader: Any, buf: bytearray) -> bytes:
        try:
            rest: bytes = super()._parse_fast(unreader, buf)  # which has read all of the head into `buf`
        except errors.InvalidHeader as error:
            if error.hdr == UNKNOWN_CODING:
                raise errors.UnsupportedTransferCoding(error.hdr) from error
            raise
        end_of_line = buf.find(b"\r\n", 2)  # an empty line may stand before it
        if buf.find(b"  ", 0, end_of_line) >= 0:
            raise errors.InvalidRequestLine("more than one space")
        return rest

    def _peer_trusted_for_forwarded(self) -> tuple[dict[str, str], list[str]]:
        """No client is believed about who forwards, as `forwarded_allow_ips` says: its address need not be read."""
        return {}, []


class Parser(parser.RequestParser):  # type: ignore[misc]  # gunicorn ships no types
    """The requests of one connection."""

    mesg_class = Request


class Body(body.Body):  # type: ignore[misc]  # gunicorn ships no types
    """A request's body. `100 Continue` is sent when it is first read: a refusal at the head is the only answer then."""

    failed: bool

    def __init__(self, request: Any, connection: Connection) -> None:
        super().__init__(request.body.reader)
        self._request, self._connection = request, connection
        # gunicorn would send it before the application has seen the head.
        self._is_awaited, request._expected_100_continue = request._expected_100_continue, False  # noqa: SLF001

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it is left to be read."""
        reader = self.reader
        ended = reader.length == 0 if isinstance(reader, body.LengthReader) else reader.parser is None
        return ended and not self.failed

    def _read_reader(self, size: int) -> bytes:
        if self._is_awaited and not self.is_whole:
            self._connection.sendall(_CONTINUE)
        self._is_awaited = False
        wanted = min(size, getattr(self.reader, "length", 0))
        data: bytes = super()._read_reader(size)
        self.failed = self.failed or len(data) < wanted  # the other side has ended it
        return data

    def settle(self) -> None:
        """Just before the answer: what is left is thrown away if it is little and there, else the connection ends."""
        if not self.is_whole and not self.failed and not self._is_awaited:
            self._throw_away()
        if not self.is_whole:
            self._request.force_close()
        self._connection.begin_answer()

    def _throw_away(self) -> None:
        if getattr(self.reader, "length", 0) > REST_BYTES:
            return
        self._connection.deadline = time.monotonic() + REST_S
        left = REST_BYTES
        with contextlib.suppress(OSError, errors.ParseException):
            while left > 0 and (data := self.read(PIECE)):
                left -= len(data)


class _Listener(StreamServer):
    """gevent's, but it makes our sockets at once: there may be hundreds a second."""

    def __init__(self, room: Room, *args: Any, **options: Any) -> None:
        self._room = room
        super().__init__(*args, **options)

    @property
    def max_accept(self) -> int:  # type: ignore[override]  # gevent's is a constant
        """How many are accepted before those that are there have their turn: one leaves some to the other workers."""
        return self._room.may_come

    def do_read(self) -> Any:
        listener: Any = self.socket
        with contextlib.suppress(BlockingIOError):  # another worker was faster
            descriptor, address = listener._accept()  # noqa: SLF001 (as gevent's own does)
            return Connection(listener.family, listener.type, listener.proto, fileno=descriptor), address
        return None


class Port:
    """A listening socket and its connections. `open` and all that follows is called in the thread that serves it."""

    app: WSGI

    def __init__(self, worker: Worker, listener: plain_socket.socket, room: Room, make_app: Callable[[], WSGI]) -> None:
        """`make_app` is called in the thread that serves it; what it makes is for the worker to call."""
        self._worker, self._listener, self._room, self._make_app = worker, listener, room, make_app
        self._connections: set[Connection] = set()
        self._greenlets = Pool()
        self._gave_way, self._told_at = 0, float("-inf")
        self._server: Any = None
        self._name: Any = None

    def open(self) -> None:
        """Begin to accept."""
        self.app = self._make_app()
        # The same descriptor, but waited for by this thread's loop.
        listener = socket.socket(self._listener.family, self._listener.type, fileno=self._listener.detach())
        listener.setblocking(True)
        self._name = listener.getsockname()
        self._server = _Listener(self._room, listener, handle=self._handle, spawn=self._greenlets)
        self._server.start()

    def close(self, deadline: float, beat: Callable[[], None] = lambda: None) -> None:
        """Accept no more, and return when all have their answers, or at the deadline."""
        self._server.close()
        while len(self._greenlets) and time.monotonic() < deadline:
            for connection in self._connections:  # each time: one may have been accepted just before
                # On a new connection a request is on its way, which its sender cannot tell from one that was taken.
                since = connection.awaits_since
                if since is not None and (connection.is_used or time.monotonic() - since > YOUNG_S):
                    connection.shut(plain_socket.SHUT_RD)
            beat()
            gevent.sleep(BEAT_S / 4)

    def _handle(self, connection: Any, addr: Any) -> None:
        connection.room, connection.port = self._room, self
        self._connections.add(connection)
        try:
            if self._room.enter(connection) and self._serve(connection, addr) and not connection.is_hung_up:
                connection.linger()
        finally:
            self._connections.discard(connection)
            self._room.leave(connection)
            util.close(connection)
            self._tell(connection)

    def _tell(self, connection: Connection) -> None:
        """Log how many gave way, once in a while."""
        self._gave_way += connection.is_hung_up
        now = time.monotonic()
        if self._gave_way and now - self._told_at > TELL_EVERY_S:
            self._worker.log.warning("%d slow or idle connections were closed to make room for others", self._gave_way)
            self._gave_way, self._told_at = 0, now

    def _serve(self, connection: Connection, addr: Any) -> bool:
        """Answer its requests until it ends; True when it was us who ended it, with an answer."""
        request = None
        try:
            requests = Parser(self._worker.cfg, connection, addr)
            while (self._worker.alive or requests.req_count == 0) and not connection.is_hung_up:
                connection.rest()
                gevent.sleep(0)  # a client that always has more to say must not keep the others waiting
                request = None
                try:
                    request = next(requests)
                except StopIteration:
                    return False
                connection.awaits_since = None
                if connection.deadline is None:  # all of its head came with the request before it
                    connection.begin()
                request.body = Body(request, connection)
                try:
                    self._worker.handle_request(self._name, request, connection, addr)
                finally:
                    connection.end_answer()
                connection.is_used = True
        except StopIteration:
            return True
        except GaveWayError:
            if request is not None:
                with contextlib.suppress(OSError):
                    connection.send(_NO_ROOM, plain_socket.MSG_MORE)  # in one packet with the end
            return False
        except errors.NoMoreData:
            return False
        except OSError as error:
            if error.errno not in _GONE:
                self._worker.log.exception("connection failed")
            return False
        except Exception as error:  # noqa: BLE001 (whatever it is, this connection ends and the others go on)
            self._worker.handle_error(request, connection, addr, error)
        return True
