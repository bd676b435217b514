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
from typing import Annotated, Any, Literal

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


# --- what a key of bridge.yaml is ---------------------------------------------------------------

#: Which text it is, or which number; `bridge.config.scalars.FORMS` has a field for each.
Form = Literal[
    "class", "constant", "expression", "factor", "header", "journal", "mark", "object type", "path", "property",
    "signed", "size", "url", "verbatim", "zone",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """Makes a field of a dataclass here a key of `bridge.yaml`, with the field's type and default.

    Loader, editor schema, `explain` and the reference page come from it. `name` is that of the key where it is not the
    field's without its unit; `example` is a value as YAML; `least` and `most` bound a number or how many there are.
    """

    about: str
    example: str | None = None
    name: str | None = None
    form: Form | None = None
    least: int | None = None
    most: int | None = None


# --- crm ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Calls of the whole deployment.

    They count in every rolling window of `per_s` seconds.
    """

    calls: Annotated[int, Key("Calls in every window of `per`.", least=1)] = 100
    per_s: Annotated[float, Key("The window's length.")] = 10.0
    daily: Annotated[
        int | None, Key("Calls a day; spent, delivery pauses until the portal's midnight.", "250000", least=1)
    ] = None


@dataclass(frozen=True, slots=True)
class OAuth:
    """Access by a refresh token instead of a private app's token."""

    client_id: Annotated[str, Key("The app's client id.", "1f0c6a4e-2b1d-4e55-9a7e-3c0b8f7d2a10")]
    client_secret: Annotated[Secret, Key("The app's client secret.", "{env: HUBSPOT_CLIENT_SECRET}")]
    refresh_token: Annotated[Secret, Key("The refresh token of the installation.", "{env: HUBSPOT_REFRESH_TOKEN}")]
    token_path: Annotated[str, Key("Where tokens are refreshed, below `base_url`.", form="path")] = "/oauth/v3/token"  # noqa: S105 (a path)


@dataclass(frozen=True, slots=True)
class Crm:
    """The CRM and how it is called.

    Exactly one of `token` and `oauth` is set.
    """

    base_url: Annotated[str, Key("The CRM's address.", form="url")] = "https://api.hubapi.com"
    api_path: Annotated[str, Key("Path of the objects API; a dated version works too.", form="path")] = (
        "/crm/v3/objects"
    )
    properties_path: Annotated[str, Key("Path of the properties API.", form="path")] = "/crm/v3/properties"
    token: Annotated[
        Secret | None,
        Key("The private app's access token; read again when its file changes.", "{env: HUBSPOT_ACCESS_TOKEN}"),
    ] = None
    oauth: Annotated[OAuth | None, Key("In place of `token`.")] = None
    sandbox: bool = False  # one of our own, no real account
    batch_size: Annotated[int, Key("Records in one call.", least=1, most=100)] = 100
    flush_interval_s: Annotated[float, Key("A change waits at most this long for company.", least=0)] = 0.5
    max_in_flight: Annotated[int, Key("Concurrent calls of the whole deployment.", least=1)] = 8
    rate_limit: Annotated[RateLimit, Key("Calls of the whole deployment.", "{calls: 190, per: 10s}")] = field(
        default_factory=RateLimit
    )
    timeout_s: Annotated[float, Key("Total deadline of a call.")] = 30.0
    validation: Annotated[
        Literal["portal", "off"],
        Key("portal: what the portal's property definitions rule out is refused before it is sent.", name="validate"),
    ] = "portal"
    proxy: Annotated[
        str | None, Key("An HTTP proxy for calls to the CRM.", "http://proxy.internal:3128", form="url")
    ] = field(default=None, repr=False)  # may hold a password
    ca_file: Annotated[
        Path | None, Key("Certificates to trust, as PEM, in place of the usual ones.", "certificates.pem")
    ] = None


# --- journal, retry, server ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Journal:
    """Where accepted events and the records' desired state are kept."""

    url: Annotated[
        str,
        Key(
            "`sqlite:///` and a path (three slashes: relative to the working directory) or `postgresql://`.",
            form="journal",
        ),
    ] = field(default="sqlite:////var/lib/partner-bridge/journal.db", repr=False)  # may hold a password
    max_pending: Annotated[int, Key("Records with something to deliver; beyond it intake answers 503.", least=1)] = (
        1_000_000
    )
    max_size: Annotated[int, Key("Of the journal; settled events go early when it is near, then 503.", form="size")] = (
        20 * GIB
    )
    retention_s: Annotated[float, Key("How long settled events stay: for duplicates, replay and trace.")] = 7 * DAY_S
    remember_s: Annotated[
        float, Key("How long each record's last values stay: for late events and `unchanged: skip`.")
    ] = 30 * DAY_S


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to wait after failures."""

    base_s: Annotated[float, Key("The first wait; pauses and probes too.")] = 2.0
    max_s: Annotated[float, Key("The longest wait.")] = 600.0
    give_up_after_s: Annotated[float, Key("A record that fails alone so long is parked, never dropped.")] = DAY_S


@dataclass(frozen=True, slots=True)
class Server:
    """Where and how the service listens.

    `bind` and `admin_bind` are (host, port). `threads` is how many webhooks each of the `workers` works on at once,
    from when a body is there whole until it is answered; others wait, and after 4 s are answered 503. Connections
    and bodies on their way do not count.
    """

    bind: Annotated[tuple[str, int], Key("For partner systems: host:port.")] = (
        "0.0.0.0",  # noqa: S104 (a container serves all its interfaces)
        8080,
    )
    admin_bind: Annotated[tuple[str, int], Key("For health, metrics and the console: host:port.")] = ("127.0.0.1", 9090)
    admin_token: Annotated[
        Secret | None,
        Key(
            "Asked for by the console and the operators' API; needed where they are not on loopback.",
            "{env: BRIDGE_ADMIN_TOKEN}",
        ),
    ] = None
    public_url: Annotated[
        str | None,
        Key("As partners see the service; for schemes that sign the URL.", "https://hooks.example.com", form="url"),
    ] = None
    workers: Annotated[int, Key("Processes.", least=1, most=64)] = 1
    threads: Annotated[int, Key("Webhooks that each process works on at once.", least=1, most=1024)] = 32
    max_body: Annotated[int, Key("The largest request body.", form="size")] = MIB
    drain_timeout_s: Annotated[float, Key("The process ends within this and 4 s.", least=0)] = 25.0


# --- sources ------------------------------------------------------------------------------------

Scheme = Literal[
    "standard-webhooks", "github", "stripe", "shopify", "slack", "hubspot-v3", "hubspot-v2", "hubspot-v1",
    "zendesk", "typeform", "calendly", "hmac", "bearer", "basic", "none",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hmac:
    """The generic signature scheme; see `bridge.intake.signatures` for how the fields are used."""

    header: str
    algorithm: Annotated[Literal["sha1", "sha256", "sha384", "sha512"], Key("The hash of scheme hmac.")] = "sha256"
    encoding: Annotated[Literal["hex", "base64", "base64url"], Key("How the signature is written.")] = "hex"
    prefix: str = ""
    key: Annotated[Literal["raw", "base64", "hex"], Key("How the secret is written.")] = "raw"
    signed: Annotated[
        str, Key("What is signed, such as {timestamp}.{body}.", '"{id}.{timestamp}.{body}"', form="signed")
    ] = "{body}"
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
    """How it is known that a request comes from the partner.

    `header` and `prefix` belong to `bearer`; `hmac` is set for the scheme of that name only.
    """

    scheme: Annotated[Scheme, Key("The partner's way of signing.")]
    secrets: Annotated[
        tuple[Secret, ...], Key("Any of them may match, so that a rotation loses nothing.", "[{env: ACME_SECRET}]")
    ] = ()
    tolerance_s: Annotated[float, Key("How far the sender's clock may be off, both ways.")] = 300.0
    hmac: Hmac | None = None
    header: Annotated[str, Key("The header of the signature or token.", "X-Acme-Signature", form="header")] = (
        "Authorization"
    )
    prefix: Annotated[str, Key("What stands before the signature or token.", "sha256=", form="verbatim")] = "Bearer "


#: Properties whose values mean the same in any letter case.
CASELESS = frozenset({"email", "domain"})


@dataclass(frozen=True, slots=True)
class Record:
    """Which CRM record an event is about.

    `id_property` "" means that ids are HubSpot's record ids (digits). `match` None: as is usual for the property.
    """

    id: Annotated[str, Key("JMESPath to the record's id.", "data.client_id", form="expression")]
    id_property: Annotated[
        str,
        Key(
            "The unique property that holds the id; left out: id is HubSpot's record id.",
            "acme_client_id",
            form="property",
        ),
    ] = ""
    match: Annotated[
        Literal["exact", "caseless"] | None,
        Key(
            "caseless: ids that differ in letter case are one record, sent as the newest event spells it. "
            "Default: caseless for email and domain, else exact."
        ),
    ] = None
    on_unknown: Annotated[Literal["park", "wait", "ignore"], Key("What to do when the CRM knows no such record.")] = (
        "park"
    )

    @property
    def caseless(self) -> bool:
        """Whether ids that differ in letter case are one record."""
        return self.id_property in CASELESS if self.match is None else self.match == "caseless"


PropertyType = Literal["string", "number", "bool", "date", "datetime", "enumeration", "phone_number"]


@dataclass(frozen=True, slots=True)
class Property:
    """A HubSpot property and where its value comes from.

    `source` is the expression; of several formats the first that reads a value counts.
    """

    source: Annotated[str | None, Key("JMESPath to the value.", "data.plan", name="from", form="expression")] = None
    type: Annotated[PropertyType, Key("The type of the HubSpot property.")] = "string"
    constant: Annotated[
        str | None, Key("The same value for every event, in place of `from`.", "active", form="constant")
    ] = None
    scale: Annotated[str | None, Key("Multiplies a number: 0.01 turns cents into units.", "0.01", form="factor")] = (
        None  # decimal text, so that 0.01 stays 0.01
    )
    decimal: Annotated[Literal[".", ","], Key("What texts put before a number's decimals.", '","')] = "."
    thousands: Annotated[str, Key("What texts put between a number's thousands.", '"."', form="mark")] = ""
    format: Annotated[
        tuple[str, ...],
        Key(
            "For type string: `email`. For dates: how they are written, as strptime reads it; or epoch, epoch_ms, "
            "excel, rfc2822; or a list of these, of which the first that reads a value counts.",
            '"%d/%m/%Y"',
        ),
    ] = ()
    timezone: Annotated[str | None, Key("The zone of dates that name none.", form="zone")] = None
    values: Annotated[
        Mapping[str, str] | None,
        Key('The partner\'s values and what they mean; "*" is for all others.', '{Gold: gold, "*": other}', least=1),
    ] = None
    multiple: Annotated[bool, Key("An enumeration that takes several options.")] = False
    separator: Annotated[
        str | None, Key("What separates several options within one text.", '","', form="constant", least=1)
    ] = None
    required: Annotated[bool, Key("An event without this value is invalid.")] = False
    on_null: Annotated[Literal["skip", "clear"], Key("Whether null and blank text clear the property.")] = "skip"


@dataclass(frozen=True, slots=True)
class OccurredAt:
    """Where an event's time is, and how it is written.

    The zone is the source's where it is left out.
    """

    source: Annotated[str, Key("JMESPath to the time.", "updated_at", name="from", form="expression")]
    format: Annotated[tuple[str, ...], Key("How it is written, as for a property of type datetime.", "epoch_ms")] = ()
    timezone: Annotated[str | None, Key("The zone of times that name none.", form="zone")] = None


@dataclass(frozen=True, slots=True)
class Pairs:
    """For senders in which names are data: property changes, or custom fields as a list."""

    items: Annotated[
        str, Key("JMESPath to one pair, a list of pairs, or an object.", "custom_fields", name="in", form="expression")
    ]
    name: Annotated[str, Key("JMESPath, within a pair, to its name.", "name", form="expression")]
    value: Annotated[str, Key("JMESPath, within a pair, to its value.", "value", form="expression")]
    properties: Annotated[
        Mapping[str, tuple[str, Property]],  # sender's name → (HubSpot property, how)
        Key("The sender's names and the HubSpot properties they stand for.", "{Plan: plan}", least=1),
    ]


@dataclass(frozen=True, slots=True)
class MappingBlock:
    """One block of what a source's events mean; several may apply to one event.

    Either `schema` is set (module.path:ClassName), or `properties`, or `pairs`, or these two together.
    """

    record: Annotated[
        Record, Key("Which CRM record an event is about.", "{id: data.client_id, id_property: acme_client_id}")
    ]
    object_type: Annotated[str, Key("The CRM's object type.", "contacts", form="object type")] = "partner_clients"
    when: Annotated[
        str | None,
        Key("JMESPath; the entry applies to events for which it holds.", "type == 'client.updated'", form="expression"),
    ] = None
    properties: Annotated[
        Mapping[str, Property],
        Key("HubSpot properties; the short form of `{from: PATH}` is `PATH`.", "{company_name: data.name}", least=1),
    ] = field(default_factory=dict)
    pairs: Annotated[Pairs | None, Key("For senders in which names are data.")] = None
    schema: Annotated[
        str | None,
        Key(
            "A marshmallow Schema of your own, as module.path:ClassName.", "my_partner.schemas:AcmeClient", form="class"
        ),
    ] = None
    on_invalid: Annotated[
        Literal["park", "reject"], Key("park: valid properties go on. reject: the sender is answered 422.")
    ] = "park"
    unchanged: Annotated[Literal["send", "skip"], Key("skip leaves out values that the CRM has already confirmed.")] = (
        "send"
    )
    timezone: Annotated[str | None, Key("The zone of dates that name none.", form="zone")] = None
    path: tuple[str | int, ...] = ()  # where the block stands in its source: ("mappings", 1), or () when single


@dataclass(frozen=True, slots=True)
class Reply:
    """How accepted webhooks are answered."""

    status: Annotated[int, Key("The status of the answer.", "200", least=200, most=299)] = 202
    body: Annotated[Literal["counts", "none"], Key("What the answer says.")] = "counts"


@dataclass(frozen=True, slots=True)
class Challenge:
    """How the sender's handshake is answered."""

    reply: Annotated[
        str, Key("JMESPath to the answer, such as _query.challenge.", "_query.challenge", form="expression")
    ]
    method: Annotated[Literal["GET", "POST"], Key("The handshake's method.")] = "GET"
    when: Annotated[
        str | None, Key("JMESPath; which requests are handshakes.", "type == 'url_verification'", form="expression")
    ] = None
    as_: Annotated[Literal["text", "json"], Key("The answer's form.")] = "text"
    signed: Annotated[bool, Key("Whether a handshake must be signed.")] = False


#: The most requests of a limit: their times take 8 MB.
MAX_REQUESTS = 1_000_000


@dataclass(frozen=True, slots=True)
class RequestLimit:
    """How many requests this source may send."""

    requests: Annotated[int, Key("Requests in every `per`.", "100", least=1, most=MAX_REQUESTS)]
    per_s: Annotated[float, Key("The window's length.", "1s")]


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
    """A partner system: POST /webhooks/NAME."""

    name: str
    verify: Annotated[
        Verify,
        Key(
            "How it is known that a request comes from the partner.",
            "{scheme: standard-webhooks, secrets: [{env: ACME_SECRET}]}",
        ),
    ]
    mappings: tuple[MappingBlock, ...]
    events: Annotated[str, Key("JMESPath to one event or a list of events.", "data.events", form="expression")] = "@"
    when: Annotated[
        str | None,
        Key("JMESPath; events for which it does not hold are ignored.", "type == 'client.updated'", form="expression"),
    ] = None
    event_id: Annotated[
        str | None, Key("JMESPath to the event's id; a second delivery changes nothing.", "id", form="expression")
    ] = None
    occurred_at: Annotated[
        OccurredAt | None,
        Key("JMESPath to the event's time; an older event never overwrites a newer value.", "updated_at"),
    ] = None
    timezone: Annotated[str | None, Key("The zone of dates and times that name none.", form="zone")] = None
    body: Annotated[Literal["json", "ndjson", "form"], Key("The form of the request's body.")] = "json"
    payload_field: Annotated[str | None, Key("With `body: form`: the field that holds JSON.", "payload")] = None
    max_body: Annotated[int | None, Key("The largest body, in place of server.max_body.", form="size")] = None
    limit: Annotated[RequestLimit | None, Key("More than this is answered 429.", "{requests: 100, per: 1s}")] = None
    challenge: Annotated[
        Challenge | None, Key("How the sender's handshake is answered.", "{reply: _query.challenge}")
    ] = None
    expect_every_s: Annotated[float | None, Key("No event for longer makes the source silent.", "24h")] = None
    reply: Annotated[Reply, Key("How accepted webhooks are answered.", "{status: 200}")] = field(default_factory=Reply)
    examples: tuple[Example, ...] = ()


#: What of `server:` only a restart changes.
FIXED = ("bind", "admin_bind", "workers", "threads", "drain_timeout_s")


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration; `file` is where it was read from, for messages."""

    crm: Annotated[Crm, Key("The CRM and how it is called.")]
    sources: Mapping[str, Source] = field(default_factory=dict)
    journal: Annotated[Journal, Key("Where accepted events are kept.")] = field(default_factory=Journal)
    retry: Annotated[Retry, Key("How long to wait after failures.")] = field(default_factory=Retry)
    server: Annotated[Server, Key("Where and how the service listens.")] = field(default_factory=Server)
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
