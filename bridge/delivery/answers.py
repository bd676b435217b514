"""What an answer of the CRM means. The status decides first; 2xx are judged input by input.

Nothing here raises whatever the body (see `complaints` and `evidence`, which read it).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from bridge.delivery import sentences
from bridge.delivery.calls import Answer, Input, NoAnswer
from bridge.delivery.complaints import printable, read_complaint, shown, text
from bridge.delivery.evidence import is_unfinished, judge_inputs
from bridge.delivery.meanings import Again, Broken, Judged, Locked, Meaning, Rejected, Rules, Stopped, TooLarge
from bridge.delivery.pauses import DAILY_LIMIT, MISCONFIGURED, OUTAGE, UNAUTHORIZED, Stop
from bridge.model import Reason, Scope

#: Seconds that `Retry-After` may ask for at most on a 429; an absurd value must not stop us for a year.
LONGEST_RETRY_AFTER_S = 3600.0

#: The same on 477 (account migrating between data centres), where HubSpot speaks of up to 24 h.
LONGEST_MIGRATION_S = 86_400.0

#: Seconds that a pause lasts at least which the CRM asks for: at once again would be no pause, but a storm.
_SHORTEST_S = 0.5

#: Statuses after which the call may still be applied: a proxy gave up waiting for HubSpot.
DOUBTFUL_STATUSES = frozenset({502, 504, 520, 522, 524})


def doubtful(answer: Answer | NoAnswer) -> bool:
    """Whether the call may still be applied after this end."""
    match answer:
        case NoAnswer():
            return answer.doubtful
        case Answer(status=status, body=body) if 200 <= status < 300:
            return not isinstance(body, dict) or is_unfinished(body)
        case Answer(status=status):
            return status in DOUBTFUL_STATUSES


def judge(inputs: Sequence[Input], answer: Answer | NoAnswer, rules: Rules) -> Meaning:
    """What this answer to a call with these inputs means."""
    match answer:
        case NoAnswer(kind="token"):
            return Stopped(Stop(Scope.ALL, UNAUTHORIZED, answer.detail, credential=answer.credential))
        case NoAnswer(kind="oversize", body=dict() as beginning):
            return _unread(inputs, answer, beginning, rules)
        case NoAnswer():
            stop = Stop(Scope.ALL, OUTAGE, f"{answer.kind}: {answer.detail}")
            reason = Reason("NO_ANSWER", f"no answer from the CRM ({answer.kind})")
            # What was never sent cannot be to blame.
            return Broken(stop, reason) if answer.doubtful or answer.kind == "internal" else Stopped(stop)
        case Answer(status=status) if 200 <= status < 300:
            return judge_inputs(inputs, answer.body, rules)
        case Answer(status=400 | 422 as status):
            return Rejected(read_complaint(answer.body, fallback=f"HTTP {status}: {_excerpt(answer)}"))
        case Answer(status=408 | 409 | 423 | 425):
            return Locked(_reason(answer))
        case Answer(status=413 | 414):
            return TooLarge(_reason(answer))
        case Answer():
            return _trouble(answer, rules)


def _unread(inputs: Sequence[Input], answer: NoAnswer, beginning: dict[str, Any], rules: Rules) -> Meaning:
    """The CRM's own answer, but too large to be read, is no outage: again in halves. That to a single record is
    believed as far as it was read: a result that names it, or that stands in a complete answer without errors (200),
    which can be nobody else's. If what was read says nothing of the record, it is sent again later.
    """
    reason = Reason("ANSWER_TOO_LARGE", f"the CRM's answer was too large to be read ({answer.detail})")
    if len(inputs) > 1:
        return TooLarge(reason)
    if answer.status != 400:
        status = beginning.get("status") if answer.status == 200 else None
        meaning = judge_inputs(inputs, {**beginning, "status": "PROCESSING" if status is None else status}, rules)
        if isinstance(meaning, Judged) and meaning.outcomes:
            return meaning
    return Locked(reason, own=True)


def retry_after_s(answer: Answer, *, now_us: int, at_most_s: float) -> float | None:
    """What `Retry-After` asks for, capped; None when it is missing, negative or unreadable."""
    told = answer.headers.get("retry-after", "").strip()
    try:
        seconds = float(told) if _is_number(told.replace(".", "", 1)) else _until(told, now_us)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(seconds, at_most_s) if seconds >= 0 else None


def _asked_s(answer: Answer, *, now_us: int, at_most_s: float) -> float | None:
    """How long to pause as `Retry-After` asks; None when it does not."""
    seconds = retry_after_s(answer, now_us=now_us, at_most_s=at_most_s)
    return None if seconds is None else max(seconds, _SHORTEST_S)


def _until(told: str, now_us: int) -> float:
    date = parsedate_to_datetime(told)
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return date.timestamp() - now_us / 1_000_000


def _trouble(answer: Answer, rules: Rules) -> Meaning:
    status = answer.status
    detail = f"HTTP {status}: {_message(answer)}"[:300]
    match status:
        case 401 if answer.renewable:
            return Again(_reason(answer))
        case 401:
            return Stopped(Stop(Scope.ALL, UNAUTHORIZED, detail, credential=answer.credential))
        case 403:
            return Broken(Stop(Scope.OBJECT_TYPE, "forbidden", detail), _reason(answer))
        case 429:
            return Stopped(_rate_limited(answer, rules.now_us, detail))
        case 477:
            delay = _asked_s(answer, now_us=rules.now_us, at_most_s=LONGEST_MIGRATION_S)
            return Stopped(Stop(Scope.ALL, "migrating", detail, delay_s=delay))
        case _ if 300 <= status < 500:
            return Broken(Stop(Scope.OBJECT_TYPE, MISCONFIGURED, detail), _reason(answer))
        case _:
            return Broken(Stop(Scope.ALL, OUTAGE, detail), _reason(answer))


def _rate_limited(answer: Answer, now_us: int, detail: str) -> Stop:
    body = answer.body if isinstance(answer.body, dict) else {}
    policy = (text(body.get("policyName")) or sentences.limit(text(body.get("message")))).upper()
    daily = "DAILY" in policy
    delay = _asked_s(answer, now_us=now_us, at_most_s=LONGEST_RETRY_AFTER_S)
    if delay is None and not daily:
        secondly = "SECONDLY" in policy and "TEN_SECONDLY" not in policy
        delay = 1.0 if secondly else _window_s(answer)
    # A daily quota comes back at midnight of the portal, whose zone we do not know: asked by probes.
    return Stop(Scope.ALL, DAILY_LIMIT if daily else "rate_limited", detail, delay_s=delay, probes=daily)


def _window_s(answer: Answer) -> float:
    """The rolling window as the CRM tells it, else HubSpot's 10 s."""
    told = answer.headers.get("x-hubspot-ratelimit-interval-milliseconds", "")
    return min(max(int(told) / 1000, 1.0), 60.0) if _is_number(told) and len(told) < 10 else 10.0


def _reason(answer: Answer) -> Reason:
    category = read_complaint(answer.body).category
    return Reason(category or f"HTTP_{answer.status}", f"HTTP {answer.status}: {_message(answer)}"[:500])


def _message(answer: Answer) -> str:
    return read_complaint(answer.body, fallback=_excerpt(answer)).words


def _excerpt(answer: Answer) -> str:
    """The beginning of the body, for people."""
    return (printable(answer.excerpt) if answer.body is None else shown(answer.body)) or "no explanation"


def _is_number(told: str) -> bool:
    return told.isascii() and told.isdigit()
