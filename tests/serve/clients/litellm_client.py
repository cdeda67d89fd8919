"""litellm as a client."""

from __future__ import annotations

from typing import Any

import litellm
from checks import COUNT_SCHEMA, QUESTION, Server, run

MESSAGES = [{"role": "user", "content": QUESTION}]


def told(server: Server) -> dict[str, Any]:
    return {"model": "openai/desk", "api_base": f"{server.url}/v1", "api_key": server.key, "max_retries": 0}


def chat_whole_and_streamed(server: Server) -> None:
    asked = told(server) | {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    whole = litellm.completion(**asked).choices[0].message.content
    pieces = litellm.completion(**asked, stream=True)
    assert whole and "".join(p.choices[0].delta.content or "" for p in pieces) == whole


def forced_tool(server: Server) -> None:
    tool = {"type": "function", "function": {"name": "count", "parameters": COUNT_SCHEMA}}
    asked = told(server) | {"messages": MESSAGES, "max_tokens": 60, "tools": [tool], "tool_choice": "required"}
    assert litellm.completion(**asked).choices[0].message.tool_calls[0].function.name == "count"


def embeddings(server: Server) -> None:
    assert len(litellm.embedding(**told(server), input=["the sea", "a boat"]).data) == 2


def rerank(server: Server) -> None:
    found = litellm.rerank(
        model="hosted_vllm/desk",
        api_base=f"{server.url}/v1/rerank",
        api_key=server.key,
        query="sea",
        documents=["a boat", "a tax"],
    )
    assert len(found.results) == 2


def errors(server: Server) -> None:
    for kind, more in (
        (litellm.NotFoundError, {"model": "openai/gpt-4x"}),
        (litellm.AuthenticationError, {"api_key": "wrong"}),
        (litellm.RateLimitError, {"api_key": server.limited}),
    ):
        try:
            litellm.completion(**told(server) | more | {"messages": MESSAGES, "max_tokens": 1})
        except kind:
            continue
        raise AssertionError(f"no {kind.__name__}")


if __name__ == "__main__":
    run(chat_whole_and_streamed, forced_tool, embeddings, rerank, errors)
