"""An OpenAI-compatible endpoint as an engine: free answers only, for endpoints do not tell likelihoods."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from pydantic import BaseModel, ValidationError

from inhouse.core.addresses import stays_here
from inhouse.core.control_tokens import WELL_KNOWN
from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.protocols import Generation, Input, Prompt, Scored, Tick, question_of
from inhouse.core.settings import openai_headers
from inhouse.core.tool_words import said
from inhouse.remote.http import check, reaching

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 120.0  # without a byte from the endpoint


class Called(BaseModel):
    """What is called, or more of its arguments."""

    name: str | None = None
    arguments: str | None = None


class CallDelta(BaseModel):
    """A piece of one call of a tool."""

    index: int = 0
    function: Called = Called()


class Delta(BaseModel):
    """What a chunk adds: text, or pieces of calls."""

    content: str | None = None
    tool_calls: list[CallDelta] | None = None


class Choice(BaseModel):
    """One answer's part of a chunk."""

    delta: Delta = Delta()
    finish_reason: str | None = None


class Usage(BaseModel):
    """The endpoint's own count of tokens."""

    completion_tokens: int = 0


class Chunk(BaseModel):
    """One event of a stream; the last one has no choices and the usage."""

    choices: list[Choice]
    usage: Usage | None = None


def open_model(model: Input, *, offline: bool = False, timeout_s: float = TIMEOUT_S) -> RemoteEngine:
    """The endpoint that a remote model's facts name; OPENAI_API_KEY is sent to the address it was set for alone."""
    facts = ModelFacts.model_validate(model.record.facts["model"])
    if offline:
        raise UserError("remote.offline", url=facts.main)
    return RemoteEngine(facts.main, facts.name, timeout_s)


class RemoteEngine:
    """Implements core.protocols.Engine over /chat/completions, one streamed request at a time, temperature 0."""

    def __init__(self, url: str, model: str, timeout_s: float) -> None:
        import httpx

        self.name = url
        self.model = model
        headers = openai_headers(url)
        home = url.rstrip("/") + "/"
        self.client = httpx.Client(base_url=home, headers=headers, timeout=timeout_s, trust_env=not stays_here(url))

    def generate(
        self, prompts: Sequence[Prompt], max_tokens: int, tick: Tick, ignore_end: bool = False
    ) -> list[Generation]:
        """Answers in the order of the prompts. An endpoint cannot be told to ignore the end of turn."""
        if ignore_end:
            self._unsupported("answers of a fixed length")
        answers = []
        for prompt in prompts:
            answers.append(self._answer(prompt, max_tokens))
            tick(1)
        return answers

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Not told by endpoints: raises remote.unsupported."""
        self._unsupported("token ids")

    def score(self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], tick: Tick) -> list[list[Scored]]:
        """Not told by endpoints: raises remote.unsupported."""
        self._unsupported("likelihoods of given answers")

    def next_logprobs(self, prompts: Sequence[Prompt], top: int) -> list[dict[int, float]]:
        """Not told by endpoints: raises remote.unsupported."""
        self._unsupported("probabilities by token id")

    def memory_bytes(self) -> int:
        """0: the model's memory is on another machine."""
        return 0

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _unsupported(self, what: str) -> NoReturn:
        raise UserError("remote.unsupported", url=self.name, what=what)

    def _answer(self, prompt: Prompt, max_tokens: int) -> Generation:
        asked = question_of(prompt)
        body = {
            "model": self.model,
            "messages": WELL_KNOWN.in_turns([message.as_dict() for message in asked.turns]),
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"tools": asked.tools} if asked.tools else {}),
        }
        started = time.monotonic()
        request = self.client.stream("POST", "chat/completions", json=body)
        with reaching(self.name, self.client.timeout.read or 0.0), request as response:
            check(response, self.name, self.model)
            return assemble(self._chunks(response), started)

    def _chunks(self, response: httpx.Response) -> Iterator[Chunk]:
        """The chunks of the stream; anything else, or none at all, ends in remote.not_openai."""
        count = 0
        for line in response.iter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or not data:
                continue
            if data == "[DONE]":
                break
            try:
                yield Chunk.model_validate_json(data)
            except ValidationError:
                raise UserError("remote.not_openai", url=self.name, got=data[:200]) from None
            count += 1
        if not count:
            raise UserError("remote.not_openai", url=self.name, got=response.headers.get("content-type", "nothing"))


def assemble(chunks: Iterator[Chunk], started: float) -> Generation:
    """The whole answer of a stream, calls of tools in words. Tokens are the endpoint's own count, else its pieces."""
    pieces: list[str] = []
    calls: dict[int, dict[str, str]] = {}
    finish, tokens, first = "stop", 0, 0.0
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.delta.content or choice.delta.tool_calls:
                first = first or time.monotonic() - started
            pieces += [choice.delta.content] if choice.delta.content else []
            for call in choice.delta.tool_calls or ():
                made = calls.setdefault(call.index, {"name": "", "arguments": ""})
                made["name"] += call.function.name or ""
                made["arguments"] += call.function.arguments or ""
            finish = choice.finish_reason or finish
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    total = time.monotonic() - started
    text = said("".join(pieces), [calls[place] for place in sorted(calls)])
    finish = "stop" if finish == "tool_calls" else finish
    return Generation(text, tokens or len(pieces), finish, first or total, total)
