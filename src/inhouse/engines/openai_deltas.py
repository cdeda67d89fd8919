"""What OpenAI-shaped engines send, as deltas: chunks of a stream, whole answers, refusals. Dialects included."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from inhouse.core.serving import Delta, EngineLost, EngineRefused, Finish, Push, Usage
from inhouse.engines.http_stream import Origin, Refused

# vLLM, SGLang and TGI name no code for a prompt that is too long; their sentences differ.
TOO_LONG = re.compile(r"context (length|window|size)|max_model_len|inputs` (tokens \+|must have less)")
PROMPT_TOKENS = re.compile(
    r"request(?:ed| has) (\d+) (?:input )?tokens|(\d+) (?:tokens )?in the (?:messages|prompt)"
    r"|input \((\d+) tokens|Given: (\d+)"
)
MOST_TRIES = 16  # to find what the chunks of an answer share; some have a time or a number in each
# TGI names the way it stopped; `abort` of vLLM and SGLang means that the answer is not whole.
FINISHES: dict[str, Finish] = {
    "stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "content_filter",
    "function_call": "tool_calls", "eos_token": "stop", "stop_sequence": "stop",
}  # fmt: skip


def encoded(body: Mapping[str, Any]) -> bytes:
    """A request's body; half a character in it is replaced."""
    try:
        return to_json(body)  # json.dumps builds an encoder each time: 8 µs
    except PydanticSerializationError:
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def sse_deltas(data: str) -> list[Delta]:
    """The deltas of one event. Raises EngineRefused for an error event, EngineLost for what is none of OpenAI's."""
    try:
        chunk = from_json(data)  # a third of the time that json.loads takes
        if not isinstance(chunk, dict):
            return []  # llama.cpp sends `null` first in some cases
        if "error" in chunk:
            raise refusal(500, chunk)
        found = [_piece(choice) for choice in chunk.get("choices") or ()]
        if found and (verbose := chunk.get("__verbose")):
            found[-1].stop = verbose.get("stopping_word") or None
        if usage := chunk.get("usage"):
            spent = _usage(usage, chunk.get("timings"))
            if found and found[-1].finish:
                found[-1].usage = spent
            elif not found or chunk.get("timings"):  # vLLM's continuous usage on every chunk is not the end
                found.append(Delta(tokens=0, usage=spent))
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineLost from error


def whole_deltas(body: bytes) -> list[Delta]:
    """The deltas of an answer in one piece, one a choice; the first carries the usage."""
    try:
        answer = from_json(body)
        found = [_whole(choice) for choice in answer["choices"]]
        if not found:
            raise EngineLost
        if usage := answer.get("usage"):
            found[0].usage = _usage(usage, answer.get("timings"))
            found[0].tokens = found[0].usage.answer if len(found) == 1 else found[0].tokens
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineLost from error


def refused(status: int, body: bytes) -> EngineRefused:
    """Our words for the engine's, from the body of a reply: its messages may name paths and addresses."""
    try:
        said = from_json(body)
    except ValueError:
        said = None
    return refusal(status, said if isinstance(said, dict) else {})


def refusal(status: int, said: Mapping[str, Any]) -> EngineRefused:
    """Our words for the engine's: llama.cpp, OpenAI and vLLM nest the error, SGLang and TGI do not."""
    nested = said.get("error")
    error: Mapping[str, Any] = nested if isinstance(nested, dict) else said
    message = f"{error.get('message') or nested or ''}"
    kinds = {error.get("type"), error.get("code")}
    if {"exceed_context_size_error", "context_length_exceeded"} & {k for k in kinds if isinstance(k, str)}:
        return EngineRefused("context", _tokens(error, message))
    if status in (400, 413, 422) or error.get("code") == 400:
        return EngineRefused("context" if TOO_LONG.search(message) else "invalid", _tokens(error, message))
    return EngineRefused("busy" if status in (429, 503) else "failed")


def _tokens(error: Mapping[str, Any], message: str) -> int | None:
    """Length of a prompt that is too long, where it is told."""
    told = error.get("n_prompt_tokens")
    if isinstance(told, int):
        return told
    found = PROMPT_TOKENS.search(message) if TOO_LONG.search(message) else None
    return int(next(group for group in found.groups() if group)) if found else None


def _piece(choice: Mapping[str, Any]) -> Delta:
    gained = choice.get("delta")
    ends = choice.get("finish_reason")
    finish = _finish(ends) if ends else None
    if gained is None:  # text completion
        text = _text(choice.get("text"))
        found = Delta(text, _index(choice), 1 if text else 0, finish)
    else:
        text = _text(gained.get("content"))
        found = Delta(text, _index(choice), 1 if text else 0, finish)
        if len(gained) > 1 or not text:
            found.tool_calls = _calls(gained.get("tool_calls"))
            found.reasoning = _text(gained.get("reasoning_content") or gained.get("reasoning")) or None
            found.tokens = 1 if text or found.tool_calls or found.reasoning else 0
    if ends:
        found.stop = _stop(choice)
    if told := choice.get("logprobs"):
        found.logprobs = _logprobs(told)
        found.tokens = len(found.logprobs) if found.logprobs else found.tokens
    return found


def _whole(choice: Mapping[str, Any]) -> Delta:
    ends = choice.get("finish_reason")
    told = choice.get("logprobs")
    said = choice.get("message")
    found = Delta(index=_index(choice), finish=_finish(ends) if ends else "stop")
    if said is None:
        found.text = _text(choice.get("text"))
    else:
        found.text = _text(said.get("content"))
        found.reasoning = _text(said.get("reasoning_content") or said.get("reasoning")) or None
        calls = _calls(said.get("tool_calls"))
        found.tool_calls = None if calls is None else [{"index": place, **call} for place, call in enumerate(calls)]
    found.logprobs = _logprobs(told) if told else None
    found.stop = _stop(choice)
    return found


