"""`POST /webhooks/<source>`: bytes in, 202 out once everything they brought is on disk.

The order is that of cost and trust: an unknown source, its limit, size and encoding, the signature over the
raw bytes as sent, then parsing, mapping, and one append for all events of the request. What a source calls a
handshake is answered without any of its events being taken.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
import structlog
from flask import Blueprint, Request, Response, request
from flask.blueprints import BlueprintSetupState
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.routing import Rule

from bridge.errors import JournalError, JournalFullError, PayloadError
from bridge.http.bodies import coding_of, inflate, read_body, sent_headers
from bridge.http.limits import Quota
from bridge.http.problems import Refusal, forget, problem, register_problem_handlers, stack_of
from bridge.http.waiting import Wait, wait_in_thread
from bridge.intake.challenges import MAX_UNSIGNED_BODY
from bridge.intake.decoding import check_media_type
from bridge.intake.mapping import CompiledSource, Mapped
from bridge.intake.own_schema import Queue
from bridge.intake.signatures import SignedRequest, Unverified, Verification, Verified, Verifier
from bridge.intake.values import Found
from bridge.model import Clock, Event, Intake, Receipt, RecordKey, SystemClock, to_us

__all__ = ["Appender", "Counts", "Endpoint", "Observer", "Webhooks", "register_problem_handlers"]

#: How many ids and errors an answer lists.
MAX_LISTED = 100
#: How many event ids a line of the log lists, and how much of each.
MAX_LOGGED, MAX_LOGGED_ID = 5, 80
#: Where the sources are.
PATH = "/webhooks/"
#: The source's name in metrics where there is no such source.
UNKNOWN_SOURCE = "unknown"

#: Seconds until a sender should try again, from and to: jittered, so that they do not come all at once.
_FULL_RETRY_S = (15, 45)
_SOON_RETRY_S = (2, 10)
#: Seconds that a request waits for its source's schemas and then for its turn, both together: a sender gives up after
#: 5 s (Shopify) or later, and some never try again.
TURN_PATIENCE_S = 4.0
#: Bytes that a request weighs which was so long that verifying and weighing it took some milliseconds.
WEIGHED = 4 << 20
#: The key of `environ` under which the server may leave a callable: it is told of a request that is the partner's.
PROVED = "bridge.proved"
#: Statuses that HTTP gives no body.
_WITHOUT_BODY = frozenset({204, 205})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One source as it answers: `max_body` counts bytes, both as sent and inflated; `quota` is its `limit`."""

    source: CompiledSource
    verifier: Verifier
    max_body: int
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """What one request brought: events by what they were taken as, the records that accepted ones are about, and the
    first few ids. `unlisted` are names of `pairs:` that nobody listed; `found` counts the events that brought each
    property, duplicates among them; `reason` is why nothing was taken, where the status does not say it.
    """

    accepted: int = 0
    duplicates: int = 0
    ignored: int = 0
    parked: int = 0
    invalid: int = 0
    undated: int = 0
    conflicts: int = 0
    unlisted: int = 0
    records: int = 0
    event_ids: tuple[str, ...] = ()
    found: Found = field(default_factory=dict)
    reason: str | None = None


class Appender(Protocol):
    """The journal as intake sees it."""

    def append(self, events: Sequence[Event]) -> Sequence[Receipt]:
        """Return once the events are on disk: one receipt each, in their order.

        Raises JournalFullError or JournalUnavailableError; then nothing was taken.
        """
        ...


class Observer(Protocol):
    """Who counts and logs requests. Called in the request's thread; must not block or raise."""

    def webhook(self, source: str, code: int, duration_s: float, counts: Counts) -> None: ...

    def verification(self, source: str, result: str, secret: int | None) -> None:
        """`result` is "accepted" or the reason of the refusal."""
        ...


class Turns(Protocol):
    """How many requests are worked on at once, and how many bytes of memory they weigh together."""

    def acquire(self, source: str, weight: int, *, timeout: float) -> bool:
        """Whether it was granted within the time."""
        ...

    def release(self, source: str, weight: int) -> None: ...


class _AnyNumber:
    """The turns where requests are threads, of which the server has so many."""

    def acquire(self, source: str, weight: int, *, timeout: float) -> bool:  # noqa: ARG002 (nobody waits)
        return True

    def release(self, source: str, weight: int) -> None:
        pass


class WSGI(Protocol):
    """An application as PEP 3333 has it."""

    def __call__(self, environ: dict[str, Any], start_response: Any, /) -> Iterable[bytes]: ...


