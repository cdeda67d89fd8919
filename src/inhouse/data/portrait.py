"""Look at a finished dataset's files: how long its rows are, in which languages, and what personal data was handled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.plugins import require
from inhouse.core.rows import PARTS
from inhouse.data.batch import read_frame
from inhouse.data.beside import FIGURES, NOTES
from inhouse.data.tasks import Finished
from inhouse.dataset import part_files

if TYPE_CHECKING:
    import polars as pl

STEPS_OF_TEN = (10, 15, 20, 30, 50, 70)  # six bins a decade


def portrait(out: Path, measured: pl.DataFrame) -> dict[str, Any]:
    """More for dataset.json, from the tables below `out` and the length of every row (columns part, chars).

    histogram: edges and rows of each part in the bins between them. languages: rows kept of each language that the
    step `language` found, {} without it. pii: rows and findings by type and action, None when no step looked for it.
    """
    require("data", "polars")
    return {"histogram": histogram(measured), "languages": _languages(out), "pii": _pii(out)}


def lengths_of(tables: Sequence[Finished]) -> pl.DataFrame:
    """Part and characters of every row, from what writing the tables left."""
    import polars as pl

    frames = [
        read_frame(t.folder / "measured.arrow", "chars").with_columns(part=pl.lit(t.facts["part"])) for t in tables
    ]
    return pl.concat(frames)


def histogram(measured: pl.DataFrame) -> dict[str, Any]:
    """Rows of each part by their number of characters, in bins that grow with it (six to a decade above 10)."""
    import polars as pl

    longest = max(measured["chars"].to_list(), default=0)
    edges = _edges(longest)
    counts: dict[str, list[int]] = {}
    for part in PARTS:
        chars = measured.filter(pl.col("part") == part)["chars"].cast(pl.Int64)
        places = pl.Series(edges[1:-1], dtype=pl.Int64).search_sorted(chars, side="right")
        found = Counter(places.to_list())
        counts[part] = [found[place] for place in range(len(edges) - 1)]
    used = [place for place in range(len(edges) - 1) if any(counts[part][place] for part in PARTS)]
    first, last = (used[0], used[-1] + 1) if used else (0, 1)
    return {"edges": edges[first : last + 1], "parts": {part: counts[part][first:last] for part in PARTS}}


def _edges(longest: int) -> list[int]:
    edges = [0, 1, 3, 10]
    size = 1
    while edges[-1] <= longest:
        edges += [size * step for step in STEPS_OF_TEN if size * step > edges[-1]]
        size *= 10
    return [edge for place, edge in enumerate(edges) if place < 2 or edges[place - 1] <= longest]


def _tables(folder: Path, operator: str) -> list[Path]:
    return sorted(folder.glob(f"[0-9][0-9]-{operator}.parquet"))


def _languages(out: Path) -> dict[str, int]:
    """Rows kept of each language, by the last step that told languages apart; largest first."""
    import polars as pl

    found = _tables(out / FIGURES, "language")
    if not found:
        return {}
    frames = [pl.scan_parquet(path).select("id") for part in PARTS for path in part_files(out, part)]
    kept = pl.concat(frames).filter(~pl.col("id").str.contains("#", literal=True))
    codes = pl.scan_parquet(found[-1]).select("id", "code").join(kept, on="id", how="semi").collect()
    counts = Counter(codes["code"].fill_null("und").to_list())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _pii(out: Path) -> dict[str, Any] | None:
    """Rows with personal data, and how much of it of each type was masked, replaced, or dropped with its row."""
    import polars as pl

    found = _tables(out / NOTES, "pii")
    if not found:
        return None
    notes = pl.concat([pl.scan_parquet(path).select("id", "type", "action") for path in found])
    counts = notes.group_by("type", "action").len().sort("type", "action").collect()
    types: dict[str, dict[str, int]] = {}
    for kind, action, count in counts.iter_rows():
        types.setdefault(kind, {})[action] = count
    rows = int(notes.select(pl.col("id").n_unique()).collect().item())
    return {"rows": rows, "types": types}
