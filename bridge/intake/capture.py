"""A request as it came in, as a JSON file: `listen --save` writes it; `map`, `send` and `examples:` read it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

#: what stands in a file beside `headers` and the body, which is `body` (text) or `body_base64` (any bytes)
_MORE = frozenset({"method", "path", "query", "received_at", "source", "verdict"})
_BODIES = frozenset({"body", "body_base64"})
#: what is kept in place of a credential
MASK = "***"


@dataclass(frozen=True, slots=True)
class SavedRequest:
    """`body` is the content, inflated where it came with gzip; `query` what follows the question mark.

    `verdict` is what was said of its signature, for people: nothing reads it.
    """

    body: bytes
    headers: Mapping[str, str]
    method: str = "POST"
    path: str = ""
    query: str = ""
    received_at: str = ""
    source: str = ""
    verdict: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, str]:
        """The query's parameters as mappings see them: of those given twice, the first."""
        return dict(reversed(parse_qsl(self.query, keep_blank_values=True)))

    def as_json(self) -> dict[str, Any]:
        """The document to be written."""
        document: dict[str, Any] = {
            "source": self.source,
            "received_at": self.received_at,
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "verdict": dict(self.verdict),
            "headers": dict(self.headers),
        }
        try:
            document["body"] = self.body.decode()
        except UnicodeDecodeError:
            document["body_base64"] = base64.b64encode(self.body).decode()
        return document


def read_saved(content: bytes) -> SavedRequest | None:
    """The request that a file holds, or None if it is anything else, such as a bare payload."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    keys = set(document)
    headers = document.get("headers")
    if len(keys & _BODIES) != 1 or not keys <= _MORE | _BODIES | {"headers"} or not isinstance(headers, dict):
        return None
    body = _body(document)
    if body is None:
        return None
    texts = {key: document[key] for key in _MORE - {"verdict"} if isinstance(document.get(key), str)}
    return SavedRequest(body, {str(key): str(value) for key, value in headers.items()}, **texts)


def _body(document: Mapping[str, Any]) -> bytes | None:
    text = document.get("body", document.get("body_base64"))
    if not isinstance(text, str):
        return None
    try:
        return text.encode() if "body" in document else base64.b64decode(text, validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
