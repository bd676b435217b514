"""From `bridge.yaml` to settings: every problem found in one go, each with its line; and when to do so again."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from marshmallow import ValidationError

from bridge.config.advice import advice
from bridge.config.blocks import flatten
from bridge.config.scalars import Surroundings, journal_url_fault, kind, parse_address, surroundings
from bridge.config.source_schemas import SOURCE_NAME, SOURCE_RULE, FileSchema, SourceSchema
from bridge.config.yaml_file import Document, Keys, Place, read_yaml
from bridge.errors import ConfigError, MappingError, Problem
from bridge.intake.mapping import compile_source
from bridge.intake.own_schema import Schemas
from bridge.model import Lane
from bridge.settings import Crm, Journal, Retry, Server, Settings, Source
from bridge.tryout.dry_run import hints_of_example, run_example

# --- `include: sources/*.yaml`: sources from more files, with their own names and lines ---

Sources = dict[str, Any]


def gather(
    document: Document, written: object, stands: bool, patterns: Sequence[str], folder: Path
) -> tuple[Sources, list[Problem]]:
    """The sources of the file and of all that it includes, by name; their places join the document's."""
    problems: list[Problem] = []
    sources: Sources = {}
    if isinstance(written, Mapping):
        sources.update(written)
    elif written is not None or (stands and not patterns):
        message = f"must be a mapping of names to sources, not {kind(written)}"
        problems.append(document.problem(("sources",), message))
    for index, pattern in enumerate(patterns):
        keys = document.known(("include", index))
        files = matching(pattern, folder)
        if not files:
            problems.append(document.problem(keys, f"no file matches {pattern}"))
        for file in files:
            problems += _join(document, sources, Path(file))
    if not sources and not problems:
        message = "there is none; write at least one under `sources:`"
        problems.append(document.problem(("sources",), message))
    return sources, problems


def matching(pattern: str, folder: Path) -> list[str]:
    """The files that a pattern stands for, sorted."""
    return sorted(glob.glob(str(folder / pattern), recursive=True))  # noqa: PTH207 (takes absolute patterns too)


def _join(document: Document, sources: Sources, path: Path) -> list[Problem]:
    """Add one included file's sources; returns what is wrong with it.

    The file holds either `sources:` or the sources' names themselves.
    """
    try:
        included = read_yaml(path)
    except ConfigError as error:
        return list(error.problems)
    problems = list(included.problems)
    data: Any = {key: value for key, value in included.data.items() if not key.startswith("x-")}
    depth = 0
    if "sources" in data:
        for key in data.keys() - {"sources"}:
            message = "an included file holds sources only; move this to the file that includes it"
            problems.append(included.problem((key,), message))
        data, depth = data["sources"], 1
    if not isinstance(data, Mapping):
        message = f"must be a mapping of names to sources, not {kind(data)}"
        return [*problems, included.problem(("sources",), message)]
    misplaced = {"crm", "journal", "retry", "server", "include", "verify"}
    taken = set()
    for name, source in data.items():
        keys: Keys = ("sources", name)
        here = included.place((*("sources",)[:depth], name))
        if not depth and name in misplaced:
            message = "an included file holds sources by name; this key does not belong here"
            problems.append(Problem(name, message, here.line, here.file))
        elif name in sources:
            other: Place = document.place(keys)
            message = f"this source stands in {other.file}:{other.line} too; give one of them another name"
            problems.append(Problem(f"sources.{name}", message, here.line, here.file))
        else:
            sources[name] = source
            taken.add(name)
    for inner, place in included.places.items():
        if len(inner) > depth and inner[depth] in taken:
            document.places["sources", *inner[depth:]] = place
    return problems


# --- one source from the file: all that is wrong with it, also what only its expressions show ---


def load_source(
    document: Document, name: str, raw: Mapping[str, Any], around: Surroundings, schemas: Schemas
) -> tuple[Source | None, list[Problem]]:
    """One source and its problems, those of its expressions too.

    What is sound of a faulty one is compiled all the same, so that a missing secret does not hide an expression
    that does not parse. `schemas` imports its own, for all sources of the file.
    """
    keys: Keys = ("sources", name)
    folder = Path(document.place(keys).file).parent
    body = f"form:{raw.get('payload_field') or ''}" if raw.get("body") == "form" else str(raw.get("body", "json"))
    around = dataclasses.replace(around, folder=folder, body=body)
    problems: list[Problem] = []
    faulty: set[Keys] = set()
    token = surroundings.set(around)
    try:
        source = SourceSchema().load(raw)
    except ValidationError as error:
        complaints = list(flatten(error.messages))
        problems = [document.problem((*keys, *inner), message) for inner, message in complaints]
        faulty = {document.known((*keys, *inner))[2:] for inner, _ in complaints} - {()}
        source = error.valid_data
    finally:
        surroundings.reset(token)
    if not isinstance(source, Source):
        return None, problems
    source = dataclasses.replace(source, name=name)
    if any(block.schema for block in source.mappings):
        _let_import_from(folder)
    known_faulty = bool(problems)
    for inner, message in mapping_faults(source, around.public_url, schemas):
        place = document.known((*keys, *inner))[2:]
        if not known_faulty or (place and not any(_related(place, other) for other in faulty)):
            problems.append(document.problem((*keys, *place), message))
    return source, problems


