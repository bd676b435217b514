"""What is under way at once is bounded in bytes."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from bridge.crm.hubspot import ECHO, OPEN_BYTES, OpenBytes, answer_limit
from bridge.model import CALL_BYTES
from tests.running import eventually


def always() -> bool:
    return True


def test_calls_of_ordinary_size_never_wait_for_each_other() -> None:
    opened = OpenBytes()
    with ExitStack() as open_calls:
        for _ in range(100):
            tell_size = open_calls.enter_context(opened.place(wanted=always))
            assert tell_size is not None
            tell_size(30_000)
            assert not opened.full
    assert OPEN_BYTES >= 2 * CALL_BYTES


def test_a_call_waits_until_the_open_ones_leave_room_for_the_largest() -> None:
    opened = OpenBytes(each=10, limit=20)
    entered, leave = threading.Event(), threading.Event()

    def second() -> None:
        with opened.place(wanted=always) as tell_size:
            assert tell_size is not None
            entered.set()
            leave.wait(10)

    with opened.place(wanted=always) as tell_size:
        assert tell_size is not None
        tell_size(11)
        assert [opened.full] == [True]
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.15)
    assert entered.wait(10)
    assert [opened.full] == [False]  # of its size nothing is known yet
    leave.set()
    thread.join(10)


def test_while_sizes_are_not_known_calls_count_as_the_largest() -> None:
    opened = OpenBytes(each=10, limit=20)
    with opened.place(wanted=always), opened.place(wanted=always) as second:
        assert second is not None
        with opened.place(wanted=lambda: False) as third:
            assert third is None
        second(1)
        with opened.place(wanted=lambda: False) as third:
            assert third is None  # the first may take ten still
    with opened.place(wanted=lambda: False) as alone:
        assert alone is not None


def test_whoever_waits_gives_up_when_nothing_is_to_be_sent_any_more() -> None:
    opened = OpenBytes(each=10, limit=20)
    stopping = threading.Event()
    ended: list[bool] = []

    def late() -> None:
        with opened.place(wanted=lambda: not stopping.is_set()) as tell_size:
            ended.append(tell_size is None)

    with opened.place(wanted=always), opened.place(wanted=always):
        thread = threading.Thread(target=late)
        thread.start()
        stopping.set()
        assert eventually(lambda: ended == [True])
        thread.join(10)


def test_an_echo_in_escapes_and_a_refusal_that_quotes_twice_are_read_whole() -> None:
    """An emoji is four bytes in a body, and fourteen in JSON within JSON."""
    assert 2 * len(r"\\ud83d\\ude00") <= ECHO * 4
    assert answer_limit(CALL_BYTES) >= ECHO * CALL_BYTES
