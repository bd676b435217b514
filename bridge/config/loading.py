"""From `bridge.yaml` to settings: every problem found in one go, each with its line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from marshmallow import ValidationError

from bridge.config.advice import advice
from bridge.config.blocks import flatten
from bridge.config.document import Document
from bridge.config.formats import parse_address
from bridge.config.including import Sources, gather
from bridge.config.scalars import kind
from bridge.config.service_schemas import journal_url_fault
from bridge.config.source_loading import load_source
from bridge.config.source_schemas import SOURCE_NAME, SOURCE_RULE, FileSchema
from bridge.config.surroundings import Surroundings, surroundings
from bridge.config.yaml_file import read_yaml
from bridge.errors import ConfigError, Problem
from bridge.intake.own_schema import Schemas
from bridge.model import Lane
from bridge.settings import Crm, Journal, Retry, Server, Settings, Source

Made = TypeVar("Made")

#: schemes that sign the URL under which the partner knows the service
URL_SCHEMES = frozenset({"hubspot-v3", "hubspot-v2"})


@dataclass(frozen=True, slots=True)
class Loaded:
    """Sound settings, and what is lawful but worth a second look."""

    settings: Settings
    warnings: tuple[Problem, ...]


@dataclass(slots=True)
class Findings:
    """All that is to be said of a file; `settings` is None when there are problems. `patterns`: its `include`."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    settings: Settings | None = None
    document: Document | None = None
    patterns: list[str] = field(default_factory=list)


def load(path: Path, *, environ: Mapping[str, str] | None = None, sandbox: bool = False) -> Loaded:
    """The settings that the file holds. Raises ConfigError with all problems at once.

    `sandbox`: the CRM's token may be missing, because nothing is sent to HubSpot.
    """
    findings = examine(path, environ=environ, sandbox=sandbox)
    if findings.settings is None:
        raise ConfigError(findings.problems)
    return Loaded(findings.settings, tuple(findings.warnings))


def examine(path: Path, *, environ: Mapping[str, str] | None = None, sandbox: bool = False) -> Findings:
    """Everything right and wrong with the file; never raises for what stands in it."""
    environ = os.environ if environ is None else environ
    try:
        document = read_yaml(path)
    except ConfigError as error:
        return Findings(problems=list(error.problems))
    around = Surroundings(environ=environ, folder=path.parent, sandbox=sandbox)
    findings = Findings(problems=list(document.problems), document=document)
    token = surroundings.set(around)
    try:
        _examine(path, document, around, findings)
    finally:
        surroundings.reset(token)
    unique: dict[tuple[object, ...], Problem] = {}
    for problem in findings.problems:
        unique.setdefault((problem.file, problem.line, problem.message), problem)
    findings.problems = sorted(
        unique.values(),
        key=lambda problem: (problem.file not in {None, str(path)}, problem.file or "", problem.line or 0),
    )
    if findings.problems:
        findings.settings = None
    return findings


def _examine(path: Path, document: Document, around: Surroundings, findings: Findings) -> None:
    data = {key: value for key, value in document.data.items() if not key.startswith("x-")}
    written = data.pop("sources", None)
    data.setdefault("crm", {})
    try:
        top = FileSchema(exclude=("sources",)).load(data)
    except ValidationError as error:
        findings.problems += (document.problem(*complaint) for complaint in flatten(error.messages))
        top = error.valid_data if isinstance(error.valid_data, dict) else {}
    findings.patterns = top.get("include") or []
    gathered, problems = gather(document, written, "sources" in document.data, findings.patterns, path.parent)
    findings.problems += problems
    document.data["sources"] = gathered
    sources = _sources(document, gathered, around, findings)
    findings.problems += _url_faults(document, data, sources)
    findings.problems += _match_faults(document, sources)
    crm, retry = _made(top.get("crm"), Crm), _made(top.get("retry"), Retry)
    journal, server = _made(top.get("journal"), Journal), _made(top.get("server"), Server)
    journal, server, wrong = _overridden(journal, server, around.environ)
    findings.problems += wrong
    settings = Settings(crm=crm, sources=sources, journal=journal, retry=retry, server=server, file=path)
    findings.settings = settings
    findings.warnings += advice(settings, document, {problem.path for problem in findings.problems})


def _made(value: object, cls: type[Made]) -> Made:
    """What a block became; the defaults stand in for one that is faulty."""
    return value if isinstance(value, cls) else cls()


def _sources(document: Document, gathered: Sources, around: Surroundings, findings: Findings) -> dict[str, Source]:
    """The sources that can be built; of the others, all problems are noted."""
    built: dict[str, Source] = {}
    schemas = Schemas()
    for name, raw in gathered.items():
        if not SOURCE_NAME.fullmatch(name):
            findings.problems.append(document.problem(("sources", name), SOURCE_RULE))
        elif not isinstance(raw, Mapping):
            message = f"must be a mapping of keys, not {kind(raw)}"
            findings.problems.append(document.problem(("sources", name), message))
        else:
            source, problems = load_source(document, name, raw, around, schemas)
            findings.problems += problems
            if source is not None:
                built[name] = source
    return built


def _url_faults(document: Document, data: Mapping[str, Any], sources: Mapping[str, Source]) -> Iterator[Problem]:
    server = data.get("server")
    if isinstance(server, Mapping) and "public_url" in server:
        return
    for name, source in sources.items():
        hmac = source.verify.hmac
        if source.verify.scheme in URL_SCHEMES or (hmac is not None and "{url}" in hmac.signed):
            yield document.problem(
                ("sources", name, "verify", "scheme"),
                f"{source.verify.scheme} signs the URL; write `public_url: https://…` under `server`",
            )


def _match_faults(document: Document, sources: Mapping[str, Source]) -> Iterator[Problem]:
    """What is one record to one mapping must be one to all."""
    first: dict[Lane, tuple[str, bool]] = {}
    for name, source in sources.items():
        for block in source.mappings:
            lane = Lane(block.object_type, block.record.id_property)
            other, caseless = first.setdefault(lane, (name, block.record.caseless))
            if caseless != block.record.caseless:
                said = "caseless" if caseless else "exact"
                message = f"the ids of {lane} are {said} in source {other}; write the same in both"
                yield document.problem(("sources", name, *block.path, "record", "match"), message)


def _overridden(journal: Journal, server: Server, environ: Mapping[str, str]) -> tuple[Journal, Server, list[Problem]]:
    """What the environment says in place of the file, and what is wrong with that."""
    problems = []
    for variable, attribute in (("BRIDGE_BIND", "bind"), ("BRIDGE_ADMIN_BIND", "admin_bind")):
        if text := environ.get(variable, "").strip():
            try:
                address = parse_address(text)
                server = (
                    dataclasses.replace(server, bind=address)
                    if attribute == "bind"
                    else dataclasses.replace(server, admin_bind=address)
                )
            except ValidationError as error:
                message = f"the environment variable {variable}: {error.messages[0]}"
                problems.append(Problem("", message))
    if text := environ.get("BRIDGE_JOURNAL_URL", "").strip():
        if (fault := journal_url_fault(text)) is None:
            journal = dataclasses.replace(journal, url=text)
        else:
            problems.append(Problem("", f"the environment variable BRIDGE_JOURNAL_URL: {fault}"))
    if server.bind[1] == server.admin_bind[1] != 0 and {"BRIDGE_BIND", "BRIDGE_ADMIN_BIND"} & set(environ):
        message = "BRIDGE_BIND and BRIDGE_ADMIN_BIND: both ports are the same; change one"
        problems.append(Problem("", message))
    return journal, server, problems
