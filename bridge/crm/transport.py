"""HTTP to the CRM.

A request and its secrets go to the configured address only: no redirect is followed, and neither proxies nor
credentials are taken from the environment. The answer is treated as hostile: it has a total deadline and a limit of
size, and may be any JSON or none.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import orjson
import requests
import requests.adapters
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from bridge import __version__
from bridge.model import PendingRecord

# --- what passes between delivery and the CRM's client: an input of a call, and how the call ended ---

NoAnswerKind = Literal["connect", "tls", "token", "oauth", "timeout", "reset", "truncated", "oversize", "internal"]


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a call: a record with exactly the values that are sent, and its trace id."""

    record: PendingRecord
    trace_id: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer with a status. `body` is the parsed JSON, None when it is missing or unreadable.

    `headers` have lower-case names; `credential` is the fingerprint of the token that was used, or of what
    it was got with. `renewable`: the token was refused, and the next call will come with another.
    """

    status: int
    body: Any = field(default=None, repr=False)
    excerpt: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    correlation_id: str | None = None
    duration_s: float = 0.0
    credential: str = ""
    renewable: bool = False


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A call that ended without an answer. `doubtful`: it may still be applied. Of one that was too large, `status`
    and what is complete in the part of its `body` that was read.
    """

    kind: NoAnswerKind
    doubtful: bool
    detail: str
    duration_s: float = 0.0
    credential: str = ""
    status: int | None = None
    body: Any = field(default=None, repr=False)


# --- the part of a cut JSON text that can be read: its complete members ---

#: Levels that are looked into: an answer's `results`, one of them, its `properties`; each costs another pass.
_LEVELS = 4

_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"[ \t\r\n]*")


def beginning(raw: bytes | bytearray) -> Any:
    """The value, with the members that are complete; None when there is none."""
    value, _ = _value(raw.decode("utf-8", "ignore"), 0, _LEVELS)
    return value


def _value(text: str, at: int, levels: int) -> tuple[Any, int | None]:
    """The value that begins here, and where it ends: None when that is not within the text."""
    at = _after_space(text, at)
    if (opening := text[at : at + 1]) and levels and opening in "{[":
        whole = _whole(text, at) if levels < _LEVELS else None  # the outermost is known to have no end
        if whole is None:
            return (_members if opening == "{" else _items)(text, at + 1, levels - 1), None
        return whole
    return _whole(text, at) or (None, None)


def _whole(text: str, at: int) -> tuple[Any, int] | None:
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    # A number at the end of the text may go on.
    return (value, end) if end < len(text) else None


