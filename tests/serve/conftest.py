"""A real endpoint over the real 135M model, started once; and the workspace that it serves from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "release"))

from serve_endpoint import Endpoint, start, workspace_with_two_releases

from inhouse.release.registry import Registry
from inhouse.release.settings import ServeParams


@pytest.fixture(scope="session")
def launch_on() -> Iterator[Callable[[Registry, ServeParams], Endpoint]]:
    """Start a server on a workspace; those that still run are ended with the session."""
    from inhouse.release.keys import create_numbered_key

    running: list[subprocess.Popen[str]] = []

    def launched(registry: Registry, settings: ServeParams) -> Endpoint:
        token, _ = create_numbered_key(registry.engine, "test")
        process, ready = start(registry, settings)
        running.append(process)
        assert "error" not in ready, ready
        return Endpoint(process, str(ready["url"]), token, registry, ready.get("grpc"))

    yield launched
    for process in running:
        if process.poll() is None:
            process.terminate()
            process.wait(40)


@pytest.fixture(scope="session")
def endpoint(
    tmp_path_factory: pytest.TempPathFactory,
    smollm2_gguf: Path,
    launch_on: Callable[[Registry, ServeParams], Endpoint],
) -> Endpoint:
    """The server that most tests share."""
    registry = workspace_with_two_releases(tmp_path_factory.mktemp("served"), smollm2_gguf)
    return launch_on(registry, ServeParams(port=0, queue=8, embeddings=True, grpc_port=0))
