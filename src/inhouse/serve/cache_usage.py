"""How full the engines' KV caches are, asked when somebody looks at the metrics."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from inhouse.core.serving import EngineLost, EngineRefused, EngineSilent, ServingEngine
from inhouse.serve.metrics import Labels, Reading
from inhouse.serve.replica import Replica

NAME = "kv_cache_usage_perc"  # vLLM's name; 1 = full, there as here
SAYS = "KV cache usage of running requests. 1 means 100 percent usage."
ANSWER_S = 0.5  # an engine that reads a long prompt answers between two steps; whoever looks does not wait for it


async def cache_usage(releases: Iterable[tuple[str, Iterable[Replica]]]) -> Reading:
    """The share of the KV cache in use by release and engine, the mean of its replicas; absent where not told."""
    asked = [(label, engine) for label, replicas in releases for engine in _ready(replicas)]
    found = await asyncio.gather(*(_used(engine) for _, engine in asked))
    shares: dict[Labels, list[float]] = defaultdict(list)
    for (label, engine), used in zip(asked, found, strict=True):
        if used is not None:
            shares[label, engine.name].append(used)
    return NAME, SAYS, {who: fmean(values) for who, values in shares.items()}


def _ready(replicas: Iterable[Replica]) -> list[ServingEngine]:
    return [engine for replica in replicas if replica.ready and (engine := replica.engine()) is not None]


async def _used(engine: ServingEngine) -> float | None:
    try:
        async with asyncio.timeout(ANSWER_S):
            return (await engine.stats()).cache_used
    except (TimeoutError, EngineLost, EngineSilent, EngineRefused):
        return None
