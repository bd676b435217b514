"""What all schemas of the file share: strict keys with hints, relations, and one way to build settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validates_schema

from bridge.config.scalars import Text, Worded, kind, nearest, surroundings
from bridge.config.yaml_file import Keys

Complaints = Iterator[tuple[Keys, str]]


class Block(Schema):
    """A mapping of known keys that becomes one frozen value of `bridge.settings`.

    `makes` is that value's class: what the file leaves out takes the default that stands there.
    """

    makes: ClassVar[type]
    #: further classes whose defaults keys of this block take, for the JSON Schema
    more_defaults: ClassVar[tuple[type, ...]] = ()
    #: what people write, and what they mean by it
    aliases: ClassVar[Mapping[str, str]] = {}

    class Meta:
        unknown = RAISE

    error_messages: dict[str, str] = {"type": "must be a mapping of keys"}  # noqa: RUF012 (as marshmallow declares it)

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        """What is wrong between keys: the key it is told of, and the message.

        `data` lacks what is left out and what is wrong by itself; `given` is as written.
        """
        del data, given
        return iter(())

    def build(self, data: dict[str, Any]) -> Any:
        return self.makes(**data)

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _relate(self, data: Mapping[str, Any], original: object, **_: Any) -> None:
        if surroundings.get().lenient or not isinstance(original, Mapping):
            return
        errors: dict[Any, Any] = {}
        for keys, message in self.relations(data, original):
            inner = errors
            for key in keys[:-1]:
                inner = inner.setdefault(key, {})
            inner.setdefault(keys[-1] if keys else "_schema", []).append(message)
        if errors:
            raise ValidationError(errors)

    @post_load
    def _make(self, data: dict[str, Any], **_: Any) -> Any:
        try:
            return self.build(data)
        except TypeError as error:
            if surroundings.get().lenient:  # something that it must have has been left out
                raise ValidationError("is incomplete") from error
            raise

    def handle_error(self, error: ValidationError, data: Any, **_: Any) -> None:
        """Give unknown keys a hint."""
        if not isinstance(data, Mapping) or not isinstance(error.messages, dict):
            return
        names = self.names()
        for key in data:
            if key not in names:
                error.messages[key] = [self._unknown(key, names)]

    @classmethod
    def names(cls) -> list[str]:
        """The keys that may stand here."""
        return [field.data_key or name for name, field in cls._declared_fields.items()]

    def _unknown(self, key: str, names: list[str]) -> str:
        near = self.aliases.get(key) or nearest(key, names)
        if near:
            return f"unknown key; did you mean {near!r}?"
        return f"unknown key; known here: {', '.join(names)}"


class Nested(Worded, fields.Nested):
    """A block within a block."""

    def _load(self, value: Any, partial: Any = None) -> Any:
        if not isinstance(value, Mapping):
            raise ValidationError(f"must be a mapping of keys, not {kind(value)}")
        return super()._load(value, partial=partial)


class Items(Worded, fields.List[Any]):
    """A list; errors stand at their positions."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValidationError(f"must be a list, not {kind(value)}")
        return super()._deserialize(value, *args, **kwargs)


class OneOrMore(Items):
    """Texts; a single one needs no list."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(Text(), **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._deserialize(value if isinstance(value, list) else [value], *args, **kwargs)


class Entries(Worded, fields.Dict):
    """A mapping whose keys are names of the user's; errors stand at these names."""

    def __init__(self, values: fields.Field[Any], *, pattern: Any = None, rule: str = "", **kwargs: Any) -> None:
        super().__init__(keys=fields.String(), values=values, **kwargs)
        self.pattern = pattern
        self.rule = rule

    def _deserialize(self, value: Any, *_: Any, **kwargs: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise ValidationError(f"must be a mapping, not {kind(value)}")
        assert self.value_field is not None  # noqa: S101 (set by __init__)
        found: dict[Any, Any] = {}
        errors: dict[Any, Any] = {}
        for name, entry in value.items():
            if self.pattern is not None and not self.pattern.fullmatch(name):
                errors[name] = [self.rule]
                continue
            try:
                found[name] = self.value_field.deserialize(entry, name, value, **kwargs)
            except ValidationError as error:
                errors[name] = error.messages
        if errors:
            raise ValidationError(errors, valid_data=found)
        return found


class Free(Worded, fields.Raw):
    """Any value, such as a sample payload."""


def flatten(messages: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Marshmallow's nested messages as pairs of where and what."""
    if isinstance(messages, str):
        yield keys, messages
    elif isinstance(messages, list):
        for message in messages:
            yield from flatten(message, keys)
    else:
        for key, inner in messages.items():
            yield from flatten(inner, keys if key == "_schema" else (*keys, key))
