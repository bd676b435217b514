"""The manual's page of property types, written from the types' own declarations.

`python -m tests.property_types` writes it anew; a test checks that it is current.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bridge.intake.fields import TYPES

PAGE = Path(__file__).parents[1] / "bridge/docs/property-types.md"

_HEAD = """\
# Property types

What `type:` of a property may be. Null, blank text and an empty list are no value for any of them: such a property is
left out, or cleared with `on_null: clear`. What is refused makes that property of the event invalid, and the message
quotes it. How dates, numbers and texts are read is told in [How a payload becomes values](mapping.md).

This page is written by `python -m tests.property_types`.
"""
#: What a type may fit in the portal that is no type of the portal's.
_KINDS = {
    "checkbox": "`enumeration` of `true` and `false`",
    "external": "`enumeration` whose options stand elsewhere, such as an owner",
}


def current() -> str:
    """The page as it should be."""
    parts = [_HEAD]
    for name, made in TYPES.items():
        fits = ", ".join(_KINDS.get(kind, f"`{kind}`") for kind in sorted(made.fits))
        lines = [f"## {name}", "", (made.__doc__ or "").strip(), ""]
        lines.append(f"- In the portal: {fits}.")
        if made.reads:
            lines.append(f"- Its keys: {_codes(made.reads)}.")
        lines += [f"- Refused: {_codes(made.refuses)}.", "", "| the payload has | HubSpot gets |", "|---|---|"]
        lines += [f"| `{given}` | `{text}` |" for given, text in made.takes.items()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts)


if __name__ == "__main__":
    PAGE.write_text(current(), encoding="utf-8")
