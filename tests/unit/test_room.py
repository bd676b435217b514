"""Who gives way when a port is full, by number and by bytes: strangers first, the slowest first, nobody at work."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.room import LARGEST, SMALL, YOUNG_S, Limits, Room, Seat

LIMITS = Limits(connections=4, strange_bytes=1_000_000, verified_bytes=2_000_000)


@dataclass(eq=False)
class Client:
    """A connection that ends as soon as it is hung up on."""

    room: Room
    seat: Seat = field(init=False)
    is_gone: bool = False

    def hang_up(self) -> None:
        self.is_gone = True
        self.room.leave(self)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def room(clock: Clock) -> Room:
    return Room(LIMITS, clock=clock)


def enter(room: Room, number: int = 1) -> list[Client]:
    clients = [Client(room) for _ in range(number)]
    for client in clients:
        assert room.enter(client)
        room.wait(client)
    return clients


def known(room: Room, number: int = 1) -> list[Client]:
    """Connections that have had a verified request answered, and are idle."""
    clients = enter(room, number)
    for client in clients:
        room.prove(client)
        room.answer(client)
        room.let_go(client)
        room.wait(client)
    return clients


def gone(clients: list[Client]) -> list[int]:
    return [at for at, client in enumerate(clients) if client.is_gone]


# --- by number ----------------------------------------------------------------------------------


def test_the_slowest_stranger_gives_way_to_a_newcomer(room: Room, clock: Clock) -> None:
    """The slowest is whose request, or wait for one, began first."""
    strangers = enter(room, 4)
    clock.now += YOUNG_S + 1
    room.wait(strangers[0])  # it begins a request
    enter(room)
    assert gone(strangers) == [1]


def test_newcomers_do_not_drive_each_other_out_up_to_twice_the_number(room: Room, clock: Clock) -> None:
    """Beyond it the oldest goes in any case."""
    strangers = enter(room, 8)
    assert gone(strangers) == []
    enter(room, 2)
    assert gone(strangers) == [0, 1]


def test_who_was_known_before_gives_way_only_after_all_strangers(room: Room, clock: Clock) -> None:
    """Though idle for longer; the newcomer itself is no stranger that could go in its place."""
    partners = known(room, 3)
    clock.now += 60.0
    strangers = enter(room)
    clock.now += YOUNG_S + 1
    newcomers = enter(room)
    assert (gone(partners), gone(strangers)) == ([], [0])
    clock.now += YOUNG_S + 1
    newcomers += known(room)
    assert (gone(partners), gone(newcomers)) == ([], [0])
    clock.now += YOUNG_S + 1
    enter(room)
    assert gone(partners) == [0]


def test_a_verified_request_gives_way_to_nobody_until_it_is_answered(room: Room, clock: Clock) -> None:
    """As many again are let in beside them, and then turned away; whoever leaves makes room."""
    at_work = enter(room, 8)
    for client in at_work:
        room.prove(client)
    clock.now += 60.0
    turned_away = Client(room)
    assert not room.enter(turned_away)
    room.leave(turned_away)
    assert gone(at_work) == []
    room.answer(at_work[5])
    clock.now += YOUNG_S + 1
    enter(room)
    assert gone(at_work) == [5]


# --- by bytes -----------------------------------------------------------------------------------


def test_the_slowest_large_stranger_gives_way_when_strangers_hold_too_much(room: Room, clock: Clock) -> None:
    """What it held is free at once; those that hold next to nothing would make no room, and stay."""
    tiny, *large = enter(room, 3)
    room.hold(tiny, 1)
    for client in large:
        room.hold(client, 600_000)
    clock.now += YOUNG_S + 1
    (newcomer,) = enter(room)
    room.hold(newcomer, 100)
    assert not room.holds_back(newcomer)
    assert (gone(large), tiny.is_gone) == ([0], False)


def test_large_requests_wait_for_each_other_while_all_are_young_and_small_ones_do_not(room: Room, clock: Clock) -> None:
    """The oldest goes on, so that they come to an end."""
    oldest, other, small = enter(room, 3)
    for client in (oldest, other):
        room.hold(client, 600_000)
    room.hold(small, SMALL)
    assert [room.holds_back(client) for client in (oldest, other, small)] == [False, True, False]
    room.leave(oldest)
    assert not room.holds_back(other)


def test_twice_as_much_is_never_held_by_strangers_however_young_they_are(room: Room) -> None:
    strangers = enter(room, 4)
    for client in strangers[:3]:
        room.hold(client, 700_000)
    assert not room.holds_back(strangers[3]) or gone(strangers)
    assert gone(strangers) == [0]


def test_verified_bytes_do_not_count_among_strangers_and_hold_back_what_is_large(room: Room, clock: Clock) -> None:
    """They wait for their turn and drain; small ones are held back only at twice as much."""
    partner, large, small, empty = enter(room, 4)
    room.hold(partner, 2_100_000)
    room.prove(partner)
    room.hold(large, SMALL + 1)
    clock.now += 60.0
    assert room.holds_back(large)
    assert not room.holds_back(small)
    room.hold(partner, 2_000_000)
    assert room.holds_back(small)
    room.let_go(partner)
    assert not room.holds_back(large)
    assert gone([partner, large, small, empty]) == []


def test_bodies_of_the_largest_size_fit_a_few_at_a_time_however_large_they_are(clock: Clock) -> None:
    """Two senders of one must not drive each other out."""
    room = Room(LIMITS, largest=lambda: 50_000_000, clock=clock)
    clients = enter(room, LARGEST)
    for client in clients:
        room.hold(client, 49_999_999)
    clock.now += 60.0
    assert not any(room.holds_back(client) for client in clients)
    assert gone(clients) == []


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "wait", "prove", "answer", "hold", "leave"]), st.integers(0, 11)), max_size=80
)


@given(steps=STEPS)
def test_whatever_happens_the_bounds_hold_and_nobody_at_work_is_hung_up_on(steps: list[tuple[str, int]]) -> None:
    """After each step; and when all have left, nothing is held any more."""
    clock = Clock()
    room = Room(LIMITS, clock=clock)
    inside: list[Client] = []
    at_work: set[Client] = set()
    for act, which in steps:
        clock.now += which / 4
        if act == "enter":
            client = Client(room)
            if room.enter(client):
                inside.append(client)
            else:
                room.leave(client)
        elif inside:
            client = inside[which % len(inside)]
            if act == "hold" and client not in at_work:
                if not room.holds_back(client):
                    room.hold(client, SMALL)
            elif act == "prove":
                room.prove(client)
                at_work.add(client)
            elif act == "answer":
                room.answer(client)
                at_work.discard(client)
            elif act == "wait" and client not in at_work:
                room.let_go(client)
                room.wait(client)
            elif act == "leave":
                room.leave(client)
                client.is_gone = True
                at_work.discard(client)
        assert not any(client.is_gone for client in at_work)
        inside = [client for client in inside if not client.is_gone]
        assert len(inside) <= 2 * LIMITS.connections
        strange = sum(client.seat.held for client in inside if not client.seat.is_verified)
        assert strange <= 2 * LIMITS.strange_bytes + SMALL
    for client in inside:
        room.leave(client)
    assert (room._strange_bytes, room._verified_bytes, room._number()) == (0, 0, 0)
