"""A chat template whose prompt opens a thought, as DeepSeek-R1's: every engine tells it alike, served and measured."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from inhouse.compress.convert import convert
from inhouse.core.artifact import Artifact
from inhouse.core.protocols import Input
from inhouse.core.rows import Message
from inhouse.core.run import Events
from inhouse.core.serving import Ask, Delta, Sampling
from inhouse.engines import llamacpp, llamacpp_serving, openvino_serving, transformers, transformers_serving
from inhouse.engines.backend import EngineSettings
from inhouse.serve.tool_engine import submit

OPENED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<|im_start|>assistant\n{{ content }}<|im_end|>\n{% else %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
ASKED = [{"role": "user", "content": "oil prices"}]
SETTINGS = EngineSettings(context_length=128, parallel=2, threads=1)
ENGINES = {"transformers": transformers_serving, "llamacpp": llamacpp_serving, "openvino": openvino_serving}


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, and `tiny.gguf` beside its files."""
    folder = tmp_path_factory.mktemp("opened") / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(OPENED, encoding="utf-8")
    convert(folder, folder / "tiny.gguf", "tiny", Events())
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_written_behind_the_prompts_tag_is_a_thought(model: Path, engine: str) -> None:
    source = model if engine == "transformers" else model / "tiny.gguf"
    backend: Any = ENGINES[engine].start(source, SETTINGS, "tiny")

    async def answered(ask: Ask) -> list[Delta]:
        serving = backend.open()
        try:
            return [delta async for deltas in submit(serving, ask) for delta in deltas]
        finally:
            await serving.close()

    try:
        said = asyncio.run(answered(Ask(Sampling(40, temperature=1.0, seed=3), messages=ASKED)))
        prompted = asyncio.run(answered(Ask(Sampling(8, temperature=1.0, seed=3), prompt="oil prices <think>\n")))
    finally:
        backend.process.stop()
    assert "".join(delta.reasoning or "" for delta in said).strip() and not "".join(delta.text for delta in said)
    assert "".join(delta.text for delta in prompted).strip()  # who sends a prompt gets what follows it
    assert not any(delta.reasoning or "<think>" in delta.text for delta in prompted)


def test_answers_are_scored_behind_an_empty_thought_by_every_engine(model: Path) -> None:
    def opened(main: str, form: str) -> Input:
        facts = {"model": {"format": form, "main": main, "name": "tiny"}}
        record = Artifact(
            id="m", kind="model", stage="s", node="n", stage_version="1", recipe="r", params={}, created="", facts=facts
        )
        return Input(record, model)

    prompt, choices = [Message(role="user", content="oil prices")], ["grain", "银行"]
    torch = transformers.open_model(opened(".", "safetensors"), dtype="fp32", threads=1, batch=1)
    quantised = llamacpp.open_model(opened("tiny.gguf", "gguf"), threads=1)
    try:
        told = [engine._choice_ids(prompt, "grain") for engine in (torch, quantised)]
        scores = [engine.score([prompt], [choices], lambda _: None)[0] for engine in (torch, quantised)]
    finally:
        quantised.close()
    assert torch.tokenizer.decode(told[0]).strip().startswith("</think>") and tuple(told[0]) == tuple(told[1])
    for ours, theirs in zip(*scores, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, rel=0.01)
