"""Signature schemes as data: the generic hmac, and a table of presets of it."""

from __future__ import annotations

import base64
import binascii
import functools
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from bridge.errors import MappingError
from bridge.settings import Hmac, SecretUnavailableError, Verify

#: The schemes that are the generic one with fixed options, each in its variants: the one whose
#: signature header is there counts. A timestamp header that is the signature header itself means
#: its `t=` entry (`t=1700000000,v1=…`).
PRESETS: Mapping[str, tuple[Hmac, ...]] = {
    "standard-webhooks": tuple(
        Hmac(
            header=f"{name}-signature",
            encoding="base64",
            prefix="v1,",
            key="base64",
            signed="{id}.{timestamp}.{body}",
            timestamp_header=f"{name}-timestamp",
            id_header=f"{name}-id",
        )
        for name in ("webhook", "svix")
    ),
    "github": (Hmac(header="X-Hub-Signature-256", prefix="sha256=", id_header="X-GitHub-Delivery"),),
    "stripe": (
        Hmac(
            header="Stripe-Signature",
            prefix="v1=",
            signed="{timestamp}.{body}",
            timestamp_header="Stripe-Signature",
        ),
    ),
    "shopify": (Hmac(header="X-Shopify-Hmac-SHA256", encoding="base64", id_header="X-Shopify-Webhook-Id"),),
    "slack": (
        Hmac(
            header="X-Slack-Signature",
            prefix="v0=",
            signed="v0:{timestamp}:{body}",
            timestamp_header="X-Slack-Request-Timestamp",
        ),
    ),
    "hubspot-v3": (
        Hmac(
            header="X-HubSpot-Signature-v3",
            encoding="base64",
            signed="{method}{url}{body}{timestamp}",
            timestamp_header="X-HubSpot-Request-Timestamp",
            timestamp_unit="ms",
        ),
    ),
    "zendesk": (
        Hmac(
            header="X-Zendesk-Webhook-Signature",
            encoding="base64",
            signed="{timestamp}{body}",
            timestamp_header="X-Zendesk-Webhook-Signature-Timestamp",
            timestamp_unit="iso",
        ),
    ),
    "typeform": (Hmac(header="Typeform-Signature", encoding="base64", prefix="sha256="),),
    "calendly": (
        Hmac(
            header="Calendly-Webhook-Signature",
            prefix="v1=",
            signed="{timestamp}.{body}",
            timestamp_header="Calendly-Webhook-Signature",
        ),
    ),
}

_ALGORITHMS = ("sha256", "sha384", "sha512", "sha1")
_FIELD = re.compile(r"\{([a-z]*)\}")
_EPOCH_TEXT = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?")


def layouts_of(verify: Verify) -> tuple[Hmac, ...]:
    if verify.scheme == "hmac":
        return (verify.hmac,) if verify.hmac is not None else ()
    return PRESETS.get(verify.scheme, ())


def gives_identity(verify: Verify) -> bool:
    """Whether the scheme tells deliveries apart: by a delivery id, or by a time that is signed."""
    return any(one.id_header is not None or "{timestamp}" in one.signed for one in layouts_of(verify))


def verify_problems(verify: Verify, public_url: str | None = None) -> list[MappingError]:
    """Everything wrong with a `verify:` block, with paths relative to its source."""
    path: tuple[str | int, ...] = ("verify",)
    if verify.scheme == "none":
        return []
    found = []
    if not verify.secrets:
        found.append(MappingError((*path, "secrets"), f"the scheme {verify.scheme} needs a secret"))
    if verify.scheme in {"bearer", "basic"}:
        return found
    layouts = layouts_of(verify)
    if not layouts:
        missing = "needs its options" if verify.scheme == "hmac" else "is not supported yet"
        return [*found, MappingError((*path, "scheme"), f"{verify.scheme} {missing}")]
    for layout in layouts:
        found += [MappingError((*path, option), text) for option, text in _misfits(layout, public_url)]
    for position, secret in enumerate(verify.secrets):
        try:
            for text in secret.texts():
                key_of(layouts[0], text)
        except SecretUnavailableError:
            continue  # whoever reads the configuration says so
        except ValueError as error:
            found.append(MappingError((*path, "secrets", position), f"is not {layouts[0].key}: {error}"))
    return found


