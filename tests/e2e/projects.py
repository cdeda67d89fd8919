"""A project folder, the program run in it, and a tiny project that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DESKS = {
    "money": ["the bank cut its prime rate", "net profit rose in the quarter", "the dollar fell against the yen"],
    "grain": ["wheat exports fell this year", "the corn harvest was poor", "grain ships left the harbour"],
}
PROJECT = """
name: tiny
seed: 3
model: {{base: {base}, licence: Apache-2.0}}
data:
  sources: [{{name: news, from: news.csv, licence: Apache-2.0, allowed_use: any}}]
  steps: [normalize_space, exact_dedup]
  split: {{test: 0.3}}
  shape: {{use: classification, labels: [money, grain], prompt: "Desk?\\n{{text}}"}}
train:
  method: {{use: lora, r: 4, lora_alpha: 8}}
  learning_rate: 1.0e-3
  num_train_epochs: 2
  per_device_train_batch_size: 4
  save_steps: 2
  precision: fp32
evaluate: {{max_tokens: 4, speed: {{requests: 2, decode_prompts: 1, decode_tokens: 4}}}}
release:
  deployment: tiny
  gates: [{{figure: tuned.perplexity, at_least: 1}}]
"""


@dataclass
class Project:
    """A project folder, and the program run in it."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "inhouse.yaml"

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "inhouse", *words]

    def run(self, *words: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=self.folder, env={**os.environ, "LANG": "en_US.UTF-8", "LC_ALL": "", **env},
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def json(self, *words: str) -> dict[str, Any]:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        value: dict[str, Any] = json.loads(done.stdout)
        return value


def write_tiny_project(folder: Path, base: Path) -> Project:
    """A project on the tiny random Llama with two dozen made-up headlines."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{text} in week {week},{desk}" for desk, texts in DESKS.items() for text in texts for week in range(4)]
    (folder / "news.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "inhouse.yaml").write_text(PROJECT.format(base=base), encoding="utf-8")
    return Project(folder)
