"""Requests that only look genuine: every way that we know to spoil, imitate or replay what a partner sends.

Each forgery starts from a genuine request and comes with a label that says what was done to it.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from bridge.intake.schemes import header_of, key_of, layouts_of, signature_of, signed_bytes, url_octets
from bridge.intake.signatures import sign
from bridge.settings import Hmac, Secret, Verify
from tests.senders import BODY, QUERY, SENDERS, Sender, hexed, stamp, url_of

Headers = list[tuple[str, str]]

#: What stands in place of a header's value; as WSGI hands it over, one character for each byte.
GARBAGE = (
    "", " ", "null", "=", ",", "t=", "v1,", "v0=", "sha256=", "Bearer ", "Basic ", "Basic =", "Basic Og==", "0" * 64,
    "AAAA", "%00", "{}", "../../etc/passwd", "' OR 1=1 --", "\x80\xff",
    "Zoë".encode().decode("latin-1"), "A" * 4097, "whsec_", "{body}", "v1,=",
)  # fmt: skip
#: What is no time in any unit.
NO_TIMES = (
    "soon", "-1800000000", "1e9", "nan", "inf", "0x6b49d200", "180000000²", "1 800 000 000", "1,800,000,000", "true",
    "[1800000000]", "9" * 400, "1800000000;", "2027-01-15T08:00:00+99:99", "10000-01-01T00:00:00Z", "0000-00-00", "Z",
    "0", "00000000000000000000", "1800000000.0.0", "+1800000000",
)  # fmt: skip


@dataclass(frozen=True)
class Forgery:
    label: str
    headers: Headers
    body: bytes = BODY
    query: str = QUERY


def forgeries(sender: Sender, verify: Verify, now: float, *, beyond_s: float = 1.0) -> Iterator[Forgery]:
    """All of them against one partner, whose block is read as `verify`.

    `beyond_s`: how far beyond the tolerance of 5 min the nearest times are; more where the clock runs.
    """
    genuine = sender.headers(now)
    yield Forgery("no header at all", [])
    for name, value in genuine.items():
        others = [pair for pair in genuine.items() if pair[0] != name]
        yield from _spoiled(sender, name, value, others)
    yield from _by_other_secrets(sender, verify, genuine, now)
    if sender.signs_body:
        yield from _other_bodies(genuine)
    if sender.unit is not None:
        yield from _other_times(sender, verify, now, 300 + beyond_s)
    for layout in layouts_of(verify):
        yield from _by_other_options(sender, verify, layout, now)
        if "{url}" in layout.signed:
            for query in ("", QUERY + "&more=1", QUERY.replace("c", "d"), QUERY.upper()):
                yield Forgery(f"query {query!r}", list(genuine.items()), query=query)
    yield from _many(sender, genuine)


def _spoiled(sender: Sender, name: str, value: str, others: Headers) -> Iterator[Forgery]:
    twice = {
        "twice": [(name, value), (name, value)],
        "twice, in another case": [(name, value), (name.upper(), value)],
        "twice, as gunicorn joins it": [(name, f"{value},{value}")],
    }
    if not sender.lists:  # where a header lists several, entries that nobody knows are passed over
        twice["twice, the second of another value"] = [(name, value), (name, "x")]
        twice["twice, the first of another value"] = [(name, "x"), (name, value)]
    for label, pairs in twice.items():
        yield Forgery(f"{name} {label}", [*others, *pairs])
    if name in sender.unsigned:
        return
    yield Forgery(f"{name} missing", others)
    middle = len(value) // 2
    changed = value[:middle] + ("0" if value[middle] != "0" else "1") + value[middle + 1 :]
    for other in (value[:-5], value[5:], value[:middle], value + "A", value + "==", changed, value[::-1], *GARBAGE):
        yield Forgery(f"{name}: {other[:40]!r}", [*others, (name, other)])


def _by_other_secrets(sender: Sender, verify: Verify, genuine: dict[str, str], now: float) -> Iterator[Forgery]:
    for secret in (
        sender.secret[:-1] + "x",
        sender.secret[1:] + sender.secret[0],
        sender.secret[::-1],
        hexed("x"),
        "changeme",
    ):
        try:
            yield Forgery("another secret", list(sender.headers(now, secret=secret).items()))
        except ValueError:
            continue  # no secret of this form
    for other in SENDERS:
        if other.secret == sender.secret:
            continue
        try:
            headers = sign(_with(verify, other.secret), body=BODY, url=url_of(sender.name), now=now, delivery_id="d1")
        except ValueError:
            continue
        yield Forgery(f"the secret of {other.name}", list(headers.items()))
    for layout in layouts_of(verify):
        text = stamp(sender.unit, now)
        yield Forgery("an empty key", list(_signed(layout, sender, b"", text, genuine).items()))


def _other_bodies(genuine: dict[str, str]) -> Iterator[Forgery]:
    headers = list(genuine.items())
    value = json.loads(BODY)
    bodies = {
        "re-serialised": json.dumps(value).encode(),
        "re-serialised, without blanks": json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(),
        "re-serialised, indented": json.dumps(value, indent=2, ensure_ascii=False).encode(),
        "keys in another order": json.dumps(dict(reversed(value.items())), ensure_ascii=False).encode(),
        "empty": b"",
        "with a line end": BODY + b"\n",
        "with a blank before it": b" " + BODY,
        "with a byte order mark": b"\xef\xbb\xbf" + BODY,
        "twice": BODY + BODY,
        "cut off": BODY[:-1],
        "in Latin-1": BODY.decode().encode("latin-1", "replace"),
        "in UTF-16": BODY.decode().encode("utf-16"),
        "of another event": BODY.replace(b"e1", b"e2"),
        "extended as only a plain hash allows": BODY + b"\x80" + bytes(40) + b"{}",
    }
    for label, body in bodies.items():
        yield Forgery(f"the body {label}", headers, body)
    for position in range(0, len(BODY), 7):
        changed = bytearray(BODY)
        changed[position] ^= 1
        yield Forgery(f"byte {position} changed", headers, bytes(changed))


def _other_times(sender: Sender, verify: Verify, now: float, off_s: float) -> Iterator[Forgery]:
    for off in (-off_s, off_s, -86_400, 86_400, 365 * 86_400, 1 - now):
        yield Forgery(f"sent at {off:+.0f} s", list(sender.headers(now + off).items()))
    genuine = sender.headers(now)
    units = [stamp(unit, now) for unit in ("s", "ms", "iso") if unit != sender.unit]
    for layout in layouts_of(verify):
        for text in (*NO_TIMES, *units):
            headers = _signed(layout, sender, key_of(layout, sender.secret), text, genuine)
            if headers:
                yield Forgery(f"signed at {text[:30]!r}", list(headers.items()))


def _by_other_options(sender: Sender, verify: Verify, layout: Hmac, now: float) -> Iterator[Forgery]:
    """Signed with the right secret, and in another way."""
    options: dict[str, Sequence[Any]] = {
        "algorithm": ("sha1", "sha256", "sha384", "sha512"),
        "encoding": ("hex", "base64"),
        "prefix": ("", "v9=", "v1a,", layout.prefix.upper()),
        "key": ("raw", "hex", "base64"),
        "mac": ("hmac", "hash"),
        "signed": ("", "{body}", "{timestamp}", "{timestamp}{body}", "{timestamp}.{body}", "{id}{body}", "{url}{body}"),
    }  # fmt: skip
    for option, values in options.items():
        for value in values:
            if value == getattr(layout, option):
                continue
            variant = _with(verify, sender.secret, dataclasses.replace(layout, **{option: value}))
            try:
                headers = sign(variant, body=BODY, url=url_of(sender.name), now=now, delivery_id="d1")
            except ValueError:
                continue  # the secret cannot be read so
            yield Forgery(f"{option} {value!r}", list(headers.items()))


def _many(sender: Sender, genuine: dict[str, str]) -> Iterator[Forgery]:
    """More signatures than anybody sends."""
    for name, value in genuine.items():
        if name in sender.unsigned:
            continue
        others = [pair for pair in genuine.items() if pair[0] != name]
        wrong = value[:-6] + "xxxxxx"
        for separator in (" ", ",", ", "):
            for number in (12, 5_000):
                many = separator.join([wrong] * number + [value])
                yield Forgery(f"{name}: {number} and a good one, by {separator!r}", [*others, (name, many)])
                good = separator.join([value] * number)
                yield Forgery(f"{name}: {number} good ones, by {separator!r}", [*others, (name, good)])
            long = value + f"{separator}x" * 4096
            yield Forgery(f"{name}: a good one and thousands of others, by {separator!r}", [*others, (name, long)])


def _with(verify: Verify, secret: str, layout: Hmac | None = None) -> Verify:
    scheme = "hmac" if layout is not None else verify.scheme
    given = (Secret(env="UNSET_IN_TESTS", default=secret),)
    return dataclasses.replace(verify, scheme=scheme, secrets=given, hmac=layout or verify.hmac)


def _signed(layout: Hmac, sender: Sender, key: bytes, time: str, genuine: dict[str, str]) -> dict[str, str]:
    """The genuine headers, their time in place of theirs and signed by this very key; {} for another variant's."""
    if layout.header not in genuine:
        return {}
    try:
        wire = time.encode("latin-1")
    except UnicodeEncodeError:
        return {}
    delivery_id = genuine.get(layout.id_header or "", "").encode()
    url = url_octets(layout, url_of(sender.name))
    parts = {"body": BODY, "method": b"POST", "url": url, "timestamp": wire, "id": delivery_id}
    signature = signature_of(layout, key, signed_bytes(layout, parts)).decode()
    headers = {**genuine, layout.header: header_of(layout, time, signature)}
    if layout.timestamp_header is not None and layout.timestamp_entry is None:
        headers[layout.timestamp_header] = time
    return headers


