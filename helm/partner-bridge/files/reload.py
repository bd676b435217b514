"""Tells the service of a changed configuration: SIGHUP when the file that it reads has other content.

Runs beside the service in one pod with a shared process namespace, as the same user. Argument: the path that the
service has in BRIDGE_CONFIG. The first signal goes out at the start: what changed before is not known.
"""

# ruff: noqa: INP001 (a script)

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

EVERY_S = 5


def services(config: str) -> Iterator[int]:
    """The service's main process. Its workers, which it tells itself, have a parent that serves too."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
            status = dict(line.partition(":")[::2] for line in (folder / "status").read_text().splitlines())
        except OSError:  # it has ended, or is another user's
            continue
        if b"serve" in command and f"BRIDGE_CONFIG={config}".encode() in variables:
            found[int(folder.name)] = status
    for pid, status in found.items():
        # One that does not catch the signal yet is still starting, and would die of it.
        if int(status["PPid"]) not in found and int(status["SigCgt"], 16) >> (signal.SIGHUP - 1) & 1:
            yield pid


def main(config: str) -> None:
    """Never returns."""
    told = ""
    while True:
        try:
            now = hashlib.sha256(Path(config).read_bytes()).hexdigest()
        except OSError:  # while the mount changes
            now = told
        if now != told:
            for pid in services(config):
                os.kill(pid, signal.SIGHUP)
                told = now
                sys.stdout.write(f"the configuration changed: sent SIGHUP to process {pid}\n")
                sys.stdout.flush()
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main(sys.argv[1])
