"""Releases copied out of the workspace: what is in the copy, and what Ollama is told of the model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from release_workspace import make_model, make_report, run_stage

from inhouse.core.errors import InhouseError
from inhouse.core.store import Store
from inhouse.engines.chat_template import ChatTemplate
from inhouse.release.export import export
from inhouse.release.modelfile import pieces
from inhouse.release.registry import Registry, open_registry
from inhouse.release.settings import ReleaseNode

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are \"good\".<|im_end|>\n{% endif %}" + CHATML
)  # as Qwen2.5's and SmolLM2's
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %}"
    "{{ m.content }}</s>{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
COUNTED = "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}answer: "
TALK = [
    {"role": "system", "content": "规则"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": 'q2 "x"'},
]


def in_go(template: str, turns: Sequence[dict[str, Any]]) -> str:
    """What Go makes of our subset: texts in quotes, `.Content`, `range`, `if eq .Role`, `if not .System`."""
    nodes = re.findall(r'\{\{ (?:"(?:[^"\\]|\\.)*"|[^{}"]*(?:"\w+")?) \}\}', template)
    assert "".join(nodes) == template, "there is text outside of quotes"
    nodes = [node[3:-3] for node in nodes]
    told, at = "", 0
    if nodes[0] == "if not .System":
        told, at = ("" if turns[0]["role"] == "system" else json.loads(nodes[1])), 3
        assert nodes[2] == "end"
    assert nodes[at] == "range .Messages"
    body, after = nodes[at + 1 : -5], nodes[-5:]
    assert after[:4] == ["end"] * 4
    arms = {}
    for node in body:
        if node.startswith("if eq .Role"):
            arm = arms.setdefault(node.split('"')[1], [])
        elif node != "else":
            arm.append(node)
    for turn in turns:
        for node in arms[turn["role"]]:
            told += turn["content"] if node == ".Content" else json.loads(node)
    return told + json.loads(after[4])


@pytest.mark.parametrize("template", [CHATML, DEFAULT, LLAMA3])
@pytest.mark.parametrize("turns", [TALK, TALK[1:], TALK[1:2], TALK[:2]], ids=len)
def test_template_in_gos_notation_writes_what_the_models_own_writes(template: str, turns: list[dict[str, Any]]) -> None:
    own = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"})
    found = pieces(own.render)
    assert found is not None
    assert in_go(found.in_go(), turns) == own.render(turns)


@pytest.mark.parametrize("template", [MISTRAL, COUNTED, "{{ messages[0].content }}"])
def test_template_that_is_more_than_texts_around_turns_is_not_told(template: str) -> None:
    assert pieces(ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"}).render) is None


def registry_of(root: Path, gguf: Path | bytes, accuracy: float = 0.8) -> Registry:
    store = Store(root)
    store.create()
    model, report = make_model(store, gguf), make_report(store, {"tuned.accuracy": {"value": accuracy, "n": 100}})
    node = ReleaseNode.model_validate(
        {
            "project": "routing",
            "release": {"gates": [{"figure": "tuned.accuracy", "at_least": 0.5}]},
            "serve": {"context_length": 256, "max_tokens": 9},
        }
    )
    registry = open_registry(store)
    registry.register("routing", run_stage(store, node, {"model": model, "report": report}))
    return registry


@pytest.mark.real
def test_release_is_copied_with_its_evidence_a_modelfile_and_a_page(smollm2_gguf: Path, tmp_path: Path) -> None:
    registry = registry_of(tmp_path / "w", smollm2_gguf)
    (release,) = registry.list_releases()
    made = export(registry, release, "desk", tmp_path / "out", "gradio")
    assert set(made.files) == {"Modelfile", "demo_gradio.py", "evidence.json", "evidence.md", "model.gguf"}
    assert (tmp_path / "out" / "model.gguf").read_bytes() == smollm2_gguf.read_bytes()
    lines = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert made.ollama == "template" and "FROM ./model.gguf" in lines and 'PARAMETER stop "<|im_end|>"' in lines
    assert "PARAMETER num_ctx 256" in lines and "PARAMETER num_predict 9" in lines
    assert (
        '{{ "<|im_start|>system\\nYou are a helpful AI assistant named SmolLM' in lines
    )  # its BOS is part of the text
    compile((tmp_path / "out" / "demo_gradio.py").read_text(encoding="utf-8"), "demo", "exec")
    with pytest.raises(InhouseError) as refused:
        export(registry, release, "desk", tmp_path / "out", None)
    assert refused.value.code == "release.export_exists"


def test_release_that_failed_its_gates_or_changed_since_is_not_copied(tmp_path: Path) -> None:
    failed = registry_of(tmp_path / "failed", b"GGUF", accuracy=0.1)
    with pytest.raises(InhouseError) as refused:
        export(failed, failed.list_releases()[0], "desk", tmp_path / "out", None)
    assert (refused.value.code, refused.value.exit_code) == ("release.export_failed", 3)
    changed = registry_of(tmp_path / "changed", b"GGUF")
    (file,) = (tmp_path / "changed").glob("objects/*/model.gguf")
    file.chmod(0o644)
    file.write_bytes(b"FUGG")
    with pytest.raises(InhouseError) as refused:
        export(changed, changed.list_releases()[0], "desk", tmp_path / "out", None)
    assert refused.value.code == "release.model_changed"
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
