"""The file's scalars: fields, their forms and units, and what loading may look at besides the file."""

from __future__ import annotations

import difflib
import math
import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from marshmallow import ValidationError, fields, validate

from bridge.config.yaml_file import WrittenFloat, WrittenInt, plain_value
from bridge.intake.schemes import PARTS
from bridge.settings import Form, Secret

# --- what loading one part of the file may look at besides the file: variables, folder, purpose ---


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`folder` is where relative files of the part being loaded are looked for.

    `sandbox`: the CRM's token is not needed. `body`: how the source being loaded reads bodies.
    `public_url`: as it is written, sound or not.
    """

    environ: Mapping[str, str]
    folder: Path
    sandbox: bool = False
    body: str = "json"
    public_url: str | None = None


surroundings: ContextVar[Surroundings] = ContextVar("surroundings")


# --- durations (`500ms 30s 5m 24h 7d`) and sizes (`1MiB 20GiB 10MB`, or plain bytes) in text ---

MS_PER = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
BYTES_PER = {
    "B": 1,
    "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
}  # fmt: skip

DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)?(B|[kKMGT]B|[KMGT]iB)?$"

#: beyond this a duration is a slip of the finger, and time arithmetic would overflow
LONGEST_D = 36_500
LARGEST_BYTES = 1024**5

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds. Raises ValueError with a message that says how to write it."""
    how = "write a number with its unit, such as 500ms, 30s, 5m, 24h or 7d"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit: {how}")  # noqa: TRY004 (one kind of error for callers)
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"is not a duration: {how}")
    number, unit = match.groups()
    if unit not in MS_PER:
        raise ValueError(f"the unit {unit!r} is not known: {how}" if unit else f"{number} has no unit: {how}")
    ms = Decimal(number) * MS_PER[unit]
    if ms > LONGEST_D * MS_PER["d"]:
        raise ValueError(f"is longer than {LONGEST_D} days")
    return float(ms / 1000)


def parse_size(value: object) -> int:
    """Bytes. Raises ValueError with a message that says how to write it."""
    how = "write bytes, or a number with its unit, such as 512KiB, 1MiB, 20GiB or 10MB"
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = _QUANTITY.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"is not a size: {how}")
    number, unit = match.groups()
    if unit and unit not in BYTES_PER:
        raise ValueError(f"the unit {unit!r} is not known: {how}")
    size = Decimal(number) * BYTES_PER[unit or "B"]
    if size != size.to_integral_value():
        raise ValueError("is not a whole number of bytes")
    if size > LARGEST_BYTES:
        raise ValueError("is more than 1024TiB")
    return int(size)


def format_duration(seconds: float) -> str:
    """The shortest text in one unit that `parse_duration` turns back into whole milliseconds."""
    ms = round(seconds * 1000)
    for unit in ("d", "h", "m", "s"):
        if ms and ms % MS_PER[unit] == 0:
            return f"{ms // MS_PER[unit]}{unit}"
    return f"{ms}ms" if ms else "0s"


