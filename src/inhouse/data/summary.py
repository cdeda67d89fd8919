"""Counts, lengths, labels and terms of a built dataset: what dataset.json says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from inhouse.core.plugins import operator_of
from inhouse.core.rows import PARTS, Part
from inhouse.data.batch import read_frame
from inhouse.data.build import Built, SourceRead
from inhouse.data.finish import sampled_texts, test_texts_in_train
from inhouse.data.lexicons.gender import shares, skew
from inhouse.data.segments import MIX_STEP, SHAPE_STEP
from inhouse.data.shapes.classification import ClassificationShape
from inhouse.data.tasks import Finished
from inhouse.data.topics import topics
from inhouse.sources import scheme_of
from inhouse.sources.licences import strictest

if TYPE_CHECKING:
    import polars as pl

FORMAT = 2
QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
SCRIPTS = ("Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Arabic", "Greek", "Devanagari", "Thai")
SAMPLED_ROWS, SAMPLED_CHARS = 2000, 2000  # for scripts and topics: ids are hashes, so the first rows are a random draw


def summary(built: Built, tables: Sequence[Finished]) -> dict[str, Any]:
    """What the dataset holds and how it came to be: no times and no folders of this machine.

    Rows add up: read + made = rows without repeats + rejected + dropped, over all and for each source.
    """
    measured = _measured(tables)
    labels = _labels(built, measured)
    texts = sampled_texts(built, built.index["row"].head(SAMPLED_ROWS).to_list(), SAMPLED_CHARS)
    return {
        "format": FORMAT,
        "read": built.read,
        "made": sum(done.facts["made"] for passed in built.passes for done in passed),
        "rows": {part: sum(t.facts["rows"] for t in tables if t.facts["part"] == part) for part in PARTS},
        "tables": {t.facts["name"]: t.facts["rows"] for t in tables},
        "labels": labels,
        "labels_per_part": {part: _label_counts(measured, part, labels) for part in PARTS if labels},
        "rejected": {"total": built.rejected, "reasons": _counted(json.loads(r)["reason"] for r in built.rejects())},
        "dropped": _dropped(built),
        "gender": _gender(tables),
        "reports": built.reports,
        "test_texts_in_train": test_texts_in_train(tables),
        "lengths": {part: found for part in PARTS if (found := _lengths(measured, part))},
        "scripts": _scripts(texts),
        "topics": topics(texts),
        "sources": [_source(built, source) for source in built.sources],
        "steps": [step.model_dump(mode="json") for step in built.params.steps],
        "shape": built.params.shape.model_dump(mode="json"),
        "split": None if built.params.split is None else built.params.split.model_dump(mode="json"),
        "seed": built.seed,
    }


def _gender(tables: Sequence[Finished]) -> dict[str, Any] | None:
    """Words for men and women in the training part by label, before and after augmentation; None when not counted."""
    import polars as pl

    found: dict[str, Any] = {}
    counted = [t.facts["gender"] for t in tables if t.facts["part"] == "train" and "gender" in t.facts]
    for when in ("before", "after") if counted else ():
        frame = pl.concat([pl.DataFrame(item[when]) for item in counted])
        table = shares(frame.group_by("label").agg(pl.col("rows", "male", "female").sum()))
        found[when] = {"labels": table.to_dicts(), "skew": skew(table)}
    return found or None


def _measured(tables: Sequence[Finished]) -> pl.DataFrame:
    """Source, label, words and characters of every row, with its part."""
    import polars as pl

    frames = [
        read_frame(t.folder / "measured.arrow").with_columns(part=pl.lit(t.facts["part"], pl.String)) for t in tables
    ]
    return pl.concat(frames)


def _labels(built: Built, measured: pl.DataFrame) -> list[str]:
    shape = built.params.shape
    if isinstance(shape, ClassificationShape) and shape.labels is not None:
        return list(shape.labels)
    return sorted(measured["label"].drop_nulls().unique().to_list())


def _label_counts(measured: pl.DataFrame, part: Part, labels: Sequence[str]) -> dict[str, int]:
    import polars as pl

    found = Counter(measured.filter(pl.col("part") == part)["label"].to_list())
    return {label: found[label] for label in labels}


def _dropped(built: Built) -> dict[str, Any]:
    """In all, and for each step in order; a step that dropped nothing says so."""
    counts: dict[int, dict[str, int]] = {}
    for place, reason, count in built.dropped.group_by("step", "reason").len().sort("step", "reason").iter_rows():
        counts.setdefault(place, {})[reason] = count
    names = [(place, operator_of("cleaner", step).name) for place, step in enumerate(built.params.steps)]
    names += [(SHAPE_STEP, "shape"), *([(MIX_STEP, "mix")] if built.params.mix else [])]
    reasons = [{"step": name, "reasons": counts.get(place, {})} for place, name in names]
    return {"total": built.dropped.height, "steps": reasons}


def _source(built: Built, source: SourceRead) -> dict[str, Any]:
    import polars as pl

    params = source.located.params
    local = scheme_of(params.from_) == "local"
    dropped = built.dropped.filter(pl.col("source") == params.name).height
    return {
        "name": params.name,
        "from": PurePosixPath(params.from_).name if local else params.from_,  # a folder here means nothing elsewhere
        "content": source.located.content,
        "files": len(source.located.files),
        "part": params.part,
        "shape": None if source.shape is None else source.shape.use,
        "licence": " AND ".join(licence.spdx for licence in source.located.licences) or None,
        "allowed_use": strictest(licence.use for licence in source.located.licences),
        "consent": params.consent,
        "read": source.read,
        "kept": _kept(built, params.name),
        "rejected": source.rejected,
        "dropped": dropped,
    }


def _kept(built: Built, source: str) -> int:
    """Rows of a source that are left, those made from its rows included."""
    import polars as pl

    kept = 0
    for number, rows in built.index.group_by("shard"):
        shard = built.shards[int(str(number[0]))]
        frame = read_frame(shard.folder / f"{shard.name}.rows.arrow").filter(pl.col("source") == source)
        kept += frame.join(rows, on="row", how="semi").height
    return kept


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _lengths(measured: pl.DataFrame, part: Part) -> dict[str, dict[str, int]]:
    """Words (between white space) and characters per row of a part, after the steps and without the prompt."""
    import polars as pl

    rows = measured.filter(pl.col("part") == part)
    if rows.is_empty():
        return {}
    return {
        unit: {name: int(rows[unit].quantile(at, "nearest") or 0) for name, at in QUANTILES.items()}
        for unit in ("words", "chars")
    }


def _scripts(texts: Sequence[str]) -> dict[str, float]:
    """Share of each script among the letters of a sample of rows, largest first; below 0.05 % is left out."""
    import numpy as np
    import polars as pl

    times = np.bincount(np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32), minlength=1)
    found = pl.DataFrame({"char": [chr(code) for code in times.nonzero()[0]], "times": times[times.nonzero()[0]]})
    found = found.filter(pl.col("char").str.contains(r"\p{L}"))
    letters = int(found["times"].sum())
    if not letters:
        return {}
    of = {name: found.filter(pl.col("char").str.contains(rf"\p{{{name}}}")) for name in SCRIPTS}
    counts = {name: int(some["times"].sum()) for name, some in of.items()}
    counts["other"] = letters - sum(counts.values())
    shares = {name: round(count / letters, 4) for name, count in counts.items()}
    return {name: share for name, share in sorted(shares.items(), key=lambda s: (-s[1], s[0])) if share >= 0.0005}
