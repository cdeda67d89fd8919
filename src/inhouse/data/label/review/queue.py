"""The review queue: add texts, give a reviewer the next one, take answers, settle disputes."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from inhouse.core.errors import UserError
from inhouse.data.label.review.tables import metadata
from inhouse.database import reading, writing

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Select, Table

CLAIM_S = 900.0  # how long a text that someone looks at is kept from others
AGREEMENT = "agreement"
State = Literal["open", "disputed", "decided"]


@dataclass(frozen=True)
class Queue:
    """A queue's settings. Without labels people write their answers."""

    name: str
    labels: tuple[str, ...] = ()
    text_column: str = "text"
    label_column: str = "label"


@dataclass(frozen=True)
class NewTask:
    """A text to be labelled or checked. A higher priority is shown earlier."""

    id: str
    text: str
    fields: dict[str, Any]
    given: str | None = None
    suggestion: str | None = None
    suggested_by: str | None = None
    score: float | None = None
    priority: float = 0.0


@dataclass(frozen=True)
class Task:
    """A text in a queue with the answers so far, in the order of the reviewers' names."""

    asked: NewTask
    needed: int
    answers: tuple[tuple[str, str], ...]  # reviewer, label
    label: str | None
    decided_by: str | None

    @property
    def state(self) -> State:
        """open until it has its answers; then decided when they agree or someone adjudicated, else disputed."""
        if self.label is not None:
            return "decided"
        return "disputed" if len(self.answers) >= self.needed else "open"


def add_tasks(engine: Engine, queue: Queue, tasks: Sequence[NewTask], needed: int) -> int:
    """Put texts into a queue, which is made when it is new; returns how many were not there yet.

    A text that is there keeps its answers; what is suggested for it is replaced.
    """
    from sqlalchemy import insert, update

    table = _table("tasks")
    with writing(engine) as connection:
        _put_queue(connection, queue)
        known = {row.task for row in connection.execute(_of_queue("tasks", queue.name))}
        new: list[dict[str, Any]] = []
        for task in {task.id: task for task in tasks}.values():
            values = _values(task)
            if task.id in known:
                where = (table.c.queue == queue.name) & (table.c.task == task.id)
                connection.execute(update(table).where(where).values(values))
                continue
            known.add(task.id)
            new.append({**values, "queue": queue.name, "task": task.id, "needed": needed})
        if new:
            connection.execute(insert(table), new)
    return len(new)


def find_queue(engine: Engine, name: str | None) -> Queue:
    """The queue of that name, or the only one there is. Raises review.no_queue, review.which_queue."""
    from sqlalchemy import select

    table = _table("queues")
    with reading(engine) as connection:
        rows = connection.execute(select(table).order_by(table.c.name)).all()
    found = [row for row in rows if name in (None, row.name)]
    names = ", ".join(row.name for row in rows)
    if len(found) > 1:
        commands = "\n".join(f"  inhouse data review status --queue {shlex.quote(row.name)}" for row in rows)
        raise UserError("review.which_queue", names=names, commands=commands)
    if not found:
        raise UserError("review.no_queue", name=name or "-", names=names or "-")
    [row] = found
    return Queue(row.name, tuple(json.loads(row.labels)), row.text_column, row.label_column)


def all_tasks(engine: Engine, queue: Queue) -> list[Task]:
    """Every text of a queue, by priority and id."""
    with reading(engine) as connection:
        return _tasks(connection, queue.name, None)


def disputed_tasks(engine: Engine, queue: Queue) -> list[Task]:
    """The texts that have their answers and no decision, by priority and id."""
    from sqlalchemy import func, select

    tasks, answers = _table("tasks"), _table("answers")
    mine = (answers.c.queue == tasks.c.queue) & (answers.c.task == tasks.c.task)
    answered = select(func.count()).select_from(answers).where(mine).correlate(tasks).scalar_subquery()
    wanted = _of_queue("tasks", queue.name).where(tasks.c.label.is_(None), answered >= tasks.c.needed)
    with reading(engine) as connection:
        found = connection.execute(wanted.order_by(tasks.c.priority.desc(), tasks.c.task)).all()
        return [_tasks(connection, queue.name, row.task)[0] for row in found]


