"""Access tokens by OAuth refresh, over HTTP against the sandbox, on a clock that is told the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog

from bridge.crm.hubspot import HubSpot, inputs_of
from bridge.crm.oauth import OAuthTokens
from bridge.crm.transport import Answer, NoAnswer
from bridge.errors import BridgeError, JournalUnavailableError, TokenOutageError, TokenRefusedError
from bridge.journal.store import Journal
from bridge.sandbox import Crm, Fault, Response, SandboxServer
from bridge.settings import LOOK_AGAIN_S, OAuth, Secret
from bridge.settings import Journal as JournalSettings
from tests.empty_journal import prepare
from tests.fakes import FakeClock
from tests.fakes_delivery import CLIENTS, record

LIFETIME_S = 1800
CLIENT_SECRET = "the-secret-of-the-client"


@dataclass
class Drawer:
    """A token store in memory, which may be locked or full."""

    held: dict[str, str] = field(default_factory=dict)
    locked: bool = False
    full: bool = False

    def load_secret(self, name: str) -> str | None:
        if self.locked:
            raise JournalUnavailableError("the journal is locked")
        return self.held.get(name)

    def save_secret(self, name: str, value: str) -> None:
        if self.locked or self.full:
            raise JournalUnavailableError("the disk is full")
        self.held[name] = value


class Office:
    """A sandbox that gives tokens out, and the files that say how to ask it."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.crm = Crm(refresh_tokens=["refresh-1", "refresh-2"], token_lifetime_s=LIFETIME_S, clock=self.clock)
        self.server = SandboxServer(self.crm)
        self.file = folder / "refresh.token"
        self.drawer = Drawer()
        self.configure("refresh-1")

    def configure(self, refresh_token: str) -> None:
        self.file.write_text(refresh_token + "\n", encoding="utf-8")

    def tokens(self, **more: Any) -> OAuthTokens:
        settings = OAuth("client-1", Secret(env="CLIENT_SECRET", default=CLIENT_SECRET), Secret(file=self.file))
        given = {"timeout_s": 5, "store": self.drawer, "clock": self.clock, "base_url": self.server.url, **more}
        return OAuthTokens(settings=settings, **given)

    @property
    def asked(self) -> int:
        return len(self.crm.ledger.calls("token"))

    def rotates_to(self, refresh_token: str) -> None:
        """From now on the answers bring this refresh token, and the one asked with is no good any more."""

        def on_call(call: Any) -> Response | None:
            if call.endpoint != "token":
                return None
            self.crm.on_call = None
            self.crm.access.revoke("refresh-1")
            body = {"access_token": "rotated", "refresh_token": refresh_token, "expires_in": LIFETIME_S}
            return Response(200, orjson.dumps(body), {"Content-Type": "application/json"})

        self.crm.on_call = on_call


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    with office.server:
        yield office


def test_a_token_serves_many_calls_and_is_renewed_ahead_of_its_end(office: Office) -> None:
    tokens = office.tokens()
    first = tokens.access()
    assert first.token.startswith("issued-")
    office.clock.advance(LIFETIME_S * 0.8 - 1)
    assert tokens.access() == first
    assert office.asked == 1
    office.clock.advance(1)
    second = tokens.access()
    assert second.token != first.token
    assert second.credential == first.credential
    assert office.asked == 2


def test_the_wall_clock_has_no_say_in_when_to_renew(office: Office) -> None:
    """F31: a jump of a day renews nothing."""
    tokens = office.tokens()
    first = tokens.access()
    office.clock.jump(86_400)
    assert tokens.access() == first
    assert office.asked == 1


def test_however_many_threads_ask_there_is_one_renewal(office: Office) -> None:
    tokens = office.tokens()
    office.crm.on_call = lambda _: time.sleep(0.2)
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda _: tokens.access(), range(16)))
    assert len(set(got)) == 1
    assert office.asked == 1


def test_those_who_wait_for_a_renewal_that_fails_do_not_ask_again(office: Office) -> None:
    tokens = office.tokens()

    def refuse(_: object) -> Fault:
        time.sleep(0.2)
        return Fault("503", on="token")

    def outcome(_: int) -> str:
        with pytest.raises(TokenOutageError) as caught:
            tokens.access()
        return str(caught.value)

    office.crm.on_call = refuse
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(outcome, range(16))) == {"the token endpoint answers HTTP 503"}
    assert office.asked == 1


def test_nobody_waits_for_a_renewal_while_the_present_token_is_good(office: Office) -> None:
    tokens = office.tokens()
    first = tokens.access()
    office.clock.advance(LIFETIME_S * 0.9)
    asked, goes_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        asked.set()
        goes_on.wait(10)

    office.crm.on_call = hold
    renewing = threading.Thread(target=tokens.access)
    renewing.start()
    assert asked.wait(5)
    assert tokens.access() == first
    goes_on.set()
    renewing.join(5)
    assert tokens.access() != first
    assert office.asked == 2


