"""Flow: is it flowing, is anything stuck; and the switch that stops delivery."""

from __future__ import annotations

import time
from typing import Any

from flask import Blueprint, redirect, render_template
from werkzeug.wrappers import Response as AnyResponse

from bridge.http.problems import Refusal
from bridge.journal.upkeep import MINUTES, Minute
from bridge.operations import queries
from bridge.operations.acts import log_act
from bridge.operations.console.texts import first, own_form
from bridge.operations.desk import JournalDesk
from bridge.operations.health import Vitals
from bridge.showing import advised

#: Title, unit, and the series: label and the minute's field; a chart each. What is counted is drawn as bars.
A_MINUTE = "per minute"
SHARE = "% of it, most in a minute"
CHARTS = (
    ("Events in", A_MINUTE, (("events", "events"),)),
    ("CRM calls", A_MINUTE, (("calls", "calls"), ("failed", "failed"))),
    ("Records sent", A_MINUTE, (("records", "records"),)),
    ("Rate limit used", SHARE, (("used", "limit_used"),)),
    ("Backlog", "records, most in a minute", (("waiting", "pending"),)),
    ("Waiting time", "seconds, longest in a minute", (("oldest waiting", "waited_s"), ("delivered after", "delay_s"))),
)


def add_pages(routes: Blueprint, desk: JournalDesk, vitals: Vitals) -> None:
    """`/`, `/pause` and `/resume`."""

    @routes.get("/")
    def flow() -> str:
        status = vitals.status()
        minutes = desk.last_hour()
        pauses = list(map(advised, status["pauses"]))
        return render_template(
            "console/flow.html",
            page="flow",
            status=status,
            pauses=pauses,
            stops=sum(pause["by_person"] for pause in pauses),
            minutes=minutes,
            charts=charts(minutes, now_s=time.time()),
        )

    @routes.post("/pause")
    def pause() -> AnyResponse:
        fields = own_form()
        asked = queries.PauseAct().load({"reason": first(fields, "reason").strip()[:1_000]})
        object_type = first(fields, "object_type").strip() or None
        log_act("pause", {"object_type": object_type}, [desk.pause(object_type, asked["reason"])])
        return redirect("/", 303)

    @routes.post("/resume")
    def resume() -> AnyResponse:
        object_type = first(own_form(), "object_type").strip() or None
        ended = desk.resume(object_type)
        if not ended:
            raise Refusal(404, "No pause of a person holds here any more.")
        log_act("resume", {"object_type": object_type}, ended)
        return redirect("/", 303)


def charts(minutes: list[Minute], *, now_s: float) -> list[dict[str, Any]]:
    """The charts' data for the last hour, as the script reads it.

    A minute in which nobody counted is a gap, not a zero: the service was down, or the minute has only begun.
    """
    counted = {minute.at_s: minute for minute in minutes}
    current = int(now_s) // 60 * 60
    times = range(current - (MINUTES - 1) * 60, current + 60, 60)
    return [
        {
            "title": title,
            "unit": unit,
            "bars": unit == A_MINUTE,
            "whole": not unit.startswith("seconds"),
            "top": 100 if unit == SHARE else 1,
            "labels": [label for label, _ in series],
            "times": list(times),
            "values": [[_value(counted.get(at), field) for at in times] for _, field in series],
        }
        for title, unit, series in CHARTS
    ]


def _value(minute: Minute | None, field: str) -> float | None:
    if minute is None:
        return None
    value: float = getattr(minute, field)
    return round(value * 100, 1) if field == "limit_used" else value
