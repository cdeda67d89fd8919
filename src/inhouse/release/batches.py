"""Batches of requests and their items: each line of the input is answered once, whatever is killed on the way.

What a client asks for names its key (the tenant). What the worker does (claim, finish) names the batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from inhouse.core.errors import UserError
from inhouse.core.messages import text
from inhouse.core.run import process_mark
from inhouse.database import reading, writing
from inhouse.release.stored import FIRST_PAGE, Page, listed

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
OPEN: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")
LEASE_S = 120
READ_AT_ONCE = 500
log = logging.getLogger("inhouse.release")


@dataclass(frozen=True)
class Batch:
    """A batch. Times are seconds since 1970; `moments` has one for each status that it went through."""

    id: str
    key: int
    endpoint: str
    input_file: str
    status: Status
    created: int
    expires: int
    window: str = "24h"
    output_file: str | None = None
    error_file: str | None = None
    moments: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    errors: Sequence[Mapping[str, Any]] = ()
    total: int = 0
    completed: int = 0  # answered with success
    failed: int = 0


@dataclass(frozen=True)
class Line:
    """One request of a batch's input: its number from 1, its id, and where its bytes lie in the file."""

    line: int
    custom_id: str
    start: int
    size: int


@dataclass(frozen=True)
class Answer:
    """The answer to one line; `body` is the object that the output file gets."""

    line: int
    custom_id: str
    failed: bool
    body: dict[str, Any]


def this_worker() -> str:
    """The name of this process among all that may work on batches: machine, process id and its start."""
    pid = os.getpid()
    return f"{socket.gethostname()[:100]}|{pid}|{process_mark(pid)}"


def add_batch(engine: Engine, batch: Batch) -> Batch:
    """Keep a new batch, without items."""
    from sqlalchemy import insert

    from inhouse.release.tables import batches

    moments = {**batch.moments, batch.status: batch.created}
    values = {name: getattr(batch, name) for name in ("id", "key", "endpoint", "input_file", "status", "window")}
    values |= {"created": batch.created, "expires": batch.expires, "moments": json.dumps(moments)}
    values |= {"metadata": json.dumps(dict(batch.metadata)), "errors": json.dumps(list(batch.errors))}
    with writing(engine) as connection:
        connection.execute(insert(batches).values(values))
    return replace(batch, moments=moments)


def add_lines(engine: Engine, batch: str, lines: Iterable[Line]) -> int:
    """Keep the lines of a batch's input, all or none; how many. Raises release.batch_twice for a repeated id."""
    from sqlalchemy import insert
    from sqlalchemy.exc import IntegrityError

    from inhouse.release.tables import batch_items

    rows = [_row(batch, line) for line in lines]
    try:
        with writing(engine) as connection:
            for first in range(0, len(rows), READ_AT_ONCE):
                connection.execute(insert(batch_items), rows[first : first + READ_AT_ONCE])
    except IntegrityError:
        raise UserError("release.batch_twice", batch=batch) from None
    return len(rows)


def get_batch(engine: Engine, key: int, batch: str) -> Batch | None:
    """A batch of this key; None for one that is not there or another key's."""
    from sqlalchemy import select

    from inhouse.release.tables import batches

    with reading(engine) as connection:
        row = connection.execute(select(batches).where(batches.c.key == key, batches.c.id == batch)).first()
        return None if row is None else _batch(connection, row)


def list_batches(engine: Engine, key: int, page: Page = FIRST_PAGE) -> list[Batch]:
    """Batches of this key."""
    from inhouse.release.tables import batches

    rows = listed(engine, batches, batches.c.key == key, page)
    with reading(engine) as connection:
        return [_batch(connection, row) for row in rows]


def cancel_batch(engine: Engine, key: int, batch: str, moment: int) -> Batch | None:
    """Ask for the end of a batch of this key; its worker finishes what it has begun. None for another key's."""
    with writing(engine) as connection:
        found = _read(connection, batch, key)
        if found is not None and found.status in ("validating", "in_progress"):
            _move(connection, found, "cancelling", moment)
            return _read(connection, batch)
        return found


def open_batches(engine: Engine) -> list[Batch]:
    """Every batch of every key that still needs a worker, oldest first; a broken one is failed and left out."""
    from sqlalchemy import select

    from inhouse.release.tables import batches

    with reading(engine) as connection:
        query = select(batches).where(batches.c.status.in_(OPEN)).order_by(batches.c.created, batches.c.id)
        found = [_batch(connection, row) for row in connection.execute(query).all()]
    for batch in found:
        if batch.status not in OPEN:
            _write_down(engine, batch)
    return [batch for batch in found if batch.status in OPEN]


