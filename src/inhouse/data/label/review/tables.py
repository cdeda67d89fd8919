"""Tables of the review queue, and opening its file: short transactions that a crash leaves whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.store import disk_errors

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, MetaData

FILE = "reviews.db"
VERSION = 1  # of the tables below, kept in the file
BUSY_S = 10.0
READ_ONLY = "inhouse_read"


@cache
def metadata() -> MetaData:
    """The tables. `task` is the hash of its text, so that a text stands in a queue once."""
    from sqlalchemy import Column, Float, ForeignKeyConstraint, Integer, MetaData, String, Table, Text

    found = MetaData()
    Table(
        "queues", found,
        Column("name", String(64), primary_key=True),
        Column("labels", Text, nullable=False),  # JSON list; empty: people write their answer
        Column("text_column", String(128), nullable=False),
        Column("label_column", String(128), nullable=False),
    )  # fmt: skip
    Table(
        "tasks", found,
        Column("queue", String(64), primary_key=True),
        Column("task", String(16), primary_key=True),
        Column("text", Text, nullable=False),
        Column("fields", Text, nullable=False),  # JSON object: the row's columns
        Column("given", Text, nullable=True),
        Column("suggestion", Text, nullable=True),
        Column("suggested_by", String(128), nullable=True),
        Column("score", Float, nullable=True),
        Column("priority", Float, nullable=False),
        Column("needed", Integer, nullable=False),
        Column("label", Text, nullable=True),  # decided
        Column("decided_by", String(128), nullable=True),  # 'agreement', or who adjudicated
        Column("decided_at", String(40), nullable=True),
        ForeignKeyConstraint(["queue"], ["queues.name"]),
    )  # fmt: skip
    _add_answers(found)
    return found


def _add_answers(found: MetaData) -> None:
    from sqlalchemy import Column, Float, ForeignKeyConstraint, String, Table, Text

    Table(
        "answers", found,
        Column("queue", String(64), primary_key=True),
        Column("task", String(16), primary_key=True),
        Column("reviewer", String(128), primary_key=True),
        Column("label", Text, nullable=False),
        Column("at", String(40), nullable=False),
        ForeignKeyConstraint(["queue", "task"], ["tasks.queue", "tasks.task"]),
    )  # fmt: skip
    Table(
        "claims", found,
        Column("queue", String(64), primary_key=True),
        Column("task", String(16), primary_key=True),
        Column("reviewer", String(128), primary_key=True),
        Column("until", Float, nullable=False),  # seconds since 1970
        ForeignKeyConstraint(["queue", "task"], ["tasks.queue", "tasks.task"]),
    )  # fmt: skip


def open_file(folder: Path) -> Engine:
    """Open the queue of a workspace, made when it is not there. Raises review.newer, review.bad_file."""
    from sqlalchemy import create_engine, event

    path = folder / FILE
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_S})
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    with writing(engine) as connection:
        found = connection.exec_driver_sql("PRAGMA user_version").scalar() or 0
        if found > VERSION:
            raise UserError("review.newer", path=path, found=found, known=VERSION)
        if found < VERSION:
            metadata().create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={VERSION}")
    return engine


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
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    # IMMEDIATE: a deferred transaction that reads and then writes fails at once when another process wrote in between.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def _errors(engine: Engine) -> Iterator[None]:
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except DatabaseError as error:
        where, reason = engine.url.database or "", str(error.orig)
        if "locked" in reason:
            raise UserError("review.busy", path=where, seconds=int(BUSY_S)) from error
        if "not a database" in reason or "malformed" in reason:
            raise UserError("review.bad_file", path=where, problem=reason) from error
        if "readonly" in reason or "unable to open" in reason:
            raise UserError("store.read_only", path=where) from error
        raise
