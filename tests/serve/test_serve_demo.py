"""The demo page that an export writes, against a real endpoint; gradio's own part is played."""

from __future__ import annotations

import runpy
import sys
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from serve_endpoint import Endpoint


@pytest.mark.real
def test_demo_page_streams_the_models_answer(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files("inhouse.release").joinpath("gradio_demo.py.txt").read_text("utf-8")
    script = tmp_path / "demo_gradio.py"
    script.write_text(source.format(label="desk:v1", deployment="desk", file=script.name), encoding="utf-8")
    shown: dict[str, Any] = {}
    played = SimpleNamespace(ChatInterface=lambda answer, title: shown.update(answer=answer, title=title))
    monkeypatch.setitem(sys.modules, "gradio", played)
    monkeypatch.setenv("INHOUSE_URL", f"{endpoint.url}/v1")
    monkeypatch.setenv("INHOUSE_API_KEY", endpoint.key)
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    runpy.run_path(str(script))
    assert shown["title"] == "desk"
    # gradio keeps a turn's content as parts since version 6
    history = [
        {"role": "user", "content": [{"type": "text", "text": "Hi."}]},
        {"role": "assistant", "content": "Hello."},
    ]
    said = list(shown["answer"]("Say one word.", history))
    assert len(said) > 1 and all(later.startswith(earlier) for earlier, later in pairwise(said))
    official = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key)
    turns: Any = [
        {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Say one word."},
    ]  # fmt: skip
    assert official.chat.completions.create(model="desk", messages=turns).choices[0].message.content == said[-1]
