"""What `check --portal` and `init --portal` ask HubSpot, with the token that belongs to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import click
from marshmallow import ValidationError

from bridge.cli.admin_client import opened
from bridge.cli.common import log_accidents_only
from bridge.config.portal import Comparison, client, commented, compare, not_listed, portal_name, scope_message
from bridge.config.scalars import Url
from bridge.config.yaml_file import Document
from bridge.crm.oauth import OAuthTokens
from bridge.crm.properties import NotTold, Portal
from bridge.crm.tokens import Tokens, TokenStore
from bridge.errors import BridgeError, CrmUnreachableError, JournalError, JournalUnavailableError
from bridge.journal import versions
from bridge.journal.sqlite.files import sqlite_path
from bridge.model import SystemClock
from bridge.settings import Crm, Secret, SecretUnavailableError, Settings

#: The variable that holds the portal's token while there is no configuration to name it.
TOKEN_VARIABLE = "HUBSPOT_ACCESS_TOKEN"  # noqa: S105 (a variable's name)

#: The object type of every template.
OBJECT_TYPE = "partner_clients"


def compared(settings: Settings, document: Document) -> Comparison:
    """What the portal says of a sound configuration; never raises for a portal that does not tell."""
    try:
        with _token(settings) as token:
            return compare(settings, document, token=token)
    except CrmUnreachableError as error:
        return Comparison(trouble=str(error))


def listed(base_url: str | None) -> str:
    """The portal's writable properties as comments. Raises CrmUnreachableError."""
    token = Secret(env=TOKEN_VARIABLE)
    try:
        token.text()
        crm = Crm(token=token, base_url=Url().deserialize(base_url)) if base_url else Crm(token=token)
    except SecretUnavailableError as error:
        raise BridgeError(f"{error}; --portal asks HubSpot with the token that it holds") from error
    except ValidationError as error:
        raise click.BadParameter(str(error.messages[0]), param_hint="--base-url") from error
    with closing(client(crm, token=token.text)) as hubspot:
        told = Portal(crm=hubspot, path=crm.properties_path, name=portal_name(crm)).properties(OBJECT_TYPE)
    if not isinstance(told, NotTold):
        return commented(OBJECT_TYPE, told)
    message = scope_message(OBJECT_TYPE, told) if told.reason == "forbidden" else told.words
    click.echo(f"warning: {message}", err=True)
    return not_listed(message)


@contextmanager
def _token(settings: Settings) -> Iterator[Callable[[], str] | Tokens]:
    """The configured token. By OAuth the journal is opened too, if there is one: a refresh token that
    HubSpot gave in place of the configured one is kept there, and another may come now. So nothing is asked
    before it is sure that there is a place for it.
    """
    crm = settings.crm
    if crm.oauth is None:
        assert crm.token is not None  # noqa: S101 (a sound configuration has one of the two)
        yield crm.token.text
        return
    log_accidents_only()
    try:
        with _store(settings) as store:
            tokens = OAuthTokens(
                settings=crm.oauth,
                base_url=crm.base_url,
                timeout_s=crm.timeout_s,
                store=store,
                clock=SystemClock(),
                proxy=crm.proxy,
                ca_file=crm.ca_file,
            )
            yield tokens
            _kept(tokens)
    except JournalError as error:
        raise CrmUnreachableError(f"could not check the portal, as crm.oauth needs the journal: {error}") from error


def _kept(tokens: OAuthTokens) -> None:
    if not tokens.keep():
        raise JournalError("HubSpot gave another refresh token, which cannot be kept: install the app anew")


@contextmanager
def _store(settings: Settings) -> Iterator[TokenStore]:
    url = settings.journal.url
    if url.startswith("sqlite:///") and not (path := sqlite_path(url)).exists():
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise JournalUnavailableError(f"{path.parent} is no folder that one can be made in")
        yield _NoJournal(settings)
        return
    with opened(settings) as journal:
        journal.check_writable()
        yield journal


class _NoJournal:
    """Before the first start nothing is kept. Looking at the portal is no reason to make a journal, another refresh
    token is: the configured one may be no good any more.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load_secret(self, name: str) -> str | None:
        del name
        return None

    def save_secret(self, name: str, value: str) -> None:
        versions.prepare(self._settings.journal.url)
        with opened(self._settings) as journal:
            journal.save_secret(name, value)
