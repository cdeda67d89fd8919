"""A real endpoint over the real 135M model, started once; and the workspace that it serves from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "release"))

from release_workspace import make_model, make_report, run_stage

from inhouse.core.store import Store
from inhouse.release.registry import Registry, open_registry
from inhouse.release.settings import ReleaseNode, ServeParams

SCRIPT = """
import json, sys
from pathlib import Path
from inhouse.core.errors import InhouseError
from inhouse.core.store import Store
from inhouse.release.registry import open_registry
from inhouse.release.settings import ServeParams
from inhouse.serve.app import serve

root, settings = Path(sys.argv[1]), ServeParams.model_validate_json(sys.argv[2])
try:
    serve(open_registry(Store(root)), "desk", settings, lambda s: print(json.dumps(vars(s)), flush=True))
except InhouseError as error:
    print(json.dumps({"error": error.to_dict()}), flush=True)
    sys.exit(error.exit_code)
"""


@dataclass
class Endpoint:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    key: str
    registry: Registry

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


def workspace_with_two_releases(root: Path, gguf: Path) -> Registry:
    """Two releases of one model that differ in their answers' default length; 'desk' points at the first."""
    store = Store(root)
    store.create()
    model = make_model(store, gguf)
    report = make_report(store, {"tuned.accuracy": {"value": 0.8, "n": 100}})
    registry = open_registry(store)
    for max_tokens in (16, 24):
        params = ReleaseNode(
            project="routing", serve=ServeParams(context_length=512, max_tokens=max_tokens, parallel=2)
        )
        registry.register("routing", run_stage(store, params, {"model": model, "report": report}))
    registry.promote("desk", "routing:v1", "test")
    return registry


def start(registry: Registry, settings: ServeParams) -> tuple[subprocess.Popen[str], dict[str, object]]:
    """Start a server process and read the line it prints when it is ready (or cannot be)."""
    command = [sys.executable, "-c", SCRIPT, str(registry.store.root), settings.model_dump_json()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "INHOUSE_LANG": "en"})
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Registry:
    return workspace_with_two_releases(tmp_path_factory.mktemp("served"), smollm2_gguf)


@pytest.fixture(scope="session")
def launch(registry: Registry) -> Iterator[Callable[[ServeParams], Endpoint]]:
    """Start further servers on the same workspace; they are ended with the session."""
    from inhouse.release.keys import create_key

    running: list[subprocess.Popen[str]] = []

    def launched(settings: ServeParams) -> Endpoint:
        token, _ = create_key(registry.engine, "test")
        process, ready = start(registry, settings)
        running.append(process)
        assert "error" not in ready, ready
        return Endpoint(process, str(ready["url"]), token, registry)

    yield launched
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def endpoint(launch: Callable[[ServeParams], Endpoint]) -> Endpoint:
    """The server that most tests share."""
    return launch(ServeParams(port=0, queue=8))