TROUBLE = [
    "500",
    "502-html",
    "503",
    "429",
    "429-text",
    "477",
    "reset",
    "garbage",
    "html",
    "blank",
    "truncated",
    "empty",
]


@pytest.mark.parametrize("kind", TROUBLE)
def test_trouble_at_the_token_endpoint_matters_only_once_the_token_is_over(office: Office, kind: str) -> None:
    """F17, F20 at the token endpoint: transient, and no more often asked than now and then."""
    tokens = office.tokens()
    first = tokens.access()
    office.crm.faults.always(Fault(kind, on="token"))
    office.clock.advance(LIFETIME_S * 0.85)
    assert [tokens.access() for _ in range(5)] == [first] * 5
    assert office.asked == 2
    office.clock.advance(LIFETIME_S * 0.15)
    with pytest.raises(TokenOutageError):
        tokens.access()
    office.crm.faults.clear()
    office.clock.advance(1)
    assert tokens.access().token.startswith("issued-")


def test_a_token_endpoint_out_of_reach_is_an_outage(office: Office) -> None:
    """F18."""
    tokens = office.tokens(base_url="http://127.0.0.1:9")
    with pytest.raises(TokenOutageError, match="does not answer"):
        tokens.access()


@pytest.mark.parametrize("kind, word", [("redirect", "302"), ("404", "404")])
def test_a_wrong_path_needs_a_person(office: Office, kind: str, word: str) -> None:
    """F30: a redirect is not followed; the secrets go to the configured address only."""
    office.crm.faults.always(Fault(kind, on="token"))
    with pytest.raises(TokenRefusedError, match=f"{word}.*token_path"):
        office.tokens().access()
    assert len(office.crm.ledger.calls()) == 1


@pytest.mark.parametrize(
    "body", [{"status": "BAD_REFRESH_TOKEN", "message": "refresh-1 is bad"}, {"error": "invalid_grant"}]
)
def test_a_refresh_token_that_is_not_accepted_says_what_to_do(office: Office, body: dict[str, str]) -> None:
    answer = Response(400, orjson.dumps(body), {"Content-Type": "application/json"})
    office.crm.on_call = lambda _: answer
    with pytest.raises(
        TokenRefusedError, match=r"re-install the app and put the new one into the file .*refresh.token"
    ):
        office.tokens().access()


def test_a_new_refresh_token_in_the_file_is_used_at_once(office: Office) -> None:
    office.configure("refresh-unknown")
    tokens = office.tokens()
    with pytest.raises(TokenRefusedError):
        tokens.access()
    before = tokens.credential()
    office.configure("refresh-2")
    time.sleep(LOOK_AGAIN_S)
    assert tokens.credential() != before
    assert tokens.access().credential == tokens.credential()


def test_a_changed_refresh_token_replaces_a_token_that_is_still_good(office: Office) -> None:
    tokens = office.tokens()
    first = tokens.access()
    office.configure("refresh-2")
    time.sleep(LOOK_AGAIN_S)
    assert tokens.access() != first
    assert office.asked == 2


def test_a_refresh_token_that_hubspot_changed_is_kept_over_restarts(office: Office, tmp_path: Path) -> None:
    """Preferred until the configured one changes; the journal of a real service holds it."""
    url = f"sqlite:///{tmp_path}/journal.db"
    prepare(url)
    office.rotates_to("refresh-2")
    journal = Journal(settings=JournalSettings(url=url), clock=office.clock)
    assert office.tokens(store=journal).access().token == "rotated"
    journal.close()

    journal = Journal(settings=JournalSettings(url=url), clock=office.clock)
    assert office.tokens(store=journal).access().token.startswith("issued-")  # with refresh-2
    office.configure("refresh-unknown")  # a person's word counts more
    with pytest.raises(TokenRefusedError):
        office.tokens(store=journal).access()
    journal.close()


def test_a_kept_refresh_token_that_is_refused_gives_way_to_the_configured_one(office: Office) -> None:
    """As after a restore of an old journal."""
    office.rotates_to("refresh-stale")
    office.tokens().access()
    office.crm.access.accept_only()
    office.crm.access._revoked.clear()
    assert office.tokens().access().token.startswith("issued-")
    assert office.asked == 3
    office.tokens().access()
    assert office.asked == 4  # the configured one took its place


def test_a_refresh_token_that_cannot_be_kept_yet_is_used_and_kept_later(office: Office) -> None:
    """F07: the journal's disk is full for a while."""
    tokens = office.tokens()
    office.rotates_to("refresh-2")
    office.drawer.full = True
    assert tokens.access().token == "rotated"
    office.clock.advance(LIFETIME_S)
    assert tokens.access().token.startswith("issued-")  # with refresh-2
    assert office.drawer.held == {}
    office.drawer.full = False
    tokens.access()
    assert "refresh-2" in office.drawer.held["oauth.refresh_token"]


