"""Tools and calls in words, for templates that know none."""

from __future__ import annotations

import json

from inhouse.core.tool_words import in_words


def test_call_whose_arguments_are_an_object_is_written_as_one_whose_arguments_are_text() -> None:
    def turns(arguments: object) -> list[dict[str, object]]:
        call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": arguments}}
        return [{"role": "user", "content": "找"}, {"role": "assistant", "content": None, "tool_calls": [call]}]

    given = {"at": "北京"}
    as_object, as_text = (
        in_words(turns(given), (), False),
        in_words(turns(json.dumps(given, ensure_ascii=False)), (), False),
    )
    assert as_object == as_text
    assert as_object[1]["content"] == '<tool_call>\n{"name": "look", "arguments": {"at": "北京"}}\n</tool_call>'
