"""Start real endpoints in processes of their own, for the tests of serving."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from release_workspace import make_model, make_report, run_stage

from inhouse.core.store import Store
from inhouse.release.registry import Registry, open_registry
from inhouse.release.settings import ReleaseNode, ServeParams

SCRIPT = """
import json, sys
from pathlib import Path
from typing import Any
from inhouse.core.errors import InhouseError
from inhouse.core.store import Store
from inhouse.release.registry import open_registry
from inhouse.release.settings import ServeParams
from inhouse.serve.app import serve

root, settings = Path(sys.argv[1]), ServeParams.model_validate_json(sys.argv[2])
try:
    serve(open_registry(Store(root)), ["desk"], settings, lambda s: print(json.dumps(vars(s)), flush=True))
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
    grpc: str | None = None

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
    # One thread: llama.cpp's threads wait for each other by spinning, which is slow where other programs run.
    for max_tokens in (16, 24):
        params = ReleaseNode(
            project="routing", serve=ServeParams(context_length=512, max_tokens=max_tokens, parallel=2, threads=1)
        )
        registry.register("routing", run_stage(store, params, {"model": model, "report": report}))
    registry.promote("desk", "routing:v1", "test")
    return registry


def start(
    registry: Registry, settings: ServeParams, stderr: IO[str] | None = None
) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start a server process and read the line it prints when it is ready (or cannot be)."""
    if settings.engine == "auto":  # a second engine that is measured beside a test would take its cores
        settings = settings.model_copy(update={"engine": "llamacpp"})
    command = [sys.executable, "-c", SCRIPT, str(registry.store.root), settings.model_dump_json()]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, "INHOUSE_LANG": "en"}
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def run_once(registry: Registry, settings: ServeParams) -> tuple[int, dict[str, Any]]:
    """Start a server that cannot start: its exit code and what it said."""
    process, said = start(registry, settings)
    return process.wait(60), said
