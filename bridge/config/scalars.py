"""Marshmallow fields of the file's scalars; each may also be `{env: NAME, default: …}` or `{file: PATH}`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from marshmallow import ValidationError, fields

from bridge.config.surroundings import surroundings
from bridge.config.yaml_file import WrittenFloat, WrittenInt, plain_value

MESSAGES = {"required": "is missing", "null": "has no value: give it one, or remove the key"}


class Worded(fields.Field[Any]):
    """Our words for what marshmallow finds missing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("error_messages", MESSAGES)
        super().__init__(*args, **kwargs)


def is_reference(value: object) -> bool:
    """Whether a value says where it is to be had, instead of being it."""
    return isinstance(value, Mapping) and bool(value) and set(value) <= {"env", "default", "file"}


def reference(value: Mapping[str, Any]) -> tuple[str | None, Path | None]:
    """The variable or the file that a reference names. Raises ValidationError."""
    env, file = value.get("env"), value.get("file")
    if (env is None) == (file is None) or (file is not None and "default" in value):
        raise ValidationError("write either {env: NAME}, {env: NAME, default: …} or {file: PATH}")
    name = env if file is None else file
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValidationError(f"`{'env' if file is None else 'file'}` must name one, not {kind(name)}")
    return (env, None) if file is None else (None, surroundings.get().folder / name)


def kind(value: object) -> str:
    """A value as a message may show it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case WrittenInt() | WrittenFloat():
            return value.text
        case Mapping():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return f"{value[:40]!r}"
        case _:
            return str(value)


class Scalar(Worded):
    """Follows references before the field looks at the value."""

    #: whether what a variable or file holds stays text, or is read as YAML would read it
    keeps_text = False

    def deserialize(
        self, value: Any, attr: str | None = None, data: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        if is_reference(value):
            value = self._follow(value)
        return super().deserialize(value, attr, data, **kwargs)

    def _follow(self, value: Mapping[str, Any]) -> Any:
        env, file = reference(value)
        if env is not None:
            text = surroundings.get().environ.get(env, "").strip()
            if not text and "default" in value:
                return value["default"]
            if not text:
                raise ValidationError(f"the environment variable {env} is not set")
            if not is_unicode(text):
                raise ValidationError(f"the environment variable {env} is not UTF-8")
        else:
            try:
                text = Path(str(file)).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValidationError(f"the file {file} cannot be read: {reason(error)}") from error
            if not text:
                raise ValidationError(f"the file {file} is empty")
        return text if self.keeps_text else plain_value(text)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: no half of a surrogate pair is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def reason(error: OSError | UnicodeDecodeError) -> str:
    """Why a file cannot be read, in few words."""
    return str(error.strerror) if isinstance(error, OSError) else "it is not UTF-8"


class Text(Scalar, fields.String):
    """Text; a number counts as the text it was written as."""

    keeps_text = True

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        if isinstance(value, (WrittenInt, WrittenFloat)):
            value = value.text
        if not isinstance(value, str):
            raise ValidationError(f"must be text, not {kind(value)}")
        if not value.strip():
            raise ValidationError("must not be blank")
        return value


class Constant(Text):
    """Any scalar as text: `true` is `"true"`, `1.50` stays `"1.50"`, and `""` is allowed."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return value if isinstance(value, str) else super()._deserialize(value)


class Affix(Text):
    """Text that may be blank, such as a prefix."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        return value if isinstance(value, str) else super()._deserialize(value)


class Expression(Text):
    """A JMESPath expression; the intake room compiles it."""


class Whole(Scalar, fields.Integer):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValidationError(f"must be a whole number, not {kind(value)}")
        return int(value)


class Flag(Scalar, fields.Boolean):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError(f"must be true or false, not {kind(value)}")
        return value


class Choice(Text):
    """One of a few words."""

    def __init__(self, *choices: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.choices = choices

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = str(value).lower() if isinstance(value, bool) else super()._deserialize(value)
        if text not in self.choices:
            near = nearest(text, self.choices)
            hint = f"did you mean {near!r}? It" if near else "it"
            raise ValidationError(f"{text!r} is not known; {hint} is one of {', '.join(self.choices)}")
        return text


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that a misspelt or shortened `word` most likely means."""
    known = list(words)
    start = word[: max(3, len(word) - 1)]
    longer = [other for other in known if len(word) >= 3 and other.startswith(start)]
    return next(iter(longer or difflib.get_close_matches(word, known, n=1, cutoff=0.6)), None)
