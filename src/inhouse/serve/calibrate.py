"""Which engine is faster for how many requests: measured on this machine with the model that is served."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from inhouse.core.artifact import Frozen
from inhouse.core.fingerprint import hash_json
from inhouse.core.serving import Ask, EngineLost, EngineRefused, EngineSilent, Sampling, ServingEngine
from inhouse.core.store import write_durably
from inhouse.serve.machine_load import BUSY

FEW, MANY = 1, 8  # clients
WINDOW_S = 1.5
ANSWER_TOKENS = 48
COMPARED_TOKENS = 24
WARM_S = 0.5
LONG_WORDS = 150  # pairs of numbers, about four tokens each
AGREE = 0.8  # of the compared tokens; a wrong reader gets almost none, one that quantises again 0.7, rounding 0.9
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
GAIN = 1.05  # less is noise: one engine is simpler than two
READS = 1.5  # as fast a reader of prompts is worth a second engine that writes no faster
PROMPTS = (
    "Name the largest planet of the solar system and say one thing about it.",
    "List three colours of the rainbow.",
    "Write one sentence about the sea in winter.",
    "请用一句话介绍北京。",
    "水在多少摄氏度时沸腾？",
)
T = TypeVar("T")


class Disturbed(Exception):
    """Somebody asks: measuring can wait."""


class Calibration(Frozen):
    """What was measured, and what follows: `few` answers below `crossover` running requests, `many` from it on.

    Whatever runs, a prompt that the other engine is done with sooner goes there.
    """

    few: str
    many: str
    crossover: int | None = Field(None, description="running requests; absent: `few` writes faster for any number")
    agreement: float = Field(
        description="part of the first engine's greedy tokens that the second would have written next too"
    )
    tokens_per_s: dict[str, dict[int, float]] = Field({}, description="engine -> clients -> output tokens a second")
    prompt_tokens_per_s: dict[str, float] = Field({}, description="engine -> tokens of a long prompt read a second")
    others_cpu: float | None = Field(
        None, description="share of the machine's processor time that other programs used meanwhile"
    )

    @property
    def beside_others(self) -> bool:
        """Whether the machine was busy: then it is measured again at the next start on a quiet one."""
        return self.others_cpu is not None and self.others_cpu > BUSY


def name_of(model_sha256: str, machine: Sequence[str], versions: Mapping[str, str], settings: Any) -> str:
    """What a result is filed under: with another model, machine, version or setting it would be another one."""
    return hash_json([model_sha256, list(machine), dict(versions), settings])[:32]


def kept(path: Path) -> Calibration | None:
    """A result of before; None where there is none, or none that can be read."""
    try:
        return Calibration.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def keep(path: Path, found: Calibration) -> None:
    """Store a result for the next start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(found.model_dump(mode="json"), indent=1) + "\n")


async def calibrate(
    first: ServingEngine, second: ServingEngine, most: int, busy: Callable[[], bool], window_s: float = WINDOW_S
) -> Calibration:
    """Compare two engines over the same model; `most` = requests that they take at the same time.

    Raises Disturbed as soon as `busy`, EngineLost, EngineSilent, EngineRefused.
    """
    share = await undisturbed(agreement(first, second), busy)
    if share < AGREE:
        return Calibration(few=first.name, many=first.name, agreement=share)
    loads = sorted({FEW, min(MANY, most)})
    rates: dict[str, dict[int, float]] = {first.name: {}, second.name: {}}
    for engine in (first, second):
        await undisturbed(rate(engine, loads[-1], WARM_S), busy)
    for clients in loads:
        for engine in (first, second):
            rates[engine.name][clients] = round(await undisturbed(rate(engine, clients, window_s), busy), 1)
    read = {engine.name: round(await undisturbed(reading(engine), busy), 1) for engine in (first, second)}
    found = concluded(first.name, second.name, rates, share).model_copy(update={"prompt_tokens_per_s": read})
    if found.few == found.many == first.name and read[second.name] >= READS * read[first.name]:
        found = found.model_copy(update={"many": second.name})
    return found


