"""llama-index with its OpenAI-like classes."""

from __future__ import annotations

from checks import QUESTION, Server, run
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Count(BaseModel):
    """How many."""

    count: int


def llm(server: Server, **more: object) -> OpenAILike:
    told = {"max_tokens": 8, "temperature": 0, "max_retries": 0, "context_window": 512} | more
    return OpenAILike(model="desk", api_base=f"{server.url}/v1", api_key=server.key, is_chat_model=True, **told)  # type: ignore[arg-type]


def chat_and_stream(server: Server) -> None:
    asked = [ChatMessage(role="user", content=QUESTION)]
    whole = llm(server).chat(asked).message.content
    streamed = [piece.delta or "" for piece in llm(server).stream_chat(asked)]
    assert whole and "".join(streamed) == whole


def complete(server: Server) -> None:
    assert llm(server).complete("The sea is").text
    plain = OpenAILike(
        model="desk", api_base=f"{server.url}/v1", api_key=server.key, is_chat_model=False, max_tokens=5,
        context_window=512,
    )  # fmt: skip
    assert plain.complete("The sea is").text


def required_tool(server: Server) -> None:
    def weather(city: str) -> str:
        """Weather of a city."""
        return "rain"

    found = llm(server, is_function_calling_model=True, max_tokens=60)
    tool = FunctionTool.from_defaults(weather)
    said = found.chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
    calls = found.get_tool_calls_from_response(said)
    assert calls and calls[0].tool_name == "weather"


def structured_output(server: Server) -> None:
    found = llm(server, is_function_calling_model=True, max_tokens=60, should_use_structured_outputs=True)
    said = found.as_structured_llm(Count).complete(QUESTION)
    assert isinstance(said.raw, Count)


def embeddings(server: Server) -> None:
    made = OpenAILikeEmbedding(model_name="desk", api_base=f"{server.url}/v1", api_key=server.key)
    assert len(made.get_text_embedding_batch(["the sea", "a boat"])) == 2


if __name__ == "__main__":
    run(chat_and_stream, complete, required_tool, structured_output, embeddings)
