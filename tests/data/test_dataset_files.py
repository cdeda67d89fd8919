"""The files of a dataset artifact: what was written is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from inhouse.core.rows import Message, Row
from inhouse.dataset import read_rows, write_rows

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}
PLAIN = Row(
    id="00ff", source="s", file="a.jsonl", offset=3, label="a",
    messages=[Message(role="user", content="你好\u2028x"), Message(role="assistant", content="a")],
)  # fmt: skip
TOOLS = Row(
    id="01ff", source="s", file="a.jsonl", offset=4, parent="00ff",
    messages=[
        Message(role="user", content="天气？"), Message(role="assistant", tool_calls=[CALL]),
        Message(role="tool", content="晴", tool_call_id="c1"), Message(role="assistant", content="晴天。"),
    ],
)  # fmt: skip


@pytest.mark.parametrize("rows", [[], [PLAIN], [PLAIN, TOOLS]])
def test_rows_survive_writing_and_reading(tmp_path: Path, rows: list[Row]) -> None:
    assert write_rows(tmp_path, "train", rows) == len(rows)
    assert list(read_rows(tmp_path, "train")) == rows
    assert list(read_rows(tmp_path, "test")) == []
