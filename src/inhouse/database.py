"""Databases that several processes open at once: SQLite files, or a PostgreSQL server, and transactions on them.

Every SQLite file is in WAL mode, so that readers and the one writer do not wait for each other, and flushed at every
commit, so that what was confirmed survives a power cut.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inhouse.core.errors import UserError
from inhouse.core.plugins import require
from inhouse.core.store import disk_errors

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# Busy: another process writes for longer than `wait_s`. Broken: the file is no database, or not the one expected.
Explain = Callable[[Literal["busy", "broken"], str, str], UserError]  # (kind, path, what SQLite says)
WRITERS = 0x696E686F757365  # 'inhouse': the advisory lock on a server that whoever writes holds
POSTGRES = "postgresql"
UNREACHABLE = ("08", "28", "3D", "53300", "57P")  # how SQLSTATE begins when a server does not let us in, or stops
BROKEN = ("not a database", "malformed", "no such table", "no such column", "has no column")
EXPLAIN = "inhouse_explain"
READ_ONLY = "inhouse_read"
ANSWER_S = 15.0  # a server's longest silence: longer than any wait for its lock, and shorter than clients wait
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
    """An SQLAlchemy engine on a URL, for `writing` and `reading`. A SQLite file is set up within `alone`.

    On a PostgreSQL server, writers take turns as they do on a file, so that what a transaction has read stays true
    until it commits. Raises database.bad_url.
    """
    from sqlalchemy import create_engine, event
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        found = make_url(url)
        kind = found.get_backend_name()
    except (ArgumentError, ValueError):
        raise UserError("database.bad_url") from None
    if kind == "sqlite":
        # hide_parameters: what is written holds answers and names, and errors end in logs.
        engine = create_engine(found, connect_args={"timeout": wait_s}, hide_parameters=True)
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", _begin)
    elif kind in (POSTGRES, "postgres"):
        require("pg", "psycopg")
        engine = create_engine(
            found.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": 5},
            pool_pre_ping=True,
            hide_parameters=True,
        )
        event.listen(engine, "do_connect", _connect)
        event.listen(engine, "begin", _begin_on_server(wait_s))
    else:
        raise UserError("database.bad_url")
    engine.update_execution_options(**{EXPLAIN: explain})
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


class Versions:
    """Tells whether anybody has written since: it takes 20 µs, and a transaction that reads some 0.7 ms.

    A file that was put in the place of the one before, as a backup is, is noticed: the engine then opens it anew.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._path = Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None
        self._explain: Explain = engine.get_execution_options()[EXPLAIN]
        self._connection: sqlite3.Connection | None = None
        self._files: tuple[int | None, ...] | None = None

    def now(self) -> tuple[int | None, ...] | None:
        """What changes with every commit; None on a server, which does not tell. For one thread at a time."""
        if self._path is None:
            return None
        found = tuple(_inode(self._path.with_name(self._path.name + end)) for end in ("", "-wal"))
        with errors(self._path, self._explain):
            if found[0] is not None and found != self._files:  # a file that is moved away may come back
                self.close()
                if self._files is not None:
                    self._engine.dispose()
                self._files = found
            self._connection = self._connection or connected(self._path, 0.0)
            return (*found, int(self._connection.execute("PRAGMA data_version").fetchone()[0]))

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


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
        explain = engine.get_execution_options()[EXPLAIN]
        if engine.dialect.name == POSTGRES:
            told = _told_by_server(error.orig, shown_url(engine), explain)
        else:
            told = _told(str(error.orig), engine.url.database or "", explain)
        if told:
            raise told from error
        raise


def shown_url(engine: Engine) -> str:
    """Where a database is: the file, or the server's address without its password."""
    if engine.dialect.name == "sqlite":
        return engine.url.database or ""
    return engine.url.set(query={}, password=None).render_as_string()


def _told_by_server(problem: BaseException | None, where: str, explain: Explain) -> UserError | None:
    """What PostgreSQL says, by its SQLSTATE: its words may be in any language."""
    import psycopg

    state = (problem.sqlstate if isinstance(problem, psycopg.Error) else None) or ""
    said = next(iter(str(problem).splitlines()), "")
    if state.startswith(UNREACHABLE) or (not state and isinstance(problem, psycopg.OperationalError)):
        return UserError("database.unreachable", where=where, problem=said)
    if state == "55P03":  # lock_not_available: see _begin_on_server
        return explain("busy", where, said)
    if state in ("42P01", "42703"):  # undefined table, column
        return explain("broken", where, said)
    if state in ("25006", "42501"):  # read-only, no privilege
        return UserError("store.read_only", path=where)
    return UserError("store.no_space", path=where, free_mb=0) if state == "53100" else None


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
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")  # a broken text breaks its row alone
    connection.isolation_level = None  # the driver's own BEGIN would be a deferred one: see _begin
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    # IMMEDIATE: a deferred transaction that reads and then writes fails at once with 'database is locked'
    # when another process wrote in between; SQLite's busy timeout helps only where the lock is asked for first.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _connect(_dialect: Any, _record: Any, given: Any, named: Any) -> Any:
    """A connection on which each step is given up after ANSWER_S: a server that is frozen says nothing for ever."""
    import psycopg

    def bounded(steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        until, ready = time.monotonic() + ANSWER_S, None
        while True:
            try:
                wanted = steps.send(ready)
            except StopIteration as done:
                return done.value
            ready = yield wanted  # goes on, too, when nothing has come for a tenth of a second
            if time.monotonic() > until:
                raise TimeoutError

    class Bounded(psycopg.Connection[Any]):
        def wait(self, gen: Any, *more: Any, **other: Any) -> Any:
            try:
                return super().wait(bounded(gen), *more, **other)
            except TimeoutError:
                self.pgconn.finish()  # whatever comes next, a rollback too, fails at once
                raise psycopg.OperationalError(f"no answer for {ANSWER_S:g} s") from None

    return Bounded.connect(*given, **named)


def _begin_on_server(wait_s: float) -> Callable[[Connection], None]:
    """What each transaction on a server begins with: one snapshot for readers, one writer at a time."""

    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get(READ_ONLY, False):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(wait_s * 1000)}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")

    return begin
