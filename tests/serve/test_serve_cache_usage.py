"""How full the KV caches are, as /metrics tells it under vLLM's name."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from serve_endpoint import Endpoint

from inhouse.core.serving import EngineLost, Stats
from inhouse.engines.llamacpp_serving import slots_told
from inhouse.serve import cache_usage
from inhouse.serve.metrics import Gauges, Metrics


@dataclass
class Engine:
    """Tells its load, fails, or never answers."""

    name: str
    told: float | Exception | None
    hangs: bool = False

    async def stats(self) -> Stats:
        if self.hangs:
            await asyncio.Event().wait()
        if isinstance(self.told, Exception):
            raise self.told
        return Stats(cache_used=self.told)


@dataclass
class Held:
    """A replica with this engine."""

    connection: Engine | None
    ready: bool = True

    def engine(self) -> Engine | None:
        return self.connection


def usage(**releases: list[Held]) -> Any:
    return asyncio.run(cache_usage.cache_usage(releases.items()))  # type: ignore[arg-type]


def test_usage_is_the_mean_of_the_replicas_of_each_engine() -> None:
    replicas = [Held(Engine("llamacpp", 0.5)), Held(Engine("llamacpp", 0.25)), Held(Engine("openvino", 0.125))]
    name, _, found = usage(desk=replicas, help=[Held(Engine("openvino", 1.0))])
    assert name == "kv_cache_usage_perc"
    assert found == {("desk", "llamacpp"): 0.375, ("desk", "openvino"): 0.125, ("help", "openvino"): 1.0}


def test_engines_that_are_away_lost_silent_or_tell_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_usage, "ANSWER_S", 0.01)
    replicas = [
        Held(Engine("a", 0.5), ready=False),
        Held(None),
        Held(Engine("b", EngineLost("b"))),
        Held(Engine("c", 0.5, hangs=True)),
        Held(Engine("d", None)),
        Held(Engine("e", 0.0)),
    ]
    assert usage(desk=replicas)[2] == {("desk", "e"): 0.0}


def test_llama_cpps_slots_count_what_running_requests_hold() -> None:
    free = {"id": 0, "n_ctx": 512, "is_processing": False, "n_prompt_tokens": 500}
    busy = {"id": 1, "n_ctx": 512, "is_processing": True, "n_prompt_tokens": 256}
    assert slots_told([free, busy]) == Stats(running=1, cache_used=0.25)
    assert slots_told([]) == Stats(running=0, cache_used=None)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_gauge_pleases_promtool_under_both_names() -> None:
    metrics = Metrics(Gauges(lambda: []), vllm_names=True)
    text = metrics.text(more=[("kv_cache_usage_perc", cache_usage.SAYS, {("m", "llamacpp"): 0.25})])
    for name in (b"inhouse_kv_cache_usage_perc", b"vllm:kv_cache_usage_perc"):
        assert name + b'{engine="llamacpp",model_name="m"} 0.25\n' in text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    # vLLM's own names hold a colon, which promtool keeps for recording rules.
    said = [line for line in (checked.stdout + checked.stderr).splitlines() if not line.startswith(b"vllm:")]
    assert said == []


@pytest.mark.real
def test_a_running_endpoint_tells_that_nothing_is_held(endpoint: Endpoint) -> None:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    found = httpx.get(f"{endpoint.url}/metrics", headers=headers, trust_env=False).text
    assert re.search(r'^inhouse_kv_cache_usage_perc\{engine="llamacpp",model_name=".+"\} 0\.0$', found, re.M)
