"""The blocks about the service itself: `crm`, `journal`, `retry`, `server`; and secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from marshmallow import ValidationError, validate

from bridge.config.blocks import Block, Complaints, Nested
from bridge.config.scalars import (
    Address,
    Choice,
    Duration,
    ExistingFile,
    Size,
    Text,
    Url,
    Whole,
    Worded,
    is_reference,
    kind,
    reference,
    surroundings,
)
from bridge.intake.schemes import PRESETS, key_of
from bridge.settings import (
    Crm,
    Hmac,
    Journal,
    OAuth,
    RateLimit,
    Retry,
    Secret,
    SecretUnavailableError,
    Server,
    is_loopback,
)

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


#: Host, several of them, or none for a socket that the query names; and the database.
POSTGRESQL = re.compile(r"postgresql://(?:[^@/]*@)?(?P<hosts>[^/?#]*)/[^?#]+")
AT_LEAST_1 = validate.Range(min=1, error="must be at least {min}")


def about(text: str) -> dict[str, str]:
    """A field's description, for editors."""
    return {"description": text}


def between(low: int, high: int) -> validate.Range:
    return validate.Range(min=low, max=high, error="must be between {min} and {max}")


class UrlPath(Text):
    """A path below the CRM's base URL."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", text, re.ASCII):
            raise ValidationError("must be a path such as /crm/v3/objects")
        return text.rstrip("/")


class RateLimitSchema(Block):
    """Calls of the whole deployment."""

    makes = RateLimit
    calls = Whole(validate=AT_LEAST_1, metadata=about("Calls in every window of `per`."))
    per_s = Duration(data_key="per", metadata=about("The window's length."))
    daily = Whole(
        validate=AT_LEAST_1,
        metadata=about("Calls a day; spent, delivery pauses until the portal's midnight."),
    )


class OAuthSchema(Block):
    """Access by a refresh token instead of a private app's token."""

    makes = OAuth
    client_id = Text(required=True, metadata=about("The app's client id."))
    client_secret = Credential(required=True, metadata=about("The app's client secret."))
    refresh_token = Credential(required=True, metadata=about("The refresh token of the installation."))
    token_path = UrlPath(metadata=about("Where tokens are refreshed, below `base_url`."))

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        del given
        if not surroundings.get().sandbox:
            for key in ("client_secret", "refresh_token"):
                if key in data:
                    yield from (((key,), fault) for fault in faults(data[key], token_rule))


class CrmSchema(Block):
    """The CRM and how it is called."""

    makes = Crm
    aliases: ClassVar[Mapping[str, str]] = {"api_key": "token", "access_token": "token", "url": "base_url"}
    base_url = Url(metadata=about("The CRM's address."))
    api_path = UrlPath(metadata=about("Path of the objects API; a dated version works too."))
    properties_path = UrlPath(metadata=about("Path of the properties API."))
    token = Credential(metadata=about("The private app's access token; read again when its file changes."))
    oauth = Nested(OAuthSchema, metadata=about("In place of `token`."))
    batch_size = Whole(validate=between(1, 100), metadata=about("Records in one call."))
    flush_interval_s = Duration(
        data_key="flush_interval", zero=True, metadata=about("A change waits at most this long for company.")
    )
    max_in_flight = Whole(validate=AT_LEAST_1, metadata=about("Concurrent calls of the whole deployment."))
    rate_limit = Nested(RateLimitSchema, metadata=about("Calls of the whole deployment."))
    timeout_s = Duration(data_key="timeout", metadata=about("Total deadline of a call."))
    validation = Choice(
        "portal",
        "off",
        data_key="validate",
        metadata=about("portal: what the portal's property definitions rule out is refused before it is sent."),
    )
    proxy = Url(metadata=about("An HTTP proxy for calls to the CRM."))
    ca_file = ExistingFile(metadata=about("Certificates to trust, as PEM, in place of the usual ones."))

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