@dataclass(frozen=True, slots=True)
class BareResponse:
    """The ordinary answer to a webhook, with JSON or no body. Flask's response, which can be changed, streamed and
    given cookies, takes as long as to read a webhook's values.
    """

    status_code: int
    body: bytes = b""

    def __call__(self, _environ: dict[str, Any], start_response: Any, /) -> Iterable[bytes]:
        headers = [("Content-Length", str(len(self.body)))]
        if self.body:
            headers.append(("Content-Type", "application/json"))
        phrase = HTTP_STATUS_CODES.get(self.status_code, "Unknown")
        start_response(f"{self.status_code} {phrase.upper()}", headers)
        return (self.body,)


@dataclass(slots=True)
class _Webhook:
    """One request to a source."""

    endpoint: Endpoint
    environ: dict[str, Any]
    path: str
    method: str
    headers: Mapping[str, str]

    def query(self) -> Mapping[str, str]:
        """Its query; of a parameter that is there twice the first."""
        return Request(self.environ).args.to_dict() if self.environ.get("QUERY_STRING") else {}


class Webhooks:
    """The webhook endpoints. Thread-safe: it keeps no state of its own.

    `sources` gives the endpoints of today's configuration, anew for each request. `pause` is called between slices of
    long bodies; `wait` is how requests wait for a user's own schema. `turns` bounds how many are worked on at once, and
    what they weigh, from when they are verified until they are answered; without it all of them are.
    """

    def __init__(
        self,
        *,
        sources: Callable[[], Mapping[str, Endpoint]],
        journal: Appender,
        observer: Observer,
        draining: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
        pause: Callable[[], None] | None = None,
        wait: Wait = wait_in_thread,
        turns: Turns | None = None,
    ) -> None:
        self._sources = sources
        self._journal = journal
        self._observer = observer
        self._draining = draining
        self._clock = clock or SystemClock()
        self._pause = pause or (lambda: time.sleep(0))
        self._wait = wait
        self._turns = turns or _AnyNumber()
        self._log = structlog.get_logger(__name__)

    def blueprint(self) -> Blueprint:
        """The routes, to be registered with an app that has the problem handlers."""
        blueprint = Blueprint("webhooks", __name__)

        def any_method(state: BlueprintSetupState) -> None:
            # Which methods are allowed depends on the source, so that Werkzeug must not decide it.
            state.app.url_map.add(Rule(f"{PATH}<source>", endpoint="webhooks.receive"))
            state.app.view_functions["webhooks.receive"] = lambda source: self.receive(source, request.environ)

        blueprint.record(any_method)
        return blueprint

    def before(self, app: WSGI) -> WSGI:
        """The app, but requests to known sources do not go through its routes: Flask's contexts, sessions and hooks,
        of which webhooks use nothing, would take a seventh of the time.
        """

        def wsgi(environ: dict[str, Any], start_response: Any, /) -> Iterable[bytes]:
            path: str = environ["PATH_INFO"]
            if path.startswith(PATH) and (source := path[len(PATH) :]) in self._sources():
                return self.receive(source, environ)(environ, start_response)
            return app(environ, start_response)

        return wsgi

    def receive(self, source: str, environ: dict[str, Any]) -> Response | BareResponse:
        """Answer one webhook."""
        began = self._clock.monotonic()
        endpoint = self._sources().get(source)
        path = f"{PATH}{source}"
        counts = Counts()
        response: Response | BareResponse
        try:
            if endpoint is None:
                raise Refusal(404, "There is no such source.", slug="unknown-source")  # noqa: TRY301
            webhook = _Webhook(endpoint, environ, path, environ["REQUEST_METHOD"], sent_headers(environ))
            response, counts = self._take(webhook)
        except Refusal as refusal:
            forget(refusal)
            counts = Counts(reason=refusal.slug)
            response = refusal.answer(path)
        except Exception as error:  # noqa: BLE001 (whatever it is, the sender gets an answer and the log the reason)
            self._log.error("webhook failed", source=source[:100], error=type(error).__name__, trace=stack_of(error))
            forget(error)
            response = problem(500, "The request was not taken; trying again may help.", instance=path)
        name = source if endpoint is not None else UNKNOWN_SOURCE
        self._observer.webhook(name, response.status_code, self._clock.monotonic() - began, counts)
        return response

    def _take(self, webhook: _Webhook) -> tuple[Response | BareResponse, Counts]:
        if self._draining():
            raise _busy("draining", "The service is shutting down.", _SOON_RETRY_S)
        endpoint, environ = webhook.endpoint, webhook.environ
        if webhook.method != "POST":
            return self._shake_hands(webhook), Counts()
        if endpoint.quota is not None:
            _hold(endpoint.quota.wait_s(self._clock.monotonic()))
        if _is_empty(environ) and (welcome := self._welcome(webhook, {})) is not None:
            return welcome, Counts()
        coding = coding_of(environ.get("HTTP_CONTENT_ENCODING", ""))
        check_media_type(endpoint.source.source.body, environ.get("CONTENT_TYPE", ""))
        raw = read_body(environ, endpoint.max_body)
        verdict = self._judge(webhook, raw)
        if isinstance(verdict, Unverified):
            if (welcome := self._welcome_unsigned(webhook, raw, coding)) is not None:
                return welcome, Counts()
            raise self._refusal(endpoint, verdict)
        self._observer.verification(endpoint.source.name, "accepted", verdict.secret)
        if verdict.secret is not None and (proved := environ.get(PROVED)) is not None:
            proved()
        if endpoint.quota is not None:
            _hold(endpoint.quota.take(self._clock.monotonic()))
        # Packed once more while it waits: it does so as the bytes that were sent.
        weight = endpoint.source.weigh(
            inflate(raw, endpoint.max_body) if coding else raw, headers=webhook.headers, query=webhook.query()
        )
        if weight > WEIGHED:
            self._pause()  # many may have come at once
        until = self._clock.monotonic() + TURN_PATIENCE_S
        with ExitStack() as place:
            self._enter(place, endpoint.source.queue, until)
            if not self._turns.acquire(endpoint.source.name, weight, timeout=self._left(until)):
                raise _busy("busy", "Too many requests are being worked on.", _SOON_RETRY_S)
            try:
                body = inflate(raw, endpoint.max_body) if coding else raw
                return self._work(webhook, body, verdict, mapped=place.close)
            finally:
                self._turns.release(endpoint.source.name, weight)

    def _enter(self, stack: ExitStack, queue: Queue | None, until: float) -> None:
        """Wait for those of the same source, where it has schemas of its own: they must hold no turn meanwhile."""
        if queue is not None:
            if not queue.enter(self._wait, self._left(until)):
                raise _busy("busy", "Too many requests of this source are being worked on.", _SOON_RETRY_S)
            stack.callback(queue.leave)

    def _left(self, until: float) -> float:
        return max(0.0, until - self._clock.monotonic())

    def _work(
        self, webhook: _Webhook, body: bytes, verdict: Verified, *, mapped: Callable[[], None]
    ) -> tuple[Response | BareResponse, Counts]:
        """The answer to a request of the partner's. `mapped` is called when the next one may be mapped."""
        endpoint = webhook.endpoint
        value = self._decode(endpoint, body)
        if (welcome := self._welcome(webhook, value, verified=True)) is not None:
            return welcome, Counts()
        brought = self._map(webhook, value, verdict)
        mapped()
        if brought.reject:
            errors = _listed(brought)
            raise Refusal(422, "Nothing of the request was taken.", extra={"errors": errors})
        receipts = self._append(brought.events)
        return self._answer(endpoint, brought, receipts)

    # --- whether it is the partner ---

    def _judge(self, webhook: _Webhook, raw: bytes) -> Verification:
        query = webhook.environ.get("QUERY_STRING", "")
        url = f"{webhook.path}?{query}" if query else webhook.path
        signed = SignedRequest(webhook.method, url, tuple(webhook.headers.items()), raw)
        return webhook.endpoint.verifier.verify(signed, self._clock.now())

    def _refusal(self, endpoint: Endpoint, verdict: Unverified) -> Refusal:
        name = endpoint.source.name
        self._observer.verification(name, verdict.reason, None)
        self._log.warning("webhook refused", source=name, reason=verdict.reason, detail=verdict.detail)
        return Refusal(401, "The request could not be verified.", headers=endpoint.verifier.challenge)

    # --- handshakes ---

    def _shake_hands(self, webhook: _Webhook) -> Response:
        """The answer to anything but a POST."""
        challenge = webhook.endpoint.source.challenge
        if challenge is None or challenge.method != webhook.method:
            allowed = "GET, POST" if challenge is not None and challenge.method == "GET" else "POST"
            raise Refusal(405, "The path does not take this method.", headers={"Allow": allowed})
        if challenge.signed:
            verdict = self._judge(webhook, b"")
            if isinstance(verdict, Unverified):
                raise self._refusal(webhook.endpoint, verdict)
        welcome = self._welcome(webhook, {}, verified=challenge.signed)
        if welcome is None:
            raise Refusal(400, "This is not the handshake of the source.")
        return welcome

    def _welcome(self, webhook: _Webhook, value: Any, *, verified: bool = False) -> Response | None:
        """The answer if this request is a handshake, and one that this source answers to whoever sent it."""
        challenge = webhook.endpoint.source.challenge
        if challenge is None or challenge.method != webhook.method or (challenge.signed and not verified):
            return None
        return challenge.answer(value, headers=webhook.headers, query=webhook.query())

    def _welcome_unsigned(self, webhook: _Webhook, raw: bytes, coding: str) -> Response | None:
        """The same for a body that nobody signed: one that is long, packed or cannot be read is no handshake."""
        source = webhook.endpoint.source
        if source.challenge is None or source.challenge.signed or coding or len(raw) > MAX_UNSIGNED_BODY:
            return None
        try:
            return self._welcome(webhook, source.decode(raw))
        except PayloadError:
            return None

    # --- its events ---

    def _decode(self, endpoint: Endpoint, body: bytes) -> Any:
        try:
            return endpoint.source.decode(body, pause=self._pause)
        except PayloadError as error:
            raise Refusal(400, f"{error}.") from error

    def _map(self, webhook: _Webhook, value: Any, verdict: Verified) -> Mapped:
        try:
            return webhook.endpoint.source.map_body(
                value,
                headers=webhook.headers,
                query=webhook.query(),
                delivery_id=verdict.delivery_id,
                signed_hash=verdict.signed_hash,
                pause=self._pause,
                wait=self._wait,
                now_us=to_us(self._clock.now()),
            )
        except PayloadError as error:
            raise Refusal(400, f"{error}.") from error

    def _append(self, events: Sequence[Event]) -> Sequence[Receipt]:
        if not events:
            return ()
        try:
            return self._journal.append(events)
        except JournalFullError as error:
            raise _busy("journal-full", "The journal is full.", _FULL_RETRY_S) from error
        except JournalError as error:
            self._log.warning("journal unavailable", error=type(error).__name__)
            raise _busy("unavailable", "The journal cannot be written just now.", _SOON_RETRY_S) from error

    def _answer(self, endpoint: Endpoint, mapped: Mapped, receipts: Sequence[Receipt]) -> tuple[BareResponse, Counts]:
        counts = counts_of(receipts, mapped)
        if counts.conflicts:
            conflicts = [receipt.event_id for receipt in receipts if receipt.conflict]
            self._log.warning(
                "event id used again for something else",
                source=endpoint.source.name,
                event_ids=loggable(conflicts),
            )
        reply = endpoint.source.source.reply
        if reply.body == "none" or reply.status in _WITHOUT_BODY:
            return BareResponse(reply.status), counts
        body = {
            "accepted": counts.accepted,
            "duplicates": counts.duplicates,
            "ignored": counts.ignored,
            "parked": counts.parked,
            "ids": [receipt.event_id for receipt in receipts[:MAX_LISTED]],
            "invalid": _listed(mapped),
        }
        return BareResponse(reply.status, orjson.dumps(body)), counts