def format_size(size: int) -> str:
    """The shortest binary text that `parse_size` turns back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % BYTES_PER[unit] == 0:
            return f"{size // BYTES_PER[unit]}{unit}"
    return str(size)


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


# --- scalars with a form of their own: durations, sizes, addresses, URLs, time zones, files ---


class Duration(Scalar, fields.String):
    """Seconds from text such as `30s`; longer than nothing unless `zero` is allowed."""

    def __init__(self, *, zero: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.zero = zero

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error
        if not seconds and not self.zero:
            raise ValidationError("must be longer than nothing")
        return seconds

    def _serialize(self, value: Any, *_: Any, **__: Any) -> Any:
        return format_duration(value)


class Size(Scalar, fields.String):
    """Bytes from text such as `1MiB`, or from a whole number."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        try:
            size = parse_size(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error
        if not size:
            raise ValidationError("must be more than nothing")
        return size

    def _serialize(self, value: Any, *_: Any, **__: Any) -> Any:
        return format_size(value)


class Factor(Scalar, fields.String):
    """A decimal number kept as text, so that 0.01 stays 0.01."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = value.text if isinstance(value, (WrittenInt, WrittenFloat)) else value
        try:
            number = Decimal(text) if isinstance(text, str) else Decimal("NaN")
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite() or not number or not math.isfinite(float(number)):
            raise ValidationError(f"must be a number other than 0, such as 0.01, not {kind(value)}")
        return str(number)


class Address(Scalar, fields.String):
    """(host, port) from `host:port`, `[::]:8080` or `:8080`, which means all interfaces."""

    keeps_text = True

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        return parse_address(value)

    def _serialize(self, value: Any, *_: Any, **__: Any) -> Any:
        host, port = value
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(value: object) -> tuple[str, int]:
    """Raises ValidationError."""
    how = "write host:port, such as 0.0.0.0:8080, [::]:8080 or :8080"
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9._-]*)):([0-9]{1,5})", str(value), re.ASCII)
    if match is None or isinstance(value, bool):
        raise ValidationError(f"{kind(value)} is not an address: {how}")
    if int(match[3]) > 65_535:
        raise ValidationError(f"there is no port {match[3]}: {how}")
    return match[1] or match[2] or "0.0.0.0", int(match[3])  # noqa: S104 (as asked for)


class Url(Text):
    """An http(s) URL of a server, without query; a trailing slash is dropped."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        try:
            parts = urlsplit(text)
            sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound or re.search(r"[\s?#\\]", text):
            raise ValidationError("is not a URL such as https://api.example.com")
        return text.rstrip("/")


class Zone(Text):
    """The name of a time zone that exists."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        try:
            zoneinfo.ZoneInfo(text)
        except (KeyError, ValueError, OSError) as error:
            near = nearest(text, zoneinfo.available_timezones())
            hint = f"did you mean {near}?" if near else "write one such as Europe/Madrid or UTC"
            raise ValidationError(f"there is no time zone {text!r}; {hint}") from error
        return text


class ExistingFile(Text):
    """A file that is there, relative to the configuration file."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        path = surroundings.get().folder / super()._deserialize(value)
        if not path.is_file():
            raise ValidationError(f"there is no file {path}")
        return path


class UrlPath(Text):
    """A path below the CRM's base URL."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", text, re.ASCII):
            raise ValidationError("must be a path such as /crm/v3/objects")
        return text.rstrip("/")


#: Host, several of them, or none for a socket that the query names; and the database.
POSTGRESQL = re.compile(r"postgresql://(?:[^@/]*@)?(?P<hosts>[^/?#]*)/[^?#]+")


class JournalUrl(Text):
    """sqlite:///PATH or postgresql://HOST/DATABASE."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        if (fault := journal_url_fault(text)) is not None:
            raise ValidationError(fault)
        return text


def journal_url_fault(text: str) -> str | None:
    """What is wrong with a journal's URL, without showing it: it may hold a password."""
    how = "write sqlite:///journal.db, sqlite:////absolute/path.db or postgresql://user@host/database"
    if text.startswith("sqlite:///"):
        path = text.removeprefix("sqlite:///")
        if path in {"", ":memory:"} or path.startswith("file:"):
            return f"a journal in memory would lose what was accepted: {how}"
        return "names a directory, not a file" if path.endswith("/") else None
    if not text.startswith("postgresql://"):
        return f"is not a journal's URL: {how}"
    found = POSTGRESQL.match(text)
    try:
        # libpq tries several hosts in turn, which is how a primary is found again after a failover.
        sound = found is not None and all(urlsplit(f"//{host}").port != 0 for host in found["hosts"].split(","))
    except ValueError:
        sound = False
    return None if sound else f"names no database, or its host is unfit: {how}"


class HeaderName(Text):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", text, re.ASCII):
            raise ValidationError(f"{text!r} is not a header's name")
        return text


class Template(Text):
    """What is signed, such as {timestamp}.{body}."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        text = super()._deserialize(value)
        unknown = [part for part in re.findall(r"\{([^{}]*)\}", text) if part not in PARTS]
        if unknown or re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", text)):
            raise ValidationError(f"knows {', '.join('{' + part + '}' for part in PARTS)} and plain text, nothing else")
        if "{body}" not in text:
            raise ValidationError("must contain {body}, or anybody could change it")
        return text


#: what may stand between a number's thousands; a blank stands for every kind of space
MARKS = (".", ",", " ", "'", "\u2019", "_")


class Mark(Affix):
    """What stands between a number's thousands."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, *args, **kwargs)
        if text not in MARKS:
            raise ValidationError(f"{text!r} is none of the marks {', '.join(map(repr, MARKS))}")
        return text


PROPERTY_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,99}", re.ASCII)
PROPERTY_RULE = "is not a HubSpot property's name: lower-case letters, digits and underscores"


class Patterned(Text):
    """Text of a pattern; `rule` says what it is not."""

    def __init__(self, pattern: str, rule: str, **kwargs: Any) -> None:
        super().__init__(validate=validate.Regexp(pattern + r"\Z", error=rule), **kwargs)


# --- secrets ---


class Credential(Worded):
    """`{env: NAME}` or `{file: PATH}`; what it holds is looked at by the block it stands in."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Secret:
        if not is_reference(value):
            held = "has no place in this file" if isinstance(value, str) else f"cannot be {kind(value)}"
            raise ValidationError(f"a secret {held}: write {{env: NAME}} or {{file: PATH}}")
        assert isinstance(value, Mapping)  # noqa: S101 (a reference is one)
        env, file = reference(value)
        default = value.get("default")
        if default is not None and not isinstance(default, str):
            raise ValidationError(f"`default` must be text, not {kind(default)}")
        return Secret(env=env, file=file, default=default, environ=surroundings.get().environ)


#: What reads a key of each form.
FORMS: Mapping[Form, Callable[..., Scalar]] = {
    "class": partial(
        Patterned,
        r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*",
        "must be module.path:ClassName of a marshmallow Schema",
    ),
    "constant": Constant,
    "expression": Expression,
    "factor": Factor,
    "header": HeaderName,
    "journal": JournalUrl,
    "mark": Mark,
    "object type": partial(
        Patterned,
        r"[A-Za-z0-9][A-Za-z0-9_-]*",
        "is not an object type such as partner_clients, contacts or 2-12345",
    ),
    "path": UrlPath,
    "property": partial(Patterned, PROPERTY_NAME.pattern, PROPERTY_RULE),
    "signed": Template,
    "size": Size,
    "url": Url,
    "verbatim": Affix,
    "zone": Zone,
}
