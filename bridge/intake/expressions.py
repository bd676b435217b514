"""Expressions of the configuration: JMESPath text to something that reads events.

A plain path (`a.b.c`, `a[0].b`, `_headers.x_topic`, `@`) tells an absent key from a null; for any
other expression null means absent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError, JMESPathTypeError, LexerError, ParseError
from marshmallow import missing as ABSENT  # noqa: N812 (a constant)

from bridge.errors import MappingError, PayloadError
from bridge.intake import language
from bridge.intake.interpreter import ExpressionError, Frame, Run, StepsError, build, is_false
from bridge.intake.language import (
    VARIABLES,
    Functions,
    Node,
    Path,
    calls,
    has_loose_reference,
    literals,
    makes,
    plain_path,
    uses,
)
from bridge.intake.payload import SURROGATE, parse_json_text, printable

__all__ = [
    "ABSENT",
    "Expression",
    "ExpressionError",
    "Frame",
    "Needs",
    "StepsError",
    "compile_expression",
    "negates_first_step",
]

#: Headers that hold credentials: no expression sees them, so no journal keeps them.
CREDENTIALS = frozenset({"authorization", "proxy_authorization", "cookie"})


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression. `get(event, frame)` gives the value or ABSENT, or raises ExpressionError.

    `path` holds the keys and indices of a plain path, and is None for any other expression. `makes`: the expression may
    put together what it gives, even what no body may hold.
    """

    text: str
    path: Path | None
    get: Callable[[Any, Frame], Any]
    variables: frozenset[tuple[str, tuple[str, ...]]]
    makes: bool = False

    @property
    def plain(self) -> bool:
        """Whether it tells an absent key from a null."""
        return self.path is not None

    def matches(self, event: Any, frame: Frame) -> bool:
        """Whether a condition holds; one that cannot be evaluated does not. Raises StepsError."""
        try:
            value = self.get(event, frame)
        except StepsError:
            raise
        except ExpressionError:
            return False
        return value is not ABSENT and not is_false(value)


def negates_first_step(text: str) -> bool:
    """Whether it holds something like `!a.b`, which is not what it reads like. See `language.negates_first_step`."""
    try:
        return language.negates_first_step(jmespath.compile(text).parsed)
    except (JMESPathError, RecursionError):
        return False


def compile_expression(text: str, path: Path) -> Expression:
    """The expression in `text`. Raises MappingError at `path`: bad syntax, no such function."""
    try:
        tree = jmespath.compile(text).parsed
        run = build(tree)
    except JMESPathError as error:
        raise MappingError(path, f"{text!r} is not JMESPath: {_syntax(error)}") from error
    except RecursionError as error:
        raise MappingError(path, "the expression is nested too deep") from error
    for name, count in calls(tree):
        expected = Functions.arity(name)
        if expected is None:
            raise MappingError(path, f"{text!r} calls {name}(), which does not exist")
        if count < expected[0] or (count > expected[0] and not expected[1]):
            raise MappingError(path, f"{text!r}: {name}() takes {expected[0]} arguments, not {count}")
    _refuse_misuse(tree, text, path)
    steps = plain_path(tree)
    variables = frozenset(uses(tree))
    if steps is None:
        return Expression(text, path=None, get=_guarded(run), variables=variables, makes=makes(tree))
    begins_with = bool(steps) and steps[0] in VARIABLES and bool(variables)
    return Expression(text, path=steps, get=_getter(steps, variable=begins_with), variables=variables)


def _refuse_misuse(tree: Node, text: str, path: Path) -> None:
    """Raise MappingError for what JMESPath lets pass and no event can bear."""
    if has_loose_reference(tree):
        raise MappingError(path, f"{text!r}: `&` belongs into map(), sort_by(), max_by() or min_by() only")
    for value in literals(tree):
        try:
            parse_json_text(json.dumps(value))
        except PayloadError as error:
            raise MappingError(path, f"{text!r}: a literal in it is no JSON: {error}") from error
        if SURROGATE.search(json.dumps(value, ensure_ascii=False)):
            raise MappingError(path, f"{text!r}: a literal in it holds half a surrogate pair, which is no character")


