"""What several commands share: the `--config` option and loading what it names."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from bridge.settings import Settings

Command = TypeVar("Command", bound=Callable[..., object])

DEFAULT_CONFIG = Path("bridge.yaml")


def config_option(command: Command) -> Command:
    """Add `--config FILE`: default `$BRIDGE_CONFIG`, then `./bridge.yaml`."""
    return click.option(
        "--config",
        "config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="BRIDGE_CONFIG",
        default=DEFAULT_CONFIG,
        show_default="$BRIDGE_CONFIG, then ./bridge.yaml",
        help="The configuration file.",
    )(command)


def unused_config_option(command: Command) -> Command:
    """Take `--config` like every other command, for scripts that give it to all of them; nothing is read."""
    return click.option("--config", hidden=True, expose_value=False, metavar="FILE")(command)


def load(config: Path) -> Settings:
    """The settings that `config` holds. Raises ConfigError with all its problems."""
    from bridge.config import load_settings

    return load_settings(config)


def load_for_journal(config: Path) -> Settings:
    """The settings for a command that only opens the journal: the CRM's token is not needed for that."""
    from bridge.config import load_settings

    return load_settings(config, sandbox=True)


def source_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The configured sources that begin so, for the shell; none where the configuration cannot be read."""
    config = ctx.params.get("config") or os.environ.get("BRIDGE_CONFIG") or DEFAULT_CONFIG
    try:
        names = load_for_journal(Path(config)).sources
    except Exception:  # noqa: BLE001 (whatever it is, a shell that asks for a completion wants no error)
        return []
    return [name for name in names if name.startswith(incomplete)]


def typed(words: str, config: Path) -> str:
    """A command to type, with the configuration named where it is not the usual one."""
    usual = config == DEFAULT_CONFIG or os.environ.get("BRIDGE_CONFIG") == str(config)
    return f"partner-bridge {words}" + ("" if usual else f" --config {shlex.quote(str(config))}")
