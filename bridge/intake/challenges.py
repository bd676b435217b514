"""Handshakes: partners that ask an endpoint to prove itself before they send events.

A handshake is a request of the method that `challenge:` names, for which `when` holds and `reply` finds
something. What it finds goes back, and nothing is journalled. One that need not be signed is answered to
anybody, so an answer can only echo what its request brought, as plain text or JSON that no browser takes for
a page: short, without control characters, and where it is unsigned text without angle brackets.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from flask import Response

from bridge.http.problems import Refusal
from bridge.intake.blocks import Problems
from bridge.intake.expressions import ABSENT, CREDENTIALS, ExpressionError, Frame, Needs
from bridge.intake.language import pay_made
from bridge.intake.payload import to_json
from bridge.settings import Challenge

#: Characters of an answer; tokens of known partners have at most some hundred.
MAX_REPLY = 4_096
#: Bytes of a body that is looked at although its signature does not hold.
MAX_UNSIGNED_BODY = 65_536

_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
#: JSON that stays the same value, and is no markup wherever it ends up.
_HARMLESS = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


class CompiledChallenge:
    """How one source answers handshakes. It never changes, so threads may share it."""

    def __init__(self, challenge: Challenge, problems: Problems, *, hidden: frozenset[str] = CREDENTIALS) -> None:
        """`hidden` names headers that hold credentials, as `_headers` names them."""
        self.method = challenge.method
        self.signed = challenge.signed
        self._json = challenge.as_ == "json"
        self._when = problems.expression(challenge.when, ("challenge", "when")) if challenge.when is not None else None
        self._reply = problems.expression(challenge.reply, ("challenge", "reply"))
        self._needs = Needs([self._reply] if self._when is None else [self._reply, self._when])
        self._hidden = hidden
        for fault in self._needs.header_faults(hidden=hidden):
            problems.add(("challenge",), fault)

    def answer(self, body: Any, *, headers: Mapping[str, str], query: Mapping[str, str]) -> Response | None:
        """The answer to a request that is a handshake; None when it is none. `body` is {} where there is none.

        Raises Refusal (400) for what cannot be sent back.
        """
        frame = Frame(
            root=body,
            query=self._needs.query_of(query),
            headers=self._needs.headers_of(headers, hidden=self._hidden),
        )
        try:
            if self._when is not None and not self._when.matches(body, frame):
                return None
            found = self._reply.get(body, frame)
            pay_made(found, frame.spend)
        except ExpressionError:
            return None
        if found is ABSENT or found is None:
            return None
        text = to_json(found).translate(_HARMLESS) if self._json else self._plain(found)
        if len(text) > MAX_REPLY:
            raise Refusal(400, f"The handshake asks for an answer of more than {MAX_REPLY} characters.")
        media_type = "application/json" if self._json else "text/plain; charset=utf-8"
        return Response(text, 200, content_type=media_type, headers=_HEADERS)

    def _plain(self, found: object) -> str:
        if isinstance(found, bool) or not isinstance(found, (str, int, Decimal)):
            raise Refusal(400, "The handshake's answer would not be text.")
        text = format(found, "f") if isinstance(found, Decimal) else str(found)
        if any(not char.isprintable() for char in text):
            raise Refusal(400, "The handshake asks for an answer with characters that no token has.")
        if not self.signed and ("<" in text or ">" in text):
            raise Refusal(400, "The handshake asks for an answer with characters that no token has.")
        return text
