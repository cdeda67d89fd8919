from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from release_workspace import Make, key_of
from release_writers import KEYS, change_for_ever, make_keys, started

from inhouse.core.errors import GateFailed, UserError
from inhouse.core.store import Store
from inhouse.database import reading, writing
from inhouse.release import database
from inhouse.release.arms import read_deployment
from inhouse.release.audit import read_entries
from inhouse.release.database import connect
from inhouse.release.keys import list_keys
from inhouse.release.registry import Registry, open_registry
from inhouse.release.rules import Rules
from inhouse.release.tables import metadata

FIRST_VERSION = Path(__file__).with_name("registry_0001.sql")  # as the first version wrote it


def code_of(error: pytest.ExceptionInfo[UserError]) -> str:
    assert str(error.value)  # its text can be made from its facts
    return error.value.code


def test_releases_are_numbered_and_the_same_one_keeps_its_number(registry: Registry, make_release: Make) -> None:
    first = registry.register("routing", make_release(context=2048))
    second = registry.register("routing", make_release(context=1024))
    again = registry.register("routing", make_release(context=2048))
    assert (first.label, second.label, again) == ("routing:v1", "routing:v2", first)
    assert registry.list_releases() == registry.list_releases("routing") == [first, second]
    assert registry.list_releases("other") == []


def test_show_finds_a_release_by_label_or_beginning_of_its_id(two: Registry) -> None:
    first, second = two.list_releases()
    assert two.show("routing:v2") == second
    assert two.show(first.artifact[:12]) == first


@pytest.mark.parametrize("reference", ["routing:v9", "nothing", "%", "", "routing:v" + "9" * 30, "x' OR 1=1 --"])
def test_show_of_an_unknown_release_says_so(two: Registry, reference: str) -> None:
    with pytest.raises(UserError) as error:
        two.show(reference)
    assert code_of(error) == "release.unknown"


def test_show_of_one_artifact_under_two_names_asks_for_more(registry: Registry, make_release: Make) -> None:
    record = make_release()
    registry.register("one", record)
    registry.register("two", record)
    with pytest.raises(UserError) as error:
        registry.show(record.id)
    assert code_of(error) == "release.ambiguous"


def test_promote_points_the_deployment_and_keeps_the_release_before(two: Registry) -> None:
    first = two.promote("desk", "routing:v1")
    second = two.promote("desk", "routing:v2")
    assert (first.release.label, first.previous, first.generation) == ("routing:v1", None, 1)
    assert second.previous is not None
    assert (second.release.label, second.previous.label, second.generation) == ("routing:v2", "routing:v1", 2)
    assert two.deployments() == [second] == [two.deployment("desk")]


def test_promote_of_what_is_served_already_changes_nothing(two: Registry) -> None:
    before = two.promote("desk", "routing:v1")
    assert two.promote("desk", "routing:v1") == before
    assert [e.action for e in two.audit()] == ["promote", "register", "register"]


def test_promote_of_a_release_that_failed_its_gates_is_refused(registry: Registry, make_release: Make) -> None:
    registry.register("routing", make_release(at_least=0.99))
    with pytest.raises(GateFailed) as error:
        registry.promote("desk", "routing:v1")
    assert error.value.exit_code == 3 and "routing:v1" in str(error.value)
    assert registry.deployments() == []


@pytest.mark.parametrize("lost", ["release", "model"])
def test_promote_of_a_release_whose_files_are_gone_is_refused(two: Registry, lost: str) -> None:
    release = two.show("routing:v1")
    model = two.store.get(release.artifact).inputs.get("model")
    folders = [two.store.path(release.artifact)] if lost == "release" else list(two.store.objects.glob("*"))
    assert model is None
    for folder in folders:
        if lost == "release" or (folder / "model.gguf").exists():
            shutil.rmtree(folder)
    with pytest.raises(UserError) as error:
        two.promote("desk", "routing:v1")
    assert code_of(error) == "release.files_gone"


def test_rollback_returns_to_the_release_before_and_twice_is_where_it_was(two: Registry) -> None:
    two.promote("desk", "routing:v1")
    two.promote("desk", "routing:v2")
    assert two.rollback("desk", "ann").release.label == "routing:v1"
    assert two.rollback("desk", "ann").release.label == "routing:v2"
    entry = two.audit(1)[0]
    assert (entry.actor, entry.action, entry.subject) == ("ann", "rollback", "desk")
    assert (entry.detail["release"], entry.detail["before"]) == ("routing:v2", "routing:v1")


def test_rollback_without_a_release_before_says_so(two: Registry) -> None:
    two.promote("desk", "routing:v1")
    with pytest.raises(UserError) as error:
        two.rollback("desk")
    assert code_of(error) == "release.no_previous"


def test_unknown_deployment_is_named_with_those_that_exist(two: Registry) -> None:
    two.promote("desk", "routing:v1")
    for call in (two.rollback, two.deployment):
        with pytest.raises(UserError) as error:
            call("disk")
        assert code_of(error) == "release.deployment_unknown" and "desk" in str(error.value)


def test_promote_and_rollback_take_less_than_a_second(two: Registry) -> None:
    began = time.monotonic()
    two.promote("desk", "routing:v1")
    two.promote("desk", "routing:v2")
    two.rollback("desk")
    assert time.monotonic() - began < 1.0


