"""Wrong admin tokens are bounded, per address and minute, for all processes together."""

from __future__ import annotations

from pathlib import Path

from bridge.http.limits import GUESSES, PER_S, Guesses


def guessed(guesses: Guesses, address: str, *, at: float = 1_000.0, times: int = GUESSES) -> Guesses:
    for _ in range(times):
        assert guesses.wait_s(address, at) == 0.0
        guesses.count(address, at)
    return guesses


def test_a_minute_has_so_many() -> None:
    """Then none until it is over."""
    guesses = guessed(Guesses(), "10.0.0.1")
    assert guesses.wait_s("10.0.0.1", 1_010.0) == PER_S - 10
    assert guesses.wait_s("10.0.0.1", 1_000.0 + PER_S) == 0.0
    guessed(guesses, "10.0.0.1", at=1_000.0 + PER_S)


def test_other_addresses_are_listened_to() -> None:
    """But not those of the same network of IPv6, which one machine may have all of."""
    guesses = guessed(Guesses(), "2001:db8::1")
    assert guesses.wait_s("2001:db8::ffff:1", 1_000.0) > 0
    assert guesses.wait_s("2001:db8:0:1::1", 1_000.0) == 0.0
    assert guesses.wait_s("10.0.0.1", 1_000.0) == 0.0
    guessed(guesses, "10.0.0.1", times=3)
    assert guesses.wait_s("::ffff:10.0.0.1", 1_000.0) == 0.0
    assert guesses.wait_s(None, 1_000.0) == 0.0


def test_processes_count_together(tmp_path: Path) -> None:
    guessed(Guesses(tmp_path), "10.0.0.1")
    assert Guesses(tmp_path).wait_s("10.0.0.1", 1_000.0) > 0


def test_a_clock_that_began_anew_locks_nobody_out() -> None:
    """The machine was started again, the folder stayed."""
    assert guessed(Guesses(), "10.0.0.1").wait_s("10.0.0.1", 5.0) == 0.0