def move_batch(
    engine: Engine, batch: Batch, status: Status, moment: int, more: Mapping[str, Any] | None = None
) -> bool:
    """Set a batch's status, and with it its files (`output_file`, `error_file`) or `errors`.

    Whether that happened: not when the batch has another status by now than `batch` says.
    """
    with writing(engine) as connection:
        found = _read(connection, batch.id)
        if found is None or found.status != batch.status:
            return False
        _move(connection, found, status, moment, more or {})
        return True


def claim(engine: Engine, batch: str, worker: str, most: int, moment: int) -> list[Line]:
    """Take up to `most` lines that nobody works on, in order; they are this worker's until its lease ends.

    Those of a worker on this machine that is dead are free at once, those of another machine after LEASE_S.
    """
    from sqlalchemy import select, update

    from inhouse.release.tables import batch_items as items

    with writing(engine) as connection:
        _free(connection, batch, moment)
        pending = select(items).where(items.c.batch == batch, items.c.status == "pending")
        rows = connection.execute(pending.order_by(items.c.line).limit(most)).all()
        mine = (items.c.batch == batch) & items.c.line.in_([row.line for row in rows])
        values = {"status": "running", "worker": worker, "lease": moment + LEASE_S}
        connection.execute(update(items).where(mine).values(values))
    return [_line(row) for row in rows]


def renew(engine: Engine, worker: str, moment: int) -> int:
    """Say that this worker lives; how many lines it holds. Ask oftener than LEASE_S."""
    from sqlalchemy import update

    from inhouse.release.tables import batch_items as items

    mine = (items.c.worker == worker) & (items.c.status == "running")
    with writing(engine) as connection:
        return connection.execute(update(items).where(mine).values(lease=moment + LEASE_S)).rowcount


def finish(engine: Engine, batch: str, worker: str, answers: Sequence[Answer]) -> list[int]:
    """Keep answers; the numbers of those that were kept.

    An answer to a line that was given to another worker meanwhile is dropped: each line has one.
    """
    from sqlalchemy import update

    from inhouse.release.tables import batch_items as items

    kept = []
    with writing(engine) as connection:
        for answer in answers:
            mine = (items.c.batch == batch) & (items.c.line == answer.line) & (items.c.worker == worker)
            values = {
                "status": "done", "failed": answer.failed, "response": json.dumps(answer.body),
                "worker": None, "lease": None,
            }  # fmt: skip
            change = update(items).where(mine, items.c.status == "running").values(values)
            if connection.execute(change).rowcount:
                kept.append(answer.line)
    return kept


def give_back(engine: Engine, batch: str, worker: str) -> int:
    """Put the lines that this worker holds back, as before a drain; how many."""
    from inhouse.release.tables import batch_items as items

    with writing(engine) as connection:
        return _set_free(connection, (items.c.batch == batch) & (items.c.worker == worker))


def lines_left(engine: Engine, batch: str) -> int:
    """Lines that have no answer yet, those that somebody works on too."""
    from sqlalchemy import func, select

    from inhouse.release.tables import batch_items as items

    with reading(engine) as connection:
        query = select(func.count()).where(items.c.batch == batch, items.c.status != "done")
        return int(connection.execute(query).scalar_one())


def answers(engine: Engine, batch: str, failed: bool) -> Iterator[Answer]:
    """The answers in the order of the input, each line once: what the output file or the error file holds."""
    from sqlalchemy import select

    from inhouse.release.tables import batch_items as items

    last = -1
    while True:
        wanted = (items.c.batch == batch) & items.c.response.is_not(None) & (items.c.failed == failed)
        query = select(items).where(wanted, items.c.line > last).order_by(items.c.line).limit(READ_AT_ONCE)
        with reading(engine) as connection:
            rows = connection.execute(query).all()
        if not rows:
            return
        for row in rows:
            yield Answer(row.line, _json(row, row.custom_id), row.failed, _json(row, row.response))
        last = rows[-1].line


def unanswered(engine: Engine, batch: str) -> Iterator[Line]:
    """Lines without an answer in the order of the input: those of a batch that expired or was cancelled."""
    from sqlalchemy import select

    from inhouse.release.tables import batch_items as items

    query = select(items).where(items.c.batch == batch, items.c.status != "done").order_by(items.c.line)
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    yield from (_line(row) for row in rows)


def drop_answers(engine: Engine, batch: str) -> int:
    """Forget the answers of a batch whose files are written; how many. Its lines and counts stay."""
    from sqlalchemy import update

    from inhouse.release.tables import batch_items as items

    mine = (items.c.batch == batch) & items.c.response.is_not(None)
    with writing(engine) as connection:
        return connection.execute(update(items).where(mine).values(response=None)).rowcount


