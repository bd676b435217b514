"""The client of HubSpot's `batch/update`: one call, one answer or the way it ended without one."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import orjson

from bridge.delivery.calls import Answer, Input, NoAnswer
from bridge.delivery.tokens import StaticToken, Tokens
from bridge.delivery.transport import MAX_ANSWER, MAX_EXCERPT, Transport
from bridge.delivery.weight import answer_limit
from bridge.errors import BridgeError, TokenOutageError
from bridge.model import Lane, PendingRecord

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
        """A fingerprint of what is configured now to get in with; "" when there is none."""
        return self._tokens.credential()

    def prepare(self) -> None:
        """Have a token at hand; why there is none is told by `update`."""
        with contextlib.suppress(BridgeError):
            self._tokens.access()

    def update(self, lane: Lane, inputs: Sequence[Input]) -> Answer | NoAnswer:
        """One call within the total deadline. Never raises for what the network or the CRM does."""
        return self._called("POST", self._url(lane), encode(lane, inputs))

    def get(self, path: str) -> Answer | NoAnswer:
        """What stands at another path of the same server, read by the same rules."""
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