def _text(said: Any) -> str:
    """A text or nothing. Raises TypeError for anything else, which would break what puts answers together."""
    if said is None or isinstance(said, str):
        return said or ""
    raise TypeError(type(said).__name__)


def _index(choice: Mapping[str, Any]) -> int:
    """Which choice it is; the first where it is not said. Raises TypeError for what is no number."""
    told = choice.get("index") or 0
    if isinstance(told, int):
        return int(told)
    raise TypeError(type(told).__name__)


def _calls(told: Any) -> list[dict[str, Any]] | None:
    """Tool calls or pieces of them, in OpenAI's shape. Raises TypeError for anything else."""
    for call in told or ():
        named = call.get("function") or {}
        _text(named.get("name"))
        _text(named.get("arguments"))
        if not isinstance(call.get("index") or 0, int):
            raise TypeError(type(call["index"]).__name__)
    return list(told) if told else None


def _stop(choice: Mapping[str, Any]) -> str | None:
    """The stop string that ended a choice, as vLLM and SGLang tell it; a number is a token."""
    told = choice.get("stop_reason") or choice.get("matched_stop")
    return told if isinstance(told, str) else None


def _finish(ends: str) -> Finish:
    """OpenAI's word for the way an answer ended. Raises EngineLost for an answer that was cut off."""
    try:
        return FINISHES[ends]
    except KeyError:
        raise EngineLost from None


def _logprobs(told: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """OpenAI's chat shape, also of what text completions send."""
    if "content" in told:
        return told["content"] or None
    tokens: Sequence[str] = told.get("tokens") or ()
    likely = told.get("top_logprobs") or [None] * len(tokens)
    return [
        {
            "token": token,
            "logprob": logprob,
            "bytes": list(token.encode("utf-8", "replace")),
            "top_logprobs": [
                {"token": other, "logprob": value, "bytes": list(other.encode("utf-8", "replace"))}
                for other, value in (top or {}).items()
            ],
        }
        for token, logprob, top in zip(tokens, told.get("token_logprobs") or (), likely, strict=False)
    ] or None


def chosen_alone(deltas: list[Delta]) -> list[Delta]:
    """Log-probabilities of the chosen tokens alone: llama.cpp tells none unless it is asked for likely others too."""
    for delta in deltas:
        for entry in delta.logprobs or ():
            entry["top_logprobs"] = []
    return deltas


def _usage(told: Mapping[str, Any], timings: Mapping[str, Any] | None) -> Usage:
    timed = timings or {}
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or timed.get("cache_n") or 0
    return Usage(
        prompt=max(0, int(told["prompt_tokens"])),
        answer=max(0, int(told.get("completion_tokens") or 0)),
        cached=max(0, int(cached)),
        prefill_s=_seconds(timed.get("prompt_ms")),
        decode_s=_seconds(timed.get("predicted_ms")),
    )


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None


class Chunks:
    """The events of one answer as deltas.

    Most chunks of an answer are equal but for their text, and a text without a quote or a backslash is in JSON as it
    is: what is around one is looked for in the next, which is then not parsed. A fifth of what a token costs.
    """

    def __init__(self, alone: bool) -> None:
        self._alone = alone
        self._around: tuple[str, str] | None = None
        self._tries = 0
        self.fault: EngineLost | EngineRefused | None = None  # what came behind that which was read

    def read(self, together: list[str]) -> list[Delta]:
        """What arrived together, up to a `fault`. Raises as sse_deltas where that comes first."""
        if len(together) == 1:  # most often, and then not through another list
            return self._read(together[0])
        found: list[Delta] = []
        for data in together:
            try:
                found += self._read(data)
            except (EngineLost, EngineRefused) as fault:
                if not found:
                    raise
                self.fault = fault
                break
        return found

    def _read(self, data: str) -> list[Delta]:
        if (around := self._around) is not None:
            before, after = around
            text = data[len(before) : len(data) - len(after)]
            plain = text and text.isprintable() and '"' not in text and "\\" not in text
            if plain and data == f"{before}{text}{after}":
                return [Delta(text)]
        deltas = sse_deltas(data)
        if self._alone:
            return chosen_alone(deltas)
        if len(deltas) == 1 and self._tries < MOST_TRIES and deltas[0] == Delta(deltas[0].text):
            self._learn(data, deltas[0].text)
        return deltas

    def _learn(self, data: str, text: str) -> None:
        self._tries += 1
        before, quoted, after = data.partition(f'"{text}"')
        self._around = None
        if quoted and quoted not in after and before.rstrip(" ").endswith(('"content":', '"text":')):
            self._around = before + '"', '"' + after


async def streamed(
    origin: Origin, path: str, body: bytes, push: Push | None = None, alone: bool = False
) -> AsyncGenerator[list[Delta], None]:
    """An answer as it is made. Closing this generator closes the connection. `alone`: see chosen_alone.

    Raises EngineRefused in our words, EngineLost, EngineSilent.
    """

    chunks = Chunks(alone)

    def pushed(together: list[str]) -> bool:
        try:
            deltas = chunks.read(together)
        except (EngineLost, EngineRefused):
            return False  # raised where it is read once more, by whoever waits
        if chunks.fault is not None:
            chunks.fault = None
            return False
        return not deltas or (push is not None and push(deltas))

    try:
        async with aclosing(origin.stream(path, body, push and pushed)) as events:
            async for together in events:
                if deltas := chunks.read(together):
                    yield deltas
                if chunks.fault is not None:
                    raise chunks.fault
    except Refused as error:
        raise refused(error.status, error.body) from None
