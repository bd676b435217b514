"""`schema: module.path:ClassName`, a marshmallow schema of the user's own in place of `properties:`.

`load()` gets the event and returns {property: str | number | bool | date | datetime | list | None}.
None and blank text leave the property out, "" clears it. Keys of the event that the schema does not
name are left aside unless its `Meta` says otherwise; those that cannot be a property's name are invalid. Whatever the
schema raises concerns that one event only.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from datetime import tzinfo
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, missing
from marshmallow.exceptions import SCHEMA

from bridge.errors import MappingError
from bridge.intake.expressions import Scope
from bridge.intake.payload import printable
from bridge.intake.texts import PROPERTY_NAME, show, text_of_result
from bridge.intake.values import Reading, UnmappableError

_MAX_MESSAGE = 300


class OwnSchema:
    """The user's schema. As thread-safe as its `load` is; marshmallow's is."""

    def __init__(
        self, name: str, path: tuple[str | int, ...], zone: tzinfo | None, problems: list[MappingError]
    ) -> None:
        self._zone = zone
        self._schema = Schema()
        try:
            self._schema = import_schema(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a module of the user's may raise anything)
            missing_module = isinstance(error, ModuleNotFoundError)
            hint = "; it must stand beside this file, or where PYTHONPATH says" if missing_module else ""
            problems.append(MappingError(path, f"{name!r} cannot be used: {error}{hint}"))
        self._names = {
            field.data_key: field.attribute or key
            for key, field in self._schema.load_fields.items()
            if field.data_key is not None
        }

    def read(self, event: dict[str, Any], _scope: Scope) -> Reading:
        """See bridge.intake.values.Values."""
        invalid: dict[str, str] = {}
        try:
            loaded = self._schema.load(copy.deepcopy(event))  # a pre_load hook may change what it gets
        except ValidationError as error:
            messages: dict[str, Any] = error.normalized_messages()  # type: ignore[no-untyped-call]  # marshmallow leaves it bare
            if SCHEMA in messages:
                raise UnmappableError(_flat(messages[SCHEMA])) from error
            invalid = {_shown(self._names.get(str(key), str(key))): _flat(what) for key, what in messages.items()}
            loaded = error.valid_data or {}
        except Exception as error:
            raise UnmappableError(f"the schema raised {type(error).__name__}") from error
        if not isinstance(loaded, Mapping):
            raise UnmappableError(f"the schema returned {type(loaded).__name__}, not properties")
        valid: dict[str, str] = {}
        for key, value in loaded.items():
            name = _shown(str(key))
            if name in invalid:
                continue
            if name != str(key):
                invalid[name] = "is not the name of a property"
                continue
            try:
                text = text_of_result(value, self._zone)
            except ValidationError as error:
                invalid[name] = _flat(error.messages)
            except ValueError:
                invalid[name] = "has more digits than any number"
            else:
                if text is not missing:
                    valid[name] = text
        return Reading(valid, invalid)


def import_schema(name: str) -> Schema:
    """An instance of the class that `module.path:ClassName` names. Raises whatever its module raises."""
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, Schema)):
        raise TypeError("it is not a marshmallow Schema class")
    return found() if hasattr(found.Meta, "unknown") else found(unknown=EXCLUDE)


def _shown(name: str) -> str:
    """A property's name as it is; any other, which a schema may have from the payload, short and escaped."""
    return name if PROPERTY_NAME.fullmatch(name) else show(name)


def _flat(messages: Any) -> str:
    """Marshmallow's messages, which may be nested and quote the payload, as one short line that any database takes."""
    if isinstance(messages, Mapping):
        text = "; ".join(f"{key}: {_flat(value)}" for key, value in messages.items())
    elif isinstance(messages, (list, tuple)):
        text = "; ".join(_flat(message) for message in messages)
    else:
        text = str(messages)
    return printable(text[:_MAX_MESSAGE])
