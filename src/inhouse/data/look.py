"""A first look at sources: a few records of each, so that something is seen before the whole is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from inhouse.data.privacy import pii_steps
from inhouse.data.reading import question_of, sampled_shape
from inhouse.data.records import Record, Unfit
from inhouse.data.settings import DataParams
from inhouse.data.shapes import draft_of
from inhouse.data.source import Located, read

LOOKED_AT = 500  # records of each source
MOST_CHARS = 2_000_000


def first_look(params: DataParams, source: Located) -> dict[str, Any]:
    """Shape, median length, labels and repeats among the first records of a source; None for what nothing tells.

    Raises data.shape_unknown and data.columns.
    """
    shape = sampled_shape(params.shape, source)
    seen = rejected = chars = 0
    lengths: list[int] = []
    labels: Counter[str] = Counter()
    said: Counter[str] = Counter()
    for _, item in islice(read(source), LOOKED_AT):
        seen += 1
        try:
            if not isinstance(item, Record) or shape is None:
                raise Unfit("broken_json")
            draft = draft_of(item.fields, shape)
        except Unfit:
            rejected += 1
            continue
        lengths.append(sum(map(len, draft.texts)))
        said[question_of(draft)] += 1
        labels.update([draft.label] if draft.label is not None else [])
        chars += lengths[-1]
        if chars >= MOST_CHARS:
            break
    return {
        "source": source.params.name,
        "files": len(source.files),
        "bytes": sum(path.stat().st_size for _, path in source.files if path.exists()),
        "rows": seen,
        "shape": None if shape is None else shape.use,
        "chars": _middle(lengths),
        "repeated": sum(said.values()) - len(said),
        "rejected": rejected,
        "labels": _shown(labels, private=bool(pii_steps(params.steps))),
    }


def _shown(labels: Counter[str], private: bool) -> str:
    """The commonest labels with their rows; only how many there are where personal data is to be hidden."""
    if private:
        return str(len(labels)) if labels else ""
    return ", ".join(f"{label} {count}" for label, count in labels.most_common(5))


def _middle(lengths: Sequence[int]) -> int | None:
    return sorted(lengths)[len(lengths) // 2] if lengths else None
