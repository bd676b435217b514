"""What a journal executes while it holds the write lock, and which of that reads a whole table."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

#: A table in a statement, and its name there.
NAMED = re.compile(r"\b(?:FROM|JOIN|UPDATE|INTO)\s+(\w+)(?:\s+(?:AS\s+)?([a-z]\w*))?")


@contextmanager
def written() -> Iterator[list[str]]:
    """The statements that are executed within write transactions meanwhile, as SQLite gets them: with their values."""
    found: list[str] = []
    watched: set[Any] = set()

    def watch(connection: Any, *_: Any) -> None:
        if connection in watched:
            return
        watched.add(connection)
        writing = False

        def look(statement: str) -> None:
            nonlocal writing
            if statement == "BEGIN IMMEDIATE":
                writing = True
            elif statement in {"BEGIN", "COMMIT", "ROLLBACK"}:
                writing = False
            elif writing:
                found.append(statement)

        connection.set_trace_callback(look)

    event.listen(Pool, "checkout", watch)
    try:
        yield found
    finally:
        event.remove(Pool, "checkout", watch)
        for connection in watched:
            with suppress(sqlite3.ProgrammingError):  # it is closed by now
                connection.set_trace_callback(None)


def scans(file: str | Path, statements: list[str]) -> set[tuple[str, str]]:
    """Where SQLite would read a whole table for these statements: its words, and the statement."""
    with closing(sqlite3.connect(file)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        return {
            (detail, statement)
            for statement in statements
            for names in [{name for found in NAMED.findall(statement) if found[0] in tables for name in found}]
            for *_, detail in database.execute(f"EXPLAIN QUERY PLAN {statement}")
            if detail.startswith("SCAN") and detail.split()[1] in names
        }
