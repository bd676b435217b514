"""Whether a request comes from the partner: one generic signature scheme and a table of presets.

Signatures are made over the raw bytes as they were sent, before inflating or parsing (Standard
Webhooks asks for the raw body too). Comparisons take constant time. A header that matters and is
there twice is refused, as nobody can tell which one counts.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bridge.intake.schemes import (
    comparable,
    entries_of,
    gives_identity,
    key_of,
    layouts_of,
    octets,
    seconds_of,
    signature_of,
    signed_bytes,
    stamp_of,
    timestamp_of,
)
from bridge.settings import Hmac, SecretUnavailableError, Verify

__all__ = [
    "Accepted",
    "Refused",
    "SignedRequest",
    "Verdict",
    "Verifier",
    "gives_identity",
    "sign",
]

#: How many signatures of one header are tried, and the longest header that is looked at.
MAX_SIGNATURES = 10
MAX_HEADER = 4096
MAX_DELIVERY_ID = 255

Reason = Literal["missing_header", "malformed", "stale", "future", "mismatch", "no_secret"]


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a signature may cover. `url` is path and query as requested; `body` the bytes as sent."""

    method: str
    url: str
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """`secret` is the position of the one that matched. `signed_hash` is there when the signed bytes
    include a time and no delivery id tells deliveries apart.
    """

    secret: int | None
    delivery_id: str | None = None
    signed_time: bool = False
    signed_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """`reason` is for metrics, `detail` for the log: neither goes to the sender."""

    reason: Reason
    detail: str


Verdict = Accepted | Refused


