"""The database under the journal: what every backend gives, the few words of SQL that differ, and who waits for whom.

The packages `sqlite` and `postgresql` hold the backends. Statements are written once, with `:name` parameters and a
few macros that `render` fills in: `{rows:a int, b text}` (a JSON array of arrays as a table), `{ids}` (a JSON array
of integers as a table), `{any_id}` (of a column: it is one of them, each of which is looked up by itself, where
PostgreSQL without statistics would read a whole table to join it), `{pairs:a.b}` (a JSON object of texts as a table
of key and value), `{names:a.b}`, `{list:a.b}` (a JSON array of texts, or of arrays, as a table of value),
`{octets:a.b}` (the bytes of a text) and `{greatest}`. One statement serves a whole group: `executemany` would take
the interpreter's lock once a row.
"""

from __future__ import annotations

import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Protocol, TypeVar, cast

import orjson
from sqlalchemy.engine import Connection

from bridge.errors import JournalTermError
from bridge.journal.schema import FORGETTABLE
from bridge.model import RecordKey

T = TypeVar("T")
Row = Sequence[Any]


class Result(Protocol):
    """What a statement did, as drivers and SQLAlchemy both tell it."""

    @property
    def rowcount(self) -> int: ...

    @property
    def lastrowid(self) -> int: ...

    def fetchone(self) -> Row | None: ...

    def fetchall(self) -> Sequence[Row]: ...

    def close(self) -> object: ...


class Database(ABC):
    """An open database. Thread-safe; make it after `fork`, never before."""

    #: Whether a commit with `durable=False` outlives a crash of the database (not of the machine).
    relaxed_outlives_crash: bool

    @abstractmethod
    def write(self, *, durable: bool = True) -> AbstractContextManager[Connection]:
        """One write transaction, committed at the end of the block, rolled back by an exception.

        With `durable` it is on disk then; without, a power cut may undo it. Raises JournalUnavailableError when the
        database cannot be written, JournalDamagedError when it is damaged; the driver's errors about data pass.
        """

    @abstractmethod
    def read(self) -> AbstractContextManager[Connection]:
        """One read transaction: a consistent view, never waiting for writers."""

    def transact(self, work: Callable[[Connection], T], *, durable: bool = True, patience_s: float = 0.0) -> T:
        """What `work` returns, done in one write transaction. It may be called again, after whatever it did before was
        undone: when transactions got in each other's way, and for `patience_s` when the database cannot be written
        just now. If it went out of reach the work may have been done already.
        """
        del patience_s  # a file is there or it is not
        with self.write(durable=durable) as connection:
            return work(connection)

    @abstractmethod
    def check_writable(self) -> None:
        """Raise a JournalError unless a transaction can be committed, with fsync, now."""

    @abstractmethod
    def give_back(self, connection: Connection) -> int:
        """Give free room back to the file system, if there is much and it takes a moment only; returns how many pages
        went.
        """

    @abstractmethod
    def size(self) -> int:
        """Bytes on disk."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections; the object cannot be used afterwards."""


def on_postgresql(url: str) -> bool:
    """Whether this `journal.url` means PostgreSQL."""
    return url.startswith("postgresql:")


