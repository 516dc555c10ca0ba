"""Share transactions and the creation and upgrade of tables among all SQLite files."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["create_tables", "snapshot", "transaction"]


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Run a block in a write transaction; roll back on an error, including one of the commit.

    The connection must be in autocommit mode (`isolation_level=None`).
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
    """Run several queries in one read transaction, so that they see the same state."""
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
    """Create the tables of a schema version, unless they exist.

    Arguments:
        database: The file.
        schema: Statements separated by semicolons; triggers may contain semicolons, too.
        version: Stored in the file as `user_version`.
        replace: Whether to drop tables of another version first.
        upgrades: Statements that upgrade a file to this version, by its older version.
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