def next_task(engine: Engine, queue: Queue, reviewer: str, skip: Collection[str] = ()) -> Task | None:
    """A text that still needs this reviewer's answer, kept from others for a while; None when there is none left.

    Texts that someone else has answered come first, so that they are finished before new ones are begun.
    """
    from sqlalchemy import func, select

    tasks, answers, claims = _table("tasks"), _table("answers"), _table("claims")
    now = time.time()

    def of_task(table: Table) -> Any:
        return (table.c.queue == tasks.c.queue) & (table.c.task == tasks.c.task)

    answered = select(func.count()).select_from(answers).where(of_task(answers)).correlate(tasks).scalar_subquery()
    others = of_task(claims) & (claims.c.reviewer != reviewer) & (claims.c.until > now)
    claimed = select(func.count()).select_from(claims).where(others).correlate(tasks).scalar_subquery()
    mine = select(answers.c.task).where((answers.c.queue == queue.name) & (answers.c.reviewer == reviewer))
    wanted = (
        select(tasks.c.task)
        .where(tasks.c.queue == queue.name, tasks.c.label.is_(None), tasks.c.task.not_in(mine))
        .where(tasks.c.task.not_in(list(skip)), answered + claimed < tasks.c.needed)
        .order_by(tasks.c.priority.desc(), answered.desc(), tasks.c.task)
        .limit(1)
    )
    with writing(engine) as connection:
        task = connection.execute(wanted).scalar()
        if task is None:
            return None
        _claim(connection, (queue.name, task, reviewer), now + CLAIM_S)
        return _tasks(connection, queue.name, task)[0]


def answer(engine: Engine, queue: Queue, task: str, reviewer: str, label: str) -> Task:
    """Take a reviewer's answer, or replace the one given before. `task` may be the beginning of an id.

    Raises review.no_task, review.unknown_label, review.settled for a dispute that was adjudicated, and review.full
    when others gave all the answers that are needed.
    """
    label = _checked(queue, label)
    with writing(engine) as connection:
        found = _one(connection, queue, task)
        if found.decided_by not in (None, AGREEMENT):
            raise UserError("review.settled", task=found.asked.id, label=found.label, by=found.decided_by)
        given = dict(found.answers)
        if reviewer not in given and len(given) >= found.needed:
            raise UserError("review.full", task=found.asked.id, needed=found.needed, reviewers=", ".join(given))
        _put_answer(connection, (queue.name, found.asked.id, reviewer), label)
        given[reviewer] = label
        agreed = label if len(given) >= found.needed and len(set(given.values())) == 1 else None
        _decide(connection, (queue.name, found.asked.id), agreed, AGREEMENT)
        return _one(connection, queue, found.asked.id)


def adjudicate(engine: Engine, queue: Queue, task: str, judge: str, label: str) -> Task:
    """Settle a dispute. Raises review.no_task, review.unknown_label, review.no_dispute."""
    label = _checked(queue, label)
    with writing(engine) as connection:
        found = _one(connection, queue, task)
        if found.state == "open" or found.decided_by == AGREEMENT:
            raise UserError("review.no_dispute", task=found.asked.id, answers=len(found.answers), needed=found.needed)
        _decide(connection, (queue.name, found.asked.id), label, judge)
        return _one(connection, queue, found.asked.id)


@dataclass(frozen=True)
class Recorded:
    """Answers (reviewer, label) that another tool recorded for a text, and its verdict when there was one."""

    task: str
    answers: tuple[tuple[str, str], ...]
    verdict: tuple[str, str] | None = None


def restore(engine: Engine, queue: Queue, recorded: Sequence[Recorded]) -> None:
    """Take over what another tool recorded, in one transaction."""
    with writing(engine) as connection:
        for one in recorded:
            _restore(connection, queue, one)


def _restore(connection: Connection, queue: Queue, one: Recorded) -> None:
    found = _one(connection, queue, one.task)
    given = dict(found.answers) | dict(one.answers)
    for reviewer, label in one.answers:
        _put_answer(connection, (queue.name, one.task, reviewer), label)
    agreed = len(given) >= found.needed and len(set(given.values())) == 1
    if one.verdict is not None:
        _decide(connection, (queue.name, one.task), one.verdict[1], one.verdict[0])
    elif found.decided_by in (None, AGREEMENT):
        _decide(connection, (queue.name, one.task), next(iter(given.values())) if agreed else None, AGREEMENT)


