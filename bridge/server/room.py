"""Who is connected to one port, what they hold in memory, and who gives way when there is no more room.

Nobody is known before a request of theirs was verified. Strangers give way first, the slowest first, whatever they are
about to do; then connections that were known before and wait, send or fetch an answer. A request that was verified
gives way to nobody until it is answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

#: Seconds in which a connection is not hung up on for a newer one, unless it is twice as much as there is room for.
YOUNG_S = 1.0
#: Bytes of a request that are read however much large ones hold, unless it is twice as much as they may: few webhooks
#: are larger.
SMALL = 65_536
#: When more than one in `CROWDED` of the places are taken, one in `CROWD` of them is given away at a time: partners
#: wait in the system's queue behind those that are to give way.
CROWDED, CROWD = 4, 32
#: So many bodies of the largest size fit in any case: two senders of one must not drive each other out.
LARGEST = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections may be there, and what requests may hold: those that nobody has verified yet, and those
    that wait for their turn or are worked on. Up to twice as many come in where nobody is there who may give way.
    """

    connections: int
    strange_bytes: int
    verified_bytes: int


@dataclass(slots=True, eq=False)
class Seat:
    """What the room knows of one connection."""

    since: float  # monotonic: when its request, or its wait for one, began
    held: int = 0  # bytes of the request at hand
    is_known: bool = False  # a request on it was verified, now or before
    is_verified: bool = False  # the request at hand was


class Guest(Protocol):
    """A connection as the room sees it."""

    seat: Seat

    def hang_up(self) -> None:
        """End at once; `leave` is called when it has."""
        ...


class Room:
    """One port's connections. Used by that port's thread alone."""

    def __init__(
        self,
        limits: Limits,
        *,
        largest: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`largest` tells how many bytes a body may have."""
        self._limits = limits
        self._largest = largest
        self._clock = clock
        # Every guest that was not hung up on is in one of the three; the first two begin with whoever is the slowest.
        self._strangers: dict[Guest, None] = {}
        self._known: dict[Guest, None] = {}
        self._worked_on: dict[Guest, None] = {}
        self._strange_bytes = 0
        self._verified_bytes = 0

    # --- connections ---

    def enter(self, guest: Guest) -> bool:
        """Whether there is room for a new one, if need be by hanging up on another."""
        slowest = next(chain(self._strangers, self._known), None)
        guest.seat = Seat(self._clock())
        self._strangers[guest] = None
        if slowest is not None and self._number() > self._limits.connections:
            self._give_up(slowest, needed=self._number() > 2 * self._limits.connections)
        return self._number() <= 2 * self._limits.connections

    def leave(self, guest: Guest) -> None:
        self.let_go(guest)
        self._take_out(guest)

    def wait(self, guest: Guest) -> None:
        """It waits for a request, or begins one."""
        guest.seat.since = self._clock()
        self._take_out(guest)
        (self._known if guest.seat.is_known else self._strangers)[guest] = None

    def prove(self, guest: Guest) -> None:
        """Its request was verified: it is worked on from now on."""
        seat = guest.seat
        if not seat.is_verified:
            self._strange_bytes -= seat.held
            self._verified_bytes += seat.held
        seat.is_known = seat.is_verified = True
        self._take_out(guest)
        self._worked_on[guest] = None

    def answer(self, guest: Guest) -> None:
        """The answer is there, and may be fetched."""
        if guest in self._worked_on:
            self.wait(guest)

    @property
    def may_come(self) -> int:
        """How many newcomers may come at a time."""
        is_crowded = self._number() > self._limits.connections // CROWDED
        return max(1, self._limits.connections // CROWD) if is_crowded else 1

    def _number(self) -> int:
        return len(self._strangers) + len(self._known) + len(self._worked_on)

    def _take_out(self, guest: Guest) -> None:
        for part in (self._strangers, self._known, self._worked_on):
            part.pop(guest, None)

    def _give_up(self, guest: Guest, *, needed: bool) -> bool:
        """Hang up on this one, unless it is young: newcomers must not drive each other out, if it can be helped."""
        if not needed and self._clock() - guest.seat.since <= YOUNG_S:
            return False
        self.leave(guest)  # what it holds is free in a moment
        guest.hang_up()
        return True

    # --- memory ---

    def hold(self, guest: Guest, size: int) -> None:
        """`size` more bytes of its request have come."""
        guest.seat.held += size
        if guest.seat.is_verified:
            self._verified_bytes += size
        else:
            self._strange_bytes += size

    def let_go(self, guest: Guest) -> None:
        """Its request is done with."""
        seat = guest.seat
        self.hold(guest, -seat.held)
        seat.is_verified = False

    def holds_back(self, guest: Guest) -> bool:
        """Whether this one must wait before more of its request is read."""
        is_large = guest.seat.held > SMALL
        if self._is_over(self._verified_bytes, self._limits.verified_bytes, times=1 if is_large else 2):
            return True
        while self._is_over(self._strange_bytes, self._limits.strange_bytes):
            slowest = self._slowest()
            if slowest is guest or slowest is None:
                return False
            needed = self._is_over(self._strange_bytes, self._limits.strange_bytes, times=2)
            if not self._give_up(slowest, needed=needed):
                return is_large
        return False

    def _is_over(self, held: int, bound: int, *, times: int = 1) -> bool:
        return held > times * bound and held > times * LARGEST * self._largest()

    def excuse(self, guest: Guest, seconds: float) -> None:
        """Do not count these seconds as its own slowness: it was held back."""
        guest.seat.since += seconds

    def _slowest(self) -> Guest | None:
        """The slowest of the guests that hold more than an equal share of what may be held."""
        share = self._limits.strange_bytes // (2 * self._limits.connections)
        for part in (self._strangers, self._known):
            if large := [guest for guest in part if guest.seat.held > share]:
                return min(large, key=lambda guest: guest.seat.since)
        return None
