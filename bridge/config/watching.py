"""Notices that the configuration is another one than before: by its files' content, as a mount that is exchanged keeps
neither their times nor their inodes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from bridge.config.including import matching
from bridge.config.loading import Findings, examine
from bridge.errors import ConfigError, Problem

#: Seconds between two looks.
EVERY_S = 5.0
#: One that is refused is tried again, which may take this share of the time: with hundreds of sources it takes seconds.
SHARE = 1 / 50


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether `BRIDGE_RELOAD` asks for it. Raises ConfigError for what it cannot mean."""
    text = environ.get("BRIDGE_RELOAD", "").strip()
    if text.lower() not in {"", "watch"}:
        raise ConfigError([Problem("BRIDGE_RELOAD", f"{text!r} is no way to reload; use watch, or leave it unset")])
    return text.lower() == "watch"


class Watch:
    """One configuration file and those that it includes. For one thread; a fork goes on from what was known.

    Made and asked before the configuration is loaded, never after: then what changes meanwhile is found the next time.
    """

    def __init__(self, file: Path, *, sandbox: bool = False) -> None:
        self._file, self._sandbox = file, sandbox
        self._patterns: list[str] = []
        self._known: bytes | None = None
        self._sound = True
        self._rest_until = 0.0  # by the monotonic clock
        self.changed()

    def changed(self) -> bool:
        """Whether it would load otherwise than when this was last asked. One with problems is tried again, as what it
        lacked, a secret's file say, may be there now.
        """
        there, began = self._content(), time.monotonic()
        if there is None or (there == self._known and (self._sound or began < self._rest_until)):
            return False
        try:
            findings = examine(self._file, sandbox=self._sandbox)
        except Exception:  # noqa: BLE001 (whatever it is, loading tells)
            findings = Findings()
        self._patterns, self._sound = findings.patterns, findings.settings is not None
        there, ended = self._content(), time.monotonic()
        self._rest_until = ended + (ended - began) / SHARE
        if there is None or (there == self._known and not self._sound):
            return False
        self._known = there
        return True

    def _content(self) -> bytes | None:
        """A digest of all files; None while one cannot be read, as when the mount is being exchanged."""
        content = hashlib.sha256()
        try:
            included = (Path(each) for pattern in self._patterns for each in matching(pattern, self._file.parent))
            for file in (self._file, *included):
                content.update(b"\0%b\0" % os.fsencode(file))
                content.update(file.read_bytes())
        except (OSError, ValueError):
            return None
        return content.digest()
