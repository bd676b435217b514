"""`python -m tests.dev VERB…`: what a change is checked with; .ci/run and pre-commit call the same verbs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click

TOP = Path(__file__).parents[1]

LINT = ("ruff format --check .", "ruff check .", "lint-imports")
TYPES = ("mypy",)
#: By verb: its commands, of the environment that runs this.
VERBS = {
    "format": ("ruff check --fix-only --quiet .", "ruff format ."),
    "lint": LINT,
    "types": TYPES,
    "fast": ("pytest -n auto -m 'not heavy' tests/unit",),
    "reference": ("python -m tests.reference", "python -m tests.property_types"),
    "all": (*LINT, *TYPES, "pytest -n 4 -m 'not heavy'"),
}


@click.command()
@click.argument("verbs", nargs=-1, required=True, type=click.Choice(list(VERBS)), metavar="VERB…")
def main(verbs: tuple[str, ...]) -> None:
    """Run `format`, `lint`, `types`, `fast` (the unit tests), `reference` (writes the pages of all keys and types
    anew) or `all`
    (lint, types, all tests but the heavy ones).

    The first command that fails ends it.
    """
    for command in (command for verb in verbs for command in VERBS[verb]):
        click.secho(f"$ {command}", bold=True, err=True)
        tool, *arguments = shlex.split(command)
        done = subprocess.run([Path(sys.executable).with_name(tool), *arguments], cwd=TOP, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
