"""Write to SQLite files in transactions, and make their tables once: what all of them share."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["create_tables", "snapshot", "transaction"]


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Hold the right to write; commit at the end, roll back on an error, also on one of the commit.

    The connection is one without transactions of its own (`isolation_level=None`).
    """
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.rollback()
        raise


@contextmanager
def snapshot(database: sqlite3.Connection) -> Iterator[None]:
    """Let several queries see the same state, whatever others write in between."""
    database.execute("BEGIN")
    try:
        yield
    finally:
        if database.in_transaction:
            database.rollback()


def create_tables(
    database: sqlite3.Connection,
    schema: str,
    version: int,
    *,
    replace: bool = False,
    upgrades: Mapping[int, str] = {},
) -> None:
    """Create the tables of a version, unless they are there.

    Arguments:
        database: The file.
        schema: Statements with semicolons between them; those of triggers hold some of their own.
        version: Kept in the file as `user_version`.
        replace: Whether tables of another version are dropped before.
        upgrades: Statements that make a file of an older version, the key, one of this version.
    """
    if _version(database) == version:
        return
    with transaction(database):
        if _version(database) == version:  # another process just did
            return
        if replace:
            named = "SELECT name FROM sqlite_master WHERE type = 'table'"
            for (name,) in database.execute(named).fetchall():
                database.execute(f'DROP TABLE "{name}"')
        statement, schema = "", upgrades.get(_version(database), schema)
        for line in f"{schema.strip().removesuffix(';')};".splitlines():
            statement += line + "\n"
            if sqlite3.complete_statement(statement):
                database.execute(statement)
                statement = ""
        database.execute(f"PRAGMA user_version = {version}")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])
