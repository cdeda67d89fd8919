"""Our gateway, whole, over an engine that computes nothing: keys, checks, queue, cache, figures, and the remote engine.

    python bench/serve/gateway_mock.py WORKSPACE [--parent PID] [--every-ms 10]

The release in WORKSPACE names a GGUF file as always; only what starts its engine is exchanged for the mock endpoint,
reached as a vLLM elsewhere would be.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inhouse.core.store import Store
from inhouse.engines import llamacpp_serving, remote_serving
from inhouse.engines.process import Child, Command

HERE = Path(__file__).resolve().parent
DEPLOYMENT = "bench"


@dataclass(frozen=True)
class MockBackend:
    """The remote engine, with the mock's process to be supervised."""

    process: Child
    remote: remote_serving.RemoteBackend

    @property
    def context_length(self) -> int:
        return self.remote.context_length

    def healthy(self) -> bool:
        return self.remote.healthy()

    def open(self) -> remote_serving.RemoteServing:
        return self.remote.open()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--every-ms", type=float, default=10.0)
    options = parser.parse_args()
    if options.parent:
        from inhouse.core.run import die_with_parent

        die_with_parent(options.parent)

    def start(*args: Any, **named: Any) -> MockBackend:
        words = (sys.executable, str(HERE / "mock_upstream.py"), "--every-ms", str(options.every_ms))
        child = Child(Command("mock", (*words, "--parent", str(os.getpid()))))
        port = child.wait_ready()["port"]
        settings = remote_serving.RemoteSettings(url=f"http://127.0.0.1:{port}/v1", model="mock", parallel=256)
        return MockBackend(child, remote_serving.start(settings))

    llamacpp_serving.start = start  # before the gateway's modules take the name
    from inhouse.release.registry import open_registry
    from inhouse.release.settings import ServeParams
    from inhouse.serve.app import serve

    asked = {"port": 0, "parallel": 256, "queue": 1000, "context_length": 4096, "engine": "llamacpp"}
    settings = ServeParams(**{name: value for name, value in asked.items() if name in ServeParams.model_fields})
    registry = open_registry(Store(options.workspace))
    serve(registry, [DEPLOYMENT], settings, lambda s: print(json.dumps({"ready": {"url": s.url}}), flush=True))


if __name__ == "__main__":
    main()
