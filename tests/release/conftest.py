"""A workspace with a model, a report, and the release of both."""

from __future__ import annotations

from pathlib import Path

import pytest
from release_workspace import Make, make_model, make_report, run_stage

from inhouse.core.artifact import Artifact
from inhouse.core.gate import Gate
from inhouse.core.store import Store
from inhouse.release.registry import Registry, open_registry
from inhouse.release.settings import ReleaseNode, ReleaseParams, ServeParams


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "workspace")
    store.create()
    return store


@pytest.fixture
def registry(store: Store) -> Registry:
    return open_registry(store)


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
