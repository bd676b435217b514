"""The process in which users' own schemas run: `python -m bridge.intake.schema_process <descriptor>`.

It serves one request after the other from a socket, until that is closed. Whatever a schema raises, returns or prints
concerns one event; what it does to its process ends only that. Everything that goes back is plain text.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from datetime import tzinfo
from pathlib import Path
from typing import Any, NoReturn
from zoneinfo import ZoneInfo

import orjson
from marshmallow import EXCLUDE, Schema, ValidationError, missing
from marshmallow.decorators import POST_LOAD
from marshmallow.exceptions import SCHEMA

from bridge.intake.payload import parse_json_text, printable
from bridge.intake.texts import PROPERTY_NAME, show, text_of_result

#: Bytes of memory that a schema may take for an event, beyond what its modules take. More is a MemoryError.
MEMORY = 128 << 20
#: Seconds for an event, and for all else, after which the process ends by itself: whoever started it, and would have
#: ended it long ago, is gone. The kernel keeps this deadline, which no code of a schema's can hold up.
ALONE_WITH_EVENT_S, ALONE_S = 6.0, 60.0
#: A request is preceded by its length in so many bytes.
LENGTH = 4
#: An answer is preceded by its length and the microseconds that it took.
ANSWER = struct.Struct(">II")

#: Made while there is memory for it. `lost`: the process ends, because what is left in it would be missed by others.
_OUT_OF_MEMORY = orjson.dumps({"error": "the schema raised MemoryError", "lost": True})

_MAX_MESSAGE = 300


def main() -> NoReturn:
    """Serve until the socket is closed, which alone ends this process: what is sent to all processes of a service when
    it is to stop must not hit the events that it still works on.
    """
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    schemas: dict[str, Schema] = {}
    with socket.socket(fileno=int(sys.argv[1])) as connection, contextlib.suppress(OSError):
        while serve(connection, schemas):
            pass
    os._exit(0)  # whatever threads and exit handlers a schema has left


def serve(connection: socket.socket, schemas: dict[str, Schema]) -> bool:
    """Answer one request. Returns whether another can be."""
    goes_on, began = True, time.monotonic()
    try:
        if not (request := received(connection)):
            return False
        signal.setitimer(signal.ITIMER_REAL, ALONE_WITH_EVENT_S if request.startswith(b"load") else ALONE_S)
        began = time.monotonic()
        answer = answered(request, schemas)
    except MemoryError:
        goes_on, answer = False, _OUT_OF_MEMORY
    signal.setitimer(signal.ITIMER_REAL, 0)
    connection.sendall(ANSWER.pack(len(answer), int((time.monotonic() - began) * 1e6)) + answer)
    return goes_on


def received(connection: socket.socket) -> bytes:
    """The next message; nothing at the end."""
    length = int.from_bytes(_exactly(connection, LENGTH), "big")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        part = connection.recv(length - len(found))
        if not part:
            return b""
        found += part
    return bytes(found)


def answered(request: bytes, schemas: dict[str, Schema]) -> bytes:
    """The answer to one request: its kind, the schema's name and one argument, a line each, then the rest. Raises
    MemoryError, after which nothing more should be asked.
    """
    kind, name, argument, rest = request.decode().split("\n", 3)
    try:
        match kind:
            case "import":
                sys.path[:] = orjson.loads(rest)
                schemas[name] = import_schema(name)
                resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + MEMORY, resource.RLIM_INFINITY))
                found: Any = {"declared": declared(schemas[name])}
            case "load":
                found = loaded(schemas[name], parse_json_text(rest), ZoneInfo(argument) if argument else None)
            case _:
                module, _, function = argument.partition(":")
                found = {"result": getattr(importlib.import_module(module), function)(schemas[name])}
        return orjson.dumps(found)
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 (a user's code may raise anything, and means to end nothing of ours)
        told = _told(error) if kind == "import" else f"the schema raised {_name_of(error)}"
        return orjson.dumps({"error": told})


def import_schema(name: str) -> Schema:
    """An instance of the class that `module.path:ClassName` names. Raises whatever its module raises."""
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, Schema)):
        raise TypeError("it is not a marshmallow Schema class")
    return found() if hasattr(found.Meta, "unknown") else found(unknown=EXCLUDE)


def declared(schema: Schema) -> dict[str, str]:
    """The properties that a schema's fields make, each with the key that it is read from; none where what the fields
    make may become anything else.
    """
    if schema._hooks[POST_LOAD] or type(schema).load is not Schema.load:  # noqa: SLF001 (nothing else tells)
        return {}
    names = {field.attribute or key: field.data_key or key for key, field in schema.load_fields.items()}
    return {name: str(key) for name, key in names.items() if PROPERTY_NAME.fullmatch(name)}


def loaded(schema: Schema, event: dict[str, Any], zone: tzinfo | None) -> dict[str, Any]:
    """What an event becomes: `valid` and `invalid` by property, or why nothing, as `error`."""
    names = {
        field.data_key: field.attribute or key
        for key, field in schema.load_fields.items()
        if field.data_key is not None
    }
    invalid: dict[str, str] = {}
    try:
        result = schema.load(event)
    except ValidationError as error:
        messages: dict[str, Any] = error.normalized_messages()  # type: ignore[no-untyped-call]  # marshmallow leaves it bare
        if SCHEMA in messages:
            return {"error": _flat(messages[SCHEMA])}
        invalid = {_shown(names.get(str(key), str(key))): _flat(what) for key, what in messages.items()}
        result = error.valid_data or {}
    if not isinstance(result, Mapping):
        return {"error": f"the schema returned {_name_of(result)}, not properties"}
    valid: dict[str, str] = {}
    for key, value in result.items():
        name = _shown(str(key))
        if name in invalid:
            continue
        if name != str(key):
            invalid[name] = "is not the name of a property"
            continue
        try:
            text = text_of_result(value, zone)
        except ValidationError as error:
            invalid[name] = _flat(error.messages)
        except ValueError:
            invalid[name] = "has more digits than any number"
        except RecursionError:
            invalid[name] = "holds itself"
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (a value of the user's own making)
            invalid[name] = f"raised {_name_of(error)} where its text was asked for"
        else:
            if text is not missing:
                valid[name] = text
    return {"valid": valid, "invalid": invalid}


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


def _name_of(value: object) -> str:
    return printable(type(value).__name__[:_MAX_MESSAGE])


def _told(error: BaseException) -> str:
    """What went wrong at import, for whoever wrote the configuration."""
    hint = "; it must stand beside this file, or where PYTHONPATH says" if _is_missing(error) else ""
    return f"{_text_of(error) or _name_of(error)}{hint}"


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, ModuleNotFoundError)


def _text_of(error: BaseException) -> str:
    told: Callable[[], str] = error.__str__
    try:
        return printable(told()[:_MAX_MESSAGE])
    except Exception:  # noqa: BLE001 (it is the user's own)
        return ""


def _data_bytes() -> int:
    """The process's data now, as RLIMIT_DATA counts it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
