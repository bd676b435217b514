"""`python -m bridge` and the `partner-bridge` command."""

from __future__ import annotations

import sys

from bridge.cli import run


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(run())


if __name__ == "__main__":
    main()