def _table(name: str) -> Table:
    return metadata().tables[name]


def _of_queue(name: str, queue: str) -> Select[Any]:
    from sqlalchemy import select

    table = _table(name)
    return select(table).where(table.c.queue == queue)


def _put_queue(connection: Connection, queue: Queue) -> None:
    """Make a queue, or add to the labels of one that is there."""
    from sqlalchemy.dialects.sqlite import insert

    table = _table("queues")
    known = connection.execute(table.select().where(table.c.name == queue.name)).first()
    labels = dict.fromkeys([*(json.loads(known.labels) if known else ()), *queue.labels])
    values = {
        "labels": json.dumps(list(labels), ensure_ascii=False),
        "text_column": queue.text_column, "label_column": queue.label_column,
    }  # fmt: skip
    connection.execute(insert(table).values(name=queue.name, **values).on_conflict_do_update(set_=values))


def _values(task: NewTask) -> dict[str, Any]:
    return {
        "text": task.text, "fields": json.dumps(task.fields, ensure_ascii=True, default=str), "given": task.given,
        "suggestion": task.suggestion, "suggested_by": task.suggested_by, "score": task.score,
        "priority": task.priority,
    }  # fmt: skip


def _claim(connection: Connection, key: tuple[str, str, str], until: float) -> None:
    from sqlalchemy.dialects.sqlite import insert

    names = ("queue", "task", "reviewer")
    values = dict(zip(names, key, strict=True))
    connection.execute(
        insert(_table("claims")).values(**values, until=until).on_conflict_do_update(set_={"until": until})
    )


def _put_answer(connection: Connection, key: tuple[str, str, str], label: str) -> None:
    from sqlalchemy import delete
    from sqlalchemy.dialects.sqlite import insert

    claims = _table("claims")
    queue, task, reviewer = key
    values = {"label": label, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    row = insert(_table("answers")).values(queue=queue, task=task, reviewer=reviewer, **values)
    connection.execute(row.on_conflict_do_update(set_=values))
    mine = (claims.c.queue == queue) & (claims.c.task == task) & (claims.c.reviewer == reviewer)
    connection.execute(delete(claims).where(mine))


def _decide(connection: Connection, key: tuple[str, str], label: str | None, by: str) -> None:
    from sqlalchemy import update

    table = _table("tasks")
    values = {"label": label, "decided_by": None if label is None else by, "decided_at": None}
    if label is not None:
        values["decided_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    connection.execute(update(table).where(table.c.queue == key[0], table.c.task == key[1]).values(values))


def _one(connection: Connection, queue: Queue, task: str) -> Task:
    """The task of this id, or the one whose id begins so."""
    table = _table("tasks")
    wanted = _of_queue("tasks", queue.name).where(table.c.task.startswith(task, autoescape=True)).limit(2)
    found = [row.task for row in connection.execute(wanted)]
    if len(found) != 1:
        raise UserError("review.no_task", task=task, queue=queue.name, found=len(found))
    return _tasks(connection, queue.name, found[0])[0]


def _tasks(connection: Connection, queue: str, task: str | None) -> list[Task]:
    tasks, answers = _table("tasks"), _table("answers")
    rows, given = _of_queue("tasks", queue), _of_queue("answers", queue)
    if task is not None:
        rows, given = rows.where(tasks.c.task == task), given.where(answers.c.task == task)
    by_task: dict[str, list[tuple[str, str]]] = {}
    for one in connection.execute(given.order_by(answers.c.reviewer)):
        by_task.setdefault(one.task, []).append((one.reviewer, one.label))
    found = []
    for row in connection.execute(rows.order_by(tasks.c.priority.desc(), tasks.c.task)):
        asked = NewTask(
            row.task, row.text, json.loads(row.fields), row.given, row.suggestion, row.suggested_by, row.score,
            row.priority,
        )  # fmt: skip
        found.append(Task(asked, row.needed, tuple(by_task.get(row.task, ())), row.label, row.decided_by))
    return found


def _checked(queue: Queue, label: str) -> str:
    label = label.strip()
    if not label or (queue.labels and label not in queue.labels):
        raise UserError("review.unknown_label", label=label, labels=", ".join(queue.labels) or "-")
    return label
