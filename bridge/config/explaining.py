"""What there is to tell of each key of `bridge.yaml`, for `explain` and the reference page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from marshmallow import fields, validate

from bridge.config import scalars
from bridge.config.blocks import NO_DEFAULT, Block, Entries, Free, Items, Nested, OneOrMore, Shorthand
from bridge.config.scalars import nearest
from bridge.config.source_schemas import FileSchema
from bridge.errors import BridgeError

#: What a field reads, and an example for a key that has none of its own.
WORDS: dict[type, tuple[str, str | None]] = {
    scalars.Expression: ("JMESPath", None),
    scalars.HeaderName: ("name of a header", None),
    scalars.ExistingFile: ("file", None),
    scalars.Url: ("URL", None),
    scalars.UrlPath: ("path of a URL", None),
    scalars.Zone: ("time zone", "Europe/Madrid"),
    scalars.Constant: ("text, number or true/false", None),
    scalars.Text: ("text", None),
    scalars.Whole: ("whole number", None),
    scalars.Flag: ("true or false", "true"),
    scalars.Duration: ("duration: a number with ms, s, m, h or d", None),
    scalars.Size: ("size: bytes, or a number with kB, MB, GB, KiB, MiB, GiB", "10MiB"),
    scalars.Factor: ("number", None),
    scalars.Address: ("host:port", None),
    scalars.Credential: ("secret: {env: NAME} or {file: PATH}", None),
    Free: ("any value", None),
    Nested: ("mapping of keys", None),
}


@dataclass(frozen=True, slots=True)
class Explained:
    """One key. `path` has `*` for a name or an item; `block` is what stands within; default and example are YAML."""

    path: tuple[str, ...]
    about: str
    kind: str
    default: str | None = None
    example: str | None = None
    required: bool = False
    block: type[Block] | None = None

    def __str__(self) -> str:
        return ".".join(self.path)

    @property
    def name(self) -> str:
        return self.path[-1]

    def facts(self) -> Iterator[tuple[str, str]]:
        """What there is to tell beside the sentence, each under its name."""
        yield "type", self.kind
        if self.required:
            yield "required", "yes"
        if self.default is not None:
            yield "default", self.default
        if self.example is not None:
            yield "example", f"{self.name}: {self.example}"


def all_keys() -> list[Explained]:
    """Every key of the file, each before those within it."""
    return list(_keys(FileSchema, ()))


def explained(key: str) -> Explained:
    """The key of that path, in which a name or a position may stand for `*`. Raises BridgeError if there is none."""
    wanted = [part for part in re.split(r"[.\[\]]+", key) if part]
    known = all_keys()
    found = _found(known, wanted)
    if found is None:
        near = _near(known, wanted)
        hint = f"did you mean {near}?" if near is not None else "`partner-bridge explain` lists all"
        raise BridgeError(f"there is no key {key or 'without a name'}; {hint}")
    return found


def _keys(block: type[Block], path: tuple[str, ...]) -> Iterator[Explained]:
    for name, field in block.fields_by_key().items():
        here = (*path, name)
        default, example = field.metadata.get("usual"), field.metadata.get("sample")
        usual = None if default in NO_DEFAULT else _yaml(field._serialize(default, "", None))  # noqa: SLF001 (as apispec)
        inner, at = _inside(field, here)
        yield Explained(
            path=here,
            about=field.metadata["description"],
            kind=_kind(field),
            default=usual,
            example=example or _example(field, usual),
            required=field.required,
            block=inner if at == here else None,
        )
        if inner is not None:
            if at != here:
                yield Explained(at, inner.about(), _kind(_one(field)), block=inner)
            yield from _keys(inner, at)


def _one(field: fields.Field[Any]) -> fields.Field[Any]:
    """What stands in a list, or under a name."""
    inner = field.inner if isinstance(field, Items) else field.value_field if isinstance(field, Entries) else None
    return field if inner is None else inner


def _inside(field: fields.Field[Any], path: tuple[str, ...]) -> tuple[type[Block] | None, tuple[str, ...]]:
    """The block in a key, and where it stands."""
    one = _one(field)
    at = path if one is field else (*path, "*")
    return (one.block, at) if isinstance(one, Nested) else (None, path)


def _kind(field: fields.Field[Any]) -> str:
    match field:
        case OneOrMore():
            return "text, or a list of texts"
        case Items():
            return f"list, each: {_kind(_one(field))}"
        case Entries():
            return f"names, each with: {_kind(_one(field))}"
        case Shorthand():
            return f"mapping of keys, or `{field.key}` alone: {_kind(field.scalar)}"
        case scalars.Choice():
            return f"one of {', '.join(map(_yaml, field.choices))}"
    words, _ = _words(field)
    for limit in field.validators:
        if isinstance(limit, validate.Range):
            return f"{words}, {limit.min} or more" if limit.max is None else f"{words}, {limit.min} to {limit.max}"
    return words


def _words(field: fields.Field[Any]) -> tuple[str, str | None]:
    return next(WORDS[made] for made in type(field).__mro__ if made in WORDS)


def _example(field: fields.Field[Any], usual: str | None) -> str | None:
    if isinstance(field, scalars.Choice):
        return next(text for text in map(_yaml, field.choices) if text != usual)
    if isinstance(field, (Items, Entries)):
        return None
    return _words(field)[1] or usual


def _yaml(value: object) -> str:
    """A scalar as YAML."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w/][\w./:-]*", value) else json.dumps(value)


def _found(known: Sequence[Explained], wanted: Sequence[str]) -> Explained | None:
    fitting = (
        key
        for key in known
        if len(key.path) == len(wanted) and all(part in {"*", one} for part, one in zip(key.path, wanted, strict=True))
    )
    return next(fitting, None)


def _near(known: Sequence[Explained], wanted: Sequence[str]) -> str | None:
    """The key that is most likely meant."""
    if not wanted:
        return None
    *around, name = wanted
    parent = _found(known, around) if around else None
    block = FileSchema if not around else parent.block if parent is not None else None
    if block is not None and (meant := block.meant_by(name)) is not None:
        return ".".join([*(parent.path if parent is not None else ()), meant])
    name = nearest(name, [key.name for key in known]) or name
    namesakes = [str(key) for key in known if key.name == name]
    return nearest(".".join(wanted), map(str, known)) or next(iter(namesakes), None)
