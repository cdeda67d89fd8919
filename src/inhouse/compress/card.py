"""The model card beside an exported file: what it is, what was checked, under which terms. English and Chinese."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inhouse.core.model import ModelFacts
from inhouse.core.model_card import base_model, front_matter, licence_facts, read_front_matter
from inhouse.core.protocols import Input

CARD = """\
# {name}

{file} · {megabytes:.1f} MB · {architecture} · {parameters} parameters · context {context} tokens

Tensor types: {types}

## Checked against the model it came from

| figure | value | bound |
|---|---|---|
{rows}

{prompts} prompts of the test part; {tokens} greedy tokens; the {top} likeliest next tokens. Details: parity.json.

## Run it

```
inhouse serve
```

or any program that reads GGUF: `llama-server -m {file}`. The tokenizer and the chat template are inside the file.

## Terms

{licences}

---

# {name}（中文）

{file} · {megabytes:.1f} MB · {architecture} 架构 · {parameters} 个参数 · 上下文 {context} 个 token

张量类型：{types}

## 与来源模型的一致性检查

| 指标 | 数值 | 界限 |
|---|---|---|
{rows}

取测试集中的 {prompts} 条提示；贪心生成 {tokens} 个 token；比较概率最高的 {top} 个后续 token。详见 parity.json。

## 运行

```
inhouse serve
```

也可使用任何支持 GGUF 的程序：`llama-server -m {file}`。分词器和对话模板已包含在文件中。

## 许可条款

{licences}
"""


def write_card(path: Path, model: ModelFacts, tuned: Input, parity: dict[str, Any]) -> None:
    """Write the card of an exported model. It holds no times and no paths, so that equal models have equal cards."""
    source = tuned.record
    terms = [f"- {term.subject}: {term.spdx}" for term in source.licences]
    text = CARD.format(
        name=model.name,
        file=model.main,
        megabytes=model.bytes / 1e6,
        architecture=model.architecture,
        parameters=f"{model.parameters:,}" if model.parameters else "?",
        context=model.context_length or "?",
        types=", ".join(f"{count} × {kind}" for kind, count in model.tensor_types.items()),
        rows="\n".join(_row(name, figure, parity["bounds"]) for name, figure in parity["figures"].items()),
        licences="\n".join(dict.fromkeys(terms)) or "-",
        **parity["settings"],
    )
    path.write_text(front_matter(_facts(model, tuned)) + text, encoding="utf-8")


def _facts(model: ModelFacts, tuned: Input) -> dict[str, Any]:
    """What the hub's tools read: what the card of the exported model says, and what became of it."""
    readme = tuned.path / "README.md"
    said = read_front_matter(readme.read_text(encoding="utf-8")) if readme.is_file() else {}
    terms = {name: said.get(name) for name in ("license", "license_name")} if said else None
    return {
        **(terms or licence_facts(tuned.record.licences)),
        "base_model": base_model(tuned.record, model.name),
        "base_model_relation": "quantized",
        "datasets": said.get("datasets"),
        "language": said.get("language"),
        "library_name": "gguf",
        "pipeline_tag": said.get("pipeline_tag", "text-generation"),
        "tags": ["inhouse", "gguf"],
    }


def _row(name: str, figure: dict[str, Any], bounds: dict[str, float]) -> str:
    short = name.removeprefix("parity.")
    sign = ">=" if short == "greedy_agreement" else "<="
    bound = f"{sign} {bounds[short]:g}" if short in bounds else "= 1" if short == "template_ids_equal" else ""
    return f"| {name} | {figure['value']:g} {figure['unit']} | {bound} |"
