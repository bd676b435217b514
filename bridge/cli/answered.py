"""What `send` tells of the answers it gets, and why one may not be what one hoped for."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import click

from bridge.cli.printing import print_json
from bridge.intake.diagnosis import is_credential, of_signature
from bridge.intake.schemes import layouts_of
from bridge.settings import Settings, Source

#: What `listen` calls itself in its answers.
LISTENING = "partner-bridge-listen"
#: Answers other than success that are printed one by one.
_MAX_FAILURES = 5
#: Clocks that differ by fewer seconds are not worth a word.
_CLOCK_S = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """`clock_off_s`: how far the other side's clock is ahead of ours, if it says so. `listening`: nothing is kept."""

    status: int
    content: bytes
    listening: bool = False
    ours: bool = False
    clock_off_s: float | None = None
    location: str = ""

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        return f"{self.status} {self.content.decode('utf-8', 'replace')}".rstrip()

    @property
    def document(self) -> dict[str, Any]:
        """The answer's JSON object; empty if it is none."""
        try:
            document = json.loads(self.content)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of whom; `extra` names the headers that --header set."""

    settings: Settings
    source: Source
    url: str
    public_url: str
    extra: tuple[str, ...]


def explain(answer: Answer, asked: Asked) -> list[str]:
    """What may be wrong, where the answer does not say it."""
    if answer.accepted:
        return []
    if answer.location:
        return [f"{answer.status}: it sends elsewhere, to {answer.location}; post there with --url"]
    if not answer.ours:
        return [
            f"{answer.status}: this is no answer of Partner Bridge's; a proxy refuses, or --url names something else"
        ]
    if answer.status == 401:
        return ["401 tells nobody why; it is one of these:", *(f"- {line}" for line in _doubts(answer, asked))]
    if answer.status == 404:
        return [f"404: the service there has no source {asked.source.name}: was it started with another file?"]
    return []


def _doubts(answer: Answer, asked: Asked) -> list[str]:
    verify, file = asked.source.verify, asked.settings.file
    doubts = [
        f"--header {name} stands in place of the signature's"
        for name in asked.extra
        if of_signature(verify, name) or is_credential(verify, name)
    ]
    off = answer.clock_off_s
    if off is not None and abs(off) > min(verify.tolerance_s, _CLOCK_S):
        doubts.append(f"the service's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} this one's")
    doubts.append(f"the service checks with another secret or scheme than {file} says: was it started before a change?")
    if any("{url}" in layout.signed for layout in layouts_of(verify)):
        doubts.append(
            f"the scheme signs the URL, here {asked.public_url}/…: the service's `public_url` must be the same"
        )
    doubts.append(f"the service's log has the reason; `listen {asked.source.name}` in its place shows it")
    return doubts


def first_id(answer: Answer) -> str | None:
    """The id of the first event that an answer tells, if there is anything to trace."""
    ids = answer.document.get("ids")
    return str(ids[0]) if isinstance(ids, list) and ids and not answer.listening else None


def print_answers(answers: list[Answer]) -> int:
    """One answer as it came; of many, how often each status came, what they sum to, and some failures."""
    accepted = all(answer.accepted for answer in answers)
    if len(answers) == 1:
        click.echo(answers[0].text)
        return 0 if accepted else 1
    sums: Counter[str] = Counter()
    for answer in answers:
        if answer.accepted:
            sums.update({key: answer.document.get(key, 0) for key in ("accepted", "duplicates", "ignored", "parked")})
    statuses = Counter(answer.status for answer in answers)
    print_json({"sent": len(answers), "answers": {str(status): n for status, n in statuses.items()}, **sums})
    for answer in [answer for answer in answers if not answer.accepted][:_MAX_FAILURES]:
        click.echo(answer.text, err=True)
    return 0 if accepted else 1
