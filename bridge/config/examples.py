"""Runs every `examples:` entry of a sound configuration through the intake room."""

from __future__ import annotations

from typing import NamedTuple

from bridge.config.document import Document
from bridge.config.source_loading import STAND_IN_URL
from bridge.errors import Problem
from bridge.intake.examples import hints_of_example, run_example
from bridge.intake.mapping import compile_source
from bridge.intake.own_schema import Schemas
from bridge.settings import Settings


class Tried(NamedTuple):
    """A problem for each way in which an example does not hold, a warning for each value that hints are given for."""

    problems: list[Problem]
    warnings: list[Problem]


def try_examples(settings: Settings, document: Document) -> Tried:
    """What comes of every example."""
    schemas = Schemas()
    tried = Tried([], [])
    for name, source in settings.sources.items():
        compiled = compile_source(source, settings.server.public_url or STAND_IN_URL, schemas)
        for index, example in enumerate(source.examples):
            place = ("sources", name, "examples", index)
            tried.problems.extend(document.problem(place, told) for told in run_example(compiled, example))
            tried.warnings.extend(document.problem(place, told) for told in hints_of_example(compiled, example))
    return tried
