"""Answers of endpoints kept by what was asked, and a ledger of what asking has cost. One SQLite file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inhouse.core.errors import UserError
from inhouse.database import alone, connected, errors

FILE = "answers.db"
BUSY_S = 30.0
TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS spent (task TEXT PRIMARY KEY, requests INTEGER NOT NULL, tokens INTEGER NOT NULL)",
)


@dataclass(frozen=True)
class Spent:
    """What a task has cost so far."""

    requests: int = 0
    tokens: int = 0


class Answers:
    """The kept answers of one folder; safe for several threads and processes, whole after a crash."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        with alone(self.path, _told, BUSY_S) as db:
            for table in TABLES:
                db.execute(table)
        with errors(self.path, _told):
            self._db = connected(self.path, BUSY_S)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def find(self, key: str) -> str | None:
        """The answer kept under a key."""
        with self._transaction("BEGIN") as db:
            row = db.execute("SELECT reply FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def keep(self, key: str, reply: str) -> None:
        """Keep an answer."""
        with self._transaction("BEGIN IMMEDIATE") as db:
            db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, reply))

    def spent(self, task: str) -> Spent:
        """What a task has cost so far, and what its running requests may still cost."""
        with self._transaction("BEGIN") as db:
            return _spent(db, task)

    def reserve(self, task: str, tokens: int, most: Spent) -> Spent | None:
        """Charge one request of up to `tokens` before it is made; what was spent when that would pass `most`.

        Reserved first and settled later, so that neither threads, processes nor a kill can overspend.
        """
        with self._transaction("BEGIN IMMEDIATE") as db:
            spent = _spent(db, task)
            if spent.requests + 1 > most.requests or spent.tokens + tokens > most.tokens:
                return spent
            _charge(db, task, 1, tokens)
        return None

    def settle(self, task: str, tokens: int) -> None:
        """Add tokens to a task's account; negative gives back what was reserved and not used."""
        with self._transaction("BEGIN IMMEDIATE") as db:
            _charge(db, task, 0, tokens)

    @contextmanager
    def _transaction(self, begin: Literal["BEGIN", "BEGIN IMMEDIATE"]) -> Iterator[sqlite3.Connection]:
        with self._lock, errors(self.path, _told):
            self._db.execute(begin)
            with self._db:  # commits, or rolls back
                yield self._db


def _told(kind: Literal["busy", "broken"], path: str, problem: str) -> UserError:
    if kind == "busy":
        return UserError("label.busy_cache", path=path, seconds=int(BUSY_S))
    return UserError("label.bad_cache", path=path, problem=problem)


def _spent(db: sqlite3.Connection, task: str) -> Spent:
    row = db.execute("SELECT requests, tokens FROM spent WHERE task = ?", (task,)).fetchone()
    return Spent(*row) if row else Spent()


def _charge(db: sqlite3.Connection, task: str, requests: int, tokens: int) -> None:
    db.execute(
        "INSERT INTO spent VALUES (?1, ?2, ?3)"
        " ON CONFLICT (task) DO UPDATE SET requests = requests + ?2, tokens = tokens + ?3",
        (task, requests, tokens),
    )
