"""Files of SQLite that many processes open, make and write at the same moment."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import SQLAlchemyError

from inhouse.core.errors import UserError
from inhouse.data.label.review.tables import open_file
from inhouse.database import alone, connected, errors, sqlite_url, writing
from inhouse.release.database import connect
from inhouse.remote.answers import Answers, Spent

PROCESSES = 5
ROUNDS = 24


def keep_answers(folder: Path, number: int) -> None:
    kept = Answers(folder)
    kept.keep(f"key {number}", "reply")
    assert kept.reserve("task", 10, Spent(100, 1000)) is None
    kept.close()


def open_queue(folder: Path, number: int) -> None:
    engine = open_file(folder)
    with writing(engine) as connection:
        connection.exec_driver_sql(f"INSERT INTO queues VALUES ('q{number}', '[]', 'text', 'label')")
    engine.dispose()


def open_registry(folder: Path, number: int) -> None:
    engine = connect(sqlite_url(folder / "registry.db"))
    with writing(engine) as connection:
        connection.exec_driver_sql(f"CREATE TABLE t{number} (x)")
    engine.dispose()


def together(opener: Callable[[Path, int], None], root: Path, rounds: int, meet: Any, out: Any) -> None:
    number = int(multiprocessing.current_process().name)
    for turn in range(rounds):
        folder = root / str(turn)
        folder.mkdir(exist_ok=True)
        meet.wait()
        try:
            opener(folder, number)
        except (UserError, sqlite3.Error, SQLAlchemyError, OSError) as error:
            out.put(f"{type(error).__name__}: {error}")
    out.put(None)


def problems_of(opener: Callable[[Path, int], None], root: Path, rounds: int) -> list[str]:
    """What fails when several processes open a new file in the same moment, round after round."""
    context = multiprocessing.get_context("spawn")
    meet, out = context.Barrier(PROCESSES), context.Queue()
    crew = [
        context.Process(target=together, args=(opener, root, rounds, meet, out), name=str(number))
        for number in range(PROCESSES)
    ]
    for process in crew:
        process.start()
    found, left = [], PROCESSES
    while left:
        item = out.get(timeout=120)
        left -= item is None
        found += [] if item is None else [item]
    for process in crew:
        process.join()
    return found


def rows(path: Path, query: str) -> int:
    with sqlite3.connect(path) as plain:
        (found,) = plain.execute(query).fetchone()
    plain.close()
    return int(found)


def test_answers_that_processes_open_together_lose_nothing(tmp_path: Path) -> None:
    assert problems_of(keep_answers, tmp_path, ROUNDS) == []
    for turn in range(ROUNDS):
        path = tmp_path / str(turn) / "answers.db"
        assert rows(path, "SELECT count(*) FROM answers") == PROCESSES
        assert rows(path, "SELECT tokens FROM spent") == 10 * PROCESSES


def test_review_queue_that_processes_open_together_loses_nothing(tmp_path: Path) -> None:
    assert problems_of(open_queue, tmp_path, ROUNDS // 3) == []
    for turn in range(ROUNDS // 3):
        assert rows(tmp_path / str(turn) / "reviews.db", "SELECT count(*) FROM queues") == PROCESSES


def test_registry_that_processes_open_together_loses_nothing(tmp_path: Path) -> None:
    assert problems_of(open_registry, tmp_path, 3) == []
    for turn in range(3):
        path = tmp_path / str(turn) / "registry.db"
        assert rows(path, "SELECT count(*) FROM sqlite_master WHERE name GLOB 't[0-9]'") == PROCESSES


def told(kind: str, path: str, problem: str) -> UserError:
    return UserError("label.bad_cache", path=f"{kind} {Path(path).name}", problem=problem)


def test_file_is_in_wal_mode_and_flushes_every_commit(tmp_path: Path) -> None:
    with alone(tmp_path / "a.db", told, 1) as plain:
        plain.execute("CREATE TABLE t (x)")
    for opened in (connected(tmp_path / "a.db", 1), sqlite3.connect(tmp_path / "a.db")):
        assert opened.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        opened.close()
    opened = connected(tmp_path / "a.db", 1)
    assert opened.execute("PRAGMA synchronous").fetchone() == (2,)
    opened.close()


@pytest.mark.parametrize(
    ("content", "statement", "kind"),
    [(b"this is text and no database at all" * 40, "SELECT 1 FROM t", "broken"), (b"", "SELECT 1 FROM t", "broken")],
    ids=["text", "other tables"],
)
def test_file_that_is_not_ours_is_named(content: bytes, statement: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(content)
    with pytest.raises(UserError, match=f"{kind} a.db"), errors(tmp_path / "a.db", told):
        connected(tmp_path / "a.db", 1).execute(statement)


def test_answers_that_another_process_keeps_locked_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inhouse.remote.answers.BUSY_S", 0.05)
    first, second = Answers(tmp_path), Answers(tmp_path)
    first._db.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError) as raised:
        second.keep("key", "reply")
    assert raised.value.code == "label.busy_cache"
    assert str(raised.value)
    first.close()
    second.keep("key", "reply")
    assert second.find("key") == "reply"


def test_mistake_in_a_statement_is_not_told_as_a_damage(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError), alone(tmp_path / "a.db", told, 1) as plain:
        plain.execute("SELEKT 1")


def test_file_that_another_process_sets_up_for_too_long_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inhouse.database.LOCK_S", 0.01)
    with (
        alone(tmp_path / "a.db", told, 1),
        pytest.raises(UserError, match="busy a"),
        alone(tmp_path / "a.db", told, 1),
    ):
        pass


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        ("attempt to write a readonly database", "store.read_only"),
        ("unable to open database file", "store.read_only"),
        ("database or disk is full", "store.no_space"),
    ],
)
def test_disk_that_does_not_take_more_is_named(problem: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised, errors(tmp_path / "a.db", told):
        raise sqlite3.OperationalError(problem)
    assert raised.value.code == code
    assert str(raised.value)


def test_problem_in_a_transaction_of_an_engine_is_told_or_kept(tmp_path: Path) -> None:
    engine = open_file(tmp_path)
    with pytest.raises(UserError) as raised, writing(engine) as connection:
        connection.exec_driver_sql("SELECT 1 FROM elsewhere")
    assert raised.value.code == "review.bad_file"
    with pytest.raises(SQLAlchemyError), writing(engine) as connection:
        connection.exec_driver_sql("SELEKT 1")
