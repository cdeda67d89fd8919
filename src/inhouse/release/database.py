"""The registry's database, and its schema that migrates itself."""

from __future__ import annotations

import sqlite3
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inhouse.core.errors import UserError
from inhouse.database import alone, engine_of, reading, shown_url, writing

if TYPE_CHECKING:
    from sqlalchemy import Engine

REVISIONS = ("0001", "0002", "0003")  # oldest first; the last one is what this code reads and writes
BUSY_S = 5.0


@cache
def connect(url: str) -> Engine:
    """Open the database at an SQLAlchemy URL and bring its schema up to date.

    The engine is kept for the process. Raises release.newer_registry for a schema that a newer version wrote,
    release.bad_registry for a file that is no database.
    """
    engine = engine_of(url, _told, BUSY_S)
    if _revision(engine) != REVISIONS[-1]:
        _migrate(engine)
    return engine


def _told(kind: Literal["busy", "broken"], path: str, problem: str) -> UserError:
    if kind == "busy":
        return UserError("release.busy", path=path, seconds=int(BUSY_S))
    return UserError("release.bad_registry", path=path, problem=problem)


def _revision(engine: Engine) -> str | None:
    """The schema's revision, None for an empty database; one query on the usual path."""
    from sqlalchemy import inspect, text

    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found is not None and found not in REVISIONS:
        raise UserError("release.newer_registry", path=shown_url(engine), found=found, known=REVISIONS[-1])
    return None if found is None else str(found)


def _migrate(engine: Engine) -> None:
    """Upgrade under a lock, in one transaction; an older SQLite file is copied aside first.

    On a server the write lock of the transaction is that lock, and a backup is the server's own work.
    """
    if engine.dialect.name != "sqlite":
        _upgrade(engine)
        return
    path = Path(engine.url.database or "")
    with alone(path, _told, BUSY_S):
        revision = _revision(engine)
        if revision == REVISIONS[-1]:
            return  # another process did it while this one waited
        if revision is not None:
            _back_up(path, path.with_name(f"{path.name}.before-{REVISIONS[-1]}"))
        _upgrade(engine)


def _upgrade(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _back_up(source: Path, target: Path) -> None:
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()
