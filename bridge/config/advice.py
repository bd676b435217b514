"""Warnings: what is lawful in a configuration, and worth a second look."""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from bridge.config.yaml_file import Document, Keys
from bridge.errors import Problem
from bridge.intake.expressions import negates_first_step
from bridge.intake.schemes import gives_identity, layouts_of
from bridge.settings import MappingBlock, Secret, SecretUnavailableError, Settings, Source

#: an admin token opens acts on all that waits; shorter ones can be guessed
SHORT_ADMIN_TOKEN = 16


#: WooCommerce's delivery id: a hash of the webhook's number and the current second.
_WOOCOMMERCE = "x-wc-webhook-delivery-id"


def advice(settings: Settings, document: Document, faulty: Collection[str] = ()) -> Iterator[Problem]:
    """All warnings, each with the place it is about. `faulty`: the paths of what is an error already."""
    for name, source in settings.sources.items():
        keys: Keys = ("sources", name)
        if not any(path.startswith(f"sources.{name}.verify") for path in faulty):  # else something stands in for it
            yield from _verification(document, keys, source, settings.journal.retention_s)
        for at, text in _expressions(source):
            if negates_first_step(text):
                message = f"{text!r}: to JMESPath !a.b is (!a).b, which is always null; write !(a.b)"
                yield document.problem((*keys, *at), message)
        yield from _untrimmed(document, keys, source)
        if (challenge := source.challenge) is not None and challenge.method == "POST" and challenge.when is None:
            message = (
                "a POST in which `reply` finds something counts as a handshake, even if it is an event; set `when`"
            )
            yield document.problem((*keys, "challenge"), message)
    if (token := settings.server.admin_token) is not None and _is_short(token):
        message = f"is shorter than {SHORT_ADMIN_TOKEN} characters; `openssl rand -hex 24` makes a better one"
        yield document.problem(("server", "admin_token"), message)
    if settings.journal.remember_s < settings.journal.retention_s:
        message = (
            "is shorter than `retention`: values are remembered as long as events are kept, so that a replay of one "
            "overwrites nothing newer; make it at least as long"
        )
        yield document.problem(("journal", "remember"), message)
    for keys, secret in _secrets(settings):
        yield from _secret_advice(document, keys, secret)
    yield from _rivals(settings, document)


def _verification(document: Document, keys: Keys, source: Source, retention_s: float) -> Iterator[Problem]:
    verify = source.verify
    if verify.scheme == "none":
        message = "scheme none: anybody who knows the address can change the CRM"
        yield document.problem((*keys, "verify", "scheme"), message)
    if source.event_id is None and not gives_identity(verify):
        message = "no event has an id here, so a repeated delivery counts as a new event; set `event_id`"
        yield document.problem(keys, message)
    if (why := _not_unique(source)) is not None:
        message = (
            f"{why}: events of one id that ask for different things are told apart and all taken, but counted as "
            "conflicts; make an id of several parts, such as join('-', [to_string(a), to_string(b)])"
        )
        yield document.problem((*keys, "event_id"), message)
    signs_time = any("{timestamp}" in layout.signed for layout in layouts_of(verify))
    if signs_time and retention_s < 2 * verify.tolerance_s:  # from as far ahead as behind
        message = (
            "a captured request can be sent again after `journal.retention`, when its event is forgotten and its time "
            "is still within `tolerance`; make `tolerance` less than half of `retention`"
        )
        yield document.problem((*keys, "verify", "tolerance"), message)


def _untrimmed(document: Document, keys: Keys, source: Source) -> Iterator[Problem]:
    """An id is trimmed, but the same e-mail address as a value is not: HubSpot refuses it with blanks around."""
    for block in source.mappings:
        how = block.properties.get("email")
        if block.record.id_property != "email" or how is None or how.type != "string" or how.source is None:
            continue
        if not how.format and not how.source.lstrip().startswith("trim("):
            message = "is written as it comes, blanks included, while the record's id is trimmed; add `format: email`"
            yield document.problem((*keys, *block.path, "properties", "email"), message)


