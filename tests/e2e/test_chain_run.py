"""One command that pre-trains on documents and then fine-tunes on conversations, on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from projects import DESKS, Project
from safetensors.torch import load_file

PROJECT = """
name: chain
seed: 3
model: {{base: {base}, licence: Apache-2.0}}
data:
  sources: [{{name: news, from: news.csv, licence: Apache-2.0, allowed_use: any}}]
  shape: {{use: classification, labels: [money, grain], prompt: "Desk?\\n{{text}}"}}
extra_data:
  corpus: {{sources: [{{name: books, from: books.jsonl, licence: CC0-1.0, allowed_use: any}}], shape: text}}
train:
  - {{dataset: corpus, objective: pretrain, method: full, learning_rate: 1.0e-3, max_steps: 3, precision: fp32}}
  - {{method: {{use: lora, r: 4, lora_alpha: 8}}, learning_rate: 1.0e-2, max_steps: 4, precision: fp32}}
"""
DOCUMENTS = [f"{text} said the report of day {day}." for texts in DESKS.values() for text in texts for day in range(3)]


def test_one_command_pretrains_on_documents_and_tunes_what_came_of_it_on_conversations(
    tiny_llama: Path, tmp_path: Path
) -> None:
    rows = [f"{text} in week {week},{desk}" for desk, texts in DESKS.items() for text in texts for week in range(4)]
    (tmp_path / "news.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    lines = [json.dumps({"text": text}) + "\n" for text in DOCUMENTS]
    (tmp_path / "books.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "inhouse.yaml").write_text(PROJECT.format(base=tiny_llama), encoding="utf-8")
    made = {step["name"]: step for step in Project(tmp_path).json("run")["steps"]}
    assert {made[name]["state"] for name in ("tuned_1", "tuned")} == {"run"}
    folders = {name: tmp_path / ".inhouse" / "objects" / step["id"] for name, step in made.items()}
    first, second = (json.loads((folders[name] / "record.json").read_text("utf-8")) for name in ("tuned_1", "tuned"))

    assert first["inputs"] == {"base": made["base"]["id"], "dataset": made["corpus"]["id"]}
    assert second["inputs"] == {"base": first["id"], "dataset": made["dataset"]["id"]}
    assert (first["facts"]["objective"]["use"], second["facts"]["objective"]["use"]) == ("pretrain", "sft")
    read = [json.loads((folders[name] / "record.json").read_text("utf-8"))["facts"] for name in ("corpus", "dataset")]
    assert [facts["read"] for facts in read] == [len(DOCUMENTS), len(rows)]
    assert [record["facts"]["rows"] for record in (first, second)] == [facts["rows"]["train"] for facts in read]
    assert first["facts"]["rows"] < second["facts"]["rows"]
    assert (first["facts"]["steps"], second["facts"]["steps"]) == (3, 4)

    # A LoRA leaves the embeddings alone: they show whose weights the second training began from.
    base, whole, tuned = (
        weights(folder) for folder in (tiny_llama, folders["tuned_1"] / "merged", folders["tuned"] / "merged")
    )
    assert not base["model.embed_tokens.weight"].equal(whole["model.embed_tokens.weight"])
    assert tuned["model.embed_tokens.weight"].equal(whole["model.embed_tokens.weight"])
    query = "model.layers.0.self_attn.q_proj.weight"
    assert not tuned[query].equal(whole[query])
    cards = [ModelCard.load(folders[name] / "merged" / "README.md").data for name in ("tuned_1", "tuned")]
    assert [card.datasets for card in cards] == [["books"], ["news"]]
    assert cards[1].base_model.endswith(first["id"][:12])


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")