def test_changes_killed_at_any_moment_leave_old_or_new(four: Registry, database_url: str) -> None:
    """kill -9 at random moments: row, arms and audit agree, so no state is mixed of two."""
    chance = random.Random(5)
    changes = ("promote", "split", "canary", "rollback", "canary.advance", "rules")
    four.promote("desk", "routing:v2")
    for _ in range(6):
        ours, theirs = multiprocessing.Pipe()
        process = started(change_for_ever, four.store.root, database_url, theirs)
        assert ours.recv()
        process.join(chance.uniform(0.0, 0.1))
        assert process.is_alive()
        process.kill()
        process.join()
        with reading(four.engine) as connection:  # one view: a server may still be ending what the dead one asked for
            entries = [e for e in read_entries(connection, 1_000_000) if e.action in changes]
            found = read_deployment(connection, "desk")
        assert found.generation == len(entries)
        last = next(e for e in entries if e.action != "rules")
        told = [(arm["release"], arm["weight"], arm["role"]) for arm in last.detail["arms"]]
        assert told == [(arm.release.label, arm.weight, arm.role) for arm in found.arms]
        assert found.release == found.arms[0].release and sum(arm.weight for arm in found.arms) == 1000
    assert len(entries) > 10
    if database_url.startswith("sqlite"):
        with sqlite3.connect(four.store.root / "registry.db") as plain:
            assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_eight_processes_make_and_change_a_new_registry_at_once_without_a_lock_error(
    store: Store, database_url: str
) -> None:
    (store.root / "registry.db").unlink(missing_ok=True)
    problems = multiprocessing.get_context("forkserver").Queue()
    processes = [started(make_keys, store.root, database_url, problems) for _ in range(8)]
    for process in processes:
        process.join(60)
    assert problems.empty() and [process.exitcode for process in processes] == [0] * 8
    assert len(list_keys(open_registry(store, database_url).engine)) == 8 * KEYS


def test_registry_of_a_newer_version_is_refused(store: Store) -> None:
    open_registry(store)
    path = store.root / "registry.db"
    with sqlite3.connect(path) as plain:
        plain.execute("UPDATE alembic_version SET version_num = '9999'")
    connect.cache_clear()
    with pytest.raises(UserError) as error:
        open_registry(store)
    assert code_of(error) == "release.newer_registry"


def test_registry_of_the_first_version_keeps_what_it_holds_and_is_copied_aside_first(store: Store) -> None:
    path = store.root / "registry.db"
    with sqlite3.connect(path) as plain:
        plain.executescript(FIRST_VERSION.read_text(encoding="utf-8"))
    registry = open_registry(store)
    desk, faq = registry.deployments()
    assert [(a.release.label, a.weight, a.role, a.since) for a in desk.arms] == [
        ("routing:v2", 1000, "live", "2026-01-05T00:00:00+00:00")
    ]
    assert desk.previous is not None and desk.previous.label == "routing:v1" and desk.generation == 4
    assert desk.rules == Rules() and faq.previous is None and faq.release.label == "faq:v1"
    assert [r.label for r in registry.list_releases()] == ["routing:v1", "routing:v2", "routing:v3", "faq:v1"]
    key = key_of(registry, "ih-aaaaaaaa-laptop")
    assert key is not None and (key.id, key.name) == (1, "laptop")
    assert key.allows("chat") and key.allows("files") and not key.allows("admin") and key.may_use("desk")
    assert key_of(registry, "ih-bbbbbbbb-gone") is None
    assert [e.action for e in registry.audit()] == ["promote"]
    with sqlite3.connect(path.with_name("registry.db.before-0003")) as copy:
        assert copy.execute("SELECT name, release FROM deployments ORDER BY name").fetchall() == [
            ("desk", 2),
            ("faq", 4),
        ]
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)


def test_registry_that_is_no_database_is_refused(store: Store) -> None:
    (store.root / "registry.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError) as error:
        open_registry(store)
    assert code_of(error) == "release.bad_registry"


def test_registry_locked_by_another_program_is_reported(
    two: Registry, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    connect.cache_clear()
    registry = Registry(two.store, connect(database_url))
    with writing(two.engine):
        with pytest.raises(UserError) as error:
            registry.promote("desk", "routing:v1")
        assert code_of(error) == "release.busy"
        assert registry.list_releases()  # readers are not kept waiting
    registry.engine.dispose()


def test_readers_see_one_state_while_another_program_writes(two: Registry) -> None:
    two.promote("desk", "routing:v1")
    with reading(two.engine) as connection:
        before = read_deployment(connection, "desk")
        Registry(two.store, two.engine).split("desk", {"routing:v1": 500, "routing:v2": 500})
        assert read_deployment(connection, "desk") == before
    assert len(two.deployment("desk").arms) == 2


def test_tables_are_those_that_the_migrations_make(registry: Registry) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with reading(registry.engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_importing_the_release_room_loads_no_database_library() -> None:
    code = (
        "import sys, inhouse.release.stage, inhouse.release.registry, inhouse.release.keys;"
        "print([m for m in ('sqlalchemy', 'alembic') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_opening_a_current_registry_does_not_load_alembic(registry: Registry, database_url: str) -> None:
    code = (
        "import sys; from pathlib import Path; from inhouse.core.store import Store;"
        "from inhouse.release.registry import open_registry; open_registry(Store(Path(sys.argv[1])));"
        "print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(registry.store.root)]
    environment = {**os.environ, "INHOUSE_DATABASE_URL": database_url}
    assert subprocess.check_output(command, text=True, env=environment) == "False\n"
