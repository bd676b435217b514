"""Why a request is refused, for the person who sets up a partner: what is in it, and what it would match.

Only `listen` uses this. It tries what people usually get wrong, one thing after another, by the very code that
verifies webhooks; a match is proof, since a signature does not match by chance.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from bridge.intake.schemes import PRESETS, header_of, layouts_of, seconds_of, timestamp_of
from bridge.intake.signatures import SignedRequest, Verification, Verified, Verifier
from bridge.settings import Hmac, Scheme, SecretUnavailableError, Verify

_FORWARDED = ("x-forwarded-proto", "x-forwarded-host")
_SUSPICIOUS = ("signature", "hmac", "token", "api-key", "apikey", "secret")
_VARIANTS: Mapping[str, tuple[str, ...]] = {
    "key": ("raw", "base64", "hex"),
    "encoding": ("hex", "base64"),
    "algorithm": ("sha256", "sha1", "sha512", "sha384"),
    "signed": ("{body}", "{timestamp}.{body}", "{timestamp}{body}", "{timestamp}:{body}"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict in words. `clock_off_s`: how long ago the partner's clock says it was sent, if it says so."""

    verdict: Verification
    text: str
    hints: tuple[str, ...] = ()
    clock_off_s: float | None = None


@dataclass(frozen=True, slots=True)
class Examiner:
    """Knows the `verify` of a source, that of the others by name, and the URL that partners call."""

    verify: Verify
    others: Mapping[str, Verify]
    public_url: str | None = None

    def examine(self, request: SignedRequest, verdict: Verification, now: float) -> Finding:
        """What people need to know of a verdict that was given at `now`."""
        headers = {name.lower(): value for name, value in request.headers}
        off = clock_off(self.verify, headers, now)
        if isinstance(verdict, Verified):
            return Finding(verdict, self._accepted(verdict), (), off)
        hints: Iterator[str] = iter(())
        match verdict.reason:
            case "missing_header":
                hints = self._absent(headers)
            case "mismatch":
                hints = self._mismatch(request, now)
            case "stale" | "future":
                hints = self._clock(request, now)
            case "malformed":
                hints = self._form(headers)
            case "no_secret":
                pass
        return Finding(verdict, verdict.detail, tuple(hints), off)

    def _accepted(self, verdict: Verified) -> str:
        if verdict.secret is None:
            return f"scheme {self.verify.scheme}: everything is accepted"
        return f"signed as {self.verify.scheme} does, with {secret_name(self.verify, verdict.secret)}"

    def _absent(self, headers: Mapping[str, str]) -> Iterator[str]:
        known = [scheme for scheme in recognised(headers) if scheme != self.verify.scheme]
        for scheme in known:
            yield f"what is there is how {scheme} authenticates: is `scheme: {scheme}` meant?"
        if known:
            return
        named = [name for name in headers if any(word in name for word in _SUSPICIOUS)]
        if named:
            yield f"{' and '.join(named)} came along: scheme hmac takes any `header`"
        else:
            yield "no header looks like a signature: has the partner been given the secret?"

    def _form(self, headers: Mapping[str, str]) -> Iterator[str]:
        for layout in layouts_of(self.verify):
            if layout.header.lower() in headers:
                yield f"expected {layout.header}: {header_of(layout, '<time>', f'<{layout.encoding}>')}"

    def _clock(self, request: SignedRequest, now: float) -> Iterator[str]:
        timeless = dataclasses.replace(self.verify, tolerance_s=math.inf)
        if self._accepts(timeless, request, now):
            yield "all else is right: either the partner's clock is off, or an old request was sent again"
        else:
            yield "and the signature does not match either"
            yield from self._mismatch(request, now)

    def _mismatch(self, request: SignedRequest, now: float) -> Iterator[str]:
        verify = dataclasses.replace(self.verify, tolerance_s=math.inf)
        for attempt in (self._other_secret, self._other_url, self._other_body, self._other_options):
            found = attempt(verify, request, now)
            if found is not None:
                yield found
                return
        many = "none of the secrets" if len(verify.secrets) > 1 else "another secret"
        yield f"signed with {many}, or the body was changed on its way: compare the secret on both sides"

    def _other_secret(self, verify: Verify, request: SignedRequest, now: float) -> str | None:
        for name, other in self.others.items():
            if other.secrets and self._accepts(dataclasses.replace(verify, secrets=other.secrets), request, now):
                return f"signed with the secret of the source {name}"
        return None

    def _other_url(self, verify: Verify, request: SignedRequest, now: float) -> str | None:
        headers = {name.lower(): value for name, value in request.headers}
        hosts = [headers[name] for name in (_FORWARDED[1], "host") if headers.get(name)]
        for host, proto in itertools.product(hosts, ("https", "http")):
            url = f"{proto}://{host}"
            if url != self.public_url and self._accepts(verify, request, now, url):
                return f"signed for {url}{request.url}: write `public_url: {url}` under `server`"
        return None

    def _other_body(self, verify: Verify, request: SignedRequest, now: float) -> str | None:
        for told, change in _BODIES.items():
            try:
                body = change(request.body)
            except ValueError:
                continue
            changed = dataclasses.replace(request, body=body)
            if body != request.body and self._accepts(verify, changed, now):
                return f"{told}: the very bytes that are sent must be signed"
        return None

    def _other_options(self, verify: Verify, request: SignedRequest, now: float) -> str | None:
        for layout in layouts_of(verify):
            for changes in _changes(layout):
                variant = dataclasses.replace(verify, scheme="hmac", hmac=dataclasses.replace(layout, **changes))
                if self._accepts(variant, request, now):
                    told = ", ".join(f'{key}: "{value}"' for key, value in changes.items())
                    return f"the secret is right, but it is signed in another way, that of scheme hmac with {told}"
        return None

    def _accepts(self, verify: Verify, request: SignedRequest, now: float, url: str | None = None) -> bool:
        return isinstance(Verifier(verify, url or self.public_url).verify(request, now), Verified)