def extend_sha256(digest: str, length: int, extension: bytes) -> tuple[bytes, str]:
    """What a SHA-256 over `length` unknown bytes becomes when padding and extension follow them: both, no secret."""
    primes = [n for n in range(2, 312) if all(n % divisor for divisor in range(2, n))]
    constants = [int((Decimal(prime) ** (Decimal(1) / 3) % 1) * 2**32) for prime in primes]
    padding = b"\x80" + bytes(-(length + 9) % 64) + struct.pack(">Q", 8 * length)
    state = list(struct.unpack(">8I", bytes.fromhex(digest)))
    total = length + len(padding) + len(extension)
    rest = extension + b"\x80" + bytes(-(total + 9) % 64) + struct.pack(">Q", 8 * total)
    for start in range(0, len(rest), 64):
        words = list(struct.unpack(">16I", rest[start : start + 64]))
        for n in range(16, 64):
            low, high = words[n - 15], words[n - 2]
            s0 = _right(low, 7) ^ _right(low, 18) ^ low >> 3
            s1 = _right(high, 17) ^ _right(high, 19) ^ high >> 10
            words.append((words[n - 16] + s0 + words[n - 7] + s1) % 2**32)
        a, b, c, d, e, f, g, h = state
        for word, constant in zip(words, constants, strict=True):
            t1 = h + (_right(e, 6) ^ _right(e, 11) ^ _right(e, 25)) + (e & f ^ ~e & g) + constant + word
            t2 = (_right(a, 2) ^ _right(a, 13) ^ _right(a, 22)) + (a & b ^ a & c ^ b & c)
            a, b, c, d, e, f, g, h = (t1 + t2) % 2**32, a, b, c, (d + t1) % 2**32, e, f, g
        state = [(old + new) % 2**32 for old, new in zip(state, (a, b, c, d, e, f, g, h), strict=True)]
    return padding, struct.pack(">8I", *state).hex()


def _right(word: int, bits: int) -> int:
    return (word >> bits | word << (32 - bits)) % 2**32
