"""Runs every `examples:` entry of a sound configuration through the intake room."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.config.document import Document
from bridge.config.source_loading import STAND_IN_URL
from bridge.errors import Problem
from bridge.intake.examples import run_example
from bridge.intake.mapping import compile_source
from bridge.intake.own_schema import Schemas
from bridge.settings import Settings


def failing_examples(settings: Settings, document: Document) -> Iterator[Problem]:
    """One problem for each way in which an example does not hold."""
    schemas = Schemas()
    for name, source in settings.sources.items():
        compiled = compile_source(source, settings.server.public_url or STAND_IN_URL, schemas)
        for index, example in enumerate(source.examples):
            for difference in run_example(compiled, example):
                yield document.problem(("sources", name, "examples", index), difference)