def recognised(headers: Mapping[str, str]) -> list[Scheme]:
    """The schemes whose header is there; names in lower case."""
    found: list[Scheme] = [
        scheme  # type: ignore[misc]  # the table's keys are schemes
        for scheme, layouts in PRESETS.items()
        if any(headers.get(layout.header.lower()) for layout in layouts)
    ]
    found = _one_of_hubspot(found, headers)
    kind = headers.get("authorization", "").partition(" ")[0].lower()
    if kind == "bearer":
        found.append("bearer")
    if kind == "basic":
        found.append("basic")
    return found


def _one_of_hubspot(found: list[Scheme], headers: Mapping[str, str]) -> list[Scheme]:
    """HubSpot sends one header for two versions, and that beside the one of the third."""
    theirs: list[Scheme] = [scheme for scheme in found if scheme.startswith("hubspot-")]
    if len(theirs) < 2:
        return found
    told = f"hubspot-{headers.get('x-hubspot-signature-version', '').strip().lower()}"
    best = "hubspot-v3" if "hubspot-v3" in theirs else told if told in theirs else theirs[0]
    return [scheme for scheme in found if scheme == best or scheme not in theirs]


def clock_off(verify: Verify, headers: Mapping[str, str], now: float) -> float | None:
    """Seconds from the time that the request says it was signed at until `now`; None if it does not say."""
    for layout in layouts_of(verify):
        value = headers.get(layout.header.lower())
        if value and layout.timestamp_header is not None:
            text = timestamp_of(layout, headers)
            sent = seconds_of(layout, text) if text else None
            return None if sent is None else now - sent
    return None


def secret_name(verify: Verify, position: int) -> str:
    """Where the secret at `position` of all texts comes from, never the secret."""
    names = []
    for secret in verify.secrets:
        try:
            lines = len(secret.texts())
        except SecretUnavailableError:
            continue
        for line in range(lines):
            place = f"${secret.env}" if secret.file is None else secret.file.name
            names.append(place if lines == 1 else f"{place}, line {line + 1}")
    name = names[position] if position < len(names) else "a secret"
    return f"secret {position + 1} of {len(names)} ({name})" if len(names) > 1 else f"its secret ({name})"


def is_credential(verify: Verify | None, name: str) -> bool:
    """Whether a header holds what lets anybody act as the partner, other than a signature."""
    fixed = {"authorization", "proxy-authorization", "cookie"}
    return name.lower() in fixed or (verify is not None and verify.scheme == "bearer" and _same(name, verify.header))


def of_signature(verify: Verify, name: str) -> bool:
    """Whether `sign` makes this header anew."""
    made = {name for one in layouts_of(verify) for name in (one.header, one.timestamp_header, one.id_header) if name}
    return any(_same(name, other) for other in made)


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def _changes(layout: Hmac) -> Iterator[dict[str, Any]]:
    """Ways of signing that differ from the layout's, those with the fewest differences first."""
    every = []
    choices = [dict.fromkeys((getattr(layout, key), *values)) for key, values in _VARIANTS.items()]
    for values in itertools.product(*choices):
        given = dict(zip(_VARIANTS, values, strict=True))
        if "{timestamp}" in given["signed"] and layout.timestamp_header is None:
            continue
        every.append({key: value for key, value in given.items() if value != getattr(layout, key)})
    return iter(sorted((changes for changes in every if changes), key=len))


#: what partners sign in place of the bytes that they send
_BODIES: Mapping[str, Callable[[bytes], bytes]] = {
    "white space at the end of the body was not signed": bytes.rstrip,
    "a line end was signed that was not sent": lambda body: body + b"\n",
    "the body was written anew after signing": lambda body: orjson.dumps(orjson.loads(body)),
    "the body was written anew, without blanks, after signing": lambda body: json.dumps(json.loads(body)).encode(),
    "the body was written anew, its keys in another order, after signing": lambda body: orjson.dumps(
        orjson.loads(body), option=orjson.OPT_SORT_KEYS
    ),
}