def _let_import_from(folder: Path) -> None:
    """Let `schema:` find modules that stand beside the file, behind all others: they take no other module's place."""
    if (place := str(folder.resolve())) not in sys.path:
        sys.path.append(place)


def mapping_faults(source: Source, public_url: str | None, schemas: Schemas) -> Iterator[tuple[Keys, str]]:
    """What the intake room finds wrong with a source's expressions and types."""
    try:
        compile_source(source, public_url, schemas)
    except ExceptionGroup as group:
        ours, others = group.split(MappingError)
        if others is not None:
            raise others from group
        yield from _leaves(ours)


def _leaves(group: BaseException | None) -> Iterator[tuple[Keys, str]]:
    if isinstance(group, MappingError):
        yield group.path, group.message
    elif isinstance(group, BaseExceptionGroup):
        for inner in group.exceptions:
            yield from _leaves(inner)


def _related(one: Keys, other: Keys) -> bool:
    """Whether one of two places is within the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


# --- runs every `examples:` entry of a sound configuration through the intake room ---


class Tried(NamedTuple):
    """A problem for each way in which an example does not hold, a warning for each value that hints are given for."""

    problems: list[Problem]
    warnings: list[Problem]


def try_examples(settings: Settings, document: Document) -> Tried:
    """What comes of every example."""
    schemas = Schemas()
    tried = Tried([], [])
    for name, source in settings.sources.items():
        compiled = compile_source(source, settings.server.public_url, schemas)
        for index, example in enumerate(source.examples):
            place = ("sources", name, "examples", index)
            tried.problems.extend(document.problem(place, told) for told in run_example(compiled, example))
            tried.warnings.extend(document.problem(place, told) for told in hints_of_example(compiled, example))
    return tried


Made = TypeVar("Made")


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
    if isinstance(asked := data.get("server"), Mapping) and "public_url" in asked:
        around = dataclasses.replace(around, public_url=str(asked["public_url"]))
    sources = _sources(document, gathered, around, findings)
    findings.problems += _match_faults(document, sources)
    crm, retry = _made(top.get("crm"), Crm), _made(top.get("retry"), Retry)
    journal, server = _made(top.get("journal"), Journal), _made(top.get("server"), Server)
    journal, server, wrong = _overridden(journal, server, around.environ)
    findings.problems += wrong
    settings = Settings(crm=crm, sources=sources, journal=journal, retry=retry, server=server, file=path)
    findings.settings = settings
    findings.warnings += advice(settings, document, {problem.path for problem in findings.problems})


def _made(value: object, cls: type[Made]) -> Made:
    """What a block became; the defaults stand in for one of which nothing could be made."""
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


# --- Notices that the configuration is another one than before: by its files' content, as a mount that is exchanged
# keeps neither their times nor their inodes.

#: Seconds between two looks.
EVERY_S = 5.0
#: One that is refused is tried again, which may take this share of the time: with hundreds of sources it takes seconds.
SHARE = 1 / 50


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether `BRIDGE_RELOAD` asks for it. Raises ConfigError for what it cannot mean."""
    text = environ.get("BRIDGE_RELOAD", "").strip()
    if text.lower() not in {"", "watch"}:
        raise ConfigError([Problem("BRIDGE_RELOAD", f"{text!r} is no way to reload; use watch, or leave it unset")])
    return text.lower() == "watch"


class Watch:
    """One configuration file and those that it includes. For one thread; a fork goes on from what was known.

    Made and asked before the configuration is loaded, never after: then what changes meanwhile is found the next time.
    """

    def __init__(self, file: Path, *, sandbox: bool = False) -> None:
        self._file, self._sandbox = file, sandbox
        self._patterns: list[str] = []
        self._known: bytes | None = None
        self._sound = True
        self._rest_until = 0.0  # by the monotonic clock
        self.changed()

    def changed(self) -> bool:
        """Whether it would load otherwise than when this was last asked. One with problems is tried again, as what it
        lacked, a secret's file say, may be there now.
        """
        there, began = self._content(), time.monotonic()
        if there is None or (there == self._known and (self._sound or began < self._rest_until)):
            return False
        try:
            findings = examine(self._file, sandbox=self._sandbox)
        except Exception:  # noqa: BLE001 (whatever it is, loading tells)
            findings = Findings()
        self._patterns, self._sound = findings.patterns, findings.settings is not None
        there, ended = self._content(), time.monotonic()
        self._rest_until = ended + (ended - began) / SHARE
        if there is None or (there == self._known and not self._sound):
            return False
        self._known = there
        return True

    def _content(self) -> bytes | None:
        """A digest of all files; None while one cannot be read, as when the mount is being exchanged."""
        content = hashlib.sha256()
        try:
            included = (Path(each) for pattern in self._patterns for each in matching(pattern, self._file.parent))
            for file in (self._file, *included):
                content.update(b"\0%b\0" % os.fsencode(file))
                content.update(file.read_bytes())
        except (OSError, ValueError):
            return None
        return content.digest()
