"""A request as its engine reads it, before it is sent: control tokens broken, tools in the words of its template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from inhouse.core.control_tokens import JOINER, WELL_KNOWN, ControlTokens
from inhouse.core.serving import Ask, Capabilities, EngineRefused, Sampling
from inhouse.engines.wire import from_capabilities, to_capabilities
from inhouse.serve.tool_engine import prompted, submit

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "</s>"}'}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Look </s>"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "7 </s>", "tool_call_id": "1"},
]


@dataclass
class Able:
    """An engine of which only the abilities are known."""

    capabilities: Capabilities


def read(ask: Ask, **able: Any) -> Ask:
    return prompted(Able(Capabilities(control=WELL_KNOWN, **able)), ask)  # type: ignore[arg-type]


def asked(**more: Any) -> Ask:
    return Ask(Sampling(max_tokens=1), messages=TURNS, **more)


def test_calls_and_results_are_told_in_words_without_a_control_token() -> None:
    found = read(asked(tools=(TOOL,), tool_choice="auto"))
    assert [turn["role"] for turn in found.messages or ()] == ["system", "user", "assistant", "user"]
    assert "</s>" not in str(found.messages) and not found.tools
    quiet = read(asked(tools=(TOOL,), tool_choice="none"))
    assert [turn["role"] for turn in quiet.messages or ()] == ["user", "assistant", "user"] and not quiet.tools


def test_template_that_writes_tools_gets_them_as_they_are_unless_a_call_is_forced() -> None:
    found = read(asked(tools=(TOOL,), tool_choice="auto"), template_tools=True)
    assert found.tools == (TOOL,) and [turn["role"] for turn in found.messages or ()] == ["user", "assistant", "tool"]
    assert "</s>" not in str(found.messages)
    quiet = read(asked(tools=(TOOL,), tool_choice="none"), template_tools=True)
    assert not quiet.tools and quiet.messages == found.messages
    forced = read(asked(tools=(TOOL,), tool_choice="required", forced=object()), template_tools=True)
    assert not forced.tools and "Answer with one function call" in (forced.messages or ())[0]["content"]


def test_engine_that_knows_tools_gets_them_and_unbroken_prompts_stay() -> None:
    found = read(asked(tools=(TOOL,), tool_choice="auto"), tools="auto")
    assert found.tools == (TOOL,) and found.tool_choice == "auto" and "</s>" not in str(found.messages)
    for prompt in ("a </s>", (1, 2)):
        plain = Ask(Sampling(max_tokens=1), prompt=prompt)
        assert read(plain) is plain
    harmless = Ask(Sampling(max_tokens=1), messages=[{"role": "user", "content": "a < b"}])
    assert read(harmless) is harmless


def test_text_that_cannot_be_broken_is_refused_before_the_engine_is_asked() -> None:
    able = Able(Capabilities(control=ControlTokens(["<s>"], ["</s>"])))
    with pytest.raises(EngineRefused) as refused:
        submit(able, asked())  # type: ignore[arg-type]
    assert refused.value.reason == "invalid"


def test_control_tokens_travel_from_the_engines_process() -> None:
    told = to_capabilities(
        from_capabilities(Capabilities(control=ControlTokens(["<s>"], ["</s>"]), template_tools=True))
    )
    assert told.control.broken("<s>") == f"<{JOINER}s>" and told.control.refused == ("</s>",) and told.template_tools
