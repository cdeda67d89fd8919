"""A workspace with a model, a report, and the release of both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import installed, server
from release_workspace import Make, make_model, make_report, run_stage

from inhouse.core.artifact import Artifact
from inhouse.core.gate import Gate
from inhouse.core.store import Store
from inhouse.database import sqlite_url, writing
from inhouse.release.database import connect
from inhouse.release.registry import Registry, open_registry
from inhouse.release.settings import ReleaseNode, ReleaseParams, ServeParams
from inhouse.release.tables import metadata


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "workspace")
    store.create()
    return store


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server that runs for these tests."""
    if not installed():
        pytest.skip("PostgreSQL is not installed")
    with server() as url:
        yield url
        connect(url).dispose()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Artifact]]:
    """A workspace with an empty registry and four releases, made once: the last one did not pass its gate."""
    store = Store(tmp_path_factory.mktemp("template"))
    open_registry(store, sqlite_url(store.root / "registry.db")).engine.dispose()
    model = make_model(store, b"GGUF weights")
    report = make_report(store, {"tuned.accuracy": {"value": 0.8, "low": 0.75, "high": 0.85, "n": 320}})
    made = []
    for at_least, context in ((0.7, 2048), (0.7, 1024), (0.7, 512), (0.99, 2048)):
        release = ReleaseParams(gates=(Gate(figure="tuned.accuracy", at_least=at_least),))
        node = ReleaseNode(project="routing", release=release, serve=ServeParams(context_length=context))
        made.append(run_stage(store, node, {"model": model, "report": report}))
    return store, made


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, store: Store, template: tuple[Store, list[Artifact]]) -> str:
    """Each kind of database in turn, empty."""
    if request.param == "sqlite":
        shutil.copy(template[0].root / "registry.db", store.root)
        return sqlite_url(store.root / "registry.db")
    url = str(request.getfixturevalue("postgres"))
    names = ", ".join(table.name for table in metadata.sorted_tables)
    with writing(connect(url)) as connection:
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
    return url


@pytest.fixture
def registry(store: Store, database_url: str) -> Registry:
    """The registry of a workspace, in each kind of database in turn."""
    return open_registry(store, database_url)


@pytest.fixture
def two(registry: Registry, template: tuple[Store, list[Artifact]]) -> Registry:
    """Two releases that passed, neither promoted."""
    shutil.copytree(template[0].objects, registry.store.objects, dirs_exist_ok=True)
    for record in template[1][:2]:
        registry.register("routing", record)
    return registry


@pytest.fixture
def four(two: Registry, template: tuple[Store, list[Artifact]]) -> Registry:
    """Three releases that passed and one that did not, the first one promoted as 'desk'."""
    for record in template[1][2:]:
        two.register("routing", record)
    two.promote("desk", "routing:v1", "ann")
    return two


@pytest.fixture
def make_release(store: Store) -> Make:
    """Make a release whose accuracy is 0.8 and whose gate asks for `at_least`; different `context` = another id."""

    def make(at_least: float = 0.7, context: int = 2048) -> Artifact:
        model = make_model(store, b"GGUF weights")
        report = make_report(store, {"tuned.accuracy": {"value": 0.8, "low": 0.75, "high": 0.85, "n": 320}})
        gates = (Gate(figure="tuned.accuracy", at_least=at_least),)
        node = ReleaseNode(
            project="routing", release=ReleaseParams(gates=gates), serve=ServeParams(context_length=context)
        )
        return run_stage(store, node, {"model": model, "report": report})

    return make
