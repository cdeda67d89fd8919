"""Databases that several processes open at once: SQLite files, or servers by SQLAlchemy, and transactions on them.

Every SQLite file is in WAL mode, so that readers and the one writer do not wait for each other, and flushed at every
commit, so that what was confirmed survives a power cut.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inhouse.core.errors import UserError
from inhouse.core.store import disk_errors

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# Busy: another process writes for longer than `wait_s`. Broken: the file is no database, or not the one expected.
Explain = Callable[[Literal["busy", "broken"], str, str], UserError]  # (kind, path, what SQLite says)
BROKEN = ("not a database", "malformed", "no such table", "no such column", "has no column")
EXPLAIN = "inhouse_explain"
READ_ONLY = "inhouse_read"
LOCK_S = 60.0  # what is done alone takes a moment: whoever holds the lock for longer has been stopped


@contextmanager
def alone(path: Path, explain: Explain, wait_s: float) -> Iterator[sqlite3.Connection]:
    """The SQLite file for one process at a time, made and in WAL mode: make or change its tables in here."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock")
    try:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=LOCK_S)
    except Timeout as error:
        raise explain("busy", str(path), str(error)) from error
    try:
        with errors(path, explain):
            plain = sqlite3.connect(path, timeout=wait_s, isolation_level=None)
            try:
                # Stays set in the file. Two that set it at the same time may fail at once, however long they would
                # wait: hence the lock. Asked first, as setting it would need a moment without any reader.
                if plain.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                    plain.execute("PRAGMA journal_mode=WAL")
                plain.execute("PRAGMA synchronous=FULL")
                yield plain
            finally:
                plain.close()
    finally:
        lock.release()


def connected(path: Path, wait_s: float) -> sqlite3.Connection:
    """A connection to a file that `alone` has set up, for any thread; transactions begin and end where they are told.

    Use it within `errors`.
    """
    found = sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False)
    found.execute("PRAGMA synchronous=FULL")
    return found


def engine_of(url: str, explain: Explain, wait_s: float) -> Engine:
    """An SQLAlchemy engine on a URL, for `writing` and `reading`. A SQLite file is set up within `alone`."""
    from sqlalchemy import create_engine, event

    engine = create_engine(url, connect_args={"timeout": wait_s} if url.startswith("sqlite") else {})
    engine.update_execution_options(**{EXPLAIN: explain})
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", _begin)
    return engine


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path.resolve()}"


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that takes the write lock at its start: it commits whole, or not at all."""
    with _engine_errors(engine), engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent view; writers are not kept waiting."""
    with (
        _engine_errors(engine),
        engine.connect() as plain,
        plain.execution_options(**{READ_ONLY: True}) as connection,
    ):
        yield connection


@contextmanager
def errors(path: Path, explain: Explain) -> Iterator[None]:
    """Say in the user's words what SQLite says; what is nobody's fault but ours stays as it is."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if told := _told(str(error), str(path), explain):
            raise told from error
        raise


@contextmanager
def _engine_errors(engine: Engine) -> Iterator[None]:
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except DatabaseError as error:
        where = engine.url.database or engine.url.render_as_string(hide_password=True)
        if told := _told(str(error.orig), where, engine.get_execution_options()[EXPLAIN]):
            raise told from error
        raise


def _told(problem: str, where: str, explain: Explain) -> UserError | None:
    if "locked" in problem:
        return explain("busy", where, problem)
    if any(known in problem for known in BROKEN):
        return explain("broken", where, problem)
    if "readonly" in problem or "unable to open" in problem:
        return UserError("store.read_only", path=where)
    if "disk is full" in problem:
        return UserError("store.no_space", path=where, free_mb=0)
    return None


def _set_up(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would be a deferred one: see _begin
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    # IMMEDIATE: a deferred transaction that reads and then writes fails at once with 'database is locked'
    # when another process wrote in between; SQLite's busy timeout helps only where the lock is asked for first.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
