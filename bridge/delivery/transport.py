"""HTTP to the CRM: one request, one answer or the way it ended without one.

What is secret in a request goes to the configured address only: no redirect is followed, and neither
proxies nor credentials are taken from the environment. The answer is treated as hostile: total deadline,
size cap, any JSON or none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import requests
import urllib3

from bridge import __version__
from bridge.delivery.beginnings import beginning
from bridge.delivery.calls import Answer, NoAnswer, NoAnswerKind
from bridge.delivery.deadline import Watch, Watched, WatchedAdapter

#: Bytes of an answer after inflating that are read at most, unless the caller knows better: the definitions of a
#: portal with thousands of properties are a few MB.
MAX_ANSWER = 16 * 1024 * 1024

#: Characters of an answer that are not JSON which are kept for people.
MAX_EXCERPT = 300

#: Seconds for a connection to come up, of the total deadline.
CONNECT_S = 10.0

#: Bytes read from a response at a time.
_CHUNK = 64 * 1024


class Transport:
    """Makes requests. Thread-safe: every thread has a session (hence a connection) of its own, so that a
    connection is never cut for another thread's deadline; `_lock` guards their list.
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
            answer = self._asked(method, url, headers, body, call, max_answer)
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
            session.proxies.update({scheme: url for scheme, url in self._proxies.items() if url})
            adapter = WatchedAdapter(pool_connections=1, pool_maxsize=1, max_retries=0)
            session.mount("https://", adapter)
            session.mount("http://", adapter)
            with self._lock:
                self._sessions.append(session)
        return session

    def _asked(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        call: Watched,
        max_answer: int,
    ) -> Answer | NoAnswer:
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
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            return _ended(error, call)
        try:
            return _read(response, call, max_answer)
        finally:
            with contextlib.suppress(Exception):
                response.close()


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
        # The status line alone tells what 401, 429, 503 … ask for; what a 2xx or a 400 did or names
        # is in the body.
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


def _ended(error: BaseException, call: Watched, *, kind: NoAnswerKind = "reset") -> NoAnswer:
    """How a call ended without an answer. It is doubtful once bytes of the request may have left."""
    timed_out = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    ssl_failed = (requests.exceptions.SSLError, urllib3.exceptions.SSLError)
    if call.cut or (call.sent and isinstance(error, timed_out)):
        kind = "timeout"
    elif isinstance(error, ssl_failed):
        kind = "tls"
    elif not call.sent:
        kind = "connect"
    return NoAnswer(kind, doubtful=call.sent, detail=f"{type(error).__name__}: {error}"[:MAX_EXCERPT])
