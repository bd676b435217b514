"""How much may come: counters in memory that the processes of a pod share.

Times are of the monotonic clock, which all processes of a machine have in common. Processes do not lock each other out:
two that count at the very same instant may count as one. Each pod has counters of its own.
"""

from __future__ import annotations

import hashlib
import ipaddress
import mmap
import os
import struct
import threading
from pathlib import Path

from bridge.settings import RequestLimit


def _memory(file: Path | None, size: int) -> mmap.mmap:
    """Memory that all processes share which open the file, zeroed where nobody has written; without one, this process's
    own.
    """
    if file is None:
        return mmap.mmap(-1, size)
    with file.open("a+b") as opened:
        # Room is taken now: where none is left, this is an error here, and not a dead process at some request.
        os.posix_fallocate(opened.fileno(), 0, size)
        return mmap.mmap(opened.fileno(), size)


# --- `limit:` of a source ---
#
# At most so many requests in every rolling window, for all processes of the pod.
#
# Only requests that are proved genuine use the allowance up: junk that anybody may send must not silence the partner.
# Junk costs what it costs without a limit, a body of at most `max_body` and one signature check. A source at its limit
# is answered 429 before its body is read, whoever asks.
#
# The window is a ring of the times of the last `requests` requests: one may come once the oldest of them is `per` ago.

_COUNT = struct.Struct("=Q")
_TIME = struct.Struct("=d")


class Quota:
    """One source's allowance. Thread-safe; shared with every process that opens the same `file`."""

    def __init__(self, limit: RequestLimit, file: Path | None = None) -> None:
        """Without `file` the window is this process's own."""
        self._requests = limit.requests
        self._per_s = limit.per_s
        self._memory = _memory(file, _COUNT.size + limit.requests * _TIME.size)
        #: Guards the memory against the other threads of this process.
        self._lock = threading.Lock()

    def wait_s(self, now: float) -> float:
        """Seconds until a request may come, 0.0 if one may now. `now` is monotonic."""
        with self._lock:
            return self._wait_s(now)

    def take(self, now: float) -> float:
        """Count a request, if one may come now; else the seconds until then, and nothing is counted."""
        with self._lock:
            wait_s = self._wait_s(now)
            if not wait_s:
                (taken,) = _COUNT.unpack_from(self._memory)
                _TIME.pack_into(self._memory, self._at(taken), now)
                _COUNT.pack_into(self._memory, 0, taken + 1)
            return wait_s

    def _wait_s(self, now: float) -> float:
        (taken,) = _COUNT.unpack_from(self._memory)
        if taken < self._requests:
            return 0.0
        (oldest,) = _TIME.unpack_from(self._memory, self._at(taken))
        return max(0.0, float(oldest) + self._per_s - now)

    def _at(self, number: int) -> int:
        return _COUNT.size + number % self._requests * _TIME.size


class Quotas:
    """The allowances of all sources, kept as long as their limits stay the same. For one thread."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is in memory and the same for all processes; without one each process counts for itself."""
        self._folder = folder
        self._made: dict[tuple[str, RequestLimit], Quota] = {}

    def quota(self, source: str, limit: RequestLimit | None) -> Quota | None:
        """The source's allowance; None when it has no limit."""
        if limit is None:
            return None
        if (source, limit) not in self._made:
            name = f"quota-{source}-{limit.requests}-{limit.per_s:g}"
            self._made[source, limit] = Quota(limit, self._folder and self._folder / name)
        return self._made[source, limit]


# --- wrong admin tokens: an address that sent too many is not listened to for a while ---
#
# Counted per address (a /64 of IPv6) and minute; thousands of addresses share a few thousand counters. The token itself
# is what keeps strangers out: this keeps them from filling the log and from trying short ones. The holder of the right
# token is never locked out: as a bearer it is always looked at, also where somebody else tries behind the same proxy.

#: Wrong tokens that one address may send within `PER_S`.
MAX_WRONG_TOKENS = 10
PER_S = 60.0
#: Counters: addresses that share one are as one.
COUNTERS = 4_096

_COUNTER = struct.Struct("=dQ")  # when its minute began; how many since


class WrongTokens:
    """Thread-safe; shared with every process that opens the same folder's file."""

    def __init__(self, folder: Path | None = None) -> None:
        """Without `folder` each process counts for itself."""
        self._memory = _memory(folder and folder / "wrong-tokens", COUNTERS * _COUNTER.size)
        #: Guards the memory against the other threads of this process.
        self._lock = threading.Lock()

    def wait_s(self, address: str | None, now: float) -> float:
        """Seconds until this address is listened to, 0.0 if it is. `now` is monotonic."""
        with self._lock:
            began, number = _COUNTER.unpack_from(self._memory, _offset(address))
        return max(0.0, began + PER_S - now) if number >= MAX_WRONG_TOKENS and began <= now else 0.0

    def count(self, address: str | None, now: float) -> None:
        """A wrong token came from there."""
        at = _offset(address)
        with self._lock:
            began, number = _COUNTER.unpack_from(self._memory, at)
            if not number or not began <= now < began + PER_S:
                began, number = now, 0
            _COUNTER.pack_into(self._memory, at, began, number + 1)


def _offset(address: str | None) -> int:
    """Where the address's counter is."""
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