def counts_of(receipts: Sequence[Receipt], mapped: Mapped) -> Counts:
    """The figures of an answer: each event is exactly one of accepted, duplicate, ignored, parked."""
    taken_as = [receipt.intake for receipt in receipts]
    conflicts = [receipt for receipt in receipts if receipt.conflict]
    records: set[RecordKey] = set()
    for intake, event in zip(taken_as, mapped.events, strict=True):
        if intake is Intake.ACCEPTED:
            records.update([update.record for update in event.updates])
    return Counts(
        accepted=taken_as.count(Intake.ACCEPTED),
        duplicates=taken_as.count(Intake.DUPLICATE),
        ignored=taken_as.count(Intake.IGNORED),
        parked=taken_as.count(Intake.PARKED),
        invalid=mapped.refused,
        undated=mapped.undated,
        conflicts=len(conflicts),
        unlisted=mapped.unlisted,
        records=len(records),
        event_ids=loggable([receipt.event_id for receipt in receipts[:MAX_LOGGED]]),
        found=mapped.found,
    )


def loggable(event_ids: Sequence[str]) -> tuple[str, ...]:
    """The first few ids, cut: a line of the log has a bounded length, whatever a sender writes."""
    return tuple(event_id[:MAX_LOGGED_ID] for event_id in event_ids[:MAX_LOGGED])


def _is_empty(environ: Mapping[str, Any]) -> bool:
    """Whether the request says that it has no body."""
    return environ.get("CONTENT_LENGTH", "") in {"", "0"} and not environ.get("HTTP_TRANSFER_ENCODING")


def _hold(wait_s: float) -> None:
    """Raise Refusal (429) if the source has to wait."""
    if wait_s > 0:
        after = str(max(1, math.ceil(wait_s)))
        raise Refusal(429, "The source is over its limit.", headers={"Retry-After": after})


def _listed(mapped: Mapped) -> list[dict[str, Any]]:
    return [{"index": index, "errors": errors} for index, errors in mapped.invalid[:MAX_LISTED]]


def _busy(slug: str, detail: str, retry_s: tuple[int, int]) -> Refusal:
    after = str(random.randint(*retry_s))  # noqa: S311 (jitter)
    return Refusal(503, f"{detail} Nothing of the request was taken.", slug=slug, headers={"Retry-After": after})
