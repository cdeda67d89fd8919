"""Start and end the sides of the benchmark: each in a process of its own, on a port of its own on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from gguf_files import model_file
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
START_S = 120.0
KEY = "sk-bench"
DEPLOYMENT = "bench"


@dataclass
class Side:
    """A server that answers, and the process whose CPU counts as its own."""

    name: str
    url: str
    key: str
    model: str
    process: psutil.Process
    prepared_s: float = 0.0  # what was done before its program was started

    def cpu_s(self) -> float:
        """CPU seconds of this process alone, user and system; engines in child processes are not in it."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def load(self, kind: str, timeout_s: float = 300.0, **asked: Any) -> dict[str, Any]:
        """One measurement by the load generator, with the CPU that this side took meanwhile."""
        spec = {"url": self.url, "key": self.key, "model": self.model, "kind": kind, **asked}
        before = self.cpu_s()
        done = subprocess.run(
            [sys.executable, str(HERE / "load.py"), json.dumps(spec)],
            capture_output=True,
            timeout=timeout_s,
            env=ours(),
        )
        spent = self.cpu_s() - before
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr.decode()[-2000:]}")
        return {"side": self.name, "cpu_s": spent, **json.loads(done.stdout)}

    def from_memory(self) -> int:
        """How many answers our gateway has given without its engine, by its own count."""
        asked = urllib.request.Request(f"{self.url}/metrics", headers={"Authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(asked, timeout=START_S) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        told = [sample for family in families for sample in family.samples if "answer_cache" in sample.name]
        return int(sum(sample.value for sample in told if sample.labels.get("result") in ("hit", "semantic", "shared")))


def ours() -> dict[str, str]:
    """This checkout is what is measured, whatever the environment has installed."""
    return {**os.environ, "PYTHONPATH": os.environ.get("BENCH_SRC", str(ROOT / "src")), "INHOUSE_LANG": "en"}


@contextmanager
def running(
    words: Sequence[str], env: dict[str, str], log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """A process that says in a line of JSON when it is ready; ended with the block."""
    with log.open("wb") as err:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=err, env=env, cwd=ROOT)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        while line and not line.startswith(b"{"):
            line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{words[1]} did not start: {log.read_text(errors='replace')[-2000:]}")
        said = json.loads(line)
        yield process, said.get("ready", said)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Politely, then by force."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def mock(work: Path, every_ms: float) -> Iterator[Side]:
    """The engine that computes nothing, asked directly."""
    words = [sys.executable, str(HERE / "mock_upstream.py"), "--every-ms", str(every_ms), "--parent", str(os.getpid())]
    with running(words, ours(), work / "mock.log") as (process, ready):
        yield Side("direct", f"http://127.0.0.1:{ready['port']}", KEY, "mock", psutil.Process(process.pid))


@contextmanager
def raw_asgi(work: Path, upstream: str) -> Iterator[Side]:
    """The reference relay."""
    words = [sys.executable, str(HERE / "raw_asgi.py"), upstream, "--parent", str(os.getpid())]
    with running(words, ours(), work / "raw.log") as (process, ready):
        yield Side("raw-asgi", f"http://127.0.0.1:{ready['port']}", KEY, "mock", psutil.Process(process.pid))


@contextmanager
def gateway(work: Path, every_ms: float) -> Iterator[Side]:
    """Our gateway over the mock."""
    wide = {"parallel": 256, "context_length": 4096}
    with workspace(model_file(ROOT / ".inhouse" / "bench", "q8_0"), wide) as (root, key):  # its header is looked at
        words = [sys.executable, str(HERE / "gateway_mock.py"), str(root), "--parent", str(os.getpid())]
        with running([*words, "--every-ms", str(every_ms)], ours(), work / "gateway.log") as (process, ready):
            yield Side("ours", ready["url"], key, DEPLOYMENT, psutil.Process(process.pid))


@contextmanager
def litellm(work: Path, upstream: str) -> Iterator[Side]:
    """LiteLLM's proxy over the mock, one worker, with a master key, out of its own environment."""
    home = ROOT / ".inhouse" / "bench" / "peers" / "litellm"
    if not (home / "bin" / "litellm").exists():
        raise RuntimeError("python bench/serve/peers.py first")
    config = work / "litellm.json"  # JSON is YAML
    one = {
        "model_name": "mock",
        "litellm_params": {"model": "openai/mock", "api_base": f"{upstream}/v1", "api_key": KEY},
    }
    config.write_text(json.dumps({"model_list": [one], "general_settings": {"master_key": KEY}}), encoding="utf-8")
    port = free_port()
    words = [str(home / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI", "LITELLM", "DATABASE"))}
    env |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True", "DO_NOT_TRACK": "1"}
    with (work / "litellm.log").open("wb") as log:
        process = subprocess.Popen([*words, "--telemetry", "False"], stdout=log, stderr=log, env=env, cwd=work)
    try:
        answers(f"http://127.0.0.1:{port}/health/liveliness", process)
        yield Side("litellm", f"http://127.0.0.1:{port}", KEY, "mock", psutil.Process(process.pid))
    finally:
        end(process)


@contextmanager
def llama(work: Path, gguf: Path, parallel: int, context: int, threads: int) -> Iterator[Side]:
    """llama.cpp's own server. BENCH_ASLEEP lets its threads sleep while they wait, as ours do beside other work."""
    flags = ["--parallel", str(parallel), "--context", str(context), "--threads", str(threads)]
    words = [sys.executable, str(HERE / "peer_llama.py"), str(gguf), *flags, "--parent", str(os.getpid())]
    env = ours() | ({"OMP_WAIT_POLICY": "passive"} if "BENCH_ASLEEP" in os.environ else {})
    with running(words, env, work / "llama.log") as (process, ready):
        yield Side("llama-server", ready["url"], KEY, "mock", psutil.Process(process.pid))


@contextmanager
def inhouse(
    work: Path, gguf: Path, parallel: int, context: int, threads: int, calibrate: str = "before"
) -> Iterator[Side]:
    """`inhouse serve` of a release with this model; engines are compared before the first request."""
    serve = {
        "parallel": parallel, "context_length": context, "threads": threads, "queue": 256, "calibrate": calibrate,
    }  # fmt: skip
    began = time.perf_counter()
    with workspace(gguf, serve) as (root, key):
        prepared = time.perf_counter() - began
        words = [sys.executable, "-m", "inhouse.serve", "--workspace", str(root), "--deployment", DEPLOYMENT]
        words += ["--port", "0", "--parent", str(os.getpid())]
        with running(words, ours(), work / "inhouse.log") as (process, ready):
            yield Side("ours", ready["url"], key, DEPLOYMENT, psutil.Process(process.pid), prepared)


@contextmanager
def workspace(model: bytes | Path, serve: dict[str, Any] | None = None) -> Iterator[tuple[Path, str]]:
    """A workspace with one promoted release, and a key for it."""
    sys.path.insert(0, str(ROOT / "tests" / "release"))
    from release_workspace import make_model, make_report

    from inhouse.core.store import Store
    from inhouse.release.keys import create_key
    from inhouse.release.registry import open_registry
    from inhouse.release.settings import ReleaseNode, ServeParams

    with tempfile.TemporaryDirectory(dir=ROOT / ".inhouse" / "bench" / "serve") as folder:
        store = Store(Path(folder))
        store.create()
        report = make_report(store, {"tuned.accuracy": {"value": 1, "n": 1}})
        node = ReleaseNode(project="bench", serve=ServeParams(**(serve or {})))
        registry = open_registry(store)
        registry.register("bench", released(store, node, {"model": make_model(store, model), "report": report}))
        registry.promote(DEPLOYMENT, "bench:v1", "bench")
        token, *_ = create_key(registry.engine, "bench")
        yield Path(folder), token


def released(store: Any, node: Any, inputs: dict[str, Any]) -> Any:
    """Run the release stage and publish what it makes, with its settings in the record as a run leaves them."""
    from inhouse.core.artifact import Artifact
    from inhouse.core.fingerprint import hash_json, identity, list_files
    from inhouse.core.protocols import Context, Input
    from inhouse.core.run import Events
    from inhouse.release import stage

    params = node.model_dump(mode="json")
    recipe = hash_json([params, {role: a.id for role, a in inputs.items()}])
    scratch, out = store.work_of(recipe)
    context = Context(
        inputs={role: Input(a, store.path(a.id)) for role, a in inputs.items()}, out=out, scratch=scratch,
        sources=store.sources, project_dir=store.root, events=Events(), seed=7, offline=True, use=node.declared_use,
    )  # fmt: skip
    made = stage.run(node, context)
    files = list_files(out)
    record = Artifact(
        id=identity("release", files), kind="release", stage="release", node="release", stage_version="1",
        recipe=recipe, params=params, files=files, facts=made.facts, licences=made.licences, seed=7,
        packages={}, commit=None, created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return store.publish(record)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def answers(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer")
