"""The command line: one lazy group, so that a command imports only what it needs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from bridge import __version__
from bridge.errors import BridgeError

#: command name → where its click command stands
COMMANDS = {
    "serve": "bridge.cli.serving:serve",
    "demo": "bridge.cli.demo:demo",
    "init": "bridge.cli.configuration:init",
    "check": "bridge.cli.configuration:check",
    "map": "bridge.cli.sending:map_",
    "listen": "bridge.cli.listening:listen",
    "send": "bridge.cli.sending:send",
    "retries": "bridge.cli.retries:retries",
    "events": "bridge.cli.events:events",
    "trace": "bridge.cli.events:trace",
    "resync": "bridge.cli.events:resync",
    "pause": "bridge.cli.events:pause",
    "resume": "bridge.cli.events:resume",
    "status": "bridge.cli.events:status",
    "journal": "bridge.cli.journaling:journal",
    "migrate": "bridge.cli.journaling:migrate",
    "schema": "bridge.cli.configuration:schema",
    "explain": "bridge.cli.configuration:explain",
    "sandbox": "bridge.cli.serving:sandbox",
}


class LazyGroup(click.Group):
    """Imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches  # only now, as most commands are spelled right

            if near := get_close_matches(args[0], COMMANDS, n=1):
                raise click.UsageError(f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx) from error
            raise


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="partner-bridge")
def partner_bridge() -> None:
    """Partner webhooks in, HubSpot batch updates out: in order, within the limits, nothing lost."""


def complain(text: str) -> None:
    """An error on stderr; what prints it in colour is imported only now, as most commands end without one."""
    from bridge.cli import common

    common.complain(text)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; every error of ours is one clear sentence on stderr.

    Returns the exit status: the command's own, 1 for our errors, 2 for wrong usage, 130 on Ctrl-C.
    """
    try:
        status = partner_bridge.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="partner-bridge",
            standalone_mode=False,
        )
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort as stop:
        complain(str(stop) or "interrupted")
        return 130
    except click.ClickException as error:
        error.show(file=sys.stderr)
        return error.exit_code
    except BridgeError as error:
        complain(str(error))
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except Exception as error:
        if os.environ.get("BRIDGE_LOG_LEVEL", "").lower() == "debug":
            raise
        complain(
            f"unexpected {type(error).__name__}: {error}; this is a defect of ours, BRIDGE_LOG_LEVEL=debug shows where"
        )
        return 70
    return status if isinstance(status, int) else 0
