"""Build the dataset artifact: rows per part, what was dropped and why, and a card that says what it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Kind
from inhouse.core.errors import UserError
from inhouse.core.protocols import Context, Made
from inhouse.core.rows import write_rows
from inhouse.data.build import PARTS, Built, build, test_texts_in_train
from inhouse.data.card import card
from inhouse.data.settings import DataParams
from inhouse.data.source import Rejected, external_of, locate, strictest
from inhouse.data.summary import summary

__all__ = ["KIND", "VERSION", "DataParams", "external", "run"]

VERSION = "1"
KIND: Kind = "dataset"
ONLY_EVALUATION = ("evaluation", "research")


def external(params: DataParams, project_dir: Path) -> dict[str, str]:
    """What stands for the content of each source in the recipe, by source name."""
    return {source.name: external_of(source, project_dir) for source in params.sources}


def run(params: DataParams, context: Context) -> Made:
    """Fetch the sources, build the rows, and write the artifact. Raises data.* and split.* errors."""
    for source in params.sources:  # before anything is downloaded
        _refuse_other_use(source.name, source.allowed_use, context.use)
    located = [locate(source, context) for source in params.sources]
    for found in located:
        _refuse_other_use(found.params.name, strictest(found.licences), context.use)
    built = build(params, located, context.seed, context.events)
    facts = summary(built)
    _write(built, facts, context.out)
    _tell(built, facts, context)
    return Made(
        facts={key: facts[key] for key in ("read", "rows", "labels", "rejected", "dropped", "test_texts_in_train")},
        licences=tuple(licence for source in built.sources for licence in source.located.licences),
    )


def _write(built: Built, facts: Mapping[str, Any], out: Path) -> None:
    for part in PARTS:
        rows = built.part(part)
        if rows or part != "valid":
            write_rows(out / f"{part}.jsonl", rows)
    _write_lines(out / "rejected.jsonl", map(_reject_line, built.rejected))
    _write_lines(out / "dropped.jsonl", map(asdict, built.dropped))
    (out / "dataset.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(facts), encoding="utf-8")


def _write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as f:
        for value in values:
            f.write(json.dumps(value, ensure_ascii=False) + "\n")


def _reject_line(item: Rejected) -> dict[str, Any]:
    return {"source": item.source, "file": item.file, **asdict(item.reject)}


def _tell(built: Built, facts: Mapping[str, Any], context: Context) -> None:
    """Remarks to the user on what is not an error and should be known."""
    events = context.events
    for source in built.sources:
        name = source.located.params.name
        if any(licence.spdx == "NOASSERTION" for licence in source.located.licences):
            events.note("data.licence_unknown", source=name)
        if source.rejected:
            events.note("data.rejected", source=name, rejected=len(source.rejected), read=source.read)
        if source.tools:
            events.note("data.tools_ignored", source=name, rows=source.tools)
    if leaked := test_texts_in_train(built.table):
        events.note("data.test_text_in_train", rows=leaked)


def _refuse_other_use(source: str, allowed: str, use: str) -> None:
    if allowed in ONLY_EVALUATION and use != "evaluation":
        raise UserError("data.other_use", source=source, allowed=allowed, use=use)
