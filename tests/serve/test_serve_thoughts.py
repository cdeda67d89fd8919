"""Thoughts in the text of engines that do not tell them apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from inhouse.core.serving import Ask, Capabilities, Constraint, Delta, Sampling
from inhouse.serve.thoughts import ThoughtReader
from inhouse.serve.tool_engine import submit

CALL = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}
ASKED = [{"role": "user", "content": "?"}]


@pytest.mark.parametrize(
    ("said", "thought", "answer"),
    [
        ("<think>\n\n</think>\n\nhello", "", "hello"),
        ("\n<think>\nIt is <b>2</b>.\n\nSo</think> 2\n\nyes \n", "It is <b>2</b>.\n\nSo", "2\n\nyes \n"),
        ("<think>never </thin closed \n", "never </thin closed", ""),
        ("<think>", "", ""),
        ("<think>a</think>", "a", ""),
        ("<thinking> aloud", "", "<thinking> aloud"),
        ("  <thin", "", "  <thin"),
        ("hello <think>no</think>", "", "hello <think>no</think>"),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        (" \n", "", " \n"),
        ("", "", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_thought_at_the_beginning_is_told_apart_however_it_is_cut(
    said: str, thought: str, answer: str, size: int
) -> None:
    reader = ThoughtReader()
    pieces = [said[at : at + size] for at in range(0, len(said), size)] or [""]
    told = [reader.read(Delta(piece)) for piece in pieces[:-1]]
    told.append(reader.read(Delta(pieces[-1], finish="stop")))
    assert "".join(delta.reasoning or "" for delta in told) == thought
    assert "".join(delta.text for delta in told) == answer
    assert told[-1].finish == "stop" and sum(delta.tokens for delta in told) == len(pieces)


class Engine:
    """Says one text a token at a time, in two choices."""

    def __init__(self, said: str, **able: Any) -> None:
        self.said = said
        self.capabilities = Capabilities(**able)

    async def submit(self, ask: Ask, push: Any = None) -> AsyncGenerator[list[Delta], None]:
        for at, letter in enumerate(self.said, 1):
            yield [Delta(letter, n, finish="stop" if at == len(self.said) else None) for n in (0, 1)]


def answered(engine: Any, **asked: Any) -> list[tuple[str, str, int, str | None]]:
    """Text, thought, number of calls and end of each choice."""

    async def all_of() -> list[Delta]:
        return [delta async for deltas in submit(engine, Ask(Sampling(64), **asked)) for delta in deltas]

    found = asyncio.run(all_of())
    return [
        (
            "".join(delta.text for delta in found if delta.index == n),
            "".join(delta.reasoning or "" for delta in found if delta.index == n),
            sum(len(delta.tool_calls or ()) for delta in found if delta.index == n),
            [delta.finish for delta in found if delta.index == n][-1],
        )
        for n in (0, 1)
    ]


def test_thoughts_are_read_in_chats_of_models_that_write_them() -> None:
    thinking = Engine("<think>\nhm\n</think>\n\n2", thinks=True)
    assert answered(thinking, messages=ASKED) == [("2", "hm", 0, "stop")] * 2
    assert answered(thinking, prompt="?")[0][0] == thinking.said  # who sends a prompt gets the model's own words
    held = Constraint("json_schema", {}, None, "response_format")
    assert answered(thinking, messages=ASKED, constraint=held)[0][0] == thinking.said
    assert answered(Engine(thinking.said), messages=ASKED)[0][0] == thinking.said


def test_calls_behind_a_thought_are_calls() -> None:
    able = {"thinks": True, "template_tools": True}
    found = answered(
        Engine(f"<think>\n\n</think>\n\n{CALL}", **able), messages=ASKED, tools=(TOOL,), tool_choice="auto"
    )
    assert found == [("", "", 1, "tool_calls")] * 2