def _misfits(layout: Hmac, public_url: str | None) -> Iterator[tuple[str, str]]:
    if layout.algorithm not in _ALGORITHMS:
        yield "algorithm", f"{layout.algorithm!r} is none of {', '.join(_ALGORITHMS)}"
    fields = set(_FIELD.findall(layout.signed))
    known = {"body", "timestamp", "id", "method", "url"}
    for name in sorted(fields - known):
        yield "signed", f"{{{name}}} is none of {', '.join(f'{{{one}}}' for one in sorted(known))}"
    if "body" not in fields:
        yield "signed", "leaves out {body}: anybody could change what was signed"
    if "timestamp" in fields and layout.timestamp_header is None:
        yield "timestamp", "is signed, so its header must be named"
    if "id" in fields and layout.id_header is None:
        yield "id", "is signed, so its header must be named"
    if "url" in fields and not public_url:
        yield "signed", "the URL is signed, so server.public_url must say what partners call"


def octets(text: str) -> bytes:
    """The bytes that a header had on the wire: WSGI hands them over as Latin-1."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def entries_of(layout: Hmac, value: str) -> list[str]:
    """The entries of a signature header: separated by spaces, by commas too unless the prefix has one."""
    separators = r"\s+" if "," in layout.prefix else r"[\s,]+"
    return [entry for entry in re.split(separators, value) if entry]


def timestamp_of(layout: Hmac, entries: Sequence[str], headers: Mapping[str, str]) -> str | None:
    name = (layout.timestamp_header or "").lower()
    if name == layout.header.lower():
        return next((entry[2:] for entry in entries if entry.startswith("t=")), None)
    return headers.get(name)


def seconds_of(layout: Hmac, text: str) -> float | None:
    if layout.timestamp_unit == "iso":
        try:
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    if not _EPOCH_TEXT.fullmatch(text):
        return None
    return float(text) / (1000 if layout.timestamp_unit == "ms" else 1)


def stamp_of(layout: Hmac, now: float) -> str:
    match layout.timestamp_unit:
        case "iso":
            return datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        case "ms":
            return str(int(now * 1000))
        case _:
            return str(int(now))


@functools.cache
def _pieces(template: str) -> tuple[str, ...]:
    """Text, field, text, field, … of a template of the configuration."""
    return tuple(_FIELD.split(template))


def signed_bytes(layout: Hmac, parts: Mapping[str, bytes]) -> bytes:
    pieces = _pieces(layout.signed)
    return b"".join(parts.get(piece, b"") if position % 2 else piece.encode() for position, piece in enumerate(pieces))


def key_of(layout: Hmac, secret: str) -> bytes:
    """The key that a secret's text stands for. Raises ValueError."""
    if layout.key == "raw":
        return secret.encode()
    if layout.key == "hex":
        return bytes.fromhex(secret)
    text = secret.removeprefix("whsec_").rstrip("=")  # no base64 text begins so: `_` is not in it
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("characters that do not belong there, or some are missing") from error
    if not key:
        raise ValueError("nothing in it")
    return key


def signature_of(layout: Hmac, key: bytes, signed: bytes) -> bytes:
    digest = hmac.digest(key, signed, layout.algorithm)
    return digest.hex().encode() if layout.encoding == "hex" else base64.b64encode(digest)


def comparable(layout: Hmac, candidate: str) -> bytes:
    """A given signature in the form that `_encode` makes: hex in lower case, base64 padded."""
    if layout.encoding == "hex":
        return octets(candidate).lower()
    return octets(candidate.rstrip("=") + "=" * (-len(candidate.rstrip("=")) % 4))
