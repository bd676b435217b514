"""Signature schemes as data: the generic hmac, and a table of presets of it."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from bridge.errors import MappingError
from bridge.intake.language import Path
from bridge.settings import Hmac, SecretUnavailableError, Verify

#: The schemes that are the generic one with fixed options, each in its variants: those whose
#: signature header is there are tried.
PRESETS: Mapping[str, tuple[Hmac, ...]] = {
    "standard-webhooks": tuple(
        Hmac(
            header=f"{name}-signature",
            encoding="base64",
            prefix="v1,",
            split=" ",
            key="base64",
            signed="{id}.{timestamp}.{body}",
            timestamp_header=f"{name}-timestamp",
            id_header=f"{name}-id",
        )
        for name in ("webhook", "svix")
    ),
    "github": (Hmac(header="X-Hub-Signature-256", prefix="sha256=", id_header="X-GitHub-Delivery", split=""),),
    "stripe": (
        Hmac(
            header="Stripe-Signature",
            prefix="v1=",
            signed="{timestamp}.{body}",
            timestamp_header="Stripe-Signature",
            timestamp_entry="t=",
        ),
    ),
    "shopify": (Hmac(header="X-Shopify-Hmac-SHA256", encoding="base64", id_header="X-Shopify-Webhook-Id", split=""),),
    "slack": (
        Hmac(
            header="X-Slack-Signature",
            prefix="v0=",
            signed="v0:{timestamp}:{body}",
            timestamp_header="X-Slack-Request-Timestamp",
            split="",
        ),
    ),
    # HubSpot's description decodes these twelve escapes of the URL first, its own libraries do not.
    "hubspot-v3": tuple(
        Hmac(
            header="X-HubSpot-Signature-v3",
            encoding="base64",
            signed="{method}{url}{body}{timestamp}",
            timestamp_header="X-HubSpot-Request-Timestamp",
            timestamp_unit="ms",
            split="",
            unescape=unescape,
        )
        for unescape in (":/?@!$'()*,;", "")
    ),
    "hubspot-v2": (Hmac(header="X-HubSpot-Signature", signed="{method}{url}{body}", split="", mac="hash"),),
    "hubspot-v1": (Hmac(header="X-HubSpot-Signature", split="", mac="hash"),),
    "zendesk": (
        Hmac(
            header="X-Zendesk-Webhook-Signature",
            encoding="base64",
            signed="{timestamp}{body}",
            timestamp_header="X-Zendesk-Webhook-Signature-Timestamp",
            timestamp_unit="iso",
            split="",
        ),
    ),
    "typeform": (Hmac(header="Typeform-Signature", encoding="base64", prefix="sha256=", split=""),),
    "calendly": (
        Hmac(
            header="Calendly-Webhook-Signature",
            prefix="v1=",
            signed="{timestamp}.{body}",
            timestamp_header="Calendly-Webhook-Signature",
            timestamp_entry="t=",
        ),
    ),
}

_ENCODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "hex": binascii.hexlify,
    "base64": base64.b64encode,
    "base64url": base64.urlsafe_b64encode,
}
#: What `signed` may name.
PARTS = ("body", "timestamp", "id", "method", "url")
_ALGORITHMS = ("sha256", "sha384", "sha512", "sha1")
_FIELD = re.compile(r"\{([a-z]*)\}")
_EPOCH_TEXT = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?")
_HEX = re.compile(r"([0-9A-Fa-f]{2})+")
_HTTP_DATE = "%a, %d %b %Y %H:%M:%S GMT"
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")


def layouts_of(verify: Verify) -> tuple[Hmac, ...]:
    if verify.scheme == "hmac":
        return (verify.hmac,) if verify.hmac is not None else ()
    return PRESETS.get(verify.scheme, ())


def gives_identity(verify: Verify) -> bool:
    """Whether the scheme tells deliveries apart: by a delivery id, or by a time that is signed."""
    return any(one.id_header is not None or "{timestamp}" in one.signed for one in layouts_of(verify))


def verify_problems(verify: Verify, public_url: str | None = None) -> list[MappingError]:
    """Everything wrong with a `verify:` block, with paths relative to its source."""
    path: Path = ("verify",)
    if verify.scheme == "none":
        return []
    found = []
    if not verify.secrets:
        found.append(MappingError((*path, "secrets"), f"the scheme {verify.scheme} needs a secret"))
    if verify.scheme in {"bearer", "basic"}:
        return found
    layouts = layouts_of(verify)
    if not layouts:
        return [*found, MappingError((*path, "scheme"), f"{verify.scheme} needs its options")]
    if "{url}" in layouts[0].signed and public_url is None:
        needs = f"{verify.scheme} signs the URL; write `public_url: https://…` under `server`"
        found.append(MappingError((*path, "scheme"), needs))
    for option, text in _misfits(layouts[0]):
        found.append(MappingError((*path, option if verify.scheme == "hmac" else "scheme"), text))
    for position, secret in enumerate(verify.secrets):
        try:
            for text in secret.texts():
                key_of(layouts[0], text)
        except SecretUnavailableError:
            continue  # whoever reads the configuration says so
        except ValueError as error:
            found.append(MappingError((*path, "secrets", position), f"is not {layouts[0].key}: {error}"))
    return found


def _misfits(layout: Hmac) -> Iterator[tuple[str, str]]:
    if layout.algorithm not in _ALGORITHMS:
        yield "algorithm", f"{layout.algorithm!r} is none of {', '.join(_ALGORITHMS)}"
    fields = set(_FIELD.findall(layout.signed))
    for name in sorted(fields.difference(PARTS)):
        yield "signed", f"{{{name}}} is none of {', '.join(f'{{{one}}}' for one in PARTS)}"
    if "body" not in fields:
        yield "signed", "leaves out {body}: anybody could change what was signed"
    if "timestamp" in fields and layout.timestamp_header is None:
        yield "timestamp", "is signed, so its header must be named"
    if "id" in fields and layout.id_header is None:
        yield "id", "is signed, so its header must be named"


def octets(text: str) -> bytes:
    """The bytes that a header had on the wire: WSGI hands them over as Latin-1."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def entries_of(layout: Hmac, value: str) -> list[str]:
    """The entries of a signature header.

    A header that is sent twice arrives joined by a comma: where that can be seen, it has no entries that count.
    """
    if not layout.split:
        return [value.strip()]
    entries = value.replace(layout.split, " ").split()
    if layout.split != ",":  # then no signature has a comma behind its prefix: no encoding has one
        behind = [one.removeprefix(layout.prefix) for one in entries if one.startswith(layout.prefix)]
        if re.search(r",\s", value) or any("," in one for one in behind):
            return []
    return entries


