from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from postgres import installed

from inhouse.core.errors import MissingExtra, UserError
from inhouse.core.store import Store
from inhouse.database import Versions, reading, sqlite_url, writing
from inhouse.release.database import connect
from inhouse.release.keys import create_key, list_keys
from inhouse.release.registry import URL_FILE, Registry, open_registry


@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://root@host/x", "", "postgresql://u:secret-word@host:port/x", "http://h/x", "://"]
)
def test_database_of_no_known_kind_is_refused_without_its_password(url: str) -> None:
    connect.cache_clear()
    with pytest.raises(UserError) as error:
        connect(url)
    assert error.value.code == "database.bad_url" and "secret-word" not in str(error.value)


def test_server_that_does_not_answer_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(UserError) as error:
        connect("postgresql://user:secret-word@127.0.0.1:1/team?application_name=secret-word")
    assert error.value.code == "database.unreachable"
    assert "127.0.0.1:1/team" in str(error.value) and "secret-word" not in str(error.value)


def test_server_without_its_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inhouse.core.plugins.importlib.util.find_spec", lambda name: None)
    connect.cache_clear()
    with pytest.raises(MissingExtra) as error:
        connect("postgresql://user@127.0.0.1/team")
    assert "pg" in str(error.value) and error.value.exit_code == 4


def test_version_changes_with_every_commit_of_anybody_and_a_server_tells_none(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = connect(database_url)
    create_key(engine, "first")
    versions = Versions(engine)
    try:
        before = versions.now()
        if engine.dialect.name != "sqlite":
            assert before is None
            return
        assert versions.now() == before
        list_keys(engine)
        assert versions.now() == before
        create_key(engine, "second")
        mine = versions.now()
        assert mine != before
        words = (
            "import sys; from inhouse.release.database import connect; from inhouse.release.keys import create_key; "
        )
        subprocess.run(
            [sys.executable, "-c", words + "create_key(connect(sys.argv[1]), 'theirs')", database_url], check=True
        )
        assert versions.now() not in (before, mine)
        with sqlite3.connect(engine.url.database or "") as plain:
            plain.execute("BEGIN IMMEDIATE")
            assert versions.now() is not None  # a writer keeps nobody waiting who asks
            plain.execute("ROLLBACK")
        plain.close()
    finally:
        versions.close()


@pytest.mark.parametrize("before", ["rename", "without the log"])
def test_file_that_was_put_in_the_place_of_another_is_read(tmp_path: Path, before: str) -> None:
    path, backup = tmp_path / "registry.db", tmp_path / "backup.db"
    engine = connect(sqlite_url(path))
    create_key(engine, "kept")
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(backup)) as new:
        old.backup(new)
    create_key(engine, "lost")
    versions = Versions(engine)
    seen = versions.now()
    assert [key.name for key in list_keys(engine)] == ["kept", "lost"]
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink()
    if before == "rename":
        backup.replace(path)
    assert versions.now() != seen
    create_key(engine, "new")
    assert [key.name for key in list_keys(engine)] == ["kept", *(["lost"] if before != "rename" else []), "new"]
    versions.close()


def test_registry_is_where_the_environment_says_else_where_the_workspace_says(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHOUSE_DATABASE_URL", database_url)
    create_key(open_registry(store).engine, "kept")
    monkeypatch.delenv("INHOUSE_DATABASE_URL")
    (store.root / URL_FILE).write_text(database_url + "\n", encoding="utf-8")
    assert [key.name for key in list_keys(open_registry(store).engine)] == ["kept"]


def test_server_that_stops_in_the_middle_is_reported_and_found_again(registry: Registry, database_url: str) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("a file does not stop")
    engine = registry.engine
    end = "SELECT pg_terminate_backend(pg_backend_pid())"
    with pytest.raises(UserError) as error, writing(engine) as connection:
        connection.exec_driver_sql(end)
    assert error.value.code == "database.unreachable"
    assert registry.list_releases() == []  # with a new connection


def test_write_where_only_reading_is_allowed_is_reported(registry: Registry, database_url: str) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite's readers are told by the file's mode")
    with pytest.raises(UserError) as error, reading(registry.engine) as connection:
        connection.exec_driver_sql("DELETE FROM audit")
    assert error.value.code == "store.read_only"


def test_tables_of_another_program_are_reported(registry: Registry) -> None:
    with pytest.raises(UserError) as error, reading(registry.engine) as connection:
        connection.exec_driver_sql("SELECT * FROM nobody_made_this")
    assert error.value.code == "release.bad_registry"


@pytest.mark.skipif(not installed(), reason="PostgreSQL is not installed")
def test_server_that_is_frozen_is_given_up_and_found_again(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inhouse.database.ANSWER_S", 0.5)
    engine = connect(postgres)
    with reading(engine) as connection:
        backend = int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
    began = time.monotonic()
    try:
        with pytest.raises(UserError) as error, reading(engine) as connection:
            if connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() == backend:
                os.kill(backend, signal.SIGSTOP)
            connection.exec_driver_sql("SELECT 1")
    finally:
        os.kill(backend, signal.SIGCONT)
    assert error.value.code == "database.unreachable" and time.monotonic() - began < 5
    with reading(engine) as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1


@pytest.mark.skipif(not installed(), reason="PostgreSQL is not installed")
def test_schema_of_a_newer_version_on_a_server_is_refused(postgres: str) -> None:
    with writing(connect(postgres)) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    connect.cache_clear()
    try:
        with pytest.raises(UserError) as error:
            connect(postgres)
        assert error.value.code == "release.newer_registry"
    finally:
        import psycopg

        with psycopg.connect(postgres) as plain:
            plain.execute("UPDATE alembic_version SET version_num = '0003'")
        connect.cache_clear()


def test_interrupted_upgrade_leaves_the_old_version_whole(store: Store) -> None:
    """An upgrade that fails on the way is no upgrade: the next try begins at the same version."""
    from test_release_registry import FIRST_VERSION

    path = store.root / "registry.db"
    with sqlite3.connect(path) as plain:
        plain.executescript(FIRST_VERSION.read_text(encoding="utf-8"))
        plain.execute("CREATE TABLE batch_items (x)")  # what the upgrade makes last stands in its way
    connect.cache_clear()
    code = "import sys; from inhouse.release.database import connect; connect(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, f"sqlite:///{path}"], capture_output=True, text=True)
    assert done.returncode != 0
    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
        names = {row[0] for row in plain.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert "arms" not in names and plain.execute("SELECT count(*) FROM api_keys").fetchone() == (2,)
        plain.execute("DROP TABLE batch_items")
    assert [d.release.label for d in open_registry(store).deployments()] == ["routing:v2", "faq:v1"]
