"""Programs that change a registry in processes of their own, to be run beside each other or killed."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from inhouse.core.store import Store
from inhouse.release.batches import Answer, claim, finish, this_worker
from inhouse.release.keys import create_key
from inhouse.release.registry import open_registry
from inhouse.release.rules import Rules

KEYS = 20
DIALECTS = ["sqlalchemy.dialects.sqlite.pysqlite", "sqlalchemy.dialects.postgresql.psycopg"]
PRELOAD = ["release_writers", "inhouse.release.tables", "inhouse.release.batches", *DIALECTS]


def started(target: Any, *words: Any) -> BaseProcess:
    """Run a function of this module in a clean process, forked from one that has imported what it needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=target, args=words, daemon=True)
    process.start()
    return process


def change_for_ever(root: Path, url: str, ready: Connection) -> None:
    """Promote, split, try and roll back 'desk' until killed."""
    registry = open_registry(Store(root), url)
    registry.rollback("desk")
    ready.send(True)
    while True:
        registry.split("desk", {"routing:v1": 700, "routing:v2": 300})
        canary = registry.start_canary("desk", "routing:v3", 50, rules=Rules(sticky="user")).canary
        assert canary is not None
        registry.advance_canary("desk", canary, 250)
        registry.rollback("desk")
        registry.set_rules("desk", Rules())
        registry.promote("desk", "routing:v2")
        registry.rollback("desk")


def make_keys(root: Path, url: str, problems: Any) -> None:
    """Make KEYS keys; what fails is put into `problems`."""
    try:
        registry = open_registry(Store(root), url)
        for turn in range(KEYS):
            create_key(registry.engine, f"key{os.getpid()} {turn}")
    except BaseException as error:
        problems.put(repr(error))
        raise


def answer_lines(root: Path, url: str, batch: str, ready: Connection) -> None:
    """Claim and answer lines of a batch, three at once, until there are none; `ready` is told after the first ones."""
    engine = open_registry(Store(root), url).engine
    worker = this_worker()
    while lines := claim(engine, batch, worker, 3, moment=1_000):
        ready.send(len(lines))
        for line in lines:
            finish(engine, batch, worker, [Answer(line.line, line.custom_id, False, {"said": line.custom_id})])
