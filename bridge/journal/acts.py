"""What a person does to many entries of the retry log, told while it goes on: kept where every worker and replica
reads it. One act at a time; the latest is remembered.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.locking import take_turns
from bridge.journal.upkeep import load_meta, save_meta

#: Its name in `meta`.
NAME = "act"
#: One that has not been told of for this long died with its process.
STALLED_US = 30 * 1_000_000


@dataclass(frozen=True, slots=True)
class Act:
    """An act and how far it came. Times are microseconds since the epoch; `chosen` is the filter as a query."""

    id: str
    what: str  # replay, discard
    who: str
    chosen: dict[str, Any]
    counted: int  # entries, when the person confirmed
    began_us: int
    told_us: int
    done: int = 0  # entries
    ended: bool = False
    result: dict[str, int] = field(default_factory=dict)
    problem: str = ""  # why it ended early

    def stalled(self, now_us: int) -> bool:
        """Whether its process must have died."""
        return not self.ended and now_us - self.told_us > STALLED_US


def latest(connection: Connection) -> Act | None:
    """The act that began last."""
    text = load_meta(connection, NAME)
    if text is None:
        return None
    known = {each.name for each in fields(Act)}
    return Act(**{name: value for name, value in orjson.loads(text).items() if name in known})


def begin(connection: Connection, act: Act) -> bool:
    """Remember this act; False while another one goes on."""
    take_turns(connection)  # two may begin at once
    before = latest(connection)
    if before is not None and not before.ended and not before.stalled(act.began_us):
        return False
    save_meta(connection, NAME, orjson.dumps(asdict(act)).decode())
    return True


def tell(connection: Connection, act: Act) -> None:
    """How far it came; nothing if another act has taken its place."""
    take_turns(connection)
    before = latest(connection)
    if before is not None and before.id == act.id:
        save_meta(connection, NAME, orjson.dumps(asdict(act)).decode())
