"""The README's figures are those that are kept: `python -m tests.bench.readme` writes its table anew.

A test checks that it is current.
"""

from __future__ import annotations

import orjson

from tests.bench.results import KEPT, REPOSITORY, load
from tests.bench.rows import ROWS
from tests.bench.table import circumstances, markdown

README = REPOSITORY / "README.md"
RESULTS = KEPT / "results.json"
#: The same table, measured once before.
BEFORE = KEPT / "results-before.json"
GROWTH = KEPT / "growth.json"
PICTURES = {
    "backlog": "What waits, and what it costs: intake, claims, the admin port, memory, retention",
    "calls": "CRM calls by events, by records, by skew",
}
BEGIN = "<!-- figures: written by python -m tests.bench.readme -->\n"
END = "<!-- end of the figures -->\n"


def current() -> str:
    """The README as it should be: what people wrote, and the table of the kept results."""
    text = README.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{README.name} lacks the lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}\n{figures()}\n{curves()}{END}{after}"


def figures() -> str:
    """The table of the kept results, what the run before had, and on what both were measured."""
    kept, before = ({row.name: row for row in load(file)} for file in (RESULTS, BEFORE))
    rows = [kept[name] for name in ROWS if name in kept]
    return f"{markdown(rows, before)}\n{circumstances(rows)}\n\nThe run before: {circumstances([*before.values()])}\n"


def curves() -> str:
    """The pictures, and on what their curves were measured."""
    kept = orjson.loads(GROWTH.read_bytes())
    told = []
    for name, what in PICTURES.items():
        one = kept[name]
        date = one["date"][:16].replace("T", " ")
        where = f"{one['machine']}; commit {one['commit']}; {date} UTC; load average at the start {one['load']:.1f}."
        told += [f"![{what}](.performance/{name}.svg)", where]
    return "\n\n".join(told) + "\n"


if __name__ == "__main__":
    README.write_text(current(), encoding="utf-8")
