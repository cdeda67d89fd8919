"""A conversation through the chat template inside a model's file, rendered as transformers does, without it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from inhouse.engines.template_check import sandbox

Turn = Mapping[str, Any]


class TemplateFailed(Exception):
    """The template refuses the conversation, or is broken."""


class ChatTemplate:
    """A template, parsed once. `specials` are what it may name: bos_token, eos_token, …"""

    def __init__(self, template: str, specials: Mapping[str, str]) -> None:
        from jinja2 import TemplateError

        environment = sandbox()
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(template)
        except TemplateError as error:
            raise TemplateFailed from error
        self._specials = dict(specials)
        self.takes_tools = "tools" in template

    def render(self, messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The prompt's text, ready for the answer to follow. Raises TemplateFailed."""
        turns = [_turn(message) for message in messages]
        if tools and not self.takes_tools:
            turns, tools = _told_of_tools(turns, tools), ()
        try:
            text: str = self._template.render(
                messages=turns, tools=list(tools) or None, add_generation_prompt=True, **self._specials
            )
        except Exception as error:  # a stranger's program may raise anything
            raise TemplateFailed from error
        return text


def _turn(message: Turn) -> dict[str, Any]:
    """A turn as templates expect it: a text always, and a call's arguments as an object, where the API has JSON."""
    turn = {**message, "content": message.get("content") or ""}
    if calls := message.get("tool_calls"):
        turn["tool_calls"] = [_with_object(call) for call in calls]
    return turn


def _with_object(call: Turn) -> Turn:
    called = call.get("function")
    if not isinstance(called, dict) or not isinstance(called.get("arguments"), str):
        return call
    try:
        told = json.loads(called["arguments"])
    except (ValueError, RecursionError):
        return call  # not JSON, or nested too deep: the template writes the string
    return {**call, "function": {**called, "arguments": told}} if isinstance(told, dict) else call


def _told_of_tools(turns: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with the tools described in its system message, for a template that knows none."""
    lines = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    told = f'Answer with one call of these tools, as JSON: {{"name": …, "arguments": {{…}}}}\n{lines}'
    if turns and turns[0].get("role") == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{told}"}, *turns[1:]]
    return [{"role": "system", "content": told}, *turns]
