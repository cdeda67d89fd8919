"""The registry's database: short transactions that a crash leaves whole, and a schema that migrates itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

REVISIONS = ("0001",)  # oldest first; the last one is what this code reads and writes
READ_ONLY = "inhouse_read"
BUSY_S = 5.0


@cache
def connect(url: str) -> Engine:
    """Open the database at an SQLAlchemy URL and bring its schema up to date.

    The engine is kept for the process. Raises release.newer_registry for a schema that a newer version wrote,
    release.bad_registry for a file that is no database.
    """
    from sqlalchemy import create_engine, event

    engine = create_engine(url, connect_args={"timeout": BUSY_S} if url.startswith("sqlite") else {})
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", _begin)
    with _errors(engine):
        if _revision(engine) != REVISIONS[-1]:
            _migrate(engine)
    return engine


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path.resolve()}"


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that takes the write lock at its start: it commits whole, or not at all."""
    with _errors(engine), engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent view; writers are not kept waiting."""
    with _errors(engine), engine.connect() as plain, plain.execution_options(**{READ_ONLY: True}) as connection:
        yield connection


def _set_up(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would be a deferred one: see _begin
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    # IMMEDIATE: a deferred transaction that reads and then writes fails at once with 'database is locked'
    # when another process wrote in between; SQLite's busy timeout helps only where the lock is asked for first.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def _errors(engine: Engine) -> Iterator[None]:
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except DatabaseError as error:
        where = engine.url.database or engine.url.render_as_string(hide_password=True)
        reason = str(error.orig)
        if "locked" in reason:
            raise UserError("release.busy", path=where, seconds=int(BUSY_S)) from error
        if "not a database" in reason or "malformed" in reason:
            raise UserError("release.bad_registry", path=where, problem=reason) from error
        if "readonly" in reason or "unable to open" in reason:
            raise UserError("store.read_only", path=where) from error
        raise


def _revision(engine: Engine) -> str | None:
    """The schema's revision, None for an empty database; one query on the usual path."""
    from sqlalchemy import inspect, text

    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found is not None and found not in REVISIONS:
        raise UserError("release.newer_registry", path=engine.url.database or "", found=found, known=REVISIONS[-1])
    return None if found is None else str(found)


def _migrate(engine: Engine) -> None:
    """Upgrade under a lock, in one transaction; an older SQLite file is copied aside first."""
    from filelock import FileLock

    if engine.dialect.name != "sqlite":
        _upgrade(engine)
        return
    path = Path(engine.url.database or "")
    with FileLock(f"{path}.lock"):
        revision = _revision(engine)
        if revision == REVISIONS[-1]:
            return  # another process did it while this one waited
        if revision is not None:
            _back_up(path, path.with_name(f"{path.name}.before-{REVISIONS[-1]}"))
        with sqlite3.connect(path, timeout=BUSY_S) as plain:
            plain.execute("PRAGMA journal_mode=WAL")  # stays set in the file
        plain.close()
        _upgrade(engine)


def _upgrade(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _back_up(source: Path, target: Path) -> None:
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()
