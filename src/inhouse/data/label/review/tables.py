"""Tables of the review queue, and opening its file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inhouse.core.errors import UserError
from inhouse.database import alone, engine_of, sqlite_url, writing

if TYPE_CHECKING:
    from sqlalchemy import Engine, MetaData

FILE = "reviews.db"
VERSION = 1  # of the tables below, kept in the file
BUSY_S = 10.0


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
    path = folder / FILE
    engine = engine_of(sqlite_url(path), _told, BUSY_S)
    with alone(path, _told, BUSY_S) as plain:
        (found,) = plain.execute("PRAGMA user_version").fetchone()
        if found > VERSION:
            raise UserError("review.newer", path=path, found=found, known=VERSION)
        if found < VERSION:
            with writing(engine) as connection:
                metadata().create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version={VERSION}")
    return engine


def _told(kind: Literal["busy", "broken"], path: str, problem: str) -> UserError:
    if kind == "busy":
        return UserError("review.busy", path=path, seconds=int(BUSY_S))
    return UserError("review.bad_file", path=path, problem=problem)