def test_a_journal_that_cannot_be_read_is_an_outage(office: Office) -> None:
    """Which refresh token to use cannot be told: none is."""
    office.drawer.locked = True
    with pytest.raises(TokenOutageError, match="journal"):
        office.tokens().access()
    assert office.asked == 0


def test_one_refusal_is_worth_another_try_and_two_are_not(office: Office) -> None:
    tokens = office.tokens()
    first = tokens.access()
    assert tokens.refused(first)
    assert tokens.refused(first)  # by a call that was open as well: it is not the current one any more
    second = tokens.access()
    assert second.token != first.token
    assert not tokens.refused(second)
    third = tokens.access()
    tokens.accepted(third)
    assert tokens.refused(third)


@pytest.mark.parametrize("told", ["soon", None, -5, 0, True, 1e300])
def test_an_absurd_lifetime_is_taken_for_half_an_hour(office: Office, told: Any) -> None:
    body = orjson.dumps({"access_token": "odd", "expires_in": told})
    office.crm.on_call = lambda _: Response(200, body, {"Content-Type": "application/json"})
    tokens = office.tokens()
    tokens.access()
    office.clock.advance(1439)
    tokens.access()
    assert office.asked == 1
    office.clock.advance(1)
    tokens.access()
    assert office.asked == 2


def test_no_secret_is_shown(office: Office) -> None:
    """G10: neither in a log line, nor in an error, nor in a repr."""
    secrets = {"refresh-1", "refresh-2", CLIENT_SECRET, "rotated"}
    tokens = office.tokens()
    shown: list[str] = []
    with structlog.testing.capture_logs() as lines:
        office.rotates_to("refresh-2")
        shown.append(repr(tokens.access()))
        office.crm.access.revoke("refresh-2")
        office.clock.advance(LIFETIME_S)
        with pytest.raises(BridgeError) as caught:
            tokens.access()
        office.drawer.locked = True
        office.clock.advance(LIFETIME_S)
        with pytest.raises(BridgeError):
            tokens.access()
    shown += [repr(tokens), repr(vars(tokens)), str(caught.value), repr(lines)]
    assert len(lines) == 3
    assert not [secret for secret in secrets for text in shown if secret in text]


# --- the client of the CRM ----------------------------------------------------------------------


def client(office: Office) -> HubSpot:
    return HubSpot(base_url=office.server.url, api_path="/crm/v3/objects", token=office.tokens(), timeout_s=5)


def call(crm: HubSpot) -> Answer | NoAnswer:
    return crm.update(CLIENTS, inputs_of([record(1)]))


def test_a_token_that_expired_early_is_renewed_and_the_call_may_be_repeated(office: Office) -> None:
    office.crm.access.accept_only("none-but-issued")
    crm = client(office)
    crm.prepare()
    office.crm.access.expire_issued()
    answer = call(crm)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.renewable) == (401, True)
    again = call(crm)
    assert isinstance(again, Answer)
    assert again.status == 200
    assert again.credential == crm.credential()


def test_a_renewed_token_that_is_refused_too_is_not_worth_a_third_call(office: Office) -> None:
    crm = client(office)
    office.crm.faults.always("401")
    answers = [call(crm) for _ in range(3)]
    assert [isinstance(answer, Answer) and answer.renewable for answer in answers] == [True, False, False]
    assert {answer.credential for answer in answers} == {crm.credential()}


def test_why_there_is_no_token_is_told_apart(office: Office) -> None:
    crm = client(office)
    office.crm.faults.next(Fault("503", on="token"))
    answer = call(crm)
    assert isinstance(answer, NoAnswer)
    assert (answer.kind, answer.doubtful) == ("oauth", False)
    office.crm.access.revoke("refresh-1")
    office.clock.advance(1)
    answer = call(crm)
    assert isinstance(answer, NoAnswer)
    assert (answer.kind, answer.credential) == ("token", crm.credential())
    assert "re-install" in answer.detail
    assert office.crm.ledger.calls("update") == []


def test_closing_the_client_cuts_a_renewal(office: Office) -> None:
    """F13: the service stops while the token endpoint hangs."""
    crm = client(office)
    office.crm.faults.always(Fault("timeout", on="token"))
    answers: list[Answer | NoAnswer] = []
    thread = threading.Thread(target=lambda: answers.append(call(crm)))
    thread.start()
    while not office.crm.ledger.calls("token"):
        time.sleep(0.01)
    crm.close()
    thread.join(2)
    assert not thread.is_alive()
    assert isinstance(answers[0], NoAnswer)