def concluded(first: str, second: str, rates: Mapping[str, Mapping[int, float]], share: float) -> Calibration:
    """What the rates of writing say. Between two loads, the engines' ratio is taken as linear in the logarithms."""
    ratios = {load: rates[second][load] / max(rates[first][load], 1e-9) for load in sorted(rates[first])}
    told = {name: dict(own) for name, own in rates.items()}
    low, high = min(ratios), max(ratios)
    few = second if ratios[low] >= GAIN else first
    many = second if ratios[high] >= GAIN else first
    if few == many:
        return Calibration(few=few, many=many, agreement=share, tokens_per_s=told)
    slow, fast = math.log(max(ratios[low], 1e-9)), math.log(max(ratios[high], 1e-9))
    part = min(1.0, max(0.0, -slow / (fast - slow)))
    crossover = math.ceil(low * (high / low) ** part)
    return Calibration(
        few=few, many=many, crossover=min(max(crossover, low + 1), high), agreement=share, tokens_per_s=told
    )


async def agreement(first: ServingEngine, second: ServingEngine) -> float:
    """How often the second engine's likeliest next token is the one that the first wrote, over its greedy answers.

    Token by token behind the same beginning: two whole answers differ for good after one near tie, which the rounding
    of quantised weights decides (whole greedy answers of a 135M model in Q4_0 agreed by 0.4).
    """
    found = []
    for prompt in PROMPTS:
        asked = _ask(prompt, COMPARED_TOKENS)
        begin = await first.tokenize(await first.render(asked), special=True)
        if await second.tokenize(await second.render(asked), special=True) != begin:
            return 0.0  # it reads another prompt: whatever it writes, it is another answer
        # As a prompt and not as a chat: an engine may leave the tags of a thought out of what it tells of that.
        answer = await _text(first, Ask(asked.sampling, prompt=begin))
        ids = await first.tokenize(answer, special=False)
        pieces = [await first.detokenize([token]) for token in ids]
        # A token that is part of a character has no text of its own to compare.
        places = [place for place, piece in enumerate(pieces) if piece and UNFINISHED not in piece]
        asks = [Ask(Sampling(1), prompt=[*begin, *ids[:place]]) for place in places]
        said = await asyncio.gather(*(_text(second, ask) for ask in asks))
        found += [text == pieces[place] for place, text in zip(places, said, strict=True)]
    return round(sum(found) / len(found), 3) if found else 0.0


async def rate(engine: ServingEngine, clients: int, window_s: float) -> float:
    """Output tokens a second of so many clients that ask again and again."""
    counted = 0

    async def client(number: int) -> None:
        nonlocal counted
        for turn in range(10_000):
            ask = _ask(f"{turn}.{number} {PROMPTS[(turn + number) % len(PROMPTS)]}", ANSWER_TOKENS, ignore_end=True)
            async with aclosing(engine.submit(ask)) as pieces:
                async for deltas in pieces:
                    counted += sum(delta.tokens for delta in deltas)

    began = time.perf_counter()
    running = [asyncio.ensure_future(client(number)) for number in range(clients)]
    try:
        done, _ = await asyncio.wait(running, timeout=window_s, return_when=asyncio.FIRST_EXCEPTION)
        taken = time.perf_counter() - began
        for task in done:
            task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return counted / taken


async def reading(engine: ServingEngine) -> float:
    """Tokens of a long prompt that is read for the first time, a second."""
    words = min(LONG_WORDS, engine.context_length // 8)
    best = 0.0
    for turn in range(2):
        said = " ".join(f"{turn} {place * 7919 % 9973}" for place in range(words))
        began, first, tokens = time.perf_counter(), 0.0, 0
        async with aclosing(engine.submit(_ask(said, 1))) as pieces:
            async for deltas in pieces:
                first = first or time.perf_counter() - began
                tokens += sum(delta.usage.prompt for delta in deltas if delta.usage)
        best = max(best, tokens / first if first else 0.0)
    return best


async def undisturbed(work: Coroutine[Any, Any, T], busy: Callable[[], bool]) -> T:
    """The result of work that ends, with Disturbed, as soon as somebody else needs the engines."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if busy():
                raise Disturbed
            await asyncio.wait({task}, timeout=0.02)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _text(engine: ServingEngine, ask: Ask) -> str:
    found = ""
    async with aclosing(engine.submit(ask)) as pieces:
        async for deltas in pieces:
            found += "".join(delta.text for delta in deltas)
    return found


def _ask(prompt: str, tokens: int, ignore_end: bool = False) -> Ask:
    return Ask(Sampling(tokens, ignore_end=ignore_end), messages=[{"role": "user", "content": prompt}])


FAILURES = (EngineLost, EngineSilent, EngineRefused)
