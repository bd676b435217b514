"""Reads one YAML 1.2 file into plain values and remembers on which line each of them stands.

The file is walked as ruamel's node graph, not as its loaded objects: only nodes know the line of
every scalar, let all duplicate keys be reported at once, and keep keys as they are written
(`007`, `yes` and `2026-01-02` are text where text is wanted).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bridge.config.document import Document, Keys, Place, dotted
from bridge.errors import ConfigError, Problem

TAG = "tag:yaml.org,2002:"
#: tags that a file may spell out; all others would ask for objects
KNOWN_TAGS = frozenset({f"{TAG}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")})
#: values after all aliases are followed; a small file of nested aliases can ask for billions
MAX_VALUES = 500_000
_SURROGATE = re.compile("[\ud800-\udfff]")


class WrittenInt(int):
    """A whole number that remembers how it was written (`007`)."""

    text: str


class WrittenFloat(float):
    """A number that remembers how it was written (`1.50`)."""

    text: str


def read_yaml(path: Path) -> Document:
    """The values of the file. Raises ConfigError when it cannot be read as YAML at all."""
    text = _text(path)
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = (error.problem or error.context or "it cannot be parsed").strip()
        raise _refusal(path, f"not valid YAML: {what}", mark.line + 1 if mark else 1) from error
    except (YAMLError, ValueError) as error:
        raise _refusal(path, f"not valid YAML: {str(error).splitlines()[0]}", 1) from error
    except RecursionError as error:
        raise _refusal(path, "nested too deeply to be a configuration", 1) from error
    if node is None or (isinstance(node, ScalarNode) and node.tag == f"{TAG}null"):
        raise _refusal(path, "the file is empty; `partner-bridge init` writes one to start from", 1)
    if not isinstance(node, MappingNode):
        raise _refusal(path, "the file must hold keys such as `crm:` and `sources:`", 1)
    document = Document(str(path))
    try:
        document.data = _Walk(document).mapping(node, ())
    except RecursionError as error:
        raise _refusal(path, "nested too deeply to be a configuration", 1) from error
    return document


def plain_value(text: str, tag: str | None = None) -> Any:
    """What a plain scalar means in YAML 1.2; without a tag the text decides, as for a variable's."""
    kind = _kind(text) if tag is None else tag.removeprefix(TAG)
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        if kind == "int":
            whole = WrittenInt(text, 0 if text.lstrip("+-")[:2].lower() in {"0x", "0o"} else 10)
            whole.text = text
            return whole
        if kind == "float":
            number = WrittenFloat(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            number.text = text
            return number
    except ValueError:
        return text
    return text


def _kind(text: str) -> str:
    """The core schema's name for what a plain scalar is."""
    if text in {"", "~", "null", "Null", "NULL"}:
        return "null"
    if text in {"true", "True", "TRUE", "false", "False", "FALSE"}:
        return "bool"
    if re.fullmatch(r"[-+]?(?:[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", text, re.ASCII):
        return "int"
    number = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    return "float" if re.fullmatch(number, text, re.ASCII) else "str"


def _text(path: Path) -> str:
    """The file's text without a byte order mark. Raises ConfigError with one clear sentence."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        hint = "`partner-bridge init` writes one, and `--config` names another"
        raise ConfigError([Problem("", f"there is no configuration file {path}; {hint}")]) from error
    except IsADirectoryError as error:
        raise ConfigError([Problem("", f"{path} is a directory; name the configuration file in it")]) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _refusal(path, "not UTF-8; save the file as UTF-8", line) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = "make it readable for the user that runs partner-bridge, or name another with --config"
        raise ConfigError([Problem("", f"the configuration file {path} cannot be read: {reason}; {hint}")]) from error


def _refusal(path: Path, message: str, line: int) -> ConfigError:
    return ConfigError([Problem("", message, line, str(path))])


class _Walk:
    """Turns nodes into values, noting places and problems in the document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.open: set[int] = set()
        self.values = 0

    def value(self, node: Node, keys: Keys) -> Any:
        self.values += 1
        if id(node) in self.open or self.values > MAX_VALUES:
            cyclic = "an alias stands inside its own anchor" if id(node) in self.open else "too many values"
            raise ConfigError([Problem(dotted(keys), cyclic, node.start_mark.line + 1, self.document.file)])
        self.document.places.setdefault(keys, self._place(node))
        if isinstance(node, ScalarNode):
            return self.scalar(node, keys)
        self.open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                self._tag(node, keys)
                return [self.value(child, (*keys, index)) for index, child in enumerate(node.value)]
            return self.mapping(node, keys)
        finally:
            self.open.discard(id(node))

    def scalar(self, node: ScalarNode, keys: Keys) -> Any:
        tag = str(node.tag)
        if tag in {f"{TAG}timestamp", f"{TAG}merge", f"{TAG}value"}:
            return node.value
        self._tag(node, keys)
        return plain_value(self._text(node, keys), tag)

    def mapping(self, node: Node, keys: Keys) -> dict[str, Any]:
        self._tag(node, keys)
        self.document.places.setdefault(keys, self._place(node))
        values: dict[str, Any] = {}
        first: dict[str, int] = {}
        merges: list[Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if str(key_node.tag) == f"{TAG}merge":
                merges += _merged(value_node)
            elif not isinstance(key_node, ScalarNode):
                self._wrong(keys, "a key must be text", line)
            elif (name := self._text(key_node, keys)) in first:
                self._wrong((*keys, name), f"stands here and in line {first[name]}; keep one", line)
            else:
                first[name] = line
                self.document.places[*keys, name] = Place(self.document.file, line)
                values[name] = self.value(value_node, (*keys, name))
        for merge in merges:
            if not isinstance(merge, MappingNode):
                self._wrong(keys, "`<<` takes an alias of a mapping", merge.start_mark.line + 1)
                continue
            for name, value in self._inherited(merge, keys, frozenset(values)):
                values.setdefault(name, value)
        return values

    def _inherited(self, merge: Node, keys: Keys, own: frozenset[str]) -> Iterator[tuple[str, Any]]:
        """What `<<` brings; places of keys that the mapping has itself stay its own."""
        before = {
            place: at
            for place, at in self.document.places.items()
            if len(place) > len(keys) and place[: len(keys)] == keys and place[len(keys)] in own
        }
        merged = self.value(merge, keys)
        self.document.places.update(before)
        yield from merged.items()

    def _tag(self, node: Node, keys: Keys) -> None:
        if str(node.tag) not in KNOWN_TAGS:
            self._wrong(keys, f"the tag {node.tag} means nothing here; leave it out", node.start_mark.line + 1)

    def _text(self, node: ScalarNode, keys: Keys) -> str:
        """A scalar's text; two escapes that make one character, as JSON writes it, become that character."""
        text = str(node.value)
        if _SURROGATE.search(text) is None:
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            half = "holds half of a character, such as the escape \\ud83d alone; write the character itself"
            self._wrong(keys, half, node.start_mark.line + 1)
            return ""

    def _wrong(self, keys: Keys, message: str, line: int) -> None:
        self.document.problems.append(Problem(dotted(keys), message, line, self.document.file))

    def _place(self, node: Node) -> Place:
        return Place(self.document.file, node.start_mark.line + 1)


def _merged(node: Node) -> list[Node]:
    return list(node.value) if isinstance(node, SequenceNode) else [node]