class JournalUrl(Text):
    """sqlite:///PATH or postgresql://HOST/DATABASE."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        if (fault := journal_url_fault(text)) is not None:
            raise ValidationError(fault)
        return text


def journal_url_fault(text: str) -> str | None:
    """What is wrong with a journal's URL, without showing it: it may hold a password."""
    how = "write sqlite:///journal.db, sqlite:////absolute/path.db or postgresql://user@host/database"
    if text.startswith("sqlite:///"):
        path = text.removeprefix("sqlite:///")
        if path in {"", ":memory:"} or path.startswith("file:"):
            return f"a journal in memory would lose what was accepted: {how}"
        return "names a directory, not a file" if path.endswith("/") else None
    if not text.startswith("postgresql://"):
        return f"is not a journal's URL: {how}"
    found = POSTGRESQL.match(text)
    try:
        # libpq tries several hosts in turn, which is how a primary is found again after a failover.
        sound = found is not None and all(urlsplit(f"//{host}").port != 0 for host in found["hosts"].split(","))
    except ValueError:
        sound = False
    return None if sound else f"names no database, or its host is unfit: {how}"


class JournalSchema(Block):
    """Where accepted events and the records' desired state are kept."""

    makes = Journal
    url = JournalUrl(
        metadata=about("`sqlite:///` and a path (three slashes: relative to the working directory) or `postgresql://`.")
    )
    max_pending = Whole(
        validate=AT_LEAST_1, metadata=about("Records with something to deliver; beyond it intake answers 503.")
    )
    max_size = Size(metadata=about("Of the journal; settled events go early when it is near, then 503."))
    retention_s = Duration(
        data_key="retention", metadata=about("How long settled events stay: for duplicates, replay and trace.")
    )
    remember_s = Duration(
        data_key="remember",
        metadata=about("How long each record's last values stay: for late events and `unchanged: skip`."),
    )


class RetrySchema(Block):
    """How long to wait after failures."""

    makes = Retry
    base_s = Duration(data_key="base", metadata=about("The first wait; pauses and probes too."))
    max_s = Duration(data_key="max", metadata=about("The longest wait."))
    give_up_after_s = Duration(
        data_key="give_up_after", metadata=about("A record that fails alone so long is parked, never dropped.")
    )

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        base = data.get("base_s", Retry().base_s if "base" not in given else 0)
        longest = data.get("max_s", Retry().max_s if "max" not in given else base)
        if base > longest:
            key = "base" if "base" in given else "max"
            yield (key,), "`base` is longer than `max`; make it shorter"


class ServerSchema(Block):
    """Where and how the service listens."""

    makes = Server
    aliases: ClassVar[Mapping[str, str]] = {"port": "bind", "host": "bind", "listen": "bind"}
    bind = Address(metadata=about("For partner systems: host:port."))
    admin_bind = Address(metadata=about("For health, metrics and the console: host:port."))
    admin_token = Credential(
        metadata=about("Asked for by the console and the operators' API; needed where they are not on loopback.")
    )
    public_url = Url(metadata=about("As partners see the service; for schemes that sign the URL."))
    workers = Whole(validate=between(1, 64), metadata=about("Processes."))
    threads = Whole(validate=between(1, 1024), metadata=about("Webhooks that each process works on at once."))
    max_body = Size(metadata=about("The largest request body."))
    drain_timeout_s = Duration(
        data_key="drain_timeout", zero=True, metadata=about("The process ends within this and 4 s.")
    )

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        del given
        bind = data.get("bind", Server().bind)
        # Also on another address: which port a request came to tells who may ask for what.
        if bind[1] and bind[1] == data.get("admin_bind", Server().admin_bind)[1]:
            yield ("admin_bind",), "has the port of `bind`; give it one of its own"
        if "admin_token" in data:
            yield from ((("admin_token",), fault) for fault in faults(data["admin_token"], token_rule))
