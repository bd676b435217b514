"""The client of HubSpot's `batch/update`, and how many bytes its calls may hold at once (G8)."""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import orjson

from bridge.crm.tokens import StaticToken, Tokens
from bridge.crm.transport import MAX_ANSWER, MAX_EXCERPT, Answer, Input, NoAnswer, Transport
from bridge.errors import BridgeError, TokenOutageError
from bridge.model import CALL_BYTES, Lane, PendingRecord

# --- limits in bytes: of a call, of its answer, and of all open calls ---
#
# Bytes of bodies are counted. In memory a call is a small multiple of its body: the values (a text with one emoji takes
# four bytes a character), the body, the answer, which repeats what was written, and the parsed answer.

#: Bytes of the bodies of all open calls: some 50 MB of memory at most. Eight calls of 100 ordinary records are 240 kB.
OPEN_BYTES = 4 * CALL_BYTES

#: Bytes of an answer that are read at most, beside the echo of what was sent: 100 results with all their usual
#: properties are some 2 MB.
ANSWER_BYTES = 4 << 20

#: Bytes of an answer that are read for each byte of the body. An echo takes three (an emoji's four as two escapes), a
#: refusal that quotes values in JSON within JSON, and twice, takes seven.
ECHO = 7

#: Seconds between two looks whether it is still worth waiting.
_LOOK_S = 0.05


def answer_limit(body: int) -> int:
    """Bytes that are read of the answer to a body of so many."""
    return ANSWER_BYTES + ECHO * body


class OpenBytes:
    """What the open calls hold together. Thread-safe: `_changed` guards all below it.

    A call's size is known when its records are taken. Until then it counts as `each`.
    """

    def __init__(self, *, each: int = CALL_BYTES, limit: int = OPEN_BYTES) -> None:
        """`each`: the most that one call may hold, no more than half the limit."""
        self.each = each
        self._limit = limit
        self._changed = threading.Condition()
        self._taking = 0  # calls whose size is not known yet
        self._known = 0

    @property
    def full(self) -> bool:
        """Whether the calls whose size is known leave no room for one more."""
        with self._changed:
            return self._known + self.each > self._limit

    @contextmanager
    def place(self, *, wanted: Callable[[], bool]) -> Iterator[Callable[[int], None] | None]:
        """Room for one call, as soon as there is some. Yields what is to be told the size once it is known; None when
        the call is not `wanted` any more.
        """
        if not self._enter(wanted):
            yield None
            return
        size: int | None = None

        def tell(known: int) -> None:
            nonlocal size
            with self._changed:
                size = known
                self._taking -= 1
                self._known += known
                self._changed.notify_all()

        try:
            yield tell
        finally:
            if size is None:
                tell(0)
            else:
                with self._changed:
                    self._known -= size
                    self._changed.notify_all()

    def _enter(self, wanted: Callable[[], bool]) -> bool:
        with self._changed:
            while self._known + (self._taking + 1) * self.each > self._limit:
                if not wanted():
                    return False
                self._changed.wait(_LOOK_S)
            self._taking += 1
            return True


# --- the calls ---

#: What a bearer token may consist of: visible ASCII.
_TOKEN = re.compile(r"[!-~]+")


def inputs_of(records: Sequence[PendingRecord]) -> list[Input]:
    """The inputs of one call, each with a fresh trace id."""
    prefix = secrets.token_hex(8)
    return [Input(record, f"{prefix}-{place}") for place, record in enumerate(records)]


class HubSpot:
    """Makes `batch/update` calls. Thread-safe."""

    def __init__(
        self,
        *,
        base_url: str,
        api_path: str,
        token: Callable[[], str] | Tokens,
        timeout_s: float,
        proxy: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._server = base_url.rstrip("/")
        self._root = self._server + "/" + api_path.strip("/")
        self._tokens: Tokens = StaticToken(token) if callable(token) else token
        self._transport = Transport(timeout_s=timeout_s, proxy=proxy, ca_file=ca_file)

    def __repr__(self) -> str:
        return f"HubSpot({self._root!r})"

    def credential(self) -> str:
        """A fingerprint of the configured secrets; "" when there are none."""
        return self._tokens.credential()

    def prepare(self) -> None:
        """Have a token at hand. If there is none, `update` says why."""
        with contextlib.suppress(BridgeError):
            self._tokens.access()

    def update(self, lane: Lane, inputs: Sequence[Input]) -> Answer | NoAnswer:
        """One call within the total deadline. Never raises for what the network or the CRM does."""
        return self._called("POST", self._url(lane), encode(lane, inputs))

    def get(self, path: str) -> Answer | NoAnswer:
        """Read another path of the same server, within the same limits."""
        return self._called("GET", self._server + path)

    def _called(self, method: str, url: str, body: bytes | None = None) -> Answer | NoAnswer:
        try:
            access = self._tokens.access()
        except TokenOutageError as error:
            return NoAnswer("oauth", doubtful=False, detail=str(error)[:MAX_EXCERPT])
        except BridgeError as error:
            return NoAnswer("token", doubtful=False, detail=str(error)[:MAX_EXCERPT], credential=self.credential())
        if not _TOKEN.fullmatch(access.token):
            # Checked here, because requests would quote the token in its error.
            detail = "the token is empty or unfit for a header"
            return NoAnswer("token", doubtful=False, detail=detail, credential=access.credential)
        headers = {"Authorization": f"Bearer {access.token}", "Content-Type": "application/json"}
        limit = MAX_ANSWER if body is None else answer_limit(len(body))
        answer = replace(
            self._transport.request(method, url, headers, body, max_answer=limit), credential=access.credential
        )
        if isinstance(answer, NoAnswer):
            return answer
        if answer.status == 401:
            return replace(answer, renewable=self._tokens.refused(access))
        self._tokens.accepted(access)
        return answer

    def close(self) -> None:
        """Cut every open call; later ones end at once."""
        self._transport.close()
        self._tokens.close()

    def _url(self, lane: Lane) -> str:
        return f"{self._root}/{quote(lane.object_type, safe='')}/batch/update"


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
