"""`partner-bridge serve`: the service in the foreground, delivering to HubSpot or to a sandbox of its own."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import click

from bridge.cli.common import config_option, typed
from bridge.errors import BridgeError
from bridge.settings import Secret, Settings

#: Variables that gunicorn reads, beside those that bear its name.
GUNICORNS = frozenset({"WEB_CONCURRENCY", "SENDFILE", "FORWARDED_ALLOW_IPS", "LISTEN_FDS", "LISTEN_PID"})
#: Imports and a bind; a machine that is busy takes its time.
SANDBOX_START_S = 20.0


@click.command()
@config_option
@click.option("--sandbox", is_flag=True, help="Deliver to a built-in sandbox CRM instead of HubSpot.")
def serve(config: Path, sandbox: bool) -> int:
    """Run the service in the foreground until SIGTERM or Ctrl-C."""
    signal.signal(signal.SIGTERM, stop_starting)
    for name in forget_gunicorns(os.environ):
        click.echo(f"warning: {name} is not used; the server is configured by bridge.yaml alone", err=True)
    from bridge import server
    from bridge.config import load
    from bridge.config.watching import Watch, wanted

    watch = Watch(config, sandbox=sandbox) if wanted(os.environ) else None
    loaded = load(config, sandbox=sandbox)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    if not sandbox:
        return server.run(loaded.settings, load_settings=lambda: load(config).settings, watch=watch)
    with sandbox_process() as url:
        settings = towards(loaded.settings, url)
        click.echo(f"delivering to a sandbox CRM on {url}; what it holds: curl {url}/sandbox/state", err=True)
        return server.run(
            settings,
            load_settings=lambda: towards(load(config, sandbox=True).settings, url),
            ready=lambda: _next(settings, config),
            watch=watch,
        )


def stop_starting(_number: int, _frame: object) -> None:
    """End at a SIGTERM before the server has its own way of stopping: as a container's first process it would not be
    delivered otherwise, and the container be killed after its whole grace period.
    """
    raise SystemExit(0)


def forget_gunicorns(environ: MutableMapping[str, str]) -> list[str]:
    """Remove gunicorn's own variables, before it is imported: they would undo what is promised (`max_requests` and
    `preload`), take other sockets, or end the start with a traceback. Returns the names of those that were set.
    """
    found = sorted(name for name in environ if name.startswith("GUNICORN_") or name in GUNICORNS)
    for name in found:
        del environ[name]
    return found


def _next(settings: Settings, config: Path) -> None:
    source = next(iter(settings.sources))
    click.echo(
        f"in a second terminal (Ctrl-C here ends the service)\nnext: {typed(f'send {source}', config)}", err=True
    )


def towards(settings: Settings, url: str) -> Settings:
    """The same settings, delivering to the sandbox at `url`."""
    token = Secret(env="SANDBOX_TOKEN", default="sandbox-token")
    crm = dataclasses.replace(
        settings.crm, base_url=url, sandbox=True, token=token, oauth=None, proxy=None, ca_file=None
    )
    return dataclasses.replace(settings, crm=crm)


def free_port() -> int:
    """A port of the loopback interface that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def sandbox_process(*options: str) -> Iterator[str]:
    """A sandbox CRM in a process of its own; yields its URL and ends it afterwards."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "bridge", "sandbox", "--until-eof", "--port", str(port), *options],
        stdin=subprocess.PIPE,
        # Ctrl-C in a terminal reaches the whole group; the sandbox must outlive the service's drain.
        process_group=0,
    ) as child:
        try:
            wait_until_open(port, child)
            yield f"http://127.0.0.1:{port}"
        finally:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()


def wait_until_open(port: int, child: subprocess.Popen[bytes]) -> None:
    """Return when something accepts connections; raises BridgeError when the child ends or takes too long."""
    deadline = time.monotonic() + SANDBOX_START_S
    while time.monotonic() < deadline and child.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise BridgeError(f"the process that should listen on port {port} did not start")
