"""The manual's page of all keys of `bridge.yaml`: `python -m tests.dev reference` writes it anew."""

from __future__ import annotations

from pathlib import Path

from bridge.config.blocks import Block
from bridge.config.explaining import Explained, all_keys

PAGE = Path(__file__).parents[1] / "bridge/docs/configuration.md"

HEAD = """\
# Configuration: every key of `bridge.yaml`

`partner-bridge explain KEY` tells the same of one key. This page is made from the program: to change it, change
`bridge/settings.py`, or `bridge/config/source_schemas.py` where a key has a form of its own, and run
`python -m tests.dev reference`.

In a path `*` stands for a name or an item. Any text, number or flag may also be `{env: NAME}`,
`{env: NAME, default: …}` or `{file: PATH}`. Keys at the top that begin with `x-` are free, and may hold anchors.
"""


def page() -> str:
    """The whole page: a section for each block, where it stands first."""
    keys = all_keys()
    told: dict[type[Block], str] = {}
    sections = [HEAD, f"## The file\n\n{_table((), keys, told)}"]
    for key in keys:
        if key.block is not None and key.block not in told:
            told[key.block] = str(key)
            sections.append(f"## `{key}`\n\n{key.block.about()}\n\n{_table(key.path, keys, told)}")
    return "\n".join(sections)


def _table(path: tuple[str, ...], keys: list[Explained], told: dict[type[Block], str]) -> str:
    rows = [_row(key, keys, told) for key in keys if key.path[:-1] == path]
    return "".join(["| key | what it does | type | default | example |\n|---|---|---|---|---|\n", *rows])


def _row(key: Explained, keys: list[Explained], told: dict[type[Block], str]) -> str:
    """One line of a table; a block that has a section already is referred to."""
    inner = key.block or next((each.block for each in keys if each.path == (*key.path, "*")), None)
    see = f" See `{told[inner]}`." if inner in told else ""
    default = "required" if key.required else _code(key.default)
    return f"| `{key.name}` | {key.about}{see} | {key.kind} | {default} | {_code(key.example)} |\n"


def _code(text: str | None) -> str:
    return "" if text is None else f"`{text}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
