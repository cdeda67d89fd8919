"""A project folder for the data room's tests: files written, the stage run, the artifact read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from inhouse.core.protocols import Context, Made
from inhouse.core.rows import Part
from inhouse.core.run import Events
from inhouse.data.stage import DataParams, run
from inhouse.dataset import read_rows


@dataclass
class Ran:
    """An artifact that the stage wrote."""

    made: Made
    out: Path
    notes: list[str]

    def lines(self, name: str) -> list[dict[str, Any]]:
        text = (self.out / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def rows(self, part: Part) -> list[dict[str, Any]]:
        return [row.model_dump(exclude_none=True) for row in read_rows(self.out, part)]

    def dropped(self) -> list[dict[str, Any]]:
        return pl.read_parquet(self.out / "dropped.parquet").to_dicts()

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.out / "dataset.json").read_text(encoding="utf-8"))

    def bytes(self) -> dict[str, bytes]:
        files = sorted(p for p in self.out.rglob("*") if p.is_file() and "measured" not in p.parts)
        return {p.relative_to(self.out).as_posix(): p.read_bytes() for p in files}


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
        out, scratch = self.path / f".out{self.count}", self.path / f".scratch{self.count}"
        out.mkdir()
        scratch.mkdir()
        events = Events(out.with_suffix(".events"))
        return Context({}, out, scratch, self.path / ".sources", self.path, events, seed, True, use)

    def run(self, data: dict[str, Any], use: str = "evaluation", seed: int = 7) -> Ran:
        context = self.context(use, seed)
        made = run(DataParams.model_validate(data), context)
        log = context.events.path
        events = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log and log.exists() else []
        return Ran(made, context.out, [e["code"] for e in events if e["event"] == "note"])
