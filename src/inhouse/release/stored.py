"""What a key stored: OpenAI's files and responses. Every question names the key (the tenant) that asks it."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from inhouse.database import reading, writing

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, Table

FileStatus = Literal["uploaded", "processed", "error"]
MOST_LISTED = 10_000


@dataclass(frozen=True)
class StoredFile:
    """A file's record. Its bytes lie elsewhere, under its id. Times are seconds since 1970."""

    id: str
    key: int
    purpose: str
    filename: str
    bytes: int
    sha256: str
    created: int
    status: FileStatus = "processed"
    expires: int | None = None


@dataclass(frozen=True)
class StoredResponse:
    """A response of the Responses API; `body` is what its client got, or gets when it is done."""

    id: str
    key: int
    model: str
    created: int
    previous: str | None
    status: str
    body: dict[str, Any]
    expires: int | None = None


@dataclass(frozen=True)
class Page:
    """Which part of a list is asked for, as OpenAI's lists have it."""

    limit: int = 20
    after: str | None = None  # id of the last one of the page before
    newest_first: bool = True


FIRST_PAGE = Page()


def new_id(kind: Literal["file-", "batch_", "resp_"]) -> str:
    """An id that nobody can guess."""
    return kind + secrets.token_hex(16)


def clean(name: str, most: int = 255) -> str:
    """A name that every database can hold: no NUL, no half characters, not too long."""
    return name.encode("utf-8", "replace").decode("utf-8").replace("\x00", "?")[:most]


def add_file(engine: Engine, file: StoredFile) -> StoredFile:
    """Keep the record of a file whose bytes are on disk already."""
    from sqlalchemy import insert

    from inhouse.release.tables import files

    values = {**vars(file), "filename": clean(file.filename)}
    with writing(engine) as connection:
        connection.execute(insert(files).values(values))
    return StoredFile(**values)


def get_file(engine: Engine, key: int, file: str) -> StoredFile | None:
    """A file of this key; None for one that is not there or another key's."""
    from inhouse.release.tables import files

    row = _one(engine, files, (files.c.key == key) & (files.c.id == file))
    return None if row is None else StoredFile(**row._mapping)


def list_files(engine: Engine, key: int, page: Page = FIRST_PAGE, purpose: str | None = None) -> list[StoredFile]:
    """Files of this key."""
    from inhouse.release.tables import files

    wanted = files.c.key == key
    if purpose is not None:
        wanted &= files.c.purpose == purpose
    return [StoredFile(**row._mapping) for row in listed(engine, files, wanted, page)]


def delete_file(engine: Engine, key: int, file: str) -> bool:
    """Forget a file of this key; whether there was one. Its bytes are the caller's to delete."""
    from inhouse.release.tables import files

    return _delete(engine, files, (files.c.key == key) & (files.c.id == file)) > 0


def stored_bytes(engine: Engine, key: int) -> int:
    """Bytes of all files of this key, for its quota."""
    from sqlalchemy import func, select

    from inhouse.release.tables import files

    with reading(engine) as connection:
        query = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.key == key)
        return int(connection.execute(query).scalar_one())


def expired_files(engine: Engine, moment: int) -> list[StoredFile]:
    """Files of every key whose time is over; delete their bytes, then `delete_file`."""
    from sqlalchemy import select

    from inhouse.release.tables import files

    with reading(engine) as connection:
        rows = connection.execute(select(files).where(files.c.expires <= moment).order_by(files.c.id)).all()
    return [StoredFile(**row._mapping) for row in rows]


def put_response(engine: Engine, response: StoredResponse) -> None:
    """Keep a response, or replace what is known of it; only its own key can."""
    from sqlalchemy import insert, update

    from inhouse.release.tables import responses

    values = {**vars(response), "body": json.dumps(response.body)}
    mine = (responses.c.key == response.key) & (responses.c.id == response.id)
    with writing(engine) as connection:
        if connection.execute(update(responses).where(mine).values(values)).rowcount == 0:
            connection.execute(insert(responses).values(values))


def get_response(engine: Engine, key: int, response: str, moment: int) -> StoredResponse | None:
    """A response of this key that has not expired; None for one that is not there or another key's."""
    from inhouse.release.tables import responses

    row = _one(engine, responses, (responses.c.key == key) & (responses.c.id == response))
    if row is None or (row.expires is not None and row.expires <= moment):
        return None
    return StoredResponse(**{**row._mapping, "body": json.loads(row.body)})


def delete_response(engine: Engine, key: int, response: str) -> bool:
    """Forget a response of this key; whether there was one."""
    from inhouse.release.tables import responses

    return _delete(engine, responses, (responses.c.key == key) & (responses.c.id == response)) > 0


def drop_expired_responses(engine: Engine, moment: int) -> int:
    """Forget every response whose time is over; how many."""
    from inhouse.release.tables import responses

    return _delete(engine, responses, responses.c.expires <= moment)


def listed(engine: Engine, table: Table, wanted: ColumnElement[bool], page: Page) -> list[Row[Any]]:
    """A page of a key's rows by the moment they were made. An `after` that is not there gives an empty page."""
    from sqlalchemy import select

    with reading(engine) as connection:
        query = select(table).where(wanted)
        if page.after is not None:
            last = connection.execute(query.where(table.c.id == page.after)).first()
            if last is None:
                return []
            query = query.where(_beyond(table, last, page.newest_first))
        return _ordered(connection, query, table, page)


def _ordered(connection: Connection, query: Select[Any], table: Table, page: Page) -> list[Row[Any]]:
    columns = (table.c.created, table.c.id)
    order = [c.desc() if page.newest_first else c.asc() for c in columns]
    return list(connection.execute(query.order_by(*order).limit(min(page.limit, MOST_LISTED))).all())


def _beyond(table: Table, last: Row[Any], newest_first: bool) -> ColumnElement[bool]:
    from sqlalchemy import and_, or_

    created, own = table.c.created, table.c.id
    if newest_first:
        return or_(created < last.created, and_(created == last.created, own < last.id))
    return or_(created > last.created, and_(created == last.created, own > last.id))


def _one(engine: Engine, table: Table, wanted: ColumnElement[bool]) -> Row[Any] | None:
    from sqlalchemy import select

    with reading(engine) as connection:
        return connection.execute(select(table).where(wanted)).first()


def _delete(engine: Engine, table: Table, wanted: ColumnElement[bool]) -> int:
    from sqlalchemy import delete

    with writing(engine) as connection:
        return connection.execute(delete(table).where(wanted)).rowcount
