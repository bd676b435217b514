"""Runs a source's `examples:` by the very code that maps webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.errors import PayloadError
from bridge.intake.inputs import inputs_of
from bridge.intake.mapping import CompiledSource, Mapped
from bridge.model import Intake
from bridge.settings import Example


def run_example(compiled: CompiledSource, example: Example) -> list[str]:
    """The differences between what an example expects and what the mapping gives; none is success."""
    try:
        mapped = _mapped(compiled, example)
    except (PayloadError, UnicodeEncodeError) as error:
        return [f"the payload is refused: {error}"]
    if example.ignored:
        return [
            f"event {index} is {event.intake}, expected it to be ignored"
            for index, event in enumerate(mapped.events)
            if event.intake is not Intake.IGNORED
        ]
    if example.invalid is not None:
        return _invalid_differences(example.invalid, mapped)
    differences = [
        f"event {index}: {name} {message}" for index, errors in mapped.invalid for name, message in errors.items()
    ]
    return differences + _input_differences(example.expect or (), mapped)


def hints_of_example(compiled: CompiledSource, example: Example) -> list[str]:
    """What to look at in an example's values, see `CompiledSource.hints`."""
    try:
        return compiled.hints(_mapped(compiled, example))
    except (PayloadError, UnicodeEncodeError):
        return []


def _mapped(compiled: CompiledSource, example: Example) -> Mapped:
    body = compiled.decode(example.body)
    return compiled.map_body(body, headers=example.headers, query=example.query, delivery_id="example")


def _invalid_differences(expected: Mapping[str, str], mapped: Mapped) -> list[str]:
    found = {name: message for _, errors in mapped.invalid for name, message in errors.items()}
    differences = [f"{name} is valid, expected it to be invalid" for name in expected if name not in found]
    differences += [f"{name} {message}" for name, message in found.items() if name not in expected]
    for name, wanted in expected.items():
        if name in found and wanted.strip(" .…") not in found[name]:
            differences.append(f"{name}: {found[name]!r} does not say {wanted!r}")
    return differences


def _input_differences(expected: tuple[Mapping[str, Any], ...], mapped: Mapped) -> list[str]:
    inputs = inputs_of(mapped.events)
    differences = []
    for index, wanted in enumerate(expected):
        if index >= len(inputs):
            differences.append(f"expected an input for {wanted.get('id')!r}, found none")
            continue
        found = inputs[index]
        given = {
            "id": found.record.sent,
            "id_property": found.record.lane.id_property,
            "idProperty": found.record.lane.id_property,
            "object_type": found.record.lane.object_type,
        }
        for key, value in given.items():
            if key in wanted and _text(wanted[key]) != value:
                differences.append(f"input {index}: {key} is {value!r}, expected {_text(wanted[key])!r}")
        properties = wanted.get("properties") or {}
        for name in [*properties, *(name for name in found.properties if name not in properties)]:
            sent = found.properties.get(name)
            hoped = _text(properties[name]) if name in properties else None
            if sent != hoped:
                differences.append(f"input {index}: {name} is {_shown(sent)}, expected {_shown(hoped)}")
    differences += [
        f"input {len(expected) + extra}: {one.record.sent!r} is not expected"
        for extra, one in enumerate(inputs[len(expected) :])
    ]
    return differences


def _shown(text: str | None) -> str:
    return "absent" if text is None else repr(text)


def _text(value: object) -> str:
    """A value of the file as HubSpot's text, so that `active: true` may be written."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
