"""The service's settings as frozen values: what `bridge.yaml` becomes once it is found sound.

Expressions stay text here; `bridge.intake` compiles them. Durations are seconds, sizes bytes.
"""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bridge.errors import BridgeError
from bridge.model import Lane

DAY_S = 86_400.0
MIB = 1024**2
GIB = 1024**3
#: A secret's file is looked at again after this long: a look costs a system call, at every request.
LOOK_AGAIN_S = 0.5


class SecretUnavailableError(BridgeError):
    """A secret's variable is unset or its file cannot be read."""


class Secret:
    """One or more secret texts from an environment variable or a file; never shown by `repr`.

    A file may hold several, one a line, and is read again when it changes, so that a rotation needs
    no restart. Thread-safe: `_lock` guards what was read last.
    """

    __slots__ = ("_empty_since", "_faults", "_fresh_until", "_lock", "_rule", "_seen", "_texts", "env", "file")

    def __init__(
        self,
        *,
        env: str | None = None,
        file: Path | None = None,
        default: str | None = None,
        environ: Mapping[str, str] | None = None,
        rule: Callable[[str], str | None] | None = None,
    ) -> None:
        """`rule` says what is wrong with a text, without showing it: such lines of a file do not count."""
        if (env is None) == (file is None):
            raise ValueError("a secret comes from either a variable or a file")
        self.env = env
        self.file = file
        self._rule = rule
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._fresh_until = float("-inf")
        self._empty_since: float | None = None
        self._texts: tuple[str, ...] = ()
        self._faults: tuple[str, ...] = ()
        if env is not None:
            variables = os.environ if environ is None else environ
            text = variables.get(env, default or "").strip()
            self._texts = (text,) if text else ()

    def checked(self, rule: Callable[[str], str | None]) -> Secret:
        """The same secret, held to `rule` at each reading of its file; a variable never changes."""
        return self if self.file is None else Secret(file=self.file, rule=rule)

    def texts(self, *, look: bool = False) -> tuple[str, ...]:
        """All secrets that this source holds now; `look`: as of this instant, not of half a second ago.

        Raises SecretUnavailableError when there is none.
        """
        if self.file is None:
            if not self._texts:
                raise SecretUnavailableError(f"the environment variable {self.env} is not set or empty")
            return self._texts
        now = time.monotonic()
        if now < self._fresh_until and not look:
            return self._texts
        with self._lock:
            self._read(self.file, now)
            return self._texts

    def _read(self, file: Path, now: float) -> None:
        try:
            status = file.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
                lines = [line for line in lines if line]
                # Whoever writes a file in place leaves it empty for a moment: until it stays so, the old ones count.
                self._empty_since = None if lines else self._empty_since or now
                if self._texts and self._empty_since is not None and now - self._empty_since < LOOK_AGAIN_S:
                    return
                self._take(lines)
                self._seen = seen
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise SecretUnavailableError(f"the secret file {file} cannot be read: {why}") from None
        if not self._texts:
            raise SecretUnavailableError("; ".join(self._faults) or f"the secret file {file} is empty")
        self._fresh_until = now + LOOK_AGAIN_S

    def _take(self, lines: list[str]) -> None:
        found = [(line, self._rule(line) if self._rule is not None else None) for line in lines]
        self._texts = tuple(line for line, fault in found if fault is None)
        self._faults = tuple(
            f"the file {self.file}, secret {number}, {fault}"
            for number, (_, fault) in enumerate(found, start=1)
            if fault is not None
        )

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with lines of the file that do not count; none of them is shown."""
        return self._faults

    def text(self) -> str:
        """The first of `texts()`."""
        return self.texts()[0]

    def __repr__(self) -> str:
        return f"Secret(env={self.env!r})" if self.file is None else f"Secret(file={str(self.file)!r})"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound there."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# --- crm ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Calls of the whole deployment in every rolling window of `per_s` seconds."""

    calls: int = 100
    per_s: float = 10.0
    daily: int | None = None


@dataclass(frozen=True, slots=True)
class OAuth:
    client_id: str
    client_secret: Secret
    refresh_token: Secret
    token_path: str = "/oauth/v3/token"  # noqa: S105 (a path)


