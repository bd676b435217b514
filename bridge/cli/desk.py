"""Where commands for operators work: on the journal, or through the admin API of a running service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.common import Command, config_option, load_for_journal

if TYPE_CHECKING:
    from bridge.journal.kept import Remap
    from bridge.journal.store import Journal
    from bridge.operations.desk import Desk
    from bridge.settings import Settings


@dataclass(frozen=True, slots=True)
class Place:
    """Which desk is meant. Without a URL it is the journal that the configuration names."""

    config: Path
    admin_url: str | None
    admin_token: str | None


def desk_options(command: Command) -> Command:
    """Add `--config`, `--admin-url` and `--admin-token`; the command gets them as `place`."""

    def gathered(
        *arguments: Any, config: Path, admin_url: str | None, admin_token: str | None, **options: Any
    ) -> object:
        _refuse_half_characters((*arguments, *options.values()))
        return command(*arguments, place=Place(config, admin_url, admin_token), **options)

    gathered.__name__, gathered.__doc__ = command.__name__, command.__doc__
    gathered.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]  # click's
    decorated: Callable[..., object] = gathered
    for option in (
        click.option(
            "--admin-token", envvar="BRIDGE_ADMIN_TOKEN", help="The admin token [env var: BRIDGE_ADMIN_TOKEN]."
        ),
        click.option(
            "--admin-url",
            envvar="BRIDGE_ADMIN_URL",
            help="Ask the service whose admin port answers there, instead of opening the journal "
            "[env var: BRIDGE_ADMIN_URL].",
        ),
        config_option,
    ):
        decorated = option(decorated)
    return decorated  # type: ignore[return-value]  # click calls it with other parameters than it was written for


def _refuse_half_characters(given: tuple[Any, ...]) -> None:
    """What is no UTF-8 on a command line comes as halves of characters, which no journal holds."""
    for value in given:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isascii() and text != text.encode(errors="replace").decode():
                raise click.UsageError(f"{text!a} is not UTF-8")


@contextmanager
def at_desk(place: Place) -> Iterator[Desk]:
    """The desk; also beside a running service. Raises BridgeError when it is out of reach."""
    if place.admin_url:
        from bridge.cli.remote import RemoteDesk

        with RemoteDesk(place.admin_url, place.admin_token) as remote:
            yield remote
        return
    from bridge.operations.desk import JournalDesk

    settings = load_for_journal(place.config)

    def make_remap() -> Remap:
        from bridge.service import make_remap as of_settings  # takes the whole service, which only a replay needs

        return of_settings(settings)

    with opened(settings) as journal:
        yield JournalDesk(journal=journal, make_remap=make_remap)


@contextmanager
def opened(settings: Settings) -> Iterator[Journal]:
    """The journal, also beside a running service."""
    from bridge.journal import versions
    from bridge.journal.store import Journal
    from bridge.model import SystemClock

    versions.check(settings.journal.url)
    journal = Journal(settings=settings.journal, clock=SystemClock(), retry_max_s=settings.retry.max_s)
    try:
        yield journal
    finally:
        journal.close()