def _members(text: str, at: int, levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    end: int | None = at
    while end is not None:
        name, colon = _whole(text, _after_space(text, end)) or (None, len(text))
        colon = _after_space(text, colon)
        if not isinstance(name, str) or text[colon : colon + 1] != ":":
            break
        value, end = _value(text, colon + 1, levels)
        if end is not None or isinstance(value, (dict, list)):
            found[name] = value
        end = None if end is None else _after_comma(text, end)
    return found


def _items(text: str, at: int, levels: int) -> list[Any]:
    found: list[Any] = []
    end: int | None = at
    while end is not None:
        value, end = _value(text, end, levels)
        if end is not None or isinstance(value, (dict, list)):
            found.append(value)
        end = None if end is None else _after_comma(text, end)
    return found


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _after_comma(text: str, at: int) -> int | None:
    at = _after_space(text, at)
    return at + 1 if text[at : at + 1] == "," else None


# --- a total deadline for a call: when it passes, the call's socket is shut down ---
#
# Timeouts of a socket are per `recv`: a server that sends a byte a second (of headers, of a proxy's answer or of the
# body) resets them at each byte. So one thread watches every call and knows the socket that it uses at the moment.
# Only the name look-up cannot be cut; the resolver bounds it.

#: Seconds the watching thread sleeps at most, so that it ends soon after `close`.
_LONGEST_SLEEP_S = 1.0


class Watched:
    """One call under watch. `sent`: bytes of the request may have left; `cut`: the deadline struck.

    Thread-safe: `_lock` guards the socket against being shut down after the call has ended.
    """

    def __init__(self, *, deadline: float) -> None:
        self.deadline = deadline
        self.sent = False
        self.cut = False
        self.connecting = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._over = False

    def uses(self, sock: socket.socket | None) -> None:
        with self._lock:
            self._socket = sock
            if self.cut:
                self._shut()

    def strike(self) -> None:
        """Cut the call now, whatever it waits for."""
        with self._lock:
            if not self._over:
                self.cut = True
                self._shut()

    def end(self) -> None:
        with self._lock:
            self._over = True
            self._socket = None

    def _shut(self) -> None:
        # The base class's method: SSLSocket.shutdown would drop the TLS layer under the reading thread,
        # which then took cipher text for an answer.
        if self._socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Watch:
    """Strikes the calls whose deadline has passed. Thread-safe: `_changed` guards `_calls`."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._calls: set[Watched] = set()
        self._closed = False
        self._thread: threading.Thread | None = None

    def begin(self) -> Watched:
        """Watch a call of the current thread; `end` must follow. Raises RuntimeError when no thread is to be had."""
        call = Watched(deadline=time.monotonic() + self._timeout_s)
        with self._changed:
            if not self._closed and (self._thread is None or not self._thread.is_alive()):
                thread = threading.Thread(target=self._run, name="crm-deadlines", daemon=True)
                thread.start()
                self._thread = thread
            self._calls.add(call)
            if self._closed:
                call.strike()
            elif len(self._calls) == 1:  # all deadlines are equally far: only the first one needs a wake-up
                self._changed.notify()
        _current.set(call)
        return call

    def end(self, call: Watched) -> None:
        call.end()
        _current.set(None)
        with self._changed:
            self._calls.discard(call)

    def close(self) -> None:
        """Strike every open call and every later one."""
        with self._changed:
            self._closed = True
            for call in self._calls:
                call.strike()
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for call in self._calls:
                    if call.deadline <= now:
                        call.strike()
                ahead = [call.deadline - now for call in self._calls if not call.cut]
                self._changed.wait(min([*ahead, _LONGEST_SLEEP_S]) if self._calls else 60.0)


#: The call that the current thread makes; connections are opened deep inside of urllib3.
_current: ContextVar[Watched | None] = ContextVar("bridge_crm_call", default=None)


class _WatchedHTTP(HTTPConnection):
    """Tells the current call which socket it uses, and when bytes of the request itself leave."""

    def connect(self) -> None:
        if (call := _current.get()) is None:
            return super().connect()
        call.connecting = True
        try:
            super().connect()
        finally:
            call.connecting = False

    def send(self, data: Any) -> None:
        if self.sock is None and self.auto_open:
            self.connect()
        if (call := _current.get()) is not None:
            call.uses(self.sock)
            call.sent = call.sent or not call.connecting  # while connecting, a proxy is asked for a tunnel
        super().send(data)


class _WatchedHTTPS(_WatchedHTTP, HTTPSConnection):
    """The same over TLS."""


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPS


class WatchedAdapter(requests.adapters.HTTPAdapter):
    """Makes such connections."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager


# --- one request, and how it ended ---

#: Bytes of an answer after inflating that are read at most, unless the caller knows better: the definitions of a
#: portal with thousands of properties are a few MB.
MAX_ANSWER = 16 * 1024 * 1024

#: Characters of an answer without JSON that are kept for people.
MAX_EXCERPT = 300

#: Seconds for a connection to come up, of the total deadline.
CONNECT_S = 10.0

#: Bytes read from a response at a time.
_CHUNK = 64 * 1024


class Transport:
    """Makes requests. Thread-safe: every thread has a session, and so a connection, of its own, so that a connection
    is never cut for another thread's deadline; `_lock` guards the list of sessions.
    """

    def __init__(self, *, timeout_s: float, proxy: str | None = None, ca_file: Path | None = None) -> None:
        self._timeout_s = timeout_s
        self._proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._verify: bool | str = str(ca_file) if ca_file is not None else True
        self._watch = Watch(timeout_s=timeout_s)
        self._own = threading.local()
        self._lock = threading.Lock()
        self._sessions: list[requests.Session] = []

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        max_answer: int = MAX_ANSWER,
    ) -> Answer | NoAnswer:
        """One request within the total deadline. Never raises for what the network or the CRM does."""
        began = time.monotonic()
        call = self._watch.begin()
        try:
            response = self._session().request(
                method,
                url,
                data=body,
                headers=dict(headers),
                timeout=(min(CONNECT_S, self._timeout_s), self._timeout_s),
                allow_redirects=False,
                stream=True,
            )
            try:
                answer = _read(response, call, max_answer)
            finally:
                with contextlib.suppress(Exception):
                    response.close()
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            answer = _ended(error, call)
        finally:
            self._watch.end(call)
        return replace(answer, duration_s=time.monotonic() - began)

    def close(self) -> None:
        """Cut every open request; later ones end at once."""
        self._watch.close()
        with self._lock:
            for session in self._sessions:
                session.close()

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = requests.Session()
            session.trust_env = False
            session.headers.clear()
            session.headers["User-Agent"] = f"partner-bridge/{__version__}"
            session.headers["Accept"] = "application/json"
            session.headers["Accept-Encoding"] = "gzip"
            session.verify = self._verify
            session.proxies.update(self._proxies)
            adapter = WatchedAdapter(pool_connections=1, pool_maxsize=1, max_retries=0)
            session.mount("https://", adapter)
            session.mount("http://", adapter)
            with self._lock:
                self._sessions.append(session)
        return session


