"""Whether a request comes from the partner (G10): one generic signature scheme and a table of presets.

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
    header_of,
    key_of,
    layouts_of,
    octets,
    seconds_of,
    secret_octets,
    signature_of,
    signed_bytes,
    stamp_of,
    timestamp_of,
    url_octets,
)
from bridge.settings import Hmac, SecretUnavailableError, Verify

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
class Verified:
    """The request is the partner's. `secret` is the position of the one that matched. `signed_hash` is there when the
    signed bytes include a time and no delivery id tells deliveries apart.
    """

    secret: int | None
    delivery_id: str | None = None
    signed_time: bool = False
    signed_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Unverified:
    """It is not known to be. `reason` is for metrics, `detail` for the log: neither goes to the sender."""

    reason: Reason
    detail: str


Verification = Verified | Unverified


class Verifier:
    """Judges the requests of one source. Thread-safe: it keeps no state but the secrets', which are."""

    def __init__(self, verify: Verify, public_url: str | None = None) -> None:
        self._verify = verify
        self._public_url = (public_url or "").rstrip("/")
        self._layouts = layouts_of(verify)
        self._wanted = frozenset(name.lower() for name in _headers_of(verify))

    @property
    def challenge(self) -> Mapping[str, str]:
        """The header of a 401 that makes HTTP clients send their credentials: the same for every failure."""
        if self._verify.scheme == "basic":
            return {"WWW-Authenticate": 'Basic realm="partner-bridge", charset="UTF-8"'}
        bearer = self._verify.scheme == "bearer" and self._wanted == {"authorization"}
        return {"WWW-Authenticate": 'Bearer realm="partner-bridge"'} if bearer else {}

    def verify(self, request: SignedRequest, now: float) -> Verification:
        """What is found of a request that arrived at `now` (seconds since the epoch). Never raises."""
        found: dict[str, str] = {}
        for name, value in request.headers:
            key = name.lower()
            if key in self._wanted:
                if key in found:
                    return Unverified("malformed", f"the header {key} is there twice")
                if len(value) > MAX_HEADER:
                    return Unverified("malformed", f"the header {key} is longer than {MAX_HEADER} characters")
                found[key] = value
        if self._verify.scheme == "none":
            return Verified(None)
        texts, faults = self._secrets()
        verdict = self._judge(request, found, now, texts)
        if isinstance(verdict, Unverified) and verdict.reason == "mismatch":
            latest, faults = self._secrets(look=True)
            if latest != texts:  # a secret that came a moment ago counts at once
                verdict = self._judge(request, found, now, latest)
        if isinstance(verdict, Unverified) and verdict.reason == "mismatch" and faults:
            return Unverified("no_secret", "; ".join(faults))
        return verdict

    def _secrets(self, *, look: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """All secrets' texts, and what is wrong with those that cannot count."""
        texts: list[str] = []
        faults: list[str] = []
        for secret in self._verify.secrets:
            try:
                texts += secret.texts(look=look)
                faults += secret.faults
            except SecretUnavailableError as error:
                faults.append(str(error))
        return tuple(texts), tuple(faults)

    def _judge(
        self, request: SignedRequest, headers: Mapping[str, str], now: float, texts: Sequence[str]
    ) -> Verification:
        match self._verify.scheme:
            case "bearer":
                return self._bearer(headers, texts)
            case "basic":
                return _basic(headers, texts)
        layouts = [one for one in self._layouts if headers.get(one.header.lower())]
        if not layouts:
            names = " or ".join(dict.fromkeys(one.header.lower() for one in self._layouts))
            return Unverified("missing_header", f"the header {names} is missing")
        verdict: Verification = Unverified("mismatch", "")
        for layout in layouts:
            verdict = self._signature(layout, request, headers, now, texts)
            if isinstance(verdict, Verified):
                break
        return verdict

    def _bearer(self, headers: Mapping[str, str], texts: Sequence[str]) -> Verification:
        name, prefix = self._verify.header.lower(), self._verify.prefix
        value = headers.get(name)
        if not value:
            return Unverified("missing_header", f"the header {name} is missing")
        if not value.lower().startswith(prefix.lower()):
            return Unverified("malformed", f"the header {name} does not begin with {prefix!r}")
        return _compare(octets(value[len(prefix) :].strip()), texts)

    def _signature(
        self, layout: Hmac, request: SignedRequest, headers: Mapping[str, str], now: float, texts: Sequence[str]
    ) -> Verification:
        entries = entries_of(layout, headers[layout.header.lower()])
        candidates = [entry[len(layout.prefix) :] for entry in entries if entry.startswith(layout.prefix)]
        if not candidates:
            return Unverified("malformed", f"the header {layout.header} holds no signature of the scheme")
        parts = {"body": request.body, "method": request.method.upper().encode()}
        parts["url"] = url_octets(layout, self._public_url + request.url)
        if layout.timestamp_header is not None:
            stamp = timestamp_of(layout, headers)
            if not stamp:
                return Unverified("missing_header", "the timestamp is missing")
            refused = self._check_time(layout, stamp, now)
            if refused is not None:
                return refused
            parts["timestamp"] = octets(stamp)
        delivery_id = headers.get(layout.id_header.lower()) if layout.id_header is not None else None
        refused = _check_id(layout, delivery_id) or _check_body(layout, request.body)
        if refused is not None:
            return refused
        parts["id"] = octets(delivery_id or "")
        signed = signed_bytes(layout, parts)
        position = _match(layout, signed, candidates[:MAX_SIGNATURES], texts)
        if isinstance(position, Unverified):
            return position
        signed_time = "{timestamp}" in layout.signed
        signed_hash = hashlib.sha256(signed).hexdigest() if signed_time and not delivery_id else None
        return Verified(position, delivery_id or None, signed_time, signed_hash)

    def _check_time(self, layout: Hmac, text: str, now: float) -> Unverified | None:
        sent = seconds_of(layout, text)
        if sent is None or ("{timestamp}." in layout.signed and layout.timestamp_unit != "iso" and "." in text):
            return Unverified("malformed", f"the timestamp is not one in {layout.timestamp_unit}")
        age, tolerance = now - sent, self._verify.tolerance_s
        if age > tolerance:
            return Unverified("stale", f"the timestamp is {age:.0f} s old; {tolerance:.0f} s are tolerated")
        if age < -tolerance:
            return Unverified("future", f"the timestamp is {-age:.0f} s ahead; {tolerance:.0f} s are tolerated")
        return None


def _headers_of(verify: Verify) -> Iterator[str]:
    """The headers that the scheme reads."""
    if verify.scheme == "bearer":
        yield verify.header
    elif verify.scheme == "basic":
        yield "Authorization"
    for layout in layouts_of(verify):
        yield from filter(None, (layout.header, layout.timestamp_header, layout.id_header))


def _basic(headers: Mapping[str, str], texts: Sequence[str]) -> Verification:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if not scheme:
        return Unverified("missing_header", "the header authorization is missing")
    try:
        given = base64.b64decode(token.strip(), validate=True) if scheme.lower() == "basic" else b""
    except ValueError:
        given = b""
    if not given:
        return Unverified("malformed", "the header authorization does not hold Basic credentials")
    return _compare(given, texts)


def _compare(given: bytes, texts: Sequence[str]) -> Verification:
    for position, text in enumerate(texts):
        if hmac.compare_digest(secret_octets(text), given):
            return Verified(position)
    return Unverified("mismatch", "the token is none of the secrets")


def _match(layout: Hmac, signed: bytes, candidates: Sequence[str], texts: Sequence[str]) -> int | Unverified:
    """The position of the secret by which one of the candidates was made."""
    faults = []
    for position, text in enumerate(texts):
        try:
            expected = signature_of(layout, key_of(layout, text), signed)
        except ValueError:
            faults.append(f"secret {position} is not {layout.key}")
            continue
        matching = [one for one in candidates if hmac.compare_digest(expected, comparable(layout, one))]
        if len(matching) > 1:  # a header that is sent twice arrives joined; no sender lists one signature twice
            return Unverified("malformed", f"the header {layout.header} holds the same signature twice")
        if matching:
            return position
    if faults:
        return Unverified("no_secret", "; ".join(faults))
    return Unverified("mismatch", "no signature matches any secret")


def _check_id(layout: Hmac, delivery_id: str | None) -> Unverified | None:
    if "{id}" in layout.signed and not delivery_id:
        return Unverified("missing_header", f"the header {layout.id_header} is missing")
    if not delivery_id:
        return None
    if "{id}." in layout.signed and "." in delivery_id:
        return Unverified("malformed", f"the header {layout.id_header} holds a dot")
    if "{id}" not in layout.signed and "," in delivery_id:  # what is joined by a comma was sent twice
        return Unverified("malformed", f"the header {layout.id_header} holds a comma")
    if len(delivery_id) > MAX_DELIVERY_ID:
        return Unverified("malformed", f"the header {layout.id_header} is too long")
    return None


def _check_body(layout: Hmac, body: bytes) -> Unverified | None:
    """Anybody can extend what a plain hash has signed, but only by bytes that are never UTF-8."""
    if layout.mac == "hash":
        try:
            body.decode()
        except UnicodeDecodeError:
            return Unverified("malformed", "the body is not UTF-8")
    return None


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
        return {"Authorization": "Basic " + base64.b64encode(secret_octets(secret)).decode()}
    layout = layouts_of(verify)[0]
    stamp = stamp_of(layout, now)
    parts = {
        "body": body,
        "method": method.upper().encode(),
        "url": url_octets(layout, url),
        "timestamp": stamp.encode(),
        "id": octets(delivery_id),
    }
    signature = signature_of(layout, key_of(layout, secret), signed_bytes(layout, parts)).decode()
    headers = {layout.header: header_of(layout, stamp, signature)}
    if layout.timestamp_header is not None and layout.timestamp_entry is None:
        headers[layout.timestamp_header] = stamp
    if layout.id_header is not None:
        headers[layout.id_header] = delivery_id
    return headers
