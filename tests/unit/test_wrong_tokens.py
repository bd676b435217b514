"""Wrong admin tokens are bounded, per address and minute, for all processes together."""

from __future__ import annotations

from pathlib import Path

from bridge.http.limits import MAX_WRONG_TOKENS, PER_S, WrongTokens


def sent(wrong_tokens: WrongTokens, address: str, *, at: float = 1_000.0, times: int = MAX_WRONG_TOKENS) -> WrongTokens:
    for _ in range(times):
        assert wrong_tokens.wait_s(address, at) == 0.0
        wrong_tokens.count(address, at)
    return wrong_tokens


def test_a_minute_has_so_many() -> None:
    """Then none until it is over."""
    wrong_tokens = sent(WrongTokens(), "10.0.0.1")
    assert wrong_tokens.wait_s("10.0.0.1", 1_010.0) == PER_S - 10
    assert wrong_tokens.wait_s("10.0.0.1", 1_000.0 + PER_S) == 0.0
    sent(wrong_tokens, "10.0.0.1", at=1_000.0 + PER_S)


def test_other_addresses_are_listened_to() -> None:
    """But not those of the same network of IPv6, which one machine may have all of."""
    wrong_tokens = sent(WrongTokens(), "2001:db8::1")
    assert wrong_tokens.wait_s("2001:db8::ffff:1", 1_000.0) > 0
    assert wrong_tokens.wait_s("2001:db8:0:1::1", 1_000.0) == 0.0
    assert wrong_tokens.wait_s("10.0.0.1", 1_000.0) == 0.0
    sent(wrong_tokens, "10.0.0.1", times=3)
    assert wrong_tokens.wait_s("::ffff:10.0.0.1", 1_000.0) == 0.0
    assert wrong_tokens.wait_s(None, 1_000.0) == 0.0


def test_processes_count_together(tmp_path: Path) -> None:
    sent(WrongTokens(tmp_path), "10.0.0.1")
    assert WrongTokens(tmp_path).wait_s("10.0.0.1", 1_000.0) > 0


def test_a_clock_that_began_anew_locks_nobody_out() -> None:
    """The machine was started again, the folder stayed."""
    assert sent(WrongTokens(), "10.0.0.1").wait_s("10.0.0.1", 5.0) == 0.0
