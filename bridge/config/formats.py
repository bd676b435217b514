"""Scalars with a form of their own: durations, sizes, addresses, URLs, time zones, files."""

from __future__ import annotations

import math
import re
import zoneinfo
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlsplit

from marshmallow import ValidationError, fields

from bridge.config import units
from bridge.config.scalars import Scalar, Text, kind, nearest
from bridge.config.surroundings import surroundings
from bridge.config.yaml_file import WrittenFloat, WrittenInt


class Duration(Scalar, fields.String):
    """Seconds from text such as `30s`; longer than nothing unless `zero` is allowed."""

    def __init__(self, *, zero: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.zero = zero

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        try:
            seconds = units.parse_duration(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error
        if not seconds and not self.zero:
            raise ValidationError("must be longer than nothing")
        return seconds

    def _serialize(self, value: Any, *_: Any, **__: Any) -> Any:
        return units.format_duration(value)


class Size(Scalar, fields.String):
    """Bytes from text such as `1MiB`, or from a whole number."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        try:
            size = units.parse_size(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error
        if not size:
            raise ValidationError("must be more than nothing")
        return size

    def _serialize(self, value: Any, *_: Any, **__: Any) -> Any:
        return units.format_size(value)


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
