"""`partner-bridge serve` and `sandbox`: the service in the foreground, and a local CRM to try it against."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from bridge.cli.common import config_option, typed, unused_config_option
from bridge.errors import BridgeError
from bridge.settings import Secret, Settings

# --- `partner-bridge sandbox`: a local CRM to try a bridge against ---

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|)")


class Duration(click.ParamType[float]):
    """`200ms`, `1.5s`, `2m`; a bare number is seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = _DURATION.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no duration such as 200ms or 1.5s", param, ctx)
        return float(found[1]) * _UNITS_S[found[2]]


class FaultRate(click.ParamType[tuple[str, float]]):
    """`KIND=RATE`, the rate as a share (0.05) or in percent (5%)."""

    name = "kind=rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        from bridge.sandbox.faults import KINDS

        if isinstance(value, tuple):
            return value
        kind, _, text = str(value).partition("=")
        if kind not in KINDS:
            self.fail(f"{kind!r} is no fault; one of {', '.join(KINDS)}", param, ctx)
        try:
            rate = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            rate = -1
        if not 0 <= rate <= 1:
            self.fail(f"{text!r} is no rate between 0 and 1, such as 0.05 or 5%", param, ctx)
        return kind, rate


@click.command(context_settings={"show_default": True})
@unused_config_option
@click.option("--port", type=click.IntRange(0, 65535), default=9100, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", help="The address to listen on; there is no access control.")
@click.option("--latency", "latency_s", type=Duration(), default="200ms", help="Time an update takes.")
@click.option("--limit", type=click.IntRange(0), default=190, help="Calls in every rolling 10 s; 0 for no limit.")
@click.option(
    "--fail",
    "rates",
    type=FaultRate(),
    multiple=True,
    metavar="KIND=RATE…",
    help="Share of the update calls that meet a fault: 429 500 502 503 timeout reset garbage empty "
    "silent-drop unknown whole-400, and others. Several may follow each other.",
)
@click.argument("more_rates", nargs=-1, type=FaultRate(), metavar="")
@click.option("--strict", is_flag=True, help="Only records and properties that were added or declared exist.")
@click.option("--fold-case", is_flag=True, help="Ids that differ in letter case only are one record, as e-mails are.")
@click.option("--seed", type=int, default=0, help="Of all chance, so that a run can be repeated.")
@click.option("--until-eof", is_flag=True, hidden=True, help="End when standard input is closed.")
def sandbox(
    port: int,
    host: str,
    latency_s: float,
    limit: int,
    rates: tuple[tuple[str, float], ...],
    more_rates: tuple[tuple[str, float], ...],
    strict: bool,
    fold_case: bool,
    seed: int,
    until_eof: bool,
) -> None:
    """Run a local CRM that honours HubSpot's batch-update contract.

    Any record exists when it is first updated, except ids that start with "unknown"; any bearer token is
    good. Its state is lost when it ends.
    """
    from bridge.sandbox import Behaviour, Crm, SandboxServer

    if more_rates and not rates:
        raise click.UsageError("a fault stands behind --fail")
    rates += more_rates
    if sum(rate for _, rate in rates) > 1:
        raise click.BadParameter("the rates add up to more than 1", param_hint="--fail")
    crm = Crm(
        strict=strict,
        open_properties=not strict,
        fold_case=fold_case,
        behaviour=Behaviour(latency_s=latency_s),
        limit=limit or None,
        rates=dict(rates),
        seed=seed,
    )
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    with SandboxServer(crm, host=host, port=port) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        if until_eof:  # whoever started us holds the other end, and speaks for us: it ends however they end
            threading.Thread(target=_until_eof, args=(ended,), daemon=True).start()
        else:
            click.echo(_greeting(server.url, latency_s, limit), nl=False)
        ended.wait()
    if until_eof:
        return
    calls, breaches = sum(crm.ledger.counts().values()), len(crm.ledger.violations())
    click.echo(f"Sandbox ended after {calls} calls; breaches of the contract: {breaches}")


def _until_eof(ended: threading.Event) -> None:
    # Not through sys.stdin: a thread that waits within its buffer breaks the interpreter's end.
    while os.read(0, 4096):
        pass
    ended.set()


def _greeting(url: str, latency_s: float, limit: int) -> str:
    allowed = f"{limit} calls per 10 s" if limit else "no rate limit"
    return (
        f"Sandbox CRM on {url} (latency {latency_s * 1000:g} ms, {allowed})\n"
        "Point a bridge at it in bridge.yaml:\n"
        "  crm:\n"
        f"    base_url: {url}\n"
        "    token: {env: HUBSPOT_ACCESS_TOKEN}   # any non-empty text\n"
        "Look inside:\n"
        f"  curl {url}/sandbox/state\n"
        f"  curl {url}/sandbox/violations\n"
        "Ctrl-C ends it.\n"
    )


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
    from bridge.config import load
    from bridge.config.loading import Watch, wanted
    from bridge.server import master

    watch = Watch(config, sandbox=sandbox) if wanted(os.environ) else None
    loaded = load(config, sandbox=sandbox)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    if not sandbox:
        return master.run(loaded.settings, load_settings=lambda: load(config).settings, watch=watch)
    with sandbox_process() as url:
        settings = towards(loaded.settings, url)
        click.echo(f"delivering to a sandbox CRM on {url}; what it holds: curl {url}/sandbox/state", err=True)
        return master.run(
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
            end(child, within_s=5)


def end(child: subprocess.Popen[bytes], *, within_s: float) -> None:
    """Terminate it, or kill it if that takes longer."""
    child.terminate()
    try:
        child.wait(within_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


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