def header_of(layout: Hmac, time: str, signature: str) -> str:
    """The signature's header as the sender writes it."""
    time = "" if layout.timestamp_entry is None else f"{layout.timestamp_entry}{time}{layout.split}"
    return f"{time}{layout.prefix}{signature}"


def timestamp_of(layout: Hmac, headers: Mapping[str, str]) -> str | None:
    """The text of the time of signing; several that differ come joined, which is no time."""
    value = headers.get((layout.timestamp_header or "").lower())
    if value is None or layout.timestamp_entry is None:
        return value
    begins = layout.timestamp_entry
    entries = entries_of(layout, value)
    stamps = [entry[len(begins) :] for entry in entries if entry.startswith(begins)] if begins else entries[:1]
    return ",".join(dict.fromkeys(stamps))


def seconds_of(layout: Hmac, text: str) -> float | None:
    """A time of signing as seconds since 1970; None if it is not written as the sender writes it."""
    try:
        match layout.timestamp_unit:
            case "iso":
                moment = datetime.fromisoformat(text)
                return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            case "http":
                return datetime.strptime(text, _HTTP_DATE).replace(tzinfo=UTC).timestamp()
            case unit:
                return float(text) / (1000 if unit == "ms" else 1) if _EPOCH_TEXT.fullmatch(text) else None
    except (ValueError, OverflowError):
        return None


def stamp_of(layout: Hmac, now: float) -> str:
    """A time of signing as the sender writes it."""
    match layout.timestamp_unit:
        case "iso":
            return datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        case "http":
            return datetime.fromtimestamp(now, UTC).strftime(_HTTP_DATE)
        case "ms":
            return str(int(now * 1000))
        case "s":
            return str(int(now))


def url_octets(layout: Hmac, url: str) -> bytes:
    """The URL as the sender signs it."""

    def decoded(escape: re.Match[str]) -> str:
        character = chr(int(escape[1], 16))
        return character if character in layout.unescape else escape[0]

    return octets(_ESCAPE.sub(decoded, url) if layout.unescape else url)


@functools.cache
def _pieces(template: str) -> tuple[tuple[bytes, str], ...]:
    """The fields of a template of the configuration, each after the text before it; what is at its end has none."""
    texts = _FIELD.split(template)
    return tuple(zip([text.encode() for text in texts[::2]], [*texts[1::2], ""], strict=True))


def signed_bytes(layout: Hmac, parts: Mapping[str, bytes]) -> bytes:
    return b"".join([part for before, field in _pieces(layout.signed) for part in (before, parts.get(field, b""))])


def secret_octets(text: str) -> bytes:
    """The bytes of a secret; those of a variable that are not UTF-8 come back as they were."""
    return text.encode("utf-8", "surrogateescape")


def key_of(layout: Hmac, secret: str) -> bytes:
    """The key that a secret's text stands for. Raises ValueError, whose message does not show it."""
    if layout.key == "raw":
        return secret_octets(secret)
    if layout.key == "hex":
        if not _HEX.fullmatch(secret):
            raise ValueError("characters that do not belong there, or some are missing")
        return bytes.fromhex(secret)
    text = secret.removeprefix("whsec_").rstrip("=")  # no base64 text begins so: `_` is not in it
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise ValueError("characters that do not belong there, or some are missing") from error
    if not key:
        raise ValueError("nothing in it")
    return key


def signature_of(layout: Hmac, key: bytes, signed: bytes) -> bytes:
    if layout.mac == "hash":
        digest = hashlib.new(layout.algorithm, key + signed).digest()
    else:
        digest = hmac.digest(key, signed, layout.algorithm)
    return _ENCODERS[layout.encoding](digest)


def comparable(layout: Hmac, candidate: str) -> bytes:
    """A given signature in the form that `signature_of` makes: hex in lower case, base64 padded."""
    if layout.encoding == "hex":
        return octets(candidate).lower()
    bare = candidate.rstrip("=")
    return octets(bare + "=" * (-len(bare) % 4) if len(candidate) - len(bare) < 3 else candidate)
