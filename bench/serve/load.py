"""Ask an OpenAI-compatible endpoint from many clients at once, and time every answer. A process of its own.

    python bench/serve/load.py '{"url": …, "key": …, "model": …, "kind": "plain", "clients": 32, "requests": 100}'

kinds: `plain` (whole answers), `stream` (with the time of every event), `leave` (a client that goes away, and how long
the next one then waits). Prints one JSON object. The client is the gateway's own (engines/http_stream.py): of what was
tried it takes the least CPU from the side that is measured.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from inhouse.engines.http_stream import Origin, Patience

CHAT = "/v1/chat/completions"
SILENCE_S = 120.0


def main() -> None:
    asked = json.loads(sys.argv[1])
    kinds: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
        "plain": plain, "stream": stream, "leave": leave,
    }  # fmt: skip
    print(json.dumps(uvloop.run(kinds[asked["kind"]](asked))))


def origin(asked: dict[str, Any]) -> Origin:
    headers = {"Authorization": f"Bearer {asked['key']}"}
    if asked["kind"] == "leave":  # it asks the same twice, and is not to be answered from memory
        headers["Cache-Control"] = "no-store"
    return Origin(asked["url"], headers, Patience(10.0, SILENCE_S))


def body(asked: dict[str, Any], number: int, **more: Any) -> bytes:
    prompts = asked.get("prompts", ["Say one word."])
    prompt = prompts[number % len(prompts)].replace("{number}", str(number))
    messages = [{"role": "user", "content": prompt}]
    sent = {"model": asked["model"], "messages": messages, "temperature": 0, **asked.get("extra", {}), **more}
    return json.dumps(sent).encode()


async def plain(asked: dict[str, Any]) -> dict[str, Any]:
    """`clients` ask `requests` times each, one after the other."""
    http, times, failed = origin(asked), [], 0
    limit = asked.get("max_tokens", 8)

    async def client(first: int) -> None:
        nonlocal failed
        for number in range(asked["requests"]):
            sent = body(asked, first * asked["requests"] + number, max_tokens=limit)
            began = time.perf_counter()
            status, _ = await http.call(CHAT, sent)
            times.append(time.perf_counter() - began)
            failed += status != 200

    began = time.perf_counter()
    await asyncio.gather(*(client(first) for first in range(asked["clients"])))
    wall = time.perf_counter() - began
    return {"requests": len(times), "failed": failed, "wall_s": wall, "per_s": len(times) / wall, **spread("ms", times)}


async def stream(asked: dict[str, Any]) -> dict[str, Any]:
    """As `plain`, but streamed: the first token, the pauses between tokens, and tokens by the endpoint's own count."""
    http, firsts, gaps, tokens, pieces = origin(asked), [], [], [], []
    limits = {"max_tokens": asked["max_tokens"], "stream": True, "stream_options": {"include_usage": True}}

    async def client(first: int) -> None:
        for number in range(asked["requests"]):
            began = time.perf_counter()
            last = 0.0
            async for together in http.stream(CHAT, body(asked, first * asked["requests"] + number, **limits)):
                now = time.perf_counter()
                for data in together:
                    if '"content":' in data and '"content":""' not in data and '"content": ""' not in data:
                        (gaps if last else firsts).append(now - (last or began))
                        last = now
                        pieces.append(1)
                    if '"usage":' in data and '"usage":null' not in data and (told := json.loads(data).get("usage")):
                        tokens.append(told["completion_tokens"])

    began = time.perf_counter()
    await asyncio.gather(*(client(first) for first in range(asked["clients"])))
    wall = time.perf_counter() - began
    count = sum(tokens) or len(pieces)
    found = {"wall_s": wall, "tokens": count, "events": len(pieces), "tokens_per_s": count / wall}
    return {**found, **spread("ttft_ms", firsts), **spread("gap_ms", gaps)}


async def leave(asked: dict[str, Any]) -> dict[str, Any]:
    """One slot: a client begins a long answer and goes away; the next one's wait beyond its usual time."""
    usual, waits = [], []
    for number in range(asked["requests"]):
        http = origin(asked)
        usual.append(await _one(http, asked, 2 * number))
        long = body(asked, 2 * number + 1, max_tokens=asked["max_tokens"], stream=asked["streamed"], ignore_eos=True)
        going = asyncio.create_task(_read(http, long, asked["streamed"]))
        await asyncio.sleep(asked.get("after_s", 0.3))
        going.cancel()
        await asyncio.wait([going])
        waits.append(await _one(http, asked, 2 * number))
        await http.close()
    beyond = [max(0.0, wait - statistics.median(usual)) for wait in waits]
    return {"requests": len(waits), "usual_ms": 1000 * statistics.median(usual), **spread("ms", beyond)}


async def _one(http: Origin, asked: dict[str, Any], number: int) -> float:
    began = time.perf_counter()
    await http.call(CHAT, body(asked, number, max_tokens=1))
    return time.perf_counter() - began


async def _read(http: Origin, sent: bytes, streamed: bool) -> None:
    if not streamed:
        await http.call(CHAT, sent)
        return
    async for _ in http.stream(CHAT, sent):
        pass


def spread(name: str, seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {f"{name}_p50": 1000 * statistics.median(ordered), f"{name}_p95": 1000 * ordered[int(0.95 * len(ordered))]}


if __name__ == "__main__":
    main()
