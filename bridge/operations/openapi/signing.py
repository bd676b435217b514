"""How a source's requests prove themselves, as OpenAPI's security schemes with instructions in prose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.intake.schemes import layouts_of
from bridge.settings import Hmac, Source, Verify

_UNITS = {"s": "as seconds since 1970", "ms": "as milliseconds since 1970", "iso": "in ISO 8601"}
_KEYS = {
    "raw": "the secret as it is",
    "hex": "the secret, decoded from hex",
    "base64": "the secret, decoded from base64, without its `whsec_` if it begins so",
}


@dataclass(frozen=True, slots=True)
class Signing:
    """Security schemes by name; the alternative sets of them that a request needs; optional headers."""

    schemes: Mapping[str, Mapping[str, Any]]
    requirements: list[Mapping[str, list[str]]]
    optional: Mapping[str, str]  # header → what it is for

    @property
    def headers(self) -> set[str]:
        """The headers that it speaks of, in lower case."""
        named = {scheme["name"].lower() for scheme in self.schemes.values() if "name" in scheme}
        return named | {name.lower() for name in self.optional} | {"authorization"}


def signing_of(source: Source, public_url: str | None) -> Signing:
    """What a request to this source must carry."""
    verify = source.verify
    if verify.scheme == "none":
        return Signing({}, [], {})
    if verify.scheme in {"bearer", "basic"}:
        return _one(source.name, _token(verify))
    schemes: dict[str, Mapping[str, Any]] = {}
    requirements: list[Mapping[str, list[str]]] = []
    optional: dict[str, str] = {}
    for layout in layouts_of(verify):
        needed = {layout.header: _how_to_sign(layout, public_url)}
        if layout.timestamp_header is not None and layout.timestamp_header.lower() != layout.header.lower():
            needed[layout.timestamp_header] = _when(layout, verify.tolerance_s)
        else:
            needed[layout.header] += _when_within(layout, verify.tolerance_s)
        if layout.id_header is not None:
            about = "The delivery's id: the same each time it is sent, at most 255 characters."
            (needed if "{id}" in layout.signed else optional)[layout.id_header] = about
        names = {header: f"{source.name}.{header.lower()}" for header in needed}
        for header, about in needed.items():  # of variants with the same headers, the first tells how
            apikey = {"type": "apiKey", "in": "header", "name": header, "description": about}
            schemes.setdefault(names[header], apikey)
        requirement: Mapping[str, list[str]] = {name: [] for name in names.values()}
        if requirement not in requirements:
            requirements.append(requirement)
    return Signing(schemes, requirements, optional)


def _one(source: str, scheme: Mapping[str, Any]) -> Signing:
    name = f"{source}.{scheme.get('name', scheme.get('scheme')).lower()}"
    return Signing({name: scheme}, [{name: []}], {})


def _token(verify: Verify) -> Mapping[str, Any]:
    if verify.scheme == "basic":
        return {"type": "http", "scheme": "basic", "description": "The user and the password that were agreed."}
    if verify.header.lower() == "authorization" and verify.prefix.strip().lower() == "bearer":
        return {"type": "http", "scheme": "bearer", "description": "The token that was agreed."}
    about = f"`{verify.prefix}` and the token that was agreed." if verify.prefix else "The token that was agreed."
    return {"type": "apiKey", "in": "header", "name": verify.header, "description": about}


def _how_to_sign(layout: Hmac, public_url: str | None) -> str:
    kind = layout.algorithm.upper() if layout.mac == "hash" else f"HMAC-{layout.algorithm.upper()}"
    signed = f"{{secret}}{layout.signed}" if layout.mac == "hash" else layout.signed
    parts = [
        f"`{layout.prefix}` followed by the" if layout.prefix else "The",
        f"{kind}, in {layout.encoding}, of `{signed}`.",
        "`{body}` stands for the bytes of the body as they are sent, compressed if they are compressed.",
    ]
    if layout.mac != "hash":
        parts.append(f"The key is {_KEYS[layout.key]}.")
    if "{method}" in layout.signed:
        parts.append("`{method}` is POST.")
    if "{url}" in layout.signed:
        parts.append(f"`{{url}}` begins with {public_url or 'the public URL'} and includes the query.")
    if "{id}" in layout.signed:
        parts.append(f"`{{id}}` is the header {layout.id_header}.")
    if layout.timestamp_header is not None and layout.timestamp_header.lower() != layout.header.lower():
        parts.append(f"`{{timestamp}}` is the header {layout.timestamp_header}.")
    return " ".join(parts)


def _when(layout: Hmac, tolerance_s: float) -> str:
    return f"The time of signing, {_UNITS[layout.timestamp_unit]}: at most {tolerance_s:g} s off our clock, either way."


def _when_within(layout: Hmac, tolerance_s: float) -> str:
    if layout.timestamp_header is None:
        return ""
    return f" The header is `t={{timestamp}},{layout.prefix}…`. " + _when(layout, tolerance_s)
