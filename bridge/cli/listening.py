"""`partner-bridge listen`: what a partner really sends, the verdict on it, and what it would become."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.common import (
    DEFAULT_CONFIG,
    config_option,
    load_for_journal,
    local_url,
    log_accidents_only,
    source_names,
)
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from bridge.settings import Settings


@click.command()
@config_option
@click.option("--save", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Keep each request.")
@click.option("--port", type=click.IntRange(0, 65535), help="In place of the configured one; 0 takes a free one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each request.")
@click.option("--credentials", is_flag=True, help="Show and keep Authorization and cookies too; else they are masked.")
@click.argument("source", shell_complete=source_names)
def listen(config: Path, source: str, save: Path | None, port: int | None, *, as_json: bool, credentials: bool) -> int:
    """Receive for one source and show each request: verdict, events, what would be sent.

    In place of the service, on its port, answering as the service would; nothing goes to the CRM and nothing
    into the journal. A source that is not configured yet may be named too: then requests are shown as they come.
    What --save keeps is read by `map`, `send` and `examples: - file:`.
    """
    from bridge.cli.common import console
    from bridge.cli.endpoint import bind, configured_app, raw_app, served, watched
    from bridge.cli.listener import Listener, print_block

    settings = _settings(config)
    found = settings.sources.get(source)
    if save is not None:
        _make(save)
    host, configured_port = settings.server.bind
    listener = Listener(source, settings, found, config, save, credentials=credentials)
    app = raw_app(source) if found is None else configured_app(settings, found)
    max_body = (found.max_body if found is not None else None) or settings.server.max_body
    ended = threading.Event()
    with bind(host, configured_port if port is None else port) as bound:
        listener.url = f"{local_url(host, bound.getsockname()[1])}/webhooks/{source}"
        log_accidents_only()  # the endpoint's log says what is shown anyway
        out = console()
        show: Callable[[dict[str, Any]], None] = _print_line if as_json else lambda document: print_block(document, out)
        with _signals(ended), served(watched(app, lambda seen: listener.look(seen, show), max_body), bound):
            listener.greet()
            ended.wait()
    listener.sum_up()
    return 0


def _settings(config: Path) -> Settings:
    """What the file says; the defaults where there is no file yet and none was named."""
    from bridge.config.scalars import parse_address
    from bridge.settings import Crm, Server, Settings

    if config.exists() or config != DEFAULT_CONFIG:
        return load_for_journal(config)
    bind = os.environ.get("BRIDGE_BIND", "").strip()
    return Settings(crm=Crm(), server=Server(bind=parse_address(bind) if bind else ("127.0.0.1", 8080)), file=config)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BridgeError(f"{folder} cannot be made: {error.strerror}; change --save") from error


def _print_line(document: dict[str, Any]) -> None:
    print(json.dumps(document, ensure_ascii=False), flush=True)


@contextmanager
def _signals(ended: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end it, cleanly."""

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
