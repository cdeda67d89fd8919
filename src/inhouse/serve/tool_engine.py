"""Tools for engines that know none: asked in words, answered in JSON, told as calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from inhouse.core.serving import Ask, Delta, ServingEngine
from inhouse.serve.tool_text import ForcedCallReader, FreeCallReader, in_words, without_tools


def submit(engine: ServingEngine, ask: Ask) -> AsyncGenerator[list[Delta], None]:
    """The engine's answer; where the request is about tools and the engine knows none, with its calls read."""
    if engine.capabilities.tools == "auto" or not about_tools(ask):
        return engine.submit(ask)
    if not ask.tools or ask.tool_choice == "none":
        messages = in_words(ask.messages or (), (), False)
        return engine.submit(replace(ask, messages=messages, tools=(), tool_choice="none", forced=None))
    return _read(engine, ask)


def about_tools(ask: Ask) -> bool:
    """Whether there are tools, or calls and results in the conversation."""
    return bool(ask.tools) or any(m["role"] == "tool" or m.get("tool_calls") for m in ask.messages or ())


async def _read(engine: ServingEngine, ask: Ask) -> AsyncGenerator[list[Delta], None]:
    names = [tool["function"]["name"] for tool in ask.tools]
    readers: dict[int, ForcedCallReader | FreeCallReader] = {}
    plain = replace(without_tools(ask, ask.forced), forced=None)
    async with aclosing(engine.submit(plain)) as pieces:
        async for deltas in pieces:
            told = []
            for delta in deltas:
                reader = readers.get(delta.index)
                if reader is None:
                    reader = ForcedCallReader() if ask.forced is not None else FreeCallReader(names)
                    readers[delta.index] = reader
                told.append(reader.read(delta))
            yield told
