"""The blocks about the service itself: `crm`, `journal`, `retry`, `server`; and secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from bridge.config.blocks import Block, Complaints
from bridge.config.scalars import surroundings
from bridge.intake.schemes import PRESETS, key_of
from bridge.settings import Crm, Hmac, OAuth, Retry, Secret, SecretUnavailableError, Server, is_loopback

# --- secrets: never in the file itself, never missing, never a placeholder, never short ---

#: NIST SP 800-107 wants keys of at least the security strength; Standard Webhooks asks for 24 bytes
SHORTEST_HMAC_BYTES = 24
LONGEST_STANDARD_BYTES = 64
SHORTEST_BEARER = 16
SHORTEST_PASSWORD = 8

PLACEHOLDERS = re.compile(
    r"(.)\1*|[!-/:-@\[-`{-~…]+|<.*>|\[.*\]|%.*%|\$(?-i:[A-Z][A-Z0-9_]*)|\$[({].*[)}]|\{\{.*\}\}"
    r"|(my|your|the|a|some|test|example|webhook|signing|client)?[-_ ]?(secret|password|token|key)([-_ ]?here)?"
    r"|(your|my)[-_ ].*|(insert|enter|put|paste|fill)[-_ ].*(secret|password|token|key|here).*"
    r"|change[-_ ]?(me|it|this).*|replace[-_ ]?(me|this|with).*"
    r"|example|sample|dummy|placeholder|redacted|fixme|to[-_ ]?do|tbd|none|null|undefined|test",
    re.IGNORECASE | re.DOTALL,
)

Rule = Callable[[str], str | None]


def faults(secret: Secret, rule: Rule | None = None, *, may_stand_in: bool = False) -> Iterator[str]:
    """What is wrong with what a secret holds; the texts themselves are never shown. `may_stand_in`: placeholders do."""
    try:
        texts = secret.texts()
    except SecretUnavailableError as error:
        if secret.env is not None:
            empty = secret.env in surroundings.get().environ
            state = "is set but empty" if empty else "is not set"
            yield f"the environment variable {secret.env} {state}"
        else:
            yield str(error)
        return
    for number, text in enumerate(texts, start=1):
        origin = f"the variable {secret.env}" if secret.env else f"the file {secret.file}"
        where = origin if len(texts) == 1 else f"{origin}, secret {number},"
        if (fault := text_fault(text, rule, may_stand_in=may_stand_in)) is not None:
            yield f"{where} {fault}"


def text_fault(text: str, rule: Rule | None = None, *, may_stand_in: bool = False) -> str | None:
    """What is wrong with one secret's text, without showing it."""
    if not may_stand_in and is_placeholder(text):
        return "holds a placeholder, not a secret"
    return rule(text) if rule is not None else None


def is_placeholder(text: str) -> bool:
    """Whether a text only stands for a secret."""
    return PLACEHOLDERS.fullmatch(text.removeprefix("whsec_")) is not None


def token_rule(text: str) -> str | None:
    """What any token sent in a header must be."""
    if re.search(r"[^\x21-\x7e]", text):
        return "holds a space, a line break or a character beyond ASCII, which no header can carry"
    return None


def rule_for(scheme: str, key: Literal["raw", "base64", "hex"] = "raw") -> Rule:
    """What the secrets of a verification scheme must be; `key` is how scheme hmac reads them."""
    match scheme:
        case "standard-webhooks":
            return _standard
        case "bearer":
            return _bearer
        case "basic":
            return _basic
        case _:
            return lambda text: _hmac(text, key)


def _standard(text: str) -> str | None:
    try:
        length = len(key_of(PRESETS["standard-webhooks"][0], text))
    except ValueError:
        return "is not whsec_ and base64, as standard-webhooks needs"
    if not SHORTEST_HMAC_BYTES <= length <= LONGEST_STANDARD_BYTES:
        return f"holds {length} bytes after base64; standard-webhooks needs 24 to 64"
    return None


def _bearer(text: str) -> str | None:
    if len(text) < SHORTEST_BEARER:
        return f"is too short: a bearer token needs at least {SHORTEST_BEARER} characters"
    return token_rule(text)


def _basic(text: str) -> str | None:
    user, colon, password = text.partition(":")
    if not colon or not user:
        return "is not user:password"
    if is_placeholder(password):
        return "holds a placeholder, not a password"
    if len(password) < SHORTEST_PASSWORD:
        return f"is too short: a password needs at least {SHORTEST_PASSWORD} characters"
    return None


def _hmac(text: str, key: Literal["raw", "base64", "hex"]) -> str | None:
    try:
        length = len(key_of(Hmac(header="", key=key), text))
    except ValueError:
        return f"is not {key}, as `key` says"
    if length < SHORTEST_HMAC_BYTES:
        return f"is too short: a signing secret needs at least {SHORTEST_HMAC_BYTES} bytes, not {length}"
    return None


class OAuthSchema(Block):
    makes = OAuth

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        del given
        if not surroundings.get().sandbox:
            for key in ("client_secret", "refresh_token"):
                if key in data:
                    yield from (((key,), fault) for fault in faults(data[key], token_rule))


class CrmSchema(Block):
    makes = Crm
    aliases: ClassVar[Mapping[str, str]] = {"api_key": "token", "access_token": "token", "url": "base_url"}

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        if surroundings.get().sandbox:
            return
        if "token" in given and "oauth" in given:
            yield ("oauth",), "stands beside `token`; keep one of the two"
        if "token" not in given and "oauth" not in given:
            yield ("token",), "is missing: write `token: {env: HUBSPOT_ACCESS_TOKEN}`, or `oauth:`"
        if "token" in data:
            # To a sandbox on this machine any token is good.
            near = is_loopback(urlsplit(data.get("base_url", Crm().base_url)).hostname or "")
            yield from ((("token",), fault) for fault in faults(data["token"], token_rule, may_stand_in=near))


class RetrySchema(Block):
    makes = Retry

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        base = data.get("base_s", Retry().base_s if "base" not in given else 0)
        longest = data.get("max_s", Retry().max_s if "max" not in given else base)
        if base > longest:
            key = "base" if "base" in given else "max"
            yield (key,), "`base` is longer than `max`; make it shorter"


class ServerSchema(Block):
    makes = Server
    aliases: ClassVar[Mapping[str, str]] = {"port": "bind", "host": "bind", "listen": "bind"}

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        del given
        bind = data.get("bind", Server().bind)
        # Also on another address: which port a request came to tells who may ask for what.
        if bind[1] and bind[1] == data.get("admin_bind", Server().admin_bind)[1]:
            yield ("admin_bind",), "has the port of `bind`; give it one of its own"
        if "admin_token" in data:
            yield from ((("admin_token",), fault) for fault in faults(data["admin_token"], token_rule))
