"""`verify:` of a source: the scheme, its secrets, and the keys of schemes hmac and bearer."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from marshmallow import ValidationError

from bridge.config.blocks import Block, Complaints, Items, Nested
from bridge.config.credentials import Credential, faults, rule_for, text_fault
from bridge.config.formats import Duration
from bridge.config.scalars import Affix, Choice, Text
from bridge.config.service_schemas import about
from bridge.settings import Hmac, Scheme, Verify

#: keys of `verify:` that only some schemes read
ONLY_FOR = {
    "algorithm": ("hmac",),
    "encoding": ("hmac",),
    "key": ("hmac",),
    "signed": ("hmac",),
    "timestamp": ("hmac",),
    "id": ("hmac",),
    "header": ("hmac", "bearer"),
    "prefix": ("hmac", "bearer"),
}
AUTHORIZATION = "authorization"
PARTS = ("body", "timestamp", "id", "method", "url")


class HeaderName(Text):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", text, re.ASCII):
            raise ValidationError(f"{text!r} is not a header's name")
        return text


class TimestampSchema(Block):
    """Where the sender's clock stands."""

    makes = dict
    header = HeaderName(required=True, metadata=about("The header that holds the time of signing."))
    unit = Choice("s", "ms", "iso", metadata=about("Seconds, milliseconds or ISO 8601."))


class IdSchema(Block):
    """Where the delivery's id stands."""

    makes = dict
    header = HeaderName(required=True, metadata=about("The header that holds the delivery's id."))


class Template(Text):
    """What is signed, such as {timestamp}.{body}."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        unknown = [part for part in re.findall(r"\{([^{}]*)\}", text) if part not in PARTS]
        if unknown or re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", text)):
            raise ValidationError(f"knows {', '.join('{' + part + '}' for part in PARTS)} and plain text, nothing else")
        if "{body}" not in text:
            raise ValidationError("must contain {body}, or anybody could change it")
        return text


class VerifySchema(Block):
    """How it is known that a request comes from the partner."""

    makes = Verify
    more_defaults = (Hmac,)
    aliases: ClassVar[Mapping[str, str]] = {
        "secret": "secrets",
        "type": "scheme",
        "token": "secrets",
        "tokens": "secrets",
    }
    scheme = Choice(*get_args(Scheme), required=True, metadata=about("The partner's way of signing."))
    secrets = Items(Credential(), metadata=about("Any of them may match, so that a rotation loses nothing."))
    tolerance_s = Duration(data_key="tolerance", metadata=about("How far the sender's clock may be off, both ways."))
    header = HeaderName(metadata=about("The header of the signature or token."))
    prefix = Affix(metadata=about("What stands before the signature or token."))
    algorithm = Choice("sha1", "sha256", "sha384", "sha512", metadata=about("The hash of scheme hmac."))
    encoding = Choice("hex", "base64", metadata=about("How the signature is written."))
    key = Choice("raw", "base64", "hex", metadata=about("How the secret is written."))
    signed = Template(metadata=about("What is signed, such as {timestamp}.{body}."))
    timestamp = Nested(TimestampSchema, metadata=about("The header with the time of signing."))
    id = Nested(IdSchema, metadata=about("The header with the delivery's id."))

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        scheme = data.get("scheme")
        if scheme is None:
            return
        for key, schemes in ONLY_FOR.items():
            if key in given and scheme not in schemes:
                yield (key,), f"belongs to scheme {' or '.join(schemes)}, not to {scheme}"
        if scheme == "hmac":
            yield from self._hmac(data, given)
        if scheme == "none":
            if given.get("secrets"):
                yield ("secrets",), "scheme none checks no secrets; remove them, or name the scheme they are for"
        elif not given.get("secrets"):
            yield ("secrets",), f"scheme {scheme} needs at least one: write `secrets: [{{env: NAME}}]`"
        secrets = data.get("secrets", [])
        if isinstance(given.get("secrets"), list) and len(secrets) == len(given["secrets"]):
            rule = rule_for(scheme, data.get("key", "raw"))
            for index, secret in enumerate(secrets):
                yield from ((("secrets", index), fault) for fault in faults(secret, rule))

    def _hmac(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        if "header" not in given:
            yield ("header",), "is missing: scheme hmac needs the header of the signature"
        signed = data.get("signed", "")
        for part in ("timestamp", "id"):
            if f"{{{part}}}" in signed and part not in given:
                yield ("signed",), f"names {{{part}}}; write `{part}: {{header: …}}` beside it"
        if signed and "timestamp" in given and "{timestamp}" not in signed:
            yield ("timestamp",), "is not part of `signed`, so that anybody could change it: name {timestamp} there"

    def build(self, data: dict[str, Any]) -> Verify:
        given: dict[str, Any] = {key: data[key] for key in ("scheme", "tolerance_s") if key in data}
        hmac = None
        if data["scheme"] == "hmac":
            names = ("header", "algorithm", "encoding", "prefix", "key", "signed")
            timestamp, id_ = data.get("timestamp", {}), data.get("id", {})
            usual = {"header": "", **({"signed": "{timestamp}.{body}"} if timestamp else {})}
            hmac = Hmac(
                **{**usual, **{name: data[name] for name in names if name in data}},
                timestamp_header=timestamp.get("header"),
                timestamp_unit=timestamp.get("unit", "s"),
                id_header=id_.get("header"),
                several=bool(data.get("prefix")),  # without one, nothing tells a signature from what is no signature
            )
        else:
            given |= {key: data[key] for key in ("header", "prefix") if key in data}
            if given.get("header", AUTHORIZATION).lower() != AUTHORIZATION:
                given.setdefault("prefix", "")  # `X-Token: …` is the token alone
        rule = functools.partial(text_fault, rule=rule_for(data["scheme"], data.get("key", "raw")))
        secrets = tuple(secret.checked(rule) for secret in data.get("secrets", ()))
        return Verify(**given, secrets=secrets, hmac=hmac)