@dataclass(frozen=True, slots=True)
class Crm:
    """Exactly one of `token` and `oauth` is set."""

    token: Secret | None = None
    oauth: OAuth | None = None
    base_url: str = "https://api.hubapi.com"
    sandbox: bool = False  # one of our own, no real account
    api_path: str = "/crm/v3/objects"
    properties_path: str = "/crm/v3/properties"
    batch_size: int = 100
    flush_interval_s: float = 0.5
    max_in_flight: int = 8
    rate_limit: RateLimit = field(default_factory=RateLimit)
    timeout_s: float = 30.0
    validation: Literal["portal", "off"] = "portal"
    proxy: str | None = field(default=None, repr=False)  # may hold a password
    ca_file: Path | None = None


# --- journal, retry, server ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Journal:
    url: str = field(default="sqlite:////var/lib/partner-bridge/journal.db", repr=False)  # may hold a password
    max_pending: int = 1_000_000
    max_size: int = 20 * GIB
    retention_s: float = 7 * DAY_S
    remember_s: float = 30 * DAY_S


@dataclass(frozen=True, slots=True)
class Retry:
    base_s: float = 2.0
    max_s: float = 600.0
    give_up_after_s: float = DAY_S


@dataclass(frozen=True, slots=True)
class Server:
    """`bind` and `admin_bind` are (host, port). `threads` is how many webhooks each of the `workers` works on at once,
    from when a body is there whole until it is answered; others wait, and after 4 s are answered 503. Connections
    and bodies on their way do not count.
    """

    bind: tuple[str, int] = ("0.0.0.0", 8080)  # noqa: S104 (a container serves all its interfaces)
    admin_bind: tuple[str, int] = ("127.0.0.1", 9090)
    admin_token: Secret | None = None
    public_url: str | None = None
    workers: int = 1
    threads: int = 32
    max_body: int = MIB
    drain_timeout_s: float = 25.0


# --- sources ------------------------------------------------------------------------------------

