"""The PostgreSQL side of a move: whether a database is fit to be its target, and how far the move came there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from bridge.errors import JournalError, JournalLockedError, JournalUnavailableError
from bridge.journal import versions
from bridge.journal.schema import MOVING, metadata

if TYPE_CHECKING:
    from psycopg import Connection

#: Rows in `meta`: which journal a file is; how far a move came; what was moved here.
IDENTITY, PROGRESS, MOVED = "identity", "moving", "moved"
#: Of one place, and not of the journal.
LOCAL = frozenset({IDENTITY, PROGRESS, MOVED, "ballast", "probe"})


@dataclass(slots=True)
class Mark:
    """How far a move came. `state` tells whether the file is still the one that was being copied."""

    identity: str
    state: str
    version: str
    done: dict[str, int] = field(default_factory=dict)  # rows by table
    table: str = ""  # in the middle of this one, after this key
    after: list[Any] = field(default_factory=list)


@contextmanager
def connected(target: str) -> Iterator[Connection[Any]]:
    """A connection for the whole move, in autocommit. Its trouble is told as ours."""
    import psycopg

    try:
        with psycopg.connect(target, autocommit=True, prepare_threshold=None) as connection:
            yield connection
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise JournalUnavailableError(
            f"PostgreSQL cannot be used ({_first_line(error)}); run the same command again, it goes on where it stopped"
        ) from error
    except psycopg.Error as error:
        raise JournalError(f"PostgreSQL does not take the journal: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Without the details, which hold values."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def begin(connection: Connection[Any], target: str, identity: str, state: str) -> Mark | None:
    """Where to go on; None when an earlier run came to the end. Raises JournalError for a target that is not ours."""
    while True:
        if _version(connection) != MOVING:
            versions.prepare(target)
        with connection.transaction():
            connection.execute("LOCK TABLE alembic_version IN EXCLUSIVE MODE")  # against another move
            moved, under_way = _meta(connection, MOVED), _meta(connection, PROGRESS)
            if moved is not None:
                _refuse_other(moved, identity)
                if moved["state"] == state:
                    return None
                raise JournalError(
                    "the target holds this journal as of an earlier move, and may have been served since, while the "
                    "file was changed too: serve the target, or name an empty database"
                )
            if under_way is None:
                _refuse_used(connection)
                return _mark_begun(connection, identity, state)
            _refuse_other(under_way, identity)
            if under_way["state"] == state:
                return Mark(**under_way)
            _empty(connection)  # the file was changed since: these rows are out of date
            connection.execute("UPDATE alembic_version SET version_num = %s", (under_way["version"],))


def _version(connection: Connection[Any]) -> str | None:
    row = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def _meta(connection: Connection[Any], name: str) -> dict[str, Any] | None:
    row = connection.execute("SELECT value FROM meta WHERE name = %s", (name,)).fetchone()
    found: dict[str, Any] | None = None if row is None else orjson.loads(row[0])
    return found


def _refuse_other(mark: Mapping[str, Any], identity: str) -> None:
    if mark["identity"] != identity:
        raise JournalError("the target holds another journal's data, or part of it: name an empty database")


def _refuse_used(connection: Connection[Any]) -> None:
    """Raise JournalError unless there is nothing in the target, and nobody at it."""
    row = connection.execute(
        "SELECT count(*) FROM dispatcher WHERE until_us > extract(epoch FROM clock_timestamp()) * 1000000"
    ).fetchone()
    if row is not None and row[0]:
        raise JournalLockedError("a service runs on the target: stop it first, or name an empty database")
    filled = [name for name, rows in count(connection).items() if rows and name != "dispatcher"]
    if filled:
        raise JournalError(
            f"the target holds another journal's data (in {', '.join(sorted(filled))}): name an empty database"
        )


def _mark_begun(connection: Connection[Any], identity: str, state: str) -> Mark:
    version = _version(connection)
    assert version is not None  # noqa: S101 (prepared before)
    mark = Mark(identity, state, version)
    _empty(connection)
    connection.execute("UPDATE alembic_version SET version_num = %s", (MOVING,))
    connection.execute("INSERT INTO meta (name, value) VALUES (%s, %s)", (PROGRESS, as_json(asdict(mark))))
    return mark


def _empty(connection: Connection[Any]) -> None:
    names = ", ".join(table.name for table in metadata.sorted_tables)
    connection.execute(f"TRUNCATE {names}".encode())


def as_json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()  # a table's name is more than a str


def count(connection: Connection[Any]) -> dict[str, int]:
    """Rows by table, without what is the place's own."""
    counts = {}
    for table in metadata.sorted_tables:
        where = "WHERE name <> ALL(%s)" if table.name == "meta" else ""
        parameters = (sorted(LOCAL),) if where else None
        row = connection.execute(f"SELECT count(*) FROM {table.name} {where}".encode(), parameters).fetchone()
        counts[table.name] = 0 if row is None else int(row[0])
    return counts
