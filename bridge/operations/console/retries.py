"""Retry log: what waits and why, and what to do about it: counted first, then done, then told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from bridge.intake.problems import Refusal
from bridge.journal.retry_log import Filter
from bridge.operations import queries
from bridge.operations.admin_api import log_act
from bridge.operations.console.forms import Fields, first, link_of, own_form, pairs_of, read_filter
from bridge.operations.desk import JournalDesk
from bridge.settings import Settings

#: Entries of one page.
ROWS = 50
#: Longer messages do not fit into a link; their group is acted on all the same.
LINKED_MESSAGE = 500
ACTS = ("replay", "discard")
#: What an act told of itself, for the page after it.
DONE = ("counted", "entries", "events", "unmapped", "given_up")


def add_pages(routes: Blueprint, desk: JournalDesk, settings: Callable[[], Settings]) -> None:
    """`/retries` and the acts on it."""

    @routes.get("/retries")
    def retries() -> str:
        asked = request.args.to_dict(flat=False)
        chosen, options = read_filter(queries.RetriesPage(), asked)
        offset = options.get("offset", 0)
        groups = desk.retry_groups(chosen)
        for group in groups:
            whole = replace(chosen, category=group["category"], message=group["message"] or None)
            group["fields"] = pairs_of(whole)
            group["link"] = link_of("/retries", whole) if len(group["message"]) <= LINKED_MESSAGE else None
        total = desk.count_retries(chosen)
        return render_template(
            "console/retries.html",
            page="retries",
            asked={name: values[-1] for name, values in asked.items()},
            fields=pairs_of(chosen),
            narrowed=chosen != Filter(),
            groups=groups,
            total=total,
            rows=desk.retries_page(chosen, limit=ROWS, offset=offset),
            offset=offset,
            earlier=link_of("/retries", chosen, offset=max(0, offset - ROWS)) if offset else None,
            later=link_of("/retries", chosen, offset=offset + ROWS) if offset + ROWS < total else None,
            sources=list(settings().sources),
            done=_done(asked),
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
        seen = queries.exact_iso(round(time.time() * 1_000_000))
        act, chosen = _asked(fields)
        total = desk.count_retries(chosen)
        if not total:
            raise Refusal(404, "Nothing in the retry log matches any more, or nothing was selected.")
        return render_template(
            "console/confirm.html",
            page="retries",
            act=act,
            total=total,
            seen=seen,
            whole=chosen == Filter(),
            fields=pairs_of(chosen),
            groups=desk.retry_groups(chosen),
        )

    @routes.post("/retries/act")
    def act() -> AnyResponse:
        fields = own_form()
        wanted, chosen = _asked(fields)
        counted = first(fields, "counted")
        if chosen.seen_us is None or not (counted.isascii() and counted.isdigit()):
            raise Refusal(422, "Count first: this form lacks what was counted.")
        result = desk.discard_retries(chosen) if wanted == "discard" else desk.replay_retries(chosen)
        log_act(f"retries {wanted}", queries.as_query(chosen), result)
        rest = replace(chosen, ids=(), seen_us=None)
        figures = {name: value for name, value in result.items() if isinstance(value, int)}
        return redirect(
            link_of("/retries", Filter() if rest.message else rest, done=wanted, counted=counted, **figures), 303
        )


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


def _done(asked: Fields) -> dict[str, Any] | None:
    act = first(asked, "done")
    if act not in ACTS:
        return None
    figures = {name: int(text) for name in DONE if (text := first(asked, name)[:12]).isascii() and text.isdigit()}
    return {"act": act, **figures}
