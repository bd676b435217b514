"""`include: sources/*.yaml`: sources from more files, with their own names and lines."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.config.document import Document, Keys, Place
from bridge.config.scalars import kind
from bridge.config.yaml_file import read_yaml
from bridge.errors import ConfigError, Problem

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
