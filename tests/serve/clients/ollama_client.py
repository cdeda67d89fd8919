"""Ollama's own client."""

from __future__ import annotations

import json
from typing import Any

import ollama
from checks import COUNT_SCHEMA, QUESTION, Server, run

MESSAGES = [{"role": "user", "content": QUESTION}]
SHORT = {"num_predict": 8, "temperature": 0}


def client(server: Server, key: str | None = None) -> ollama.Client:
    return ollama.Client(server.url, headers={"Authorization": f"Bearer {key or server.key}"}, trust_env=False)


def chat_whole_and_streamed(server: Server) -> None:
    whole = client(server).chat("desk", MESSAGES, options=SHORT)
    parts = list(client(server).chat("desk", MESSAGES, options=SHORT, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content and parts[-1].done


def generate(server: Server) -> None:
    assert client(server).generate("desk", QUESTION, options=SHORT).response


def structured_output(server: Server) -> None:
    said = client(server).chat("desk", MESSAGES, format=COUNT_SCHEMA, options={"num_predict": 60, "temperature": 0})
    assert isinstance(json.loads(said.message.content or "")["count"], int)


def tools_of_python_functions(server: Server) -> None:
    def weather(city: str) -> str:
        """Weather of a city.

        Args:
          city: its name
        """
        return "rain"

    said = client(server).chat("desk", MESSAGES, tools=[weather], options=SHORT)
    assert said.message.content or said.message.tool_calls


def embeddings(server: Server) -> None:
    assert len(client(server).embed("desk", ["a", "b"]).embeddings) == 2
    assert len(client(server).embeddings("desk", "a").embedding) > 8


def models(server: Server) -> None:
    names = [model.model for model in client(server).list().models]
    assert "desk:latest" in names and client(server).show("desk").modelinfo and client(server).ps().models


def errors(server: Server) -> None:
    calls: Any = (
        (404, lambda: client(server).chat("gpt-4", MESSAGES)),
        (401, lambda: client(server, "wrong").list()),
        (429, lambda: client(server, server.limited).chat("desk", MESSAGES, options=SHORT)),
    )
    for status, call in calls:
        try:
            call()
        except ollama.ResponseError as error:
            assert error.status_code == status and error.error, (error.status_code, error.error)
            continue
        raise AssertionError(f"no {status}")


if __name__ == "__main__":
    run(
        chat_whole_and_streamed, generate, structured_output, tools_of_python_functions, embeddings, models, errors
    )  # fmt: skip
