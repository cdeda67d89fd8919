"""langchain-openai."""

from __future__ import annotations

import openai
from checks import QUESTION, Server, run
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Count(BaseModel):
    """How many."""

    count: int


@tool
def weather(city: str) -> str:
    """Weather of a city."""
    return "rain"


def chat(server: Server, **more: object) -> ChatOpenAI:
    told = {"max_tokens": 8, "temperature": 0, "max_retries": 0} | more
    return ChatOpenAI(model="desk", base_url=f"{server.url}/v1", api_key=server.key, **told)  # type: ignore[arg-type]


def invoke_and_stream(server: Server) -> None:
    whole = chat(server).invoke(QUESTION)
    pieces = list(chat(server).stream(QUESTION))
    assert whole.content and "".join(str(piece.content) for piece in pieces) == whole.content
    assert whole.usage_metadata and whole.usage_metadata["output_tokens"] <= 8


def batches(server: Server) -> None:
    assert len(chat(server).batch([QUESTION, "Say hello."])) == 2


def structured_output_by_schema_and_by_tool(server: Server) -> None:
    for method in ("json_schema", "function_calling"):
        found = chat(server, max_tokens=60).with_structured_output(Count, method=method).invoke(QUESTION)
        assert isinstance(found, Count), (method, found)


def bound_tool(server: Server) -> None:
    said = chat(server, max_tokens=60).bind_tools([weather], tool_choice="weather").invoke(QUESTION)
    assert said.tool_calls and said.tool_calls[0]["name"] == "weather"


def responses_api(server: Server) -> None:
    assert chat(server, use_responses_api=True).invoke(QUESTION).content


def embeddings(server: Server) -> None:
    made = OpenAIEmbeddings(
        model="desk", base_url=f"{server.url}/v1", api_key=server.key, check_embedding_ctx_length=False
    )  # type: ignore[call-arg]
    assert len(made.embed_documents(["the sea", "a boat"])) == 2 and len(made.embed_query("x")) > 8


def errors(server: Server) -> None:
    try:
        ChatOpenAI(model="gpt-4", base_url=f"{server.url}/v1", api_key=server.key, max_retries=0).invoke(QUESTION)  # type: ignore[arg-type]
    except openai.NotFoundError:
        return
    raise AssertionError("no NotFoundError")


if __name__ == "__main__":
    run(
        invoke_and_stream, batches, structured_output_by_schema_and_by_tool, bound_tool, responses_api, embeddings,
        errors,
    )  # fmt: skip
