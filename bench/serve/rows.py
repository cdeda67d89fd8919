"""The rows of the benchmark: what each measures, on which sides, and what must come out (issue 4)."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sides
from gguf_files import model_file
from sides import Side

TOPICS = (
    "a river", "the moon", "a bakery", "steel", "a violin", "rain", "a library", "salt", "an airport", "honey",
    "a clock", "wool", "a harbour", "chess", "a volcano", "paper", "an orchard", "glass", "a market", "sand",
    "a bridge", "tea", "a lighthouse", "copper", "a desert", "bread", "a forest", "coal", "a mirror", "wheat",
    "an island", "snow",
)  # fmt: skip
PROMPTS = [f"Write a short story about {topic}." for topic in TOPICS]
ANSWER = 64
PACED = {"every_ms": 10.0, "streams": 64, "tokens": 200}


@dataclass(frozen=True)
class Work:
    """Where things lie, and how much is measured."""

    folder: Path
    kind: str
    threads: int
    rounds: int
    quick: bool


Run = dict[str, Any]
Measure = Callable[[Work], Iterator[Run]]


@dataclass(frozen=True)
class Bar:
    """What is compared: ours in `figure` against another side's (ratio) or against a number, and the bound."""

    title: str
    row: str
    figure: str
    bound: float
    at_least: bool = False
    against: str | None = None
    where: tuple[tuple[str, object], ...] = ()


def tokens(work: Work) -> Iterator[Run]:
    """Output tokens a second and the first token, at 32, 8 and 1 clients, real model, both sides over HTTP."""
    path = model_file(work.folder.parent, work.kind)
    with ExitStack() as stack:
        both = [
            stack.enter_context(side(work.folder, path, 32, 1024, work.threads))
            for side in (sides.inhouse, sides.llama)
        ]
        for side in both:
            side.load("stream", clients=4, requests=1, max_tokens=8, prompts=PROMPTS)
        for number in range(work.rounds):
            for clients in (32, 8, 1):
                requests = 1 if work.quick or clients > 1 else 3
                for side in turned(both, number):
                    told = fresh(number, clients)
                    found = side.load(
                        "stream", clients=clients, requests=requests, max_tokens=ANSWER, prompts=told,
                        extra={"ignore_eos": True}, timeout_s=240,
                    )  # fmt: skip
                    yield {"row": "tokens", "clients": clients, "round": number, "kind": work.kind, **found}


def prompt(work: Work) -> Iterator[Run]:
    """The first token of a 1.5k-token prompt: never seen before, and with a beginning that was.

    The beginning has another length in every round: engines keep what they have read in blocks, and how much of the
    last one is read again depends on where it ends.
    """
    path = model_file(work.folder.parent, work.kind)
    with ExitStack() as stack:
        both = [
            stack.enter_context(side(work.folder, path, 4, 2048, work.threads)) for side in (sides.inhouse, sides.llama)
        ]
        for number in range(work.rounds):
            long = f"Round {number}. " + " ".join(
                f"Item {i}: {TOPICS[i % 32]} number {i * 7 + number}." for i in range(118 - number % 8)
            )
            for side in turned(both, number):
                for part, asked in (("cold", f"{long} What is item 3?"), ("shared", f"{long} Name item 9.")):
                    one = {"clients": 1, "requests": 1, "max_tokens": 2, "prompts": [asked]}
                    yield {
                        "row": "prompt",
                        "part": part,
                        "round": number,
                        "kind": work.kind,
                        **side.load("stream", **one),
                    }


