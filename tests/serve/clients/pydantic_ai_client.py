"""pydantic-ai."""

from __future__ import annotations

import asyncio
from typing import Any

from checks import QUESTION, Server, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Count(BaseModel):
    """How many."""

    count: int


def agent(server: Server, output: Any = str, tokens: int = 8, name: str = "desk") -> Agent[None, Any]:
    model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=f"{server.url}/v1", api_key=server.key))
    return Agent(model, output_type=output, model_settings={"max_tokens": tokens, "temperature": 0})


def ask_and_stream(server: Server) -> None:
    whole = agent(server).run_sync(QUESTION).output

    async def streamed() -> str:
        async with agent(server).run_stream(QUESTION) as found:
            return "".join([piece async for piece in found.stream_text(delta=True, debounce_by=None)])

    assert whole and asyncio.run(streamed()) == whole


def output_by_a_forced_tool(server: Server) -> None:
    assert isinstance(agent(server, Count, 60).run_sync(QUESTION).output, Count)


def output_by_a_schema(server: Server) -> None:
    assert isinstance(agent(server, NativeOutput(Count), 60).run_sync(QUESTION).output, Count)


def errors(server: Server) -> None:
    try:
        agent(server, name="gpt-4").run_sync(QUESTION)
    except ModelHTTPError as error:
        assert error.status_code == 404
        return
    raise AssertionError("no ModelHTTPError")


if __name__ == "__main__":
    run(ask_and_stream, output_by_a_forced_tool, output_by_a_schema, errors)
