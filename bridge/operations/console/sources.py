"""Sources: who sends, whether what they send is taken, and what it becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from flask import Blueprint, render_template

from bridge.errors import PayloadError
from bridge.http.problems import Refusal
from bridge.intake.mapping import CompiledSource, compile_source
from bridge.model import Intake
from bridge.operations.console import texts
from bridge.operations.console.texts import first, own_form
from bridge.operations.desk import JournalDesk
from bridge.operations.health import Vitals
from bridge.operations.metrics import Metrics
from bridge.settings import Settings, Source
from bridge.tryout.dry_run import report, told

#: Why a signature was refused, in words; see `bridge.intake.signatures.Reason`.
REFUSALS = {
    "missing_header": "A header is missing",
    "malformed": "A header cannot be read",
    "stale": "Signed too long ago",
    "future": "Signed in the future",
    "mismatch": "No secret matches",
    "no_secret": "No secret could be read",
}


def add_pages(
    routes: Blueprint, desk: JournalDesk, vitals: Vitals, metrics: Metrics, settings: Callable[[], Settings]
) -> None:
    """`/sources`, and one source with its mapping and the box to try payloads in."""

    @routes.get("/sources")
    def sources() -> str:
        rows = [
            {"name": name, "scheme": source.verify.scheme} | counts.get(name, _NONE)
            for counts in [counted(metrics)]
            for name, source in settings().sources.items()
        ]
        return render_template("console/sources.html", page="sources", rows=rows, figures=vitals.status()["sources"])

    @routes.get("/sources/<name>")
    def source(name: str) -> str:
        found = _source(settings(), name)
        return page(found, **(_example(found) if found.examples else {}))

    @routes.post("/sources/<name>/try")
    def try_payload(name: str) -> str:
        found, fields = _source(settings(), name), own_form()
        payload, headers = first(fields, "payload"), first(fields, "headers")
        compiled = compile_source(found, settings().server.public_url)
        return page(found, payload=payload, headers=headers, tried=tried(compiled, payload, headers))

    def page(found: Source, **more: Any) -> str:
        return render_template(
            "console/source.html",
            page="sources",
            source=found,
            counts=counted(metrics).get(found.name, _NONE),
            figures=vitals.status()["sources"].get(found.name, {}),
            facts=list(texts.facts(found)),
            blocks=list(texts.blocks(found)),
            presence=desk.presence(found.name, texts.looked_for(found)),
            refusals=REFUSALS,
            **more,
        )


def tried(compiled: CompiledSource, payload: str, headers: str) -> dict[str, Any]:
    """What a payload would become; nothing of it is taken."""
    given = {}
    for line in filter(None, map(str.strip, headers.splitlines())):
        name, colon, value = line.partition(":")
        if not colon:
            return {"unreadable": f"The header {line!r} is not 'Name: value'."}
        given[name.strip().lower()] = value.strip()
    try:
        body = compiled.decode(payload.encode())
        mapped = compiled.map_body(body, headers=given, query={}, delivery_id="dry-run", explain=True)
    except PayloadError as error:
        return {"unreadable": str(error)}
    ignored = [(event.id, compiled.why_ignored(event)) for event in mapped.events if event.intake is Intake.IGNORED]
    found = report(mapped, compiled.hints(mapped))
    left_out = [(one["index"], list(told(one))) for one in found["left_out"]]
    return found | {"events": len(mapped.events), "ignored_because": ignored, "left_out": left_out}


def _example(source: Source) -> dict[str, str]:
    """What the box holds before anybody wrote into it: the first of the configuration's examples."""
    example = source.examples[0]
    payload = example.body.decode("utf-8", "replace")
    if source.body == "json" and len(payload) < texts.PAYLOAD:
        payload = texts.document(payload)
    return {"payload": payload, "headers": "\n".join(f"{name}: {value}" for name, value in example.headers.items())}


_NONE: dict[str, Any] = {"answers": {}, "events": {}, "refused": {}, "secrets": {}}


def counted(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """By source: answers by status, events by outcome, refused signatures by reason, and which secrets matched."""
    found: dict[str, dict[str, Any]] = {}

    def of(source: str) -> dict[str, Any]:
        return found.setdefault(source, {name: Counter() for name in _NONE})

    for labels, value in metrics.counted("bridge_webhooks_total"):
        of(labels["source"])["answers"][labels["code"]] += int(value)
    for labels, value in metrics.counted("bridge_events_total"):
        of(labels["source"])["events"][labels["outcome"]] += int(value)
    for labels, value in metrics.counted("bridge_verifications_total"):
        if labels["secret"]:
            of(labels["source"])["secrets"][labels["secret"]] += int(value)
        else:
            of(labels["source"])["refused"][labels["result"]] += int(value)
    return found


def _source(settings: Settings, name: str) -> Source:
    found = settings.sources.get(name)
    if found is None:
        raise Refusal(404, "There is no such source.")
    return found
