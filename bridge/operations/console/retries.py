"""Retry log: what waits and why, and what to do about it: counted first, then done, then told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flask import Blueprint, g, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from bridge.http.problems import Refusal
from bridge.journal.control import Act
from bridge.journal.retry_log import Filter
from bridge.model import to_us
from bridge.operations import queries
from bridge.operations.acts import Acts
from bridge.operations.console.texts import Fields, first, link_of, own_form, pairs_of, read_filter
from bridge.operations.desk import JournalDesk
from bridge.operations.metrics import USUAL_ENTRIES
from bridge.settings import Settings
from bridge.showing import exact_iso

#: Entries of one page.
ROWS = 50
#: Groups of one cause that a page shows.
GROUPS = 8
#: Categories that are offered also when none is there.
CATEGORIES = {category for _, category in USUAL_ENTRIES}
#: Longer messages do not fit into a link; their group is acted on all the same.
LINKED_MESSAGE = 500
ACTS = ("replay", "discard")
#: Seconds that an act may take before a page tells how far it is.
SOON_S = 0.7
#: Seconds until the browser asks for such a page again; it needs no script for that.
AGAIN_S = 1


def add_pages(routes: Blueprint, desk: JournalDesk, acts: Acts, settings: Callable[[], Settings]) -> None:
    """`/retries` and the acts on it."""

    @routes.get("/retries")
    def retries() -> str:
        asked = request.args.to_dict(flat=False)
        chosen, options = read_filter(queries.RetriesPage(), asked)
        offset = options.get("offset", 0)
        found = desk.retry_overview(chosen, limit=ROWS, offset=offset)
        total, latest = found["entries"], acts.latest()
        return render_template(
            "console/retries.html",
            page="retries",
            asked={name: values[-1] for name, values in asked.items()},
            fields=pairs_of(chosen),
            narrowed=chosen != Filter(),
            groups=[_linked(chosen, group) for group in found["groups"][:GROUPS]],
            more_groups=found["more_groups"] or len(found["groups"]) > GROUPS,
            total=total,
            rows=found["page"],
            offset=offset,
            earlier=link_of("/retries", chosen, offset=max(0, offset - ROWS)) if offset else None,
            later=link_of("/retries", chosen, offset=offset + ROWS) if offset + ROWS < total else None,
            sources=list(settings().sources),
            categories=sorted({*CATEGORIES, *(group["category"] for group in found["groups"])}),
            act=latest if latest and (not latest.ended or latest.id == first(asked, "act")) else None,
        )

    @routes.get("/retries/<entry_id>")
    def entry(entry_id: str) -> str:
        found = desk.retry_behind(entry_id)
        if found is None:
            raise Refusal(404, "No such entry in the retry log: it was delivered, replayed or discarded.")
        return render_template("console/entry.html", page="retries", entry=found)

    @routes.post("/retries/confirm")
    def confirm() -> str:
        fields = own_form()
        seen = exact_iso(to_us(time.time()))
        act, chosen = _asked(fields)
        found = desk.retry_overview(chosen, limit=0, offset=0)
        if not found["entries"]:
            raise Refusal(404, "Nothing in the retry log matches any more, or nothing was selected.")
        return render_template(
            "console/confirm.html",
            page="retries",
            act=act,
            total=found["entries"],
            seen=seen,
            whole=chosen == Filter(),
            fields=pairs_of(chosen),
            groups=found["groups"][:GROUPS],
            more_groups=found["more_groups"] or len(found["groups"]) > GROUPS,
            back=link_of("/retries", replace(chosen, ids=())),
        )

    @routes.post("/retries/act")
    def begin() -> AnyResponse:
        fields = own_form()
        wanted, chosen = _asked(fields)
        counted = first(fields, "counted")[:12]
        if chosen.seen_us is None or not (counted.isascii() and counted.isdigit()):
            raise Refusal(422, "Count first: this form lacks what was counted.")
        act = acts.begin(wanted, chosen, counted=int(counted), who=g.who, address=request.remote_addr)
        acts.wait(SOON_S)
        latest = acts.latest()
        return redirect(_after(latest) if latest is not None and latest.ended else f"/retries/act/{act.id}", 303)

    @routes.get("/retries/act/<act_id>")
    def progress(act_id: str) -> AnyResponse | tuple[str, dict[str, str]]:
        act = acts.latest()
        if act is None or act.id != act_id:
            raise Refusal(404, "Another act has followed this one; what became of it is in the log.")
        if act.ended:
            return redirect(_after(act), 303)
        page = render_template("console/act.html", page="retries", act=act)
        return page, {"Refresh": str(AGAIN_S)}


def _linked(chosen: Filter, group: dict[str, Any]) -> dict[str, Any]:
    """A group with the fields and the link that mean it."""
    whole = replace(chosen, category=group["category"], message=group["message"] or None)
    link = link_of("/retries", whole) if len(group["message"]) <= LINKED_MESSAGE else None
    return group | {"fields": pairs_of(whole), "link": link}


def _after(act: Act) -> str:
    """The retry log as it was looked at, with what the act did."""
    chosen, _ = queries.RetriesAct().load(act.chosen)
    rest = replace(chosen, ids=(), seen_us=None)
    return link_of("/retries", Filter() if rest.message else rest, act=act.id)


def _asked(fields: Fields) -> tuple[str, Filter]:
    """The act and what it is meant for; everything only where the form says so, and no selection is not everything."""
    act, scope = first(fields, "act").partition(":")[::2]
    if act not in ACTS:
        raise Refusal(422, "The form names no act.")
    chosen, options = read_filter(queries.RetriesAct(), fields)
    if scope == "selected":
        chosen = Filter(ids=chosen.ids)
    elif scope == "filter":
        chosen = replace(chosen, ids=())
    if replace(chosen, seen_us=None) == Filter() and (scope == "selected" or not options.get("all")):
        raise Refusal(422, "Nothing is selected. Tick the entries that you mean.")
    return act, chosen