def _read(response: requests.Response, call: Watched, max_answer: int) -> Answer | NoAnswer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    status = response.status_code
    raw = bytearray()
    trouble: NoAnswer | None = None
    try:
        for chunk in response.raw.stream(_CHUNK, decode_content=True):
            if len(raw) + len(chunk) > max_answer:
                trouble = NoAnswer("oversize", doubtful=True, detail=f"answer over {max_answer} bytes", status=status)
                break
            raw += chunk
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        trouble = _ended(error, call, kind="truncated")
    if trouble is None and call.cut:
        trouble = _ended(TimeoutError(), call)
    if trouble is not None:
        # The status line of a 401, 429, 503 … tells enough; a 2xx and a 400 need their body.
        if 200 <= status < 300 or status == 400:
            return replace(trouble, body=beginning(raw)) if trouble.kind == "oversize" else trouble
        raw.clear()
    body = _parsed(raw)
    return Answer(
        status=status,
        body=body,
        excerpt="" if body is not None else raw[: MAX_EXCERPT * 4].decode("utf-8", "replace")[:MAX_EXCERPT],
        headers=headers,
        correlation_id=_correlation_id(headers, body),
    )


def _parsed(raw: bytearray) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _correlation_id(headers: dict[str, str], body: Any) -> str | None:
    told = headers.get("x-hubspot-correlation-id")
    if told is None and isinstance(body, dict):
        told = body.get("correlationId")
    return told[:100] if isinstance(told, str) and told.isprintable() else None


def _ended(error: Exception, call: Watched, *, kind: NoAnswerKind = "reset") -> NoAnswer:
    """A call that ended without an answer; doubtful once bytes of the request may have left."""
    timed_out = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    ssl_failed = (requests.exceptions.SSLError, urllib3.exceptions.SSLError)
    if call.cut or (call.sent and isinstance(error, timed_out)):
        kind = "timeout"
    elif isinstance(error, ssl_failed):
        kind = "tls"
    elif not call.sent:
        kind = "connect"
    return NoAnswer(kind, doubtful=call.sent, detail=f"{type(error).__name__}: {error}"[:MAX_EXCERPT])
