"""Hostile and broken messages through verify → parse → map: no 5xx, no exception, nothing taken in part.

`tests.fuzzing.target` says what must hold for one message. Here it is asked of the corpus (whatever was once
found, and what is worth keeping) and of messages made by hypothesis; `tests.fuzzing.fuzz_intake` asks it of
what atheris makes, guided by coverage.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.fuzzing
from tests.awkward import changed
from tests.configurations import sources
from tests.examples import examples
from tests.fuzzing.seeds import encoded, seeds
from tests.fuzzing.target import ACCEPTABLE, MODES, Message, judge, read

CORPUS = sorted((Path(tests.fuzzing.__file__).parent / "corpus").iterdir())
SEEDS = dict(seeds())
HEADERS = st.dictionaries(
    st.sampled_from(
        ["webhook-id", "webhook-signature", "webhook-timestamp", "Stripe-Signature", "Authorization", "X-Shop-Topic",
         "X-Signature", "X-Time", "X-Id", "Content-Type", "X-GitHub-Delivery", "X-Slack-Signature"]
    ),
    st.sampled_from(["", "v1,", "t=1,v1=00", "Basic !", "Bearer", "application/json; charset=latin-1", "é", "1" * 300])
    | st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_categories=["Cc"])).map(str.strip),
    max_size=3,
)  # fmt: skip


@pytest.mark.parametrize("file", CORPUS, ids=lambda path: path.name)
def test_the_corpus(file: Path) -> None:
    """Each file is a message that broke something once, or nearly."""
    judge(read(file.read_bytes()))


@pytest.mark.parametrize("name", SEEDS)
def test_good_payloads_are_taken_when_they_are_signed_and_only_then(name: str) -> None:
    """The target is not blind: it lets the good ones in and keeps the forged ones out."""
    message = SEEDS[name]
    assert read(message.write()) == message
    covers_nothing = sources()[message.key][1].verify.scheme == "none"
    status = judge(message)
    assert (status < 300) == (message.mode == "signed") or covers_nothing or message.mode == "forged"
    assert status < 300 or message.mode != "signed"


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """A good payload with places changed, or any bytes, sent in any way."""
    key = draw(st.sampled_from(sorted(sources())))
    body, headers, query = draw(changed(key))
    written = encoded(sources()[key][1], body)
    if draw(st.booleans()):
        written = draw(st.binary(max_size=80) | st.builds(damaged, st.just(written), st.integers(0, 400), st.binary()))
    return Message(
        key,
        written,
        draw(st.sampled_from(["signed", *MODES])),
        draw(st.booleans()),
        urlencode(query),
        {**headers, **draw(HEADERS)},
    )


def damaged(body: bytes, at: int, by: bytes) -> bytes:
    """The body with some bytes overwritten, and perhaps cut off there."""
    return body[:at] + by + body[at + len(by) + 1 :]


@settings(max_examples=examples(160), deadline=None, suppress_health_check=list(HealthCheck))
@given(messages())
def test_any_message_gets_an_answer_and_the_journal_agrees(message: Message) -> None:
    """A round for every change."""
    judge(message)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages())
def test_the_same_with_many_more_messages(message: Message) -> None:
    """A round for the night."""
    judge(message)


def test_the_messages_are_of_every_kind() -> None:
    """The corpus and the good payloads get every answer that there is: the target can tell them apart."""
    found = [read(file.read_bytes()) for file in CORPUS]
    assert {judge(message) for message in [*found, *SEEDS.values()]} == ACCEPTABLE
