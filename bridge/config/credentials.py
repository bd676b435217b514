"""Secrets: never in the file itself, never missing, never a placeholder, never short."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from marshmallow import ValidationError

from bridge.config.scalars import Worded, is_reference, kind, reference
from bridge.config.surroundings import surroundings
from bridge.intake.schemes import PRESETS, key_of
from bridge.settings import Hmac, Secret, SecretUnavailableError

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


class Credential(Worded):
    """`{env: NAME}` or `{file: PATH}`; what it holds is looked at by the block it stands in."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Secret:
        if not is_reference(value):
            held = "has no place in this file" if isinstance(value, str) else f"cannot be {kind(value)}"
            raise ValidationError(f"a secret {held}: write {{env: NAME}} or {{file: PATH}}")
        assert isinstance(value, Mapping)  # noqa: S101 (a reference is one)
        env, file = reference(value)
        default = value.get("default")
        if default is not None and not isinstance(default, str):
            raise ValidationError(f"`default` must be text, not {kind(default)}")
        return Secret(env=env, file=file, default=default, environ=surroundings.get().environ)


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
