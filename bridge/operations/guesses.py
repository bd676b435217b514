"""Wrong admin tokens, bounded: whoever sends many from one address is not listened to for a while.

Counted per address (a /64 of IPv6) and minute, in memory that all processes of the pod share; thousands of addresses
share a few thousand counters. The token itself is what keeps guessers out: this keeps them from filling the log and
from trying short ones. The holder of the right token is never locked out: as a bearer it is always looked at, also
where somebody else guesses behind the same proxy.
"""

from __future__ import annotations

import hashlib
import ipaddress
import mmap
import os
import struct
import threading
from pathlib import Path

#: Wrong tokens that one address may send within `PER_S`.
GUESSES = 10
PER_S = 60.0
#: Counters: addresses that share one are as one.
COUNTERS = 4_096

_COUNTER = struct.Struct("=dQ")  # when its minute began, by the monotonic clock; how many since


class Guesses:
    """Thread-safe; shared with every process that opens the same folder's file."""

    def __init__(self, folder: Path | None = None) -> None:
        """Without `folder` each process counts for itself."""
        size = COUNTERS * _COUNTER.size
        #: Guards the memory against the other threads of this process; two processes may count two as one.
        self._mutex = threading.Lock()
        if folder is None:
            self._memory = mmap.mmap(-1, size)
            return
        with (folder / "guesses").open("a+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
            self._memory = mmap.mmap(opened.fileno(), size)

    def wait_s(self, address: str | None, now: float) -> float:
        """Seconds until this address is listened to, 0.0 if it is. `now` is monotonic."""
        with self._mutex:
            began, number = _COUNTER.unpack_from(self._memory, _place(address))
        return max(0.0, began + PER_S - now) if number >= GUESSES and began <= now else 0.0

    def count(self, address: str | None, now: float) -> None:
        """A wrong token came from there."""
        with self._mutex:
            began, number = _COUNTER.unpack_from(self._memory, _place(address))
            if not number or not began <= now < began + PER_S:
                began, number = now, 0
            _COUNTER.pack_into(self._memory, _place(address), began, number + 1)


def _place(address: str | None) -> int:
    network = (address or "").partition("%")[0]
    try:
        parsed = ipaddress.ip_address(network)
    except ValueError:
        pass
    else:
        if isinstance(parsed, ipaddress.IPv6Address):
            network = str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    digest = hashlib.blake2b(network.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % COUNTERS * _COUNTER.size
