"""What all schemas of the file share: keys that come from `bridge.settings`, strict and with hints; relations."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validate, validates_schema
from marshmallow.schema import SchemaMeta

from bridge.config.scalars import (
    FORMS,
    Address,
    Choice,
    Constant,
    Credential,
    Duration,
    ExistingFile,
    Expression,
    Flag,
    Scalar,
    Text,
    Whole,
    Worded,
    is_reference,
    kind,
    nearest,
)
from bridge.config.yaml_file import Keys
from bridge.settings import Key, Secret

Complaints = Iterator[tuple[Keys, str]]
#: What reads a key, made of what is common to all keys.
Reader = Callable[..., fields.Field[Any]]
#: What a key has whose default is not worth telling.
NO_DEFAULT = (dataclasses.MISSING, None, "", ())
#: By what they make.
SCHEMAS: dict[type, type[Block]] = {}


class _FromDataclass(SchemaMeta):
    """Gives a schema a field for each key of the dataclasses that it is made for."""

    @classmethod
    def get_declared_fields(  # type: ignore[override]  # the class is one of ours
        mcs,  # noqa: N804 (a metaclass)
        klass: type[Block],
        cls_fields: list[tuple[str, fields.Field[Any]]],
        inherited_fields: list[tuple[str, fields.Field[Any]]],
        dict_cls: type[dict[str, Any]] = dict,
    ) -> dict[str, fields.Field[Any]]:
        found = dict_cls(inherited_fields)
        for made in filter(dataclasses.is_dataclass, (klass.makes, *klass.takes_keys_of)):
            hints = get_type_hints(made, include_extras=True)
            for field in dataclasses.fields(made):
                hint = hints[field.name]
                if get_origin(hint) is Annotated and field.name not in {*found, *klass.leaves_out}:
                    found[field.name] = _field(field, hint, klass)
        SCHEMAS[klass.makes] = klass
        return {**found, **dict(cls_fields)}


def _field(declared: dataclasses.Field[Any], hint: Any, block: type[Block]) -> fields.Field[Any]:
    """What reads a key of a dataclass."""
    hint, key = get_args(hint)
    if NoneType in get_args(hint):
        (hint,) = (each for each in get_args(hint) if each is not NoneType)
    default = declared.default
    has_default = default is not dataclasses.MISSING or declared.default_factory is not dataclasses.MISSING
    common: dict[str, Any] = {
        "required": not has_default and declared.name not in block.may_lack,
        "metadata": about(key.about, key.example, usual=default),
    }
    if (name := key.name or declared.name.removesuffix("_s").rstrip("_")) != declared.name:
        common["data_key"] = name
    if declared.name in block.reads:
        reader = block.reads[declared.name]
    elif key.form is not None:
        reader = FORMS[key.form]
    elif get_origin(hint) is Literal:
        return Choice(*get_args(hint), **common)
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return Nested(schema_of(hint), **common)
    elif hint is float:
        return Duration(zero=key.least == 0, **common)
    else:
        reader = READERS[hint]
    if (limit := _limit(hint, key)) is not None:
        common["validate"] = limit
    return reader(**common)


def _limit(hint: Any, key: Key) -> validate.Validator | None:
    if key.least is None:
        return None
    if hint is not int:
        assert key.most is None, "only of a number"  # noqa: S101 (a mistake in `settings`, met by every test)
        return validate.Length(key.least, error="must not be empty" if hint is str else "must name at least one")
    error = "must be at least {min}" if key.most is None else "must be between {min} and {max}"
    return validate.Range(key.least, key.most, error=error)


def about(text: str, sample: str | None = None, usual: object = dataclasses.MISSING) -> dict[str, Any]:
    """What there is to tell of a field: a sentence, a value as YAML, and its default."""
    return {"description": text, "sample": sample, "usual": usual}


class Block(Schema, metaclass=_FromDataclass):
    """A mapping of known keys that becomes one frozen value of `bridge.settings`.

    `makes` is that value's class, whose keys these are: what the file leaves out takes the default that stands there.
    """

    makes: ClassVar[type] = NoneType
    #: further classes that declare keys of this block
    takes_keys_of: ClassVar[tuple[type, ...]] = ()
    #: fields of these classes that are no keys here
    leaves_out: ClassVar[Collection[str]] = ()
    #: fields that a value must have and whose key may be left out, or whose lack `relations` tells of
    may_lack: ClassVar[Collection[str]] = ()
    #: what reads a key whose type does not tell
    reads: ClassVar[Mapping[str, Reader]] = {}
    #: what stands for what a value must have, if that is faulty
    stand_ins: ClassVar[Mapping[str, Any]] = {}
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
        if not isinstance(original, Mapping):
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
        return self.build(data)

    def handle_error(self, error: ValidationError, data: Any, **_: Any) -> None:
        """Give unknown keys a hint, and hand on what is made of the sound ones, so that it is looked at too."""
        if not isinstance(data, Mapping) or not isinstance(error.messages, dict):
            return
        names = self.names()
        for key in data:
            if key not in names:
                near = self.meant_by(key)
                hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(names)}"
                error.messages[key] = [f"unknown key; {hint}"]
        faulty = {key for key, messages in error.messages.items() if isinstance(messages, list)}
        attributes = {field.data_key or name: name for name, field in self.fields.items()}
        sound = dict(error.valid_data or {})
        for key in faulty & attributes.keys():
            sound.pop(attributes[key], None)
        error.valid_data = self.sound_part(sound)

    @classmethod
    def sound_part(cls, data: Mapping[str, Any]) -> Any:
        """What is made of keys of which some are missing for their faults; None if nothing can be."""
        try:
            return cls().build({**cls.stand_ins, **data})
        except (KeyError, TypeError, ValidationError):
            return None

    @classmethod
    def about(cls) -> str:
        """What it is, in a sentence."""
        return inspect.cleandoc(cls.__doc__ or str(cls.makes.__doc__)).partition("\n\n")[0]

    @classmethod
    def fields_by_key(cls) -> dict[str, fields.Field[Any]]:
        """What reads each key that may stand here."""
        return {field.data_key or name: field for name, field in cls._declared_fields.items()}

    @classmethod
    def names(cls) -> list[str]:
        """The keys that may stand here."""
        return list(cls.fields_by_key())

    @classmethod
    def meant_by(cls, key: str) -> str | None:
        """The key that an unknown one most likely means."""
        return cls.aliases.get(key) or nearest(key, cls.names())


class Nested(Worded, fields.Nested):
    """A block within a block."""

    def __init__(self, block: type[Block], **kwargs: Any) -> None:
        super().__init__(block, **kwargs)
        self.block = block

    def _load(self, value: Any, partial: Any = None) -> Any:
        if not isinstance(value, Mapping):
            message = f"must be a mapping of keys, not {kind(value)}"
            raise ValidationError(message, valid_data=self.block.sound_part({}))
        return super()._load(value, partial=partial)


class Shorthand(Nested):
    """A block that may be written as one text: the value of its `key`."""

    def __init__(self, schema: type[Block], key: str, **kwargs: Any) -> None:
        super().__init__(schema, **kwargs)
        self.key = key
        self.scalar: Scalar = Expression() if key == "from" else Text()

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if is_reference(value) or not isinstance(value, Mapping):
            if isinstance(value, list):
                raise ValidationError(f"must be text or a mapping of keys, not {kind(value)}")
            value = {self.key: self.scalar.deserialize(value)}
        return super()._deserialize(value, *args, **kwargs)


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


class Formats(OneOrMore):
    """How dates are written."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return tuple(super()._deserialize(value, *args, **kwargs))


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
                if error.valid_data is not None:
                    found[name] = error.valid_data
        if errors:
            raise ValidationError(errors, valid_data=found)
        return found


class Free(Worded, fields.Raw):
    """Any value, such as a sample payload."""


#: What reads a key of a type; one whose text has a form is read as `FORMS` says.
READERS: Mapping[Any, Reader] = {
    str: Text,
    int: Whole,
    bool: Flag,
    Path: ExistingFile,
    Secret: Credential,
    tuple[str, int]: Address,
    tuple[str, ...]: Formats,
    tuple[Secret, ...]: partial(Items, Credential()),
    Mapping[str, str]: partial(Entries, Constant()),
}


def schema_of(made: type) -> type[Block]:
    """The schema that is written for a class, or one that has its keys and no more rules."""
    written: type[Block] | None = SCHEMAS.get(made)
    return written or types.new_class(
        f"{made.__name__}Schema", (Block,), exec_body=lambda body: body.update(makes=made)
    )


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