def paced(work: Work) -> Iterator[Run]:
    """CPU of the gateway a streamed token: 64 streams, a token each 10 ms, over an engine that computes nothing."""
    with ExitStack() as stack:
        engine = stack.enter_context(sides.mock(work.folder, PACED["every_ms"]))
        all_sides = [
            stack.enter_context(sides.gateway(work.folder, PACED["every_ms"])),
            stack.enter_context(sides.raw_asgi(work.folder, engine.url)),
            *litellm_where_installed(stack, work, engine.url),
        ]
        for side in all_sides:
            side.load("stream", clients=8, requests=1, max_tokens=20, prompts=["warm"])
        for number in range(work.rounds):
            for side in turned(all_sides, number):
                few = {"clients": 64, "max_tokens": 60 if side.name == "litellm" else int(PACED["tokens"])}
                found = side.load("stream", requests=1, prompts=fresh(number, 64), **few)
                yield {"row": "paced", "round": number, **found, "us_per_token": 1e6 * found["cpu_s"] / found["tokens"]}


def plain(work: Work) -> Iterator[Run]:
    """Whole answers a second at 32 clients, and what one client waits longer than without a gateway."""
    with ExitStack() as stack:
        engine = stack.enter_context(sides.mock(work.folder, 0.0))
        ours = stack.enter_context(sides.gateway(work.folder, 0.0))
        raw = stack.enter_context(sides.raw_asgi(work.folder, engine.url))
        all_sides = [ours, raw, engine, *litellm_where_installed(stack, work, engine.url)]
        for side in all_sides:
            side.load("plain", clients=8, requests=10, prompts=["warm"])
        warm = ours.from_memory()
        for number in range(work.rounds):
            for clients in (32, 1):
                for side in turned(all_sides, number):
                    requests = 15 if side.name == "litellm" else 400 if clients == 32 else 1000
                    new = [f"{number} {clients} {{number}}"]  # no cache has seen it
                    found = side.load("plain", clients=clients, requests=requests, prompts=new)
                    cost = 1e6 * found["cpu_s"] / found["requests"]
                    yield {"row": "plain", "clients": clients, "round": number, **found, "us_per_request": cost}
        if kept := ours.from_memory() - warm:
            raise RuntimeError(f"{kept} answers came from memory: the row tells nothing of the engine's way")


def cached(work: Work) -> Iterator[Run]:
    """Answers from the exact cache."""
    with sides.gateway(work.folder, 0.0) as ours:
        ours.load("plain", clients=1, requests=2000, prompts=PROMPTS)  # CPython is quicker where it has been often
        for number in range(work.rounds):
            for clients in (1, 32):
                found = ours.load("plain", clients=clients, requests=1000 if clients == 1 else 500, prompts=PROMPTS)
                cost = 1e6 * found["cpu_s"] / found["requests"]
                yield {"row": "cached", "clients": clients, "round": number, **found, "us_per_request": cost}


def gone(work: Work) -> Iterator[Run]:
    """How much longer than usual the next one waits for the only slot, after a client has gone away."""
    path = model_file(work.folder.parent, work.kind)
    with ExitStack() as stack:
        both = [
            stack.enter_context(side(work.folder, path, 1, 1024, work.threads)) for side in (sides.inhouse, sides.llama)
        ]
        for number in range(work.rounds):
            for streamed in (True, False):
                for side in turned(both, number):
                    few = 2 if side.name == "llama-server" and not streamed else 5
                    told = [f"{number} {streamed} {i}: tell me about {TOPICS[i]}." for i in range(2 * few)]
                    asked = {"requests": few, "max_tokens": 600, "streamed": streamed, "prompts": told}
                    yield {"row": "gone", "streamed": streamed, "round": number, **side.load("leave", **asked)}


def start(work: Work) -> Iterator[Run]:
    """From `inhouse serve` to the first token."""
    path = model_file(work.folder.parent, work.kind)
    for number in range(work.rounds):
        began = time.perf_counter()
        ready = sides.inhouse(work.folder, path, 2, 1024, work.threads, "background")
        with ready as side:
            listening = time.perf_counter() - began - side.prepared_s
            found = side.load("stream", clients=1, requests=1, max_tokens=1, prompts=["Hello"])
        first = listening + found["ttft_ms_p50"] / 1000
        yield {"row": "start", "side": "ours", "round": number, "listening_s": listening, "first_token_s": first}