def _not_unique(source: Source) -> str | None:
    """Why the ids of a source's events are known not to be unique."""
    verify, text = source.verify, (source.event_id or "").strip()
    header = verify.hmac.id_header if verify.hmac is not None else None
    signature = verify.hmac.header if verify.hmac is not None else ""
    if text == "eventId" and (verify.scheme.startswith("hubspot") or "hubspot" in signature.lower()):
        return "HubSpot says that its eventId is not unique"
    if text == f"_headers.{_WOOCOMMERCE.replace('-', '_')}" or (not text and (header or "").lower() == _WOOCOMMERCE):
        return "WooCommerce gives two deliveries of one second the same delivery id"
    return None


def _expressions(source: Source) -> Iterator[tuple[Keys, str]]:
    """Every expression of a source, and where it stands."""
    one = {"events": source.events, "when": source.when, "event_id": source.event_id}
    yield from (((key,), text) for key, text in one.items() if text is not None)
    if source.occurred_at is not None:
        yield ("occurred_at",), source.occurred_at.source
    if source.challenge is not None:
        yield ("challenge", "reply"), source.challenge.reply
        if source.challenge.when is not None:
            yield ("challenge", "when"), source.challenge.when
    for block in source.mappings:
        if block.when is not None:
            yield (*block.path, "when"), block.when
        yield (*block.path, "record", "id"), block.record.id
        for name, how in block.properties.items():
            if how.source is not None:
                yield (*block.path, "properties", name), how.source
        if (pairs := block.pairs) is not None:
            at = (*block.path, "pairs")
            yield from (((*at, "in"), pairs.items), ((*at, "name"), pairs.name), ((*at, "value"), pairs.value))


def _is_short(secret: Secret) -> bool:
    try:
        return any(len(text) < SHORT_ADMIN_TOKEN for text in secret.texts())
    except SecretUnavailableError:
        return False


def _secrets(settings: Settings) -> Iterator[tuple[Keys, Secret]]:
    if settings.crm.token is not None:
        yield ("crm", "token"), settings.crm.token
    if (oauth := settings.crm.oauth) is not None:
        yield ("crm", "oauth", "client_secret"), oauth.client_secret
        yield ("crm", "oauth", "refresh_token"), oauth.refresh_token
    if settings.server.admin_token is not None:
        yield ("server", "admin_token"), settings.server.admin_token
    for name, source in settings.sources.items():
        for index, secret in enumerate(source.verify.secrets):
            yield ("sources", name, "verify", "secrets", index), secret


def _secret_advice(document: Document, keys: Keys, secret: Secret) -> Iterator[Problem]:
    """What to mend about a secret that is sound by itself.

    A file that everybody can read is warned of, not refused: Kubernetes mounts secrets with mode 0644 unless told
    otherwise, Docker and Podman with 0444, in a container where nobody else is, and on file systems where
    `chmod` cannot work. A refusal would keep sound deployments from starting.
    """
    written: Any = document.data
    for key in keys:
        inside = (isinstance(written, Mapping) and key in written) or (
            isinstance(written, list) and isinstance(key, int) and key < len(written)
        )
        written = written[key] if inside else None
    if isinstance(written, Mapping) and "default" in written:
        yield document.problem(keys, "its `default` is a secret within this file; everybody who reads it has it")
    if secret.file is not None:
        try:
            mode = secret.file.stat().st_mode
        except OSError:
            return
        if mode & stat.S_IROTH:
            message = (
                f"everybody on this machine can read {secret.file}; run `chmod 600 {secret.file}`, or in Kubernetes "
                "give its volume `defaultMode: 0440`"
            )
            yield document.problem(keys, message)


def _rivals(settings: Settings, document: Document) -> Iterator[Problem]:
    """Properties of one object type that two sources write by different id properties."""
    first: dict[tuple[str, str], tuple[str, str]] = {}
    told: set[tuple[str, str, str]] = set()
    for name, source in settings.sources.items():
        for block in source.mappings:
            by = block.record.id_property or "record id"
            for written in _written(block):
                other, other_by = first.setdefault((block.object_type, written), (name, by))
                if other != name and other_by != by and (other, name, block.object_type) not in told:
                    told.add((other, name, block.object_type))
                    message = (
                        f"writes {written} of {block.object_type} by {by}, and source {other} by {other_by}: "
                        "changes of one record that come both ways are not ordered among each other"
                    )
                    yield document.problem(("sources", name), message)


def _written(block: MappingBlock) -> Iterator[str]:
    yield from block.properties
    if block.pairs is not None:
        yield from (to for to, _ in block.pairs.properties.values())