def portions(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """These, so many at a time."""
    for at in range(0, len(items), size):
        yield items[at : at + size]


# --- statements ---------------------------------------------------------------------------------

_MACRO = re.compile(r"\{(rows|ids|any_id|pairs|list|names|octets|greatest)(?::([^}]*))?\}")
_PARAMETER = re.compile(r"(?<![:\w]):([a-z]\w*)")
_CAST = {"int": "bigint", "text": "text"}
#: Whether SQLite tells a text's bytes without reading it, as PostgreSQL does.
_TELLS_OCTETS = sqlite3.sqlite_version_info >= (3, 43)


@cache
def render(sql: str, dialect: str = "sqlite") -> str:
    """A statement's text for one dialect."""
    if dialect == "sqlite":
        return _MACRO.sub(_sqlite_macro, sql)
    return _PARAMETER.sub(r"%(\1)s", _MACRO.sub(_postgresql_macro, sql.replace("%", "%%")))


def _sqlite_macro(match: re.Match[str]) -> str:
    kind, columns = match.groups()
    match kind:
        case "greatest":
            return "max"
        case "pairs" | "list" | "names":
            return f"json_each({columns})"
        case "octets":
            return f"octet_length({columns})" if _TELLS_OCTETS else f"length(cast({columns} AS blob))"
        case "ids":
            return "(SELECT value AS id FROM json_each(:ids))"
        case "any_id":
            return "IN (SELECT value FROM json_each(:ids))"
    picked = ", ".join(f"value ->> {at} AS {name}" for at, (name, _) in enumerate(_columns(columns)))
    # The limit keeps SQLite from putting the search through a row's text wherever a column is used: each is one only.
    return f"(SELECT {picked} FROM json_each(:rows) LIMIT -1)"


def _postgresql_macro(match: re.Match[str]) -> str:
    kind, columns = match.groups()
    match kind:
        case "greatest":
            return "greatest"
        case "pairs":
            return f"jsonb_each_text(cast({columns} AS jsonb))"
        case "names":
            return f"jsonb_array_elements_text(cast({columns} AS jsonb))"
        case "list":
            return f"jsonb_array_elements(cast({columns} AS jsonb))"
        case "octets":
            return f"octet_length({columns})"
        case "ids":
            return "(SELECT cast(value AS bigint) AS id FROM jsonb_array_elements_text(cast(:ids AS jsonb))) AS ids"
        case "any_id":
            return "= ANY (ARRAY(SELECT cast(value AS bigint) FROM jsonb_array_elements_text(cast(:ids AS jsonb))))"
    picked = ", ".join(
        f"cast(value ->> {at} AS {_CAST[type_]}) AS {name}" for at, (name, type_) in enumerate(_columns(columns))
    )
    return f"(SELECT {picked} FROM jsonb_array_elements(cast(:rows AS jsonb)))"


def _columns(text: str) -> list[list[str]]:
    return [column.split() for column in text.split(",")]


def is_postgresql(connection: Connection) -> bool:
    """Whether statements for PostgreSQL are understood here."""
    return connection.dialect.name == "postgresql"


def run(connection: Connection, sql: str, **parameters: Any) -> Result:
    """Execute one statement; `rows` and `ids` are turned into JSON here.

    To SQLite it goes without SQLAlchemy's record of each execution: a group commit is some ten statements, and that
    took a fifth of its time.
    """
    if is_postgresql(connection):
        return cast("Result", connection.exec_driver_sql(render(sql, "postgresql"), _bound(parameters)))
    driver: Any = connection.connection.driver_connection
    return cast("Result", driver.execute(render(sql), _bound(parameters)))


def _bound(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: orjson.dumps(value).decode() if name in {"rows", "ids"} else value for name, value in parameters.items()
    }


def fetch(connection: Connection, sql: str, **parameters: Any) -> Sequence[Row]:
    """Execute one statement and return its rows as plain tuples: for a few rows."""
    return run(connection, sql, **parameters).fetchall()


def select(connection: Connection, columns: str, sql: str, **parameters: Any) -> Sequence[Row]:
    """The rows of a SELECT that yields these columns: for many rows.

    From SQLite they come as one JSON text, because sqlite3 gives up the interpreter's lock at every row that it hands
    over, and gets it back only after a busy thread's whole turn.
    """
    if is_postgresql(connection):
        return run(connection, f"SELECT {columns} FROM ({sql}) AS selected", **parameters).fetchall()
    [(text,)] = fetch(connection, f"SELECT json_group_array(json_array({columns})) FROM ({sql})", **parameters)
    rows: Sequence[Row] = orjson.loads(text)
    return rows


# --- the table `meta`: values by name; they may be secrets, and are never shown ---


def load_meta(connection: Connection, name: str) -> str | None:
    """What is kept under this name; None when there is nothing."""
    rows = fetch(connection, "SELECT value FROM meta WHERE name = :name", name=name)
    return str(rows[0][0]) if rows else None


def save_meta(connection: Connection, name: str, value: str) -> None:
    """Keep this under the name, in place of what is there."""
    run(
        connection,
        "INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        name=name,
        value=value,
    )


# --- who waits for whom, where several processes write at once: on PostgreSQL. SQLite has one writer at a time ---
#
# Under READ COMMITTED each statement sees what was committed before it began. So whoever decides something about a
# record by what stands in `desired`, `due` or `asks` first locks the record's row, in a statement of its own: what
# other transactions did to the record under that lock is then seen by all further statements. Append locks by raising
# `n`, all others by `lock_records`.
#
# All take locks in one order: what people and retention do (`take_turns`); `roots`, `events` and `lanes` by their keys;
# `records` by (lane, record). Only a replay that maps an event to other records than before goes back in this order;
# then the database undoes one of the two, which is done again (`Database.transact`).

#: Of `pg_advisory_xact_lock`, within the database.
TURNS = 0x50617275


def lock_records(connection: Connection, refs: Collection[int]) -> None:
    """Lock these records until the transaction ends; waits for whoever has them."""
    if refs and is_postgresql(connection):
        fetch(
            connection,
            """SELECT count(*) FROM (SELECT 1 FROM records WHERE id {any_id}
                                      ORDER BY lane, record COLLATE "C" FOR UPDATE) AS locked""",
            ids=list(refs),
        )


def select_locked(
    connection: Connection, columns: str, refs: Collection[int], *, size: str, **parameters: Any
) -> Sequence[Sequence[Any]]:
    """These columns of the records and, in the end, this `size`, which is told as of before the wait. They are locked
    until the transaction ends; waits for whoever has them.
    """
    found = f"SELECT {columns}, ({size}) AS size FROM records r WHERE id {{any_id}}"
    if is_postgresql(connection):
        found += ' ORDER BY lane, record COLLATE "C" FOR UPDATE'
    return select(connection, f"{columns}, size", found, ids=list(refs), **parameters)


def take_turns(connection: Connection) -> None:
    """Let people's acts and retention follow each other, step by step; neither intake nor delivery waits for them."""
    if is_postgresql(connection):
        fetch(connection, "SELECT count(*) FROM (SELECT pg_advisory_xact_lock(:key)) AS locked", key=TURNS)


#: `addresses` as `r`, each with its lane `l`.
ADDRESSED = """{rows:object_type text, id_property text, record text} r
                 JOIN lanes l ON l.object_type = r.object_type AND l.id_property = r.id_property"""


def addresses(keys: Iterable[RecordKey]) -> list[tuple[str, str, str]]:
    """The rows of `ADDRESSED`."""
    return sorted((key.lane.object_type, key.lane.id_property, key.id) for key in keys)


def lock_addresses(connection: Connection, keys: Collection[RecordKey]) -> None:
    """Lock those of these records that are there."""
    if keys and is_postgresql(connection):
        fetch(
            connection,
            f"""SELECT count(*) FROM (
                 SELECT 1 FROM {ADDRESSED} JOIN records o ON o.lane = l.id AND o.record = r.record
                  ORDER BY o.lane, o.record COLLATE "C" FOR UPDATE OF o) AS locked""",
            rows=addresses(keys),
        )


def lock_roots(connection: Connection, seqs: Collection[int]) -> list[str]:
    """Lock the roots of these events; returns their hashes."""
    locking = ' ORDER BY hash COLLATE "C" FOR UPDATE' if is_postgresql(connection) else ""
    rows = fetch(
        connection,
        "SELECT hash FROM roots WHERE hash IN (SELECT root FROM events WHERE seq IN (SELECT id FROM {ids}))" + locking,
        ids=list(seqs),
    )
    return [str(root) for (root,) in rows]


def lock_outdated(connection: Connection, refs: Collection[int], *, before_us: int) -> None:
    """Lock those of these records of which something may be forgotten: few, where all would be written to."""
    if refs and is_postgresql(connection):
        fetch(
            connection,
            f"""SELECT count(*) FROM (
                 SELECT 1 FROM records r WHERE r.id IN (SELECT id FROM {{ids}})
                    AND (r.newest_us < :before OR EXISTS (
                      SELECT 1 FROM desired d WHERE d.record = r.id AND {FORGETTABLE}))
                  ORDER BY r.lane, r.record COLLATE "C" FOR UPDATE OF r) AS locked""",
            ids=list(refs),
            before=before_us,
        )


def lock_dispatcher(connection: Connection) -> None:
    """Lock what all replicas know of delivery, before some of it is written anew."""
    if is_postgresql(connection):
        fetch(connection, "SELECT id FROM dispatcher WHERE id = 1 FOR NO KEY UPDATE")


def fence(connection: Connection, epoch: int | None, *, alone: bool = False) -> None:
    """Raise JournalTermError unless this is the dispatcher's epoch, and let it not end before this transaction does.

    `alone`: what stands in the row will be written anew. None: there is no other dispatcher.

    A lock on the key alone: only a take-over (`FOR UPDATE`) waits for it. With `FOR SHARE` the renewal of the term, an
    UPDATE of the same row, would wait for settling transactions that overlap without end.
    """
    if epoch is None:
        return
    how = "NO KEY UPDATE" if alone else "KEY SHARE"
    [(current,)] = fetch(connection, f"SELECT epoch FROM dispatcher WHERE id = 1 FOR {how}")
    if current != epoch:
        raise JournalTermError("another process delivers: what this one still did is left to it")
