"""Counts, lengths, labels and terms of a built dataset: what dataset.json says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from inhouse.core.plugins import operator_of
from inhouse.data.build import PARTS, Built, test_texts_in_train
from inhouse.data.gather import SourceRows
from inhouse.data.source import strictest
from inhouse.sources import scheme_of

if TYPE_CHECKING:
    import polars as pl

FORMAT = 1
QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
SCRIPTS = ("Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Arabic", "Greek", "Devanagari", "Thai")


def summary(built: Built) -> dict[str, Any]:
    """What the dataset holds and how it came to be: no times and no folders of this machine.

    Rows add up: read = sum(rows) + rejected + dropped, over all and for each source.
    """
    docs = built.table.docs()
    return {
        "format": FORMAT,
        "read": built.read,
        "rows": {part: len(built.part(part)) for part in PARTS},
        "labels": list(built.labels),
        "labels_per_part": {part: _labels(built, part) for part in PARTS if built.labels},
        "rejected": {"total": len(built.rejected), "reasons": _counted(r.reject.reason for r in built.rejected)},
        "dropped": _dropped(built),
        "test_texts_in_train": test_texts_in_train(built.table),
        "lengths": {part: lengths for part in PARTS if (lengths := _lengths(docs, part))},
        "scripts": _scripts(docs),
        "sources": [_source(built, source) for source in built.sources],
        "steps": [step.model_dump(mode="json") for step in built.params.steps],
        "shape": built.params.shape.model_dump(mode="json"),
        "split": None if built.params.split is None else built.params.split.model_dump(mode="json"),
        "seed": built.seed,
    }


def _labels(built: Built, part: str) -> dict[str, int]:
    found = Counter(row.label for row, name in zip(built.rows, built.table.rows["part"], strict=True) if name == part)
    return {label: found[label] for label in built.labels}


def _dropped(built: Built) -> dict[str, Any]:
    """In all, and for each step in order; a step that dropped nothing says so."""
    steps = [*enumerate((operator_of("cleaner", step).name for step in built.params.steps), 1), (0, "shape")]
    reasons = [
        {"step": name, "reasons": _counted(d.reason for d in built.dropped if d.number == n)} for n, name in steps
    ]
    return {"total": len(built.dropped), "steps": reasons}


def _source(built: Built, source: SourceRows) -> dict[str, Any]:
    params = source.located.params
    local = scheme_of(params.from_) == "local"
    return {
        "name": params.name,
        "from": PurePosixPath(params.from_).name if local else params.from_,  # a folder here means nothing elsewhere
        "content": source.located.content,
        "part": params.part,
        "shape": None if source.shape is None else source.shape.use,
        "licence": " AND ".join(licence.spdx for licence in source.located.licences) or None,
        "allowed_use": strictest(source.located.licences),
        "read": source.read,
        "kept": sum(row.source == params.name for row in built.rows),
        "rejected": len(source.rejected),
        "dropped": sum(item.source == params.name for item in built.dropped),
    }


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _lengths(docs: pl.DataFrame, part: str) -> dict[str, dict[str, int]]:
    """Words (between white space) and characters per row of a part, after the steps and without the prompt."""
    import polars as pl

    texts = docs.filter(pl.col("part") == part)["text"]
    if texts.is_empty():
        return {}
    measured = {"words": texts.str.count_matches(r"\S+"), "chars": texts.str.len_chars()}
    return {
        unit: {name: int(values.quantile(at, "nearest") or 0) for name, at in QUANTILES.items()}
        for unit, values in measured.items()
    }


def _scripts(docs: pl.DataFrame) -> dict[str, float]:
    """Share of each script among the letters of all rows, largest first; below 0.05 % is left out."""
    letters = int(docs["text"].str.count_matches(r"\p{L}").sum())
    if not letters:
        return {}
    counts = {name: int(docs["text"].str.count_matches(rf"[\p{{L}}&&\p{{{name}}}]").sum()) for name in SCRIPTS}
    counts["other"] = letters - sum(counts.values())
    shares = {name: round(count / letters, 4) for name, count in counts.items()}
    return {name: share for name, share in sorted(shares.items(), key=lambda s: (-s[1], s[0])) if share >= 0.0005}
