"""A real `partner-bridge listen` in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.forked import Forked
from tests.running import eventually


@dataclass
class Listening:
    """One listener: its URL, and what it has shown."""

    process: Forked
    out: Path
    err: Path
    url: str = ""
    _read: int = field(default=0, repr=False)

    @property
    def text(self) -> str:
        return self.out.read_text(encoding="utf-8")

    @property
    def notes(self) -> str:
        return self.err.read_text(encoding="utf-8")

    def next(self) -> dict[str, Any]:
        """The next request that it shows with --json."""
        assert eventually(lambda: self.text.count("\n") > self._read), self.notes
        self._read += 1
        found: dict[str, Any] = json.loads(self.text.splitlines()[self._read - 1])
        return found

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


@contextmanager
def listening(
    folder: Path, *arguments: str, environ: Mapping[str, str] | None = None, port: str = "0"
) -> Iterator[Listening]:
    """`listen --port 0` with these arguments, in this folder; stopped by Ctrl-C."""
    out, err = folder / "listen.out", folder / "listen.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = Forked(
            ["listen", *arguments, "--port", port],
            cwd=folder,
            stdout=stdout,
            stderr=stderr,
            env=os.environ | dict(environ or {}),
        )
    started = Listening(process, out, err)
    try:
        assert eventually(lambda: process.poll() is not None or "Ctrl-C" in started.notes), started.notes
        found = re.search(r" on (http://\S+/webhooks/[^\s,]+)", started.notes)
        assert found is not None, started.notes
        started.url = found[1]
        yield started
    finally:
        if process.poll() is None:
            started.stop()
