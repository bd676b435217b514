"""One YAML 1.2 file as plain values, each with its line.

The file is walked as ruamel's node graph, not as its loaded objects: only nodes know the line of
every scalar, let all duplicate keys be reported at once, and keep keys as they are written
(`007`, `yes` and `2026-01-02` are text where text is wanted). Nodes take ten times the room of what they become,
so each source's are given up as soon as it is read: a file of hundreds of sources fits beside the service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bridge.errors import ConfigError, Problem

# --- what was read from YAML: plain values, and the place of each of them ---

#: the way to a value, such as ("sources", "acme", "verify", "secrets", 0)
Keys = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands; lines count from 1."""

    file: str
    line: int


@dataclass(slots=True)
class Document:
    """One file's values, the place of each, and what is wrong with its form."""

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, keys: Keys) -> Place:
        """Where `keys` stands, or else the innermost thing around it that is in the file."""
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.places:
                return self.places[keys[:length]]
        return Place(self.file, 1)

    def known(self, keys: Keys) -> Keys:
        """As much of `keys` as is in the file."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.places:
                return keys[:length]
        return ()

    def problem(self, keys: Keys, message: str) -> Problem:
        place = self.place(keys)
        return Problem(dotted(keys), message, place.line, place.file)


def dotted(keys: Keys) -> str:
    """`sources.acme.verify.secrets[0]`, as problems name it."""
    return "".join(
        f"[{key}]" if isinstance(key, int) else f".{key}" if index else key for index, key in enumerate(keys)
    )


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
    document = Document(str(path))
    walk = _Walk(document)
    try:
        node = _reader(walk).compose(text)
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
    try:
        document.data = walk.mapping(node, ())
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
    return _refusal_at("", message, line, str(path))


def _refusal_at(key: str, message: str, line: int, file: str) -> ConfigError:
    return ConfigError([Problem(key, message, line, file)])


def _reader(walk: _Walk) -> YAML:
    """A YAML parser that gives up the nodes of each source, and of what else the file holds, once they are walked."""

    class Reader(Composer):
        root: Node | None = None
        sources: Node | None = None
        enters_sources = False

        def compose_node(self, parent: Node | None, index: Any) -> Any:
            if self.root is None:
                self.root = parent
            if self.enters_sources:
                self.sources, self.enters_sources = parent, False
            if parent is None or not isinstance(index, ScalarNode) or parent not in (self.root, self.sources):
                return super().compose_node(parent, index)
            self.enters_sources = parent is self.root and index.value == "sources"
            node = super().compose_node(parent, index)
            if parent is self.root and index.value == "sources":
                self.enters_sources = False
                return node
            # What is composed just now, of which no alias may hold: `sources` itself is done when another key is.
            around = [each for each in (self.root, None if parent is self.root else self.sources) if each is not None]
            return walk.early(node, index, around, parent)

    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = Reader
    return yaml


class _Walked(Node):
    """Stands for a node that was walked and given up."""

    __slots__ = ("result",)
    result: Any


class _Walk:
    """Turns nodes into values, noting places and problems in the document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.open: set[int] = set()
        self.values = 0
        self._at = Place(document.file, 1)
        self._early: set[Keys] = set()

    def early(self, node: Node, key: ScalarNode, around: list[Node], parent: Node) -> Node:
        """The value of a key of the file, or of one of its sources, walked while the file is being read; `around` are
        the nodes that hold it, the file first. What is another one's place, a key twice say, is left for later.
        """
        name = str(key.value)
        keys: Keys = (name,) if parent is around[0] else ("sources", name)
        if keys in self._early or str(key.tag) == f"{TAG}merge" or _SURROGATE.search(name):
            return node
        self._early.add(keys)
        self.document.places.setdefault(keys, self._place(key))
        self.open.update(map(id, around))
        walked = _Walked(node.tag, None, node.start_mark, node.end_mark)
        walked.result = self.value(node, keys)
        self.open.difference_update(map(id, around))
        return walked

    def value(self, node: Node, keys: Keys) -> Any:
        if isinstance(node, _Walked):
            return node.result
        self.values += 1
        if id(node) in self.open:
            raise self._ends("an alias stands inside its own anchor", node, keys)
        if self.values > MAX_VALUES:
            many = f"too many values, over {MAX_VALUES} once aliases are followed; give some sources to another service"
            raise self._ends(many, node, keys)
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
                inner = (*keys, name)
                self.document.places.setdefault(inner, self._place(key_node))
                values[name] = self.value(value_node, inner)
        for merge in merges:
            if not isinstance(merge, MappingNode):
                self._wrong(keys, "`<<` takes an alias of a mapping", merge.start_mark.line + 1)
                continue
            for name, value in self.value(merge, keys).items():
                values.setdefault(name, value)
        return values

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
        if (line := node.start_mark.line + 1) != self._at.line:
            self._at = Place(self.document.file, line)
        return self._at

    def _ends(self, why: str, node: Node, keys: Keys) -> ConfigError:
        return _refusal_at(dotted(keys), why, node.start_mark.line + 1, self.document.file)


def _merged(node: Node) -> list[Node]:
    return list(node.value) if isinstance(node, SequenceNode) else [node]
