"""The client of HubSpot's `batch/update`: one call, one answer or the way it ended without one.

The token goes to the configured address only: no redirect is followed, and neither proxies nor
credentials are taken from the environment. The answer is treated as hostile: total deadline, size cap,
any JSON or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import requests
import urllib3

from bridge import __version__
from bridge.delivery.deadline import Watch, Watched, WatchedAdapter
from bridge.delivery.ports import Answer, Input, NoAnswer, NoAnswerKind
from bridge.errors import BridgeError
from bridge.model import Lane, PendingRecord

#: Bytes of an answer after inflating that are read at most; 100 results with all their properties are
#: some 2 MB.
MAX_ANSWER = 16 * 1024 * 1024

#: Characters of an answer that are not JSON which are kept for people.
MAX_EXCERPT = 300

#: Seconds for a connection to come up, of the total deadline.
CONNECT_S = 10.0

#: Bytes read from a response at a time.
_CHUNK = 64 * 1024

#: What a bearer token may consist of: visible ASCII.
_TOKEN = re.compile(r"[!-~]+")


def inputs_of(records: Sequence[PendingRecord]) -> list[Input]:
    """The inputs of one call, each with a fresh trace id."""
    prefix = secrets.token_hex(8)
    return [Input(record, f"{prefix}-{place}") for place, record in enumerate(records)]


class HubSpot:
    """Makes `batch/update` calls. Thread-safe: every thread has a session (hence a connection) of its
    own, so that a connection is never cut for another thread's deadline; `_lock` guards their list.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_path: str,
        token: Callable[[], str],
        timeout_s: float,
        proxy: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._server = base_url.rstrip("/")
        self._root = self._server + "/" + api_path.strip("/")
        self._token = token
        self._timeout_s = timeout_s
        self._proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._verify: bool | str = str(ca_file) if ca_file is not None else True
        self._watch = Watch(timeout_s=timeout_s)
        self._own = threading.local()
        self._lock = threading.Lock()
        self._sessions: list[requests.Session] = []

    def __repr__(self) -> str:
        return f"HubSpot({self._root!r})"

    def credential(self) -> str:
        """A fingerprint of the token as it is now; "" when there is none."""
        try:
            return _fingerprint(self._token())
        except BridgeError:
            return ""

    def update(self, lane: Lane, inputs: Sequence[Input]) -> Answer | NoAnswer:
        """One call within the total deadline. Never raises for what the network or the CRM does."""
        return self._called("POST", self._url(lane), encode(lane, inputs))

    def get(self, path: str) -> Answer | NoAnswer:
        """What stands at another path of the same server, read by the same rules."""
        return self._called("GET", self._server + path)

    def _called(self, method: str, url: str, body: bytes | None = None) -> Answer | NoAnswer:
        try:
            token = self._token()
        except BridgeError as error:
            return NoAnswer("token", doubtful=False, detail=str(error)[:MAX_EXCERPT])
        if not _TOKEN.fullmatch(token):
            # Checked here, because requests would quote the token in its error.
            return NoAnswer("token", doubtful=False, detail="the token is empty or unfit for a header")
        began = time.monotonic()
        call = self._watch.begin()
        try:
            answer = self._asked(method, url, body, token, call)
        finally:
            self._watch.end(call)
        return _finished(answer, time.monotonic() - began, _fingerprint(token))

    def close(self) -> None:
        """Cut every open call; later ones end at once."""
        self._watch.close()
        with self._lock:
            for session in self._sessions:
                session.close()

    def _url(self, lane: Lane) -> str:
        return f"{self._root}/{quote(lane.object_type, safe='')}/batch/update"

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = requests.Session()
            session.trust_env = False
            session.headers.clear()
            session.headers["User-Agent"] = f"partner-bridge/{__version__}"
            session.headers["Content-Type"] = "application/json"
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

    def _asked(self, method: str, url: str, body: bytes | None, token: str, call: Watched) -> Answer | NoAnswer:
        try:
            response = self._session().request(
                method,
                url,
                data=body,
                headers={"Authorization": f"Bearer {token}"},
                timeout=(min(CONNECT_S, self._timeout_s), self._timeout_s),
                allow_redirects=False,
                stream=True,
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            return _ended(error, call)
        try:
            return _read(response, call)
        finally:
            with contextlib.suppress(Exception):
                response.close()


def encode(lane: Lane, inputs: Sequence[Input]) -> bytes:
    """The request body: ids and values are strings always, `idProperty` only where the lane has one."""
    extra = {"idProperty": lane.id_property} if lane.id_property else {}
    return orjson.dumps(
        {
            "inputs": [
                {
                    "id": one.record.key.id,
                    **extra,
                    "objectWriteTraceId": one.trace_id,
                    "properties": {name: value.value for name, value in one.record.values.items()},
                }
                for one in inputs
            ]
        }
    )


def _read(response: requests.Response, call: Watched) -> Answer | NoAnswer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    status = response.status_code
    raw = b""
    trouble: NoAnswer | None = None
    try:
        chunks = []
        size = 0
        for chunk in response.raw.stream(_CHUNK, decode_content=True):
            size += len(chunk)
            if size > MAX_ANSWER:
                trouble = NoAnswer("oversize", doubtful=True, detail=f"answer over {MAX_ANSWER} bytes")
                break
            chunks.append(chunk)
        raw = b"".join(chunks)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        trouble = _ended(error, call, kind="truncated")
    if trouble is None and call.cut:
        trouble = _ended(TimeoutError(), call)
    if trouble is not None:
        # The status line alone tells what 401, 429, 503 … ask for; what a 2xx or a 400 did or names
        # is in the body.
        if 200 <= status < 300 or status == 400:
            return trouble
        raw = b""
    body = _parsed(raw)
    return Answer(
        status=status,
        body=body,
        excerpt="" if body is not None else raw[: MAX_EXCERPT * 4].decode("utf-8", "replace")[:MAX_EXCERPT],
        headers=headers,
        correlation_id=_correlation_id(headers, body),
    )


def _parsed(raw: bytes) -> Any:
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


def _finished(answer: Answer | NoAnswer, duration_s: float, credential: str) -> Answer | NoAnswer:
    return replace(answer, duration_s=duration_s, credential=credential)


def _fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:12]
