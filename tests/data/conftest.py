"""Project folders for the data room's tests: files written, the stage run, the artifact read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inhouse.core.messages import use_language
from inhouse.core.protocols import Context, Made
from inhouse.core.run import Events
from inhouse.data.stage import DataParams, run


@pytest.fixture(autouse=True)
def english() -> None:
    use_language("en")


@dataclass
class Ran:
    """An artifact that the stage wrote."""

    made: Made
    out: Path
    notes: list[str]

    def lines(self, name: str) -> list[dict[str, Any]]:
        text = (self.out / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.out / "dataset.json").read_text(encoding="utf-8"))

    def bytes(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(self.out.iterdir())}


class Folder:
    """A project folder: write files into it, then run the stage on them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def write(self, name: str, content: str | bytes) -> Path:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def jsonl(self, name: str, rows: list[Any]) -> Path:
        return self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def context(self, use: str = "evaluation", seed: int = 7) -> Context:
        self.count += 1
        out = self.path / f".out{self.count}"
        out.mkdir()
        events = Events(out.with_suffix(".events"))
        return Context({}, out, out, self.path / ".sources", self.path, events, seed, True, use)

    def run(self, data: dict[str, Any], use: str = "evaluation", seed: int = 7) -> Ran:
        context = self.context(use, seed)
        made = run(DataParams.model_validate(data), context)
        log = context.events.path
        events = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log and log.exists() else []
        return Ran(made, context.out, [e["code"] for e in events if e["event"] == "note"])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Folder]:
    return lambda: Folder(tmp_path_factory.mktemp("project"))