def _row(batch: str, line: Line) -> dict[str, Any]:
    custom_id = json.dumps(line.custom_id)
    hashed = hashlib.sha256(custom_id.encode()).hexdigest()
    place = {"line": line.line, "start": line.start, "size": line.size, "status": "pending"}
    return {"batch": batch, "custom_id": custom_id, "custom_hash": hashed, **place}


def _line(row: Row[Any]) -> Line:
    return Line(row.line, _json(row, row.custom_id), row.start, row.size)


def _json(row: Row[Any], value: str) -> Any:
    """What an item holds. Raises release.batch_broken."""
    try:
        return json.loads(value)
    except ValueError:
        raise UserError("release.batch_broken", batch=row.batch) from None


def _free(connection: Connection, batch: str, moment: int) -> None:
    """Put back what is held by workers that are gone."""
    from sqlalchemy import or_, select

    from inhouse.release.tables import batch_items as items

    held = (items.c.batch == batch) & (items.c.status == "running")
    workers = connection.execute(select(items.c.worker).where(held).distinct()).scalars().all()
    dead = [worker for worker in workers if is_dead(worker)]
    _set_free(connection, held & or_(items.c.lease < moment, items.c.worker.in_(dead)))


def _set_free(connection: Connection, which: Any) -> int:
    from sqlalchemy import update

    from inhouse.release.tables import batch_items as items

    values = {"status": "pending", "worker": None, "lease": None}
    return connection.execute(update(items).where(which, items.c.status == "running").values(values)).rowcount


def is_dead(worker: str) -> bool:
    """Whether a worker was a process of this machine that has ended."""
    host, _, rest = worker.partition("|")
    pid, _, mark = rest.partition("|")
    return host == socket.gethostname()[:100] and pid.isdigit() and process_mark(int(pid)) != mark


def _move(
    connection: Connection, batch: Batch, status: Status, moment: int, more: Mapping[str, Any] | None = None
) -> None:
    from sqlalchemy import update

    from inhouse.release.tables import batches

    values = dict(more or {})
    if "errors" in values:
        values["errors"] = json.dumps(values["errors"])
    moments = {**batch.moments, status: moment}
    change = update(batches).where(batches.c.id == batch.id)
    connection.execute(change.values({**values, "status": status, "moments": json.dumps(moments)}))


def _read(connection: Connection, batch: str, key: int | None = None) -> Batch | None:
    from sqlalchemy import select

    from inhouse.release.tables import batches

    query = select(batches).where(batches.c.id == batch)
    row = connection.execute(query if key is None else query.where(batches.c.key == key)).first()
    return None if row is None else _batch(connection, row)


def _batch(connection: Connection, row: Row[Any]) -> Batch:
    from sqlalchemy import func, select

    from inhouse.release.tables import batch_items as items

    query = select(items.c.failed, func.count()).where(items.c.batch == row.id).group_by(items.c.failed)
    counts = {failed: count for failed, count in connection.execute(query).all()}
    numbers = {"total": sum(counts.values()), "completed": counts.get(False, 0), "failed": counts.get(True, 0)}
    try:
        return Batch(**{**row._mapping, **_facts(row), **numbers})
    except (ValueError, TypeError):  # not as it was written: a broken disk, or another program
        error = {
            "code": "batch_broken",
            "message": text("release.batch_broken", batch=row.id),
            "line": None,
            "param": None,
        }
        told = {"status": "failed", "moments": {}, "metadata": {}, "errors": [error]}
        whole = {name: value if isinstance(value, int) else 0 for name, value in _moments(row).items()}
        return Batch(**{**row._mapping, **told, **whole, **numbers})


def _facts(row: Row[Any]) -> dict[str, Any]:
    """What a row holds as JSON, and its numbers. Raises ValueError, TypeError where it is broken."""
    moments, metadata, errors = (json.loads(value) for value in (row.moments, row.metadata, row.errors))
    numbers = [*moments.values(), *_moments(row).values()] if isinstance(moments, dict) else [None]
    if not (isinstance(metadata, dict) and isinstance(errors, list) and all(isinstance(n, int) for n in numbers)):
        raise ValueError("broken")
    return {"moments": moments, "metadata": metadata, "errors": errors}


def _moments(row: Row[Any]) -> dict[str, Any]:
    return {"created": row.created, "expires": row.expires}


def _write_down(engine: Engine, batch: Batch) -> None:
    """Keep a broken batch as the failed one that it is read as."""
    from sqlalchemy import update

    from inhouse.release.tables import batches

    log.error("batch %s cannot be read from the registry any more, and has failed", batch.id)
    values = {"status": batch.status, "created": batch.created, "expires": batch.expires, "metadata": "{}"}
    values |= {"moments": json.dumps({"failed": int(time.time())}), "errors": json.dumps(list(batch.errors))}
    with writing(engine) as connection:
        connection.execute(update(batches).where(batches.c.id == batch.id).values(values))