Scheme = Literal[
    "standard-webhooks", "github", "stripe", "shopify", "slack", "hubspot-v3", "hubspot-v2", "hubspot-v1",
    "zendesk", "typeform", "calendly", "hmac", "bearer", "basic", "none",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hmac:
    """The generic signature scheme; see `bridge.intake.signatures` for how the fields are used."""

    header: str
    algorithm: str = "sha256"
    encoding: Literal["hex", "base64", "base64url"] = "hex"
    prefix: str = ""
    key: Literal["raw", "base64", "hex"] = "raw"
    signed: str = "{body}"
    timestamp_header: str | None = None
    timestamp_unit: Literal["s", "ms", "iso", "http"] = "s"
    id_header: str | None = None
    #: What stands between the entries of the signature's header, beside blanks; " ": blanks alone; "": it is one entry.
    #: The entries that begin with `prefix` are signatures: senders list several while they rotate their secret.
    split: str = ","
    #: What the time begins with where it is another entry of that header; "": it is the first one.
    timestamp_entry: str | None = None
    #: "hash": the plain hash of the key and what is signed, one after the other; for presets only.
    mac: Literal["hmac", "hash"] = "hmac"
    #: The characters whose percent-escapes in {url} the sender decodes before it signs.
    unescape: str = ""


@dataclass(frozen=True, slots=True)
class Verify:
    """`header` and `prefix` belong to `bearer`; `hmac` is set for the scheme of that name only."""

    scheme: Scheme
    secrets: tuple[Secret, ...] = ()
    tolerance_s: float = 300.0
    hmac: Hmac | None = None
    header: str = "Authorization"
    prefix: str = "Bearer "


#: Properties whose values mean the same in any letter case.
CASELESS = frozenset({"email", "domain"})


@dataclass(frozen=True, slots=True)
class Record:
    """`id` is an expression; `id_property` "" means that ids are HubSpot's record ids (digits). `match` None: as is
    usual for the property.
    """

    id: str
    id_property: str = ""
    on_unknown: Literal["park", "wait", "ignore"] = "park"
    match: Literal["exact", "caseless"] | None = None

    @property
    def caseless(self) -> bool:
        """Whether ids that differ in letter case are one record."""
        return self.id_property in CASELESS if self.match is None else self.match == "caseless"


PropertyType = Literal["string", "number", "bool", "date", "datetime", "enumeration", "phone_number"]


@dataclass(frozen=True, slots=True)
class Property:
    """How one HubSpot property gets its value. `source` is the expression (`from:` in the file); of several formats
    the first that reads a value counts.
    """

    source: str | None = None
    type: PropertyType = "string"
    constant: str | None = None
    scale: str | None = None  # decimal text, so that 0.01 stays 0.01
    decimal: str = "."
    thousands: str = ""
    format: tuple[str, ...] = ()
    timezone: str | None = None
    values: Mapping[str, str] | None = None
    multiple: bool = False
    separator: str | None = None
    required: bool = False
    on_null: Literal["skip", "clear"] = "skip"


@dataclass(frozen=True, slots=True)
class OccurredAt:
    """Where an event's time is found, and how it is written; the zone is the source's where it is left out."""

    source: str
    format: tuple[str, ...] = ()
    timezone: str | None = None


@dataclass(frozen=True, slots=True)
class Pairs:
    """For senders in which names are data: `items` (`in:`) yields one pair, a list, or an object."""

    items: str
    name: str
    value: str
    properties: Mapping[str, tuple[str, Property]]  # sender's name → (HubSpot property, how)


@dataclass(frozen=True, slots=True)
class MappingBlock:
    """One block of what a source's events mean; several may apply to one event.

    Either `schema` is set (module.path:ClassName), or `properties`, or `pairs`, or these two together.
    """

    record: Record
    object_type: str = "partner_clients"
    when: str | None = None
    properties: Mapping[str, Property] = field(default_factory=dict)
    pairs: Pairs | None = None
    schema: str | None = None
    on_invalid: Literal["park", "reject"] = "park"
    unchanged: Literal["send", "skip"] = "send"
    timezone: str | None = None
    path: tuple[str | int, ...] = ()  # where the block stands in its source: ("mappings", 1), or () when single


@dataclass(frozen=True, slots=True)
class Reply:
    status: int = 202
    body: Literal["counts", "none"] = "counts"


@dataclass(frozen=True, slots=True)
class Challenge:
    reply: str
    method: Literal["GET", "POST"] = "GET"
    when: str | None = None
    as_: Literal["text", "json"] = "text"
    signed: bool = False


@dataclass(frozen=True, slots=True)
class RequestLimit:
    requests: int
    per_s: float


@dataclass(frozen=True, slots=True)
class Example:
    """One entry of `examples:`; exactly one of `expect`, `ignored` and `invalid` is set."""

    payload: str  # the raw body; a byte that is not UTF-8 stands as a surrogate, see `body`
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    expect: tuple[Mapping[str, Any], ...] | None = None
    ignored: bool = False
    invalid: Mapping[str, str] | None = None

    @property
    def body(self) -> bytes:
        """The raw body's bytes."""
        return self.payload.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Source:
    name: str
    verify: Verify
    mappings: tuple[MappingBlock, ...]
    events: str = "@"
    when: str | None = None
    event_id: str | None = None
    occurred_at: OccurredAt | None = None
    timezone: str | None = None
    body: Literal["json", "ndjson", "form"] = "json"
    payload_field: str | None = None
    max_body: int | None = None
    limit: RequestLimit | None = None
    challenge: Challenge | None = None
    expect_every_s: float | None = None
    reply: Reply = field(default_factory=Reply)
    examples: tuple[Example, ...] = ()


#: What of `server:` only a restart changes.
FIXED = ("bind", "admin_bind", "workers", "threads", "drain_timeout_s")


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration; `file` is where it was read from, for messages."""

    crm: Crm
    sources: Mapping[str, Source] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)
    retry: Retry = field(default_factory=Retry)
    server: Server = field(default_factory=Server)
    file: Path | None = None

    def caseless(self) -> dict[Lane, bool]:
        """How the record ids of each lane are compared."""
        blocks = (block for source in self.sources.values() for block in source.mappings)
        return {Lane(block.object_type, block.record.id_property): block.record.caseless for block in blocks}

    def beside(self, running: Settings) -> tuple[Settings, list[str]]:
        """These settings for a service that runs with others, and the names of those that only a restart changes."""
        fixed = {name: getattr(running.server, name) for name in FIXED}
        changed = [f"server.{name.removesuffix('_s')}" for name in FIXED if getattr(self.server, name) != fixed[name]]
        if self.journal.url != running.journal.url:
            changed.append("journal.url")
        server, journal = replace(self.server, **fixed), replace(self.journal, url=running.journal.url)
        return replace(self, server=server, journal=journal), changed
