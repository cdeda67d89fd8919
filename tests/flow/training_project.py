"""A project that pre-trains, then fine-tunes with replay, and measures what was forgotten: seconds on a tiny model."""

from __future__ import annotations

from pathlib import Path

from inhouse.flow.project import Project, load

DESKS = {
    "money": ["the bank cut its prime rate", "net profit rose in the quarter", "the dollar fell against the yen"],
    "grain": ["wheat exports fell this year", "the corn harvest was poor", "grain ships left the harbour"],
}
TALK = ["how do I bake bread", "what is the tallest tree", "tell me about the sea", "why is the sky blue"]
PROJECT = """
name: chained
seed: 3
model: {{base: {base}, licence: Apache-2.0}}
data:
  sources: [{{name: news, from: news.csv, licence: Apache-2.0, allowed_use: any}}]
  split: {{test: 0.25}}
  shape: {{use: classification, labels: [money, grain], prompt: "Desk?\\n{{text}}"}}
extra_data:
  general:
    sources: [{{name: talk, from: talk.jsonl, licence: CC-BY-4.0, allowed_use: any}}]
    split: {{test: 0.3}}
train:
  - dataset: general
    method: {{use: lora, r: 4, lora_alpha: 8}}
    max_steps: 2
    precision: fp32
  - method: {{use: lora, r: 4, lora_alpha: 8}}
    learning_rate: 2.0e-2
    num_train_epochs: 2
    per_device_train_batch_size: 4
    logging_steps: 1
    precision: fp32
    replay: {{dataset: general, share: 0.2}}
    forgetting: {{dataset: general, rows: 8, precision: fp32}}
evaluate: {{max_tokens: 4, speed: {{requests: 2, decode_prompts: 1, decode_tokens: 4}}}}
release:
  gates: [{{figure: training.forgetting, at_most: {most}}}, {{figure: training.trainable_share, at_most: 0.5}}]
"""


def write_project(folder: Path, base: Path, most: float = 100.0) -> Project:
    """Write the project file and its two sources; `most` is the forgetting that the release's gate lets pass."""
    folder.mkdir(parents=True, exist_ok=True)
    news = [f"{text} in week {week},{desk}" for desk, texts in DESKS.items() for text in texts for week in range(4)]
    (folder / "news.csv").write_text("text,label\n" + "\n".join(news) + "\n", encoding="utf-8")
    turns = '{{"messages": [{{"role": "user", "content": "{0} {1}"}}, {{"role": "assistant", "content": "{0}"}}]}}'
    talk = [turns.format(text, number) for text in TALK for number in range(7)]
    (folder / "talk.jsonl").write_text("\n".join(talk) + "\n", encoding="utf-8")
    (folder / "inhouse.yaml").write_text(PROJECT.format(base=base, most=most), encoding="utf-8")
    return load(folder)
