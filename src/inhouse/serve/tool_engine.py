"""A request as its engine reads it, without control tokens in what users say; calls and thoughts in its answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from inhouse.core.errors import UserError
from inhouse.core.serving import Ask, Delta, EngineRefused, Push, ServingEngine
from inhouse.core.tool_words import in_words
from inhouse.serve.thoughts import ThoughtReader
from inhouse.serve.tool_text import ForcedCallReader, FreeCallReader, without_tools

Reader = ThoughtReader | ForcedCallReader | FreeCallReader


def submit(engine: ServingEngine, ask: Ask, push: Push | None = None) -> AsyncGenerator[list[Delta], None]:
    """The engine's answer; with its calls and its thoughts read where the engine tells neither apart.

    `push` as of ServingEngine.submit; what calls are read from is not pushed.

    Raises EngineRefused where a text spells out a control token that cannot be broken.
    """
    plain = prompted(engine, ask)
    reads = bool(ask.tools) and ask.tool_choice != "none" and engine.capabilities.tools != "auto"
    thinks = engine.capabilities.thinks and ask.messages is not None and ask.constraint is None and ask.forced is None
    return _read(engine, plain, ask, thinks, reads) if thinks or reads else engine.submit(plain, push)


def prompted(engine: ServingEngine, ask: Ask) -> Ask:
    """The request with its conversation as the engine's template gets it, which is as training had it.

    Control tokens are broken first: in words, a call and its arguments are the assistant's own text.
    """
    if ask.messages is None:
        return ask  # who sends a prompt has written all of it
    able = engine.capabilities
    try:
        messages = able.control.in_turns(ask.messages)
    except UserError:
        raise EngineRefused("invalid") from None
    if any(told is not said for told, said in zip(messages, ask.messages, strict=True)):
        ask = replace(ask, messages=messages)  # as good as never: this is on the way of every request
    if able.tools == "auto" or not about_tools(ask):
        return ask
    if not ask.tools or ask.tool_choice == "none":
        messages = messages if able.template_tools else [*in_words(messages, (), False)]
        return replace(ask, messages=messages, tools=(), tool_choice="none", forced=None)
    if able.template_tools and ask.forced is None:
        return ask
    return replace(without_tools(ask, ask.forced), forced=None)


def about_tools(ask: Ask) -> bool:
    """Whether there are tools, or calls and results in the conversation."""
    return bool(ask.tools) or any(m["role"] == "tool" or m.get("tool_calls") for m in ask.messages or ())


async def _read(
    engine: ServingEngine, plain: Ask, ask: Ask, thinks: bool, calls: bool
) -> AsyncGenerator[list[Delta], None]:
    readers: dict[int, list[Reader]] = {}
    async with aclosing(engine.submit(plain)) as pieces:
        async for deltas in pieces:
            told = []
            for delta in deltas:
                if delta.index not in readers:
                    readers[delta.index] = _readers(ask, thinks, calls)
                for reader in readers[delta.index]:
                    delta = reader.read(delta)
                told.append(delta)
            yield told


def _readers(ask: Ask, thinks: bool, calls: bool) -> list[Reader]:
    """What reads one choice: thoughts stand before calls."""
    found: list[Reader] = [ThoughtReader()] if thinks else []
    if calls:
        names = [tool["function"]["name"] for tool in ask.tools]
        forced = ask.forced is not None
        found.append(ForcedCallReader() if forced else FreeCallReader(names, ask.parallel_tool_calls))
    return found
