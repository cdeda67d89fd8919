"""Drop documents that consist mostly of lines which many documents share: menus, footers, licence headers."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "reduce"
SHOWN = 20  # lines named in the report


class Boilerplate(Params):
    """Drop documents of which most characters stand in lines that many documents share.

    Lines of the same document count once. The frame of HTML pages is removed by the reader already.
    """

    use: Literal["boilerplate"] = "boilerplate"
    min_documents: int = Field(10, ge=2, description="a line that fewer documents hold is never boilerplate")
    min_share: float = Field(0.005, ge=0, le=1, description="share of all documents that must hold the line")
    max_share: float = Field(0.5, ge=0, lt=1, description="share of a document's characters that may be boilerplate")
    min_line_chars: int = Field(15, ge=1, description="shorter lines are not looked at")


def emit(docs: pl.DataFrame, params: Boilerplate, around: Around) -> pl.DataFrame:
    """row, key of a line, and the characters that it fills in the document; a row without lines has a null key."""
    import polars as pl

    lines = _lines(docs, params).group_by("doc", "key").agg(pl.col("chars").sum())
    joined = docs.select("row").with_row_index("doc").join(lines, on="doc", how="left")
    return joined.select("row", "key", "chars").sort("row", "key")


def ask(emitted: pl.DataFrame, params: Boilerplate, around: Around) -> pl.Series:
    """A row for each of the lines that most documents share, so that the report can show them."""
    return _shared(emitted, params).head(SHOWN)["row"].unique().sort()


def emit_more(docs: pl.DataFrame, params: Boilerplate, around: Around) -> pl.DataFrame:
    """row, key, line: the lines of the few rows that were asked for."""
    import polars as pl

    found = _lines(docs, params).unique("key", keep="first", maintain_order=True)
    rows, texts = docs["row"].to_list(), [text.encode() for text in docs["text"].to_list()]
    lines = [
        (rows[doc], key, texts[doc][place:].split(b"\n", 1)[0].strip(b" \t\r").decode())
        for doc, key, place in found.select("doc", "key", "place").iter_rows()
    ]
    return pl.DataFrame(lines, schema={"row": pl.UInt64, "key": pl.Int64, "line": pl.String}, orient="row")


def decide(emitted: pl.DataFrame, params: Boilerplate, around: Around, more: pl.DataFrame) -> pl.DataFrame:
    """boilerplate for documents above the share."""
    import polars as pl

    shared = pl.col("key").is_in(_shared(emitted, params)["key"].implode())
    inside = (pl.col("chars") * shared).sum() / pl.col("chars").sum()
    shares = emitted.drop_nulls("key").group_by("row").agg(inside.alias("share"))
    reason = pl.lit("boilerplate", pl.String).alias("reason")
    dropped = shares.filter(pl.col("share") > params.max_share)
    return dropped.select("row", reason, pl.lit(None, pl.UInt64).alias("kept")).sort("row")


def report(emitted: pl.DataFrame, params: Boilerplate, around: Around, more: pl.DataFrame) -> dict[str, Any]:
    """How many lines are boilerplate, and those that most documents share, with the number of these."""
    shared = _shared(emitted, params)
    named = shared.head(SHOWN).join(more.select("key", "line").unique("key"), on="key", how="inner")
    lines = named.sort(["documents", "line"], descending=[True, False]).select("line", "documents")
    return {"lines": shared.height, "most_shared": dict(lines.iter_rows())}


def _shared(emitted: pl.DataFrame, params: Boilerplate) -> pl.DataFrame:
    """key, documents and the first row of every line that is boilerplate, the most shared first."""
    import polars as pl

    least = max(params.min_documents, ceil(params.min_share * emitted["row"].n_unique()))
    lines = emitted.drop_nulls("key").group_by("key").agg(pl.len().alias("documents"), pl.col("row").min())
    return lines.filter(pl.col("documents") >= least).sort(["documents", "key"], descending=[True, False])


def _lines(docs: pl.DataFrame, params: Boilerplate) -> pl.DataFrame:
    """doc, key, chars and place (in the text, bytes) of every line that is long enough."""
    require("data", "numba")
    import polars as pl

    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.lines import line_keys

    data, offsets = flat(docs["text"])
    found = line_keys(data, offsets, params.min_line_chars)
    starts = offsets[found[:, 0]]
    columns = {"doc": found[:, 0], "key": found[:, 1], "chars": found[:, 2], "place": found[:, 3] - starts}
    return pl.DataFrame(columns, schema_overrides={"doc": pl.UInt32})