ROWS: dict[str, Measure] = {
    "tokens": tokens, "prompt": prompt, "paced": paced, "plain": plain, "cached": cached, "gone": gone, "start": start,
}  # fmt: skip
PEER = "llama-server"
BARS = (
    Bar("tokens/s, 32 clients", "tokens", "tokens_per_s", 2.0, True, PEER, (("clients", 32),)),
    Bar("tokens/s, 8 clients", "tokens", "tokens_per_s", 1.35, True, PEER, (("clients", 8),)),
    Bar("tokens/s, 1 client", "tokens", "tokens_per_s", 0.97, True, PEER, (("clients", 1),)),
    Bar("tokens/s, 8 clients over 1", "tokens", "tokens_per_s", 2.0, True, "one client", (("clients", 8),)),
    Bar("TTFT p95, 32 clients", "tokens", "ttft_ms_p95", 0.5, False, PEER, (("clients", 32),)),
    Bar("1.5k-token prompt, cold", "prompt", "ttft_ms_p50", 0.4, False, PEER, (("part", "cold"),)),
    Bar("shared beginning, share of cold", "prompt", "ttft_ms_p50", 0.05, False, "cold", (("part", "shared"),)),
    Bar("gateway CPU, us a streamed token", "paced", "us_per_token", 35.0),
    Bar("gateway CPU a streamed token", "paced", "us_per_token", 0.1, False, "litellm"),
    Bar("plain requests/s, 32 clients", "plain", "per_s", 8000.0, True, None, (("clients", 32),)),
    Bar("added latency p50, 1 client, ms", "plain", "ms_p50", 0.3, False, "direct", (("clients", 1),)),
    Bar("exact-cache hit p50, ms", "cached", "ms_p50", 0.2, False, None, (("clients", 1),)),
    Bar("exact-cache hits/s, 32 clients", "cached", "per_s", 15000.0, True, None, (("clients", 32),)),
    Bar("client gone, streaming, p95 ms", "gone", "ms_p95", 50.0, False, None, (("streamed", True),)),
    Bar("client gone, plain, p95 ms", "gone", "ms_p95", 50.0, False, None, (("streamed", False),)),
    Bar("inhouse serve to first token, s", "start", "first_token_s", 3.0),
)


OWN: dict[str, dict[str, object]] = {"cold": {"part": "cold"}, "one client": {"clients": 1}}  # beside ourselves


def turned(these: list[Side], number: int) -> list[Side]:
    """The sides, another one first in every round."""
    cut = number % len(these)
    return these[cut:] + these[:cut]


def fresh(number: int, clients: int) -> list[str]:
    """Prompts that no cache has seen: another beginning in every round and at every number of clients."""
    mark = f"{os.getpid()}-{number}-{clients}"
    return [f"[{mark}] {PROMPTS[i % len(PROMPTS)]}" for i in range(max(clients * 3, 32))]


def litellm_where_installed(stack: ExitStack, work: Work, upstream: str) -> list[Side]:
    """LiteLLM's proxy, unless its environment was not made."""
    if not (sides.ROOT / ".inhouse" / "bench" / "peers" / "litellm").exists():
        return []
    return [stack.enter_context(sides.litellm(work.folder, upstream))]


def measured(bar: Bar, runs: list[Run]) -> tuple[float, float | None] | None:
    """Ours and, where the bar is a comparison, the other's: medians over the rounds."""
    own = values(bar, runs, "ours", dict(bar.where))
    if not own:
        return None
    if bar.against is None:
        return statistics.median(own), None
    if bar.against in OWN:
        other = values(bar, runs, "ours", OWN[bar.against])
    else:
        other = values(bar, runs, bar.against, dict(bar.where))
    return (statistics.median(own), statistics.median(other)) if other else None


def values(bar: Bar, runs: list[Run], side: str, where: dict[str, object]) -> list[float]:
    """A figure of one side in every round."""
    return [
        float(run[bar.figure])
        for run in runs
        if run["row"] == bar.row and run["side"] == side and all(run.get(k) == v for k, v in where.items())
    ]
