"""Commands on a terminal of their own: what a person sees, escape sequences and all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.forked import Forked

#: Sequences that colour or move: those of our own tables and bars.
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
#: Sequences that choose a colour.
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3|9)\d(?:;\d+)*m")


@dataclass(frozen=True)
class Seen:
    """How a command ended and all that it wrote."""

    status: int
    text: str

    @property
    def plain(self) -> str:
        return SEQUENCE.sub("", self.text).replace("\r\n", "\n")


def on_terminal(
    *arguments: str,
    cwd: Path,
    types: str = "",
    environ: Mapping[str, str | None] | None = None,
    columns: int = 120,
    within_s: float = 90,
    program: Sequence[str] | None = None,
) -> Seen:
    """Run a command of ours, or what else `program` tells Python, with standard streams on a terminal; what a person
    types is there from the start.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    wanted: dict[str, str | None] = {"TERM": "xterm-256color", "NO_COLOR": None, "COLUMNS": None, **(environ or {})}
    kept = {name: value for name, value in os.environ.items() if name not in wanted}
    env = kept | {name: value for name, value in wanted.items() if value is not None}
    child: subprocess.Popen[bytes] | Forked
    if program is None:
        child = Forked(arguments, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=env)
    else:
        child = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    os.close(theirs)
    os.write(ours, types.encode())
    text = b""
    deadline = time.monotonic() + within_s
    with contextlib.suppress(OSError):  # the terminal is gone with its last user
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                if not (read := os.read(ours, 65_536)):
                    break
                text += read
    try:
        status = child.wait(max(1.0, deadline - time.monotonic()))
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        os.close(ours)
    return Seen(status, text.decode("utf-8", "replace"))