class Needs:
    """Which parts of a request expressions look at: only these are kept with an event."""

    def __init__(self, expressions: Iterable[Expression]) -> None:
        variables = [used for expression in expressions for used in expression.variables]
        paths: dict[str, set[tuple[str, ...]]] = {name: set() for name in VARIABLES}
        for name, path in variables:
            paths[name].add(path)
        self.index = bool(paths["_index"])
        self.root = bool(paths["_root"])
        self.headers = self._names(paths["_headers"])
        self.query = self._names(paths["_query"])
        self._root_paths = paths["_root"]

    @staticmethod
    def _names(paths: set[tuple[str, ...]]) -> frozenset[str] | None:
        """The names that are read; None: computed at run time, so all of them."""
        return None if () in paths else frozenset(path[0] for path in paths)

    def headers_of(self, headers: Mapping[str, str], *, hidden: frozenset[str]) -> dict[str, str]:
        """Those of a request's headers that are looked at, as `_headers` names them."""
        if self.headers is not None and not self.headers:
            return {}
        named = {_header_key(name): value for name, value in headers.items()}
        wanted = named.keys() if self.headers is None else self.headers
        return {name: named[name] for name in wanted if name in named and name not in hidden}

    def header_faults(self, *, hidden: frozenset[str]) -> Iterator[str]:
        """What is wrong with the headers that are looked at by name."""
        for name in sorted(self.headers or ()):
            if name in hidden:
                yield f"_headers.{name} holds a credential, which no expression may read"
            elif name != (known := _header_key(name)):
                yield f'_headers."{name}" is never there: write _headers.{known}, in lower case and with underscores'

    def query_of(self, query: Mapping[str, str]) -> dict[str, str]:
        """Those of the query's parameters that are looked at."""
        wanted = query.keys() if self.query is None else self.query
        return {name: query[name] for name in wanted if name in query}

    def root_of(self, root: Any) -> Any:
        """Those parts of the whole payload that are looked at."""
        return _prune(root, self._root_paths)


def _header_key(name: str) -> str:
    return name.lower().replace("-", "_")


def _prune(value: Any, paths: set[tuple[str, ...]]) -> Any:
    if () in paths or type(value) is not dict:
        return value
    tails: dict[str, set[tuple[str, ...]]] = {}
    for path in paths:
        tails.setdefault(path[0], set()).add(path[1:])
    return {key: _prune(value[key], rest) for key, rest in tails.items() if key in value}


def _guarded(run: Run) -> Callable[[Any, Frame], Any]:
    def get(event: Any, frame: Frame) -> Any:
        try:
            value = run(event, frame)
        except StepsError:
            raise
        except Exception as error:  # what a function meets in a payload may raise anything
            raise ExpressionError(_failure(error)) from error
        return ABSENT if value is None else value

    return get


def _getter(steps: Path, *, variable: bool) -> Callable[[Any, Frame], Any]:
    """Reads a plain path. Keys of objects and indices of lists only; all else is absent."""
    if variable:
        name, rest = str(steps[0]), _getter(steps[1:], variable=False)
        return lambda _event, frame: rest(getattr(frame, name), frame)
    if any(isinstance(step, int) for step in steps):
        return _mixed_getter(steps)
    if len(steps) == 1:
        (key,) = steps
        return lambda event, _frame: event.get(key, ABSENT) if type(event) is dict else ABSENT

    def get(event: Any, _frame: Frame) -> Any:
        try:
            for key in steps:
                event = event[key]
        except (KeyError, TypeError):  # TypeError: not an object on the way
            return ABSENT
        return event

    return get


def _mixed_getter(steps: Path) -> Callable[[Any, Frame], Any]:
    def get(event: Any, _frame: Frame) -> Any:
        for step in steps:
            if isinstance(step, str):
                event = event.get(step, ABSENT) if type(event) is dict else ABSENT
            else:
                event = event[step] if type(event) is list and step < len(event) else ABSENT
        return event

    return get


def _syntax(error: JMESPathError) -> str:
    if isinstance(error, LexerError):
        return f"{error.message} at column {error.lexer_position}"
    if isinstance(error, ParseError):
        return f"unexpected {error.token_value!r} at column {error.lex_position}"
    return str(error).partition("\n")[0]


def _failure(error: Exception) -> str:
    # the library's own message quotes the whole value, which may be a payload
    if isinstance(error, JMESPathTypeError):
        expected = " or ".join(str(name) for name in error.expected_types)
        return f"{error.function_name}() takes {expected}, not {error.actual_type}"
    return f"the expression failed: {printable(str(error)[:120])}" if str(error) else "the expression failed"
