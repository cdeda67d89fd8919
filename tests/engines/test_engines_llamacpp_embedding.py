"""Embeddings by llama.cpp: a text's vector is its own, whichever texts are read beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inhouse.engines.http_stream import Origin
from inhouse.engines.llamacpp import LlamaCppSettings, RunningEngine, start_server
from inhouse.engines.llamacpp_embedding import embed

TEXTS = [
    "cat",
    "a cat sat on the mat",
    "银行把基准利率下调了",
    "The weather in the north of Scotland in winter, with rain and much wind for all.",
    "stock market prices fell " * 30,
]


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[RunningEngine]:
    settings = LlamaCppSettings(context_length=256, parallel=4, threads=1, embedding="mean", weights="map")
    running = start_server(smollm2_gguf, settings, name="embedder", load_timeout_s=120)
    yield running
    running.stop()


def vectors(server: RunningEngine, texts: list[str]) -> list[list[float]]:
    async def ask() -> list[list[float]]:
        origin = Origin(server.url, dict(server.headers))
        try:
            return (await embed(origin, texts))[0]
        finally:
            await origin.close()

    return asyncio.run(ask())


def test_vectors_of_texts_that_are_read_together_are_those_of_each_alone(server: RunningEngine) -> None:
    alone = [vectors(server, [text])[0] for text in TEXTS]
    for order in (range(5), range(4, -1, -1), [3, 0, 4, 1, 2, 0, 4, 4, 1]):  # more than one step takes
        together = vectors(server, [TEXTS[at] for at in order])
        for at, vector in zip(order, together, strict=True):
            assert sum(a * b for a, b in zip(vector, alone[at], strict=True)) == pytest.approx(1, abs=1e-3)
    with ThreadPoolExecutor(5) as pool:
        asked = list(range(5)) * 3
        found = pool.map(lambda at: vectors(server, [TEXTS[at]])[0], asked)
        for at, vector in zip(asked, found, strict=True):
            assert sum(a * b for a, b in zip(vector, alone[at], strict=True)) == pytest.approx(1, abs=1e-3)


@pytest.mark.real
@pytest.mark.parametrize(("parallel", "length"), [(3, 256), (4, 1022), (2, 511)])
def test_server_starts_whatever_the_length_of_a_step_and_reads_one_that_is_full(
    smollm2_gguf: Path, parallel: int, length: int
) -> None:
    settings = LlamaCppSettings(context_length=length, parallel=parallel, threads=1, embedding="mean", weights="map")
    running = start_server(smollm2_gguf, settings, name="embedder", load_timeout_s=120)
    try:
        full = " a" * (length - 4)
        found = vectors(running, ["the cat", full, "the cat"])
    finally:
        running.stop()
    same, other = (sum(a * b for a, b in zip(found[0], found[at], strict=True)) for at in (2, 1))
    assert same == pytest.approx(1, abs=1e-3) and other < 0.9