class Verifier:
    """Judges the requests of one source. Immutable, hence thread-safe."""

    def __init__(self, verify: Verify, public_url: str | None = None) -> None:
        self._verify = verify
        self._public_url = (public_url or "").rstrip("/")
        self._layouts = layouts_of(verify)
        wanted = {verify.header, "Authorization"}
        for layout in self._layouts:
            wanted |= {layout.header, layout.timestamp_header or "", layout.id_header or ""}
        self._wanted = frozenset(name.lower() for name in wanted if name)

    def verify(self, request: SignedRequest, now: float) -> Verdict:
        """The verdict on a request that arrived at `now` (seconds since the epoch). Never raises."""
        found: dict[str, str] = {}
        for name, value in request.headers:
            key = name.lower()
            if key in self._wanted:
                if key in found:
                    return Refused("malformed", f"the header {key} is there twice")
                if len(value) > MAX_HEADER:
                    return Refused("malformed", f"the header {key} is longer than {MAX_HEADER} characters")
                found[key] = value
        match self._verify.scheme:
            case "none":
                return Accepted(None)
            case "bearer":
                return self._bearer(found)
            case "basic":
                return self._basic(found)
            case _:
                return self._signature(request, found, now)

    def _bearer(self, headers: Mapping[str, str]) -> Verdict:
        name, prefix = self._verify.header.lower(), self._verify.prefix
        value = headers.get(name)
        if not value:
            return Refused("missing_header", f"the header {name} is missing")
        if not value.lower().startswith(prefix.lower()):
            return Refused("malformed", f"the header {name} does not begin with {prefix!r}")
        return self._compare(octets(value[len(prefix) :].strip()))

    def _basic(self, headers: Mapping[str, str]) -> Verdict:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if not scheme:
            return Refused("missing_header", "the header authorization is missing")
        try:
            given = base64.b64decode(token.strip(), validate=True) if scheme.lower() == "basic" else b""
        except ValueError:
            given = b""
        if not given:
            return Refused("malformed", "the header authorization does not hold Basic credentials")
        return self._compare(given)

    def _compare(self, given: bytes) -> Verdict:
        unreadable: list[str] = []
        for position, text in enumerate(self._texts(unreadable)):
            if hmac.compare_digest(text.encode(), given):
                return Accepted(position)
        return _no_match(unreadable, "the token is none of the secrets")

    def _signature(self, request: SignedRequest, headers: Mapping[str, str], now: float) -> Verdict:
        layout = next((one for one in self._layouts if headers.get(one.header.lower())), None)
        if layout is None:
            names = " or ".join(one.header.lower() for one in self._layouts)
            return Refused("missing_header", f"the header {names} is missing")
        entries = entries_of(layout, headers[layout.header.lower()])
        candidates = [entry[len(layout.prefix) :] for entry in entries if entry.startswith(layout.prefix)]
        if not candidates:
            return Refused("malformed", f"the header {layout.header} holds no signature of the scheme")
        parts = {"body": request.body, "method": request.method.upper().encode()}
        parts["url"] = octets(self._public_url + request.url)
        if layout.timestamp_header is not None:
            text = timestamp_of(layout, entries, headers)
            if not text:
                return Refused("missing_header", "the timestamp is missing")
            refused = self._check_time(layout, text, now)
            if refused is not None:
                return refused
            parts["timestamp"] = octets(text)
        delivery_id = headers.get(layout.id_header.lower()) if layout.id_header is not None else None
        if "{id}" in layout.signed:
            if not delivery_id:
                return Refused("missing_header", f"the header {layout.id_header} is missing")
            if "{id}." in layout.signed and "." in delivery_id:
                return Refused("malformed", f"the header {layout.id_header} holds a dot")
            parts["id"] = octets(delivery_id)
        if delivery_id is not None and len(delivery_id) > MAX_DELIVERY_ID:
            return Refused("malformed", f"the header {layout.id_header} is too long")
        signed = signed_bytes(layout, parts)
        unreadable: list[str] = []
        for position, text in enumerate(self._texts(unreadable)):
            try:
                expected = signature_of(layout, key_of(layout, text), signed)
            except ValueError as error:
                unreadable.append(f"secret {position} is not {layout.key}: {error}")
                continue
            for candidate in candidates[:MAX_SIGNATURES]:
                if hmac.compare_digest(expected, comparable(layout, candidate)):
                    signed_time = "{timestamp}" in layout.signed
                    needs_hash = signed_time and not delivery_id
                    return Accepted(
                        position,
                        delivery_id or None,
                        signed_time,
                        hashlib.sha256(signed).hexdigest() if needs_hash else None,
                    )
        return _no_match(unreadable, "no signature matches any secret")

    def _check_time(self, layout: Hmac, text: str, now: float) -> Refused | None:
        sent = seconds_of(layout, text)
        if sent is None:
            return Refused("malformed", f"the timestamp is not one in {layout.timestamp_unit}")
        age, tolerance = now - sent, self._verify.tolerance_s
        if age > tolerance:
            return Refused("stale", f"the timestamp is {age:.0f} s old; {tolerance:.0f} s are tolerated")
        if age < -tolerance:
            return Refused("future", f"the timestamp is {-age:.0f} s ahead; {tolerance:.0f} s are tolerated")
        return None

    def _texts(self, unreadable: list[str]) -> Iterator[str]:
        for secret in self._verify.secrets:
            try:
                yield from secret.texts()
            except SecretUnavailableError as error:
                unreadable.append(str(error))


def sign(
    verify: Verify,
    *,
    body: bytes,
    url: str = "",
    method: str = "POST",
    now: float,
    delivery_id: str,
) -> dict[str, str]:
    """The headers that the partner would send with `body`. `url` is what the partner calls, in full."""
    if verify.scheme == "none":
        return {}
    secret = verify.secrets[0].text()
    if verify.scheme == "bearer":
        return {verify.header: f"{verify.prefix}{secret}"}
    if verify.scheme == "basic":
        return {"Authorization": "Basic " + base64.b64encode(secret.encode()).decode()}
    layout = layouts_of(verify)[0]
    stamp = stamp_of(layout, now)
    parts = {
        "body": body,
        "method": method.upper().encode(),
        "url": octets(url),
        "timestamp": stamp.encode(),
        "id": octets(delivery_id),
    }
    signature = layout.prefix + signature_of(layout, key_of(layout, secret), signed_bytes(layout, parts)).decode()
    headers = {layout.header: signature}
    if layout.timestamp_header is not None:
        if layout.timestamp_header.lower() == layout.header.lower():
            headers[layout.header] = f"t={stamp},{signature}"
        else:
            headers[layout.timestamp_header] = stamp
    if layout.id_header is not None:
        headers[layout.id_header] = delivery_id
    return headers


def _no_match(unreadable: Sequence[str], detail: str) -> Refused:
    return Refused("no_secret", "; ".join(unreadable)) if unreadable else Refused("mismatch", detail)
