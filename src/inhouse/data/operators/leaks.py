"""Take what evaluation rows hold out of the training part."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_file
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.clusters import FIRST
from inhouse.data.operators.around import Around
from inhouse.data.operators.exact_dedup import whole_hashes, whole_texts
from inhouse.data.outside import lines_of, neighbours, rows_of, some

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

SHAPE = "reduce"
AGAINST = "against"  # the part, as it were, of rows from evaluation sets outside the dataset
SHINGLE = (8, 5)
HASHES = 112
LONGEST_SHORT = 400  # characters above which a text is surely longer than one n-gram
LEAST_WORDS = 3
WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]|[\p{L}\p{N}]+"


class Leaks(Params):
    """Take training rows out that share an n-gram with a test or valid row, or resemble one.

    One 13-gram is enough, unless so many training rows hold it that it is a phrase of everybody (Brown et al. 2020,
    GPT-3, appendix C). Rows that hold most of an evaluation row go in any case (70 %: Chowdhery et al. 2022, PaLM,
    section 8). Evaluation rows shorter than one n-gram leak only as a whole. Of outside rows every text is compared by
    itself, and neighbouring ones as one. Put it after the steps that drop duplicates: the copies of a leaked row make
    its n-grams look like phrases of everybody.
    """

    use: Literal["leaks"] = "leaks"
    action: Literal["remove", "fail"] = Field("remove", description="remove leaking rows from train, or fail the build")
    exact: Literal["fail", "remove"] = Field(
        "fail", description="what to do when a whole training row stands in an evaluation set, letter for letter"
    )
    words: int = Field(13, ge=5, le=60, description="words of an n-gram; punctuation and case do not count")
    characters: int = Field(30, ge=8, le=60, description="characters of an n-gram in Chinese, Japanese and Thai")
    common: int = Field(10, ge=1, description="an n-gram that more training rows hold is a phrase of everybody")
    share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of an evaluation row's n-grams that a training row must hold; 0: one is enough",
    )
    share_with_common: float = Field(
        0.7, gt=0, le=1, description="share that is a leak whether or not the n-grams are common"
    )
    near: float | None = Field(
        0.5, ge=0.3, le=0.99, description="Jaccard similarity to an evaluation row that is a leak; null: not looked at"
    )
    near_from: int = Field(
        100, ge=1, description="letters (about) from which similarity counts: one word makes a short question another"
    )
    against: tuple[Path, ...] = Field(
        (), description="evaluation sets outside the dataset: .jsonl (an object per line), others a row per line"
    )
    columns: tuple[str, ...] = Field(
        (), description="against: fields of a .jsonl whose texts are compared, at any depth; absent: all texts"
    )


def external(params: Leaks, project_dir: Path) -> dict[str, str]:
    """The hash of each outside evaluation set. Raises data.leak_file."""
    return {f"leaks:{path}": hash_file(_found(path, project_dir)) for path in params.against}


def emit(docs: pl.DataFrame, params: Leaks, around: Around) -> pl.DataFrame:
    """The hash of each whole text, and of test and valid rows all n-grams, band keys and a sketch.

    About 40 bytes a training row; 1.2 KiB and 8 bytes a word (or Chinese character) an evaluation row.
    """
    import polars as pl

    every = docs.select("row", "part").with_columns(whole_hashes(whole_texts(docs)))
    measured = docs.filter(pl.col("part") != "train")
    described = measured.select("row").with_columns(_described(measured["text"], params))
    return every.join(described, on="row", how="left", maintain_order="left")


def ask(emitted: pl.DataFrame, params: Leaks, around: Around) -> tuple[pl.Series, pl.DataFrame]:
    """All training rows, and what to look for in them. Raises data.leak_exact and data.leak_file."""
    import numpy as np
    import polars as pl

    from inhouse.data.kernels.ngrams import hash_table

    evaluation = _evaluation(emitted, params, around)
    exact = _exact(emitted, evaluation)
    if exact.height and params.exact == "fail":
        _refuse_exact(exact, emitted, params, around)
    slots, places = hash_table(np.unique(_values(evaluation["grams"], np.uint64)))
    near = evaluation.with_row_index("owner").filter(pl.col("bands").is_not_null())
    width = len(near["bands"][0]) if near.height else 1
    bands = _numbered(_values(near["bands"], np.uint32).reshape(-1, width))
    order = np.argsort(bands.ravel(), kind="stable")
    owners = np.repeat(np.arange(near.height), bands.shape[1])[order]
    arrays: dict[str, NDArray[Any]] = {
        "slots": slots,
        "places": places,
        "bands": bands.ravel()[order],
        "owners": owners,
        "sketches": _values(near["sketch"], np.uint8),
        "rows": near["owner"].to_numpy(),
    }
    asked = pl.DataFrame([pl.Series(name, [pl.Series(values)]) for name, values in arrays.items()])
    return emitted.filter(pl.col("part") == "train")["row"], asked


def emit_more(docs: pl.DataFrame, params: Leaks, around: Around, asked: pl.DataFrame) -> pl.DataFrame:
    """The rows that share anything: which n-grams of the evaluation sets, and which evaluation row they resemble."""
    import polars as pl

    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.ngrams import hits_of

    table = asked["slots"][0].to_numpy(), asked["places"][0].to_numpy()
    hits, bounds = hits_of(flat(docs["text"]), (params.words, params.characters), table)
    lists = _lists("hits", [hits[start:end] for start, end in pairwise(bounds)], pl.UInt32)
    found = docs.select("row").with_columns(lists, _nearest(docs["text"], params, asked))
    return found.filter((pl.col("hits").list.len() > 0) | pl.col("near").is_not_null())


def decide(emitted: pl.DataFrame, params: Leaks, around: Around, more: pl.DataFrame) -> pl.DataFrame:
    """Name the training rows that leak (leaks_test, leaks_valid, leaks_against) and the row they leak."""
    import polars as pl

    evaluation = _evaluation(emitted, params, around)
    by_grams = pl.Series("owner", _overlaps(more["hits"], evaluation, params), dtype=pl.Int64)
    leaks = more.select("row", pl.when(by_grams >= 0).then(by_grams).otherwise("near").alias("owner"))
    exact = _exact(emitted, evaluation).select("row", pl.col("owner").cast(pl.Int64))
    owners = evaluation.select(pl.col("row").alias("kept"), pl.col("part").alias("of")).with_row_index("owner")
    found = (
        pl.concat([exact, leaks.drop_nulls().join(exact, on="row", how="anti")])
        .join(owners.cast({"owner": pl.Int64}), on="owner")
        .select("row", pl.concat_str(pl.lit("leaks_"), "of").alias("reason"), "kept")
        .sort("row")
    )
    if found.height and params.action == "fail":
        first = found.row(0, named=True)
        other = "-" if first["kept"] is None else f"{first['kept']:016x}"
        part = first["reason"].removeprefix("leaks_")
        raise UserError("data.leaks_found", rows=found.height, first=f"{first['row']:016x}", other=other, part=part)
    return found


def _described(texts: pl.Series, params: Leaks) -> pl.DataFrame:
    """What stands for an evaluation text: grams (distinct), bands and sketch (null where texts are too short)."""
    require("data", "numba")
    import numpy as np
    import polars as pl

    from inhouse.data.clusters import band_table, sketch_column
    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.ngrams import grams_of

    found, bounds = grams_of(*flat(texts), (params.words, params.characters))
    grams = _lists("grams", [np.unique(found[start:end]) for start, end in pairwise(bounds)], pl.UInt64)
    keys, counts = band_table(texts, SHINGLE, params.near or 1.0, HASHES)
    bands = pl.Series("bands", keys, dtype=pl.Array(pl.UInt32, keys.shape[1])).arr.to_list()
    long_enough = pl.Series("long_enough", (counts >= params.near_from) & (params.near is not None))
    sketches = sketch_column(texts, SHINGLE).arr.to_list()
    near = [pl.when(long_enough).then(column).alias(column.name) for column in (bands, sketches)]
    return pl.DataFrame([grams]).with_columns(near)


def _evaluation(emitted: pl.DataFrame, params: Leaks, around: Around) -> pl.DataFrame:
    """All evaluation rows, test before valid before those outside the dataset: their places are their numbers."""
    import polars as pl

    rank = pl.col("part").replace_strict(FIRST, return_dtype=pl.UInt8)
    inside = emitted.filter(pl.col("part") != "train").sort(rank, "row")
    nowhere = [pl.lit(None, pl.UInt64).alias("row"), pl.lit(AGAINST).alias("part")]
    outside = [_outside(_found(path, around.project_dir), params).with_columns(nowhere) for path in params.against]
    return pl.concat([inside, *(described.select(inside.columns) for described in outside)])


def _outside(path: Path, params: Leaks) -> pl.DataFrame:
    """What stands for the texts of an evaluation set, and for neighbouring ones of an object joined as rows join them.

    So a field that names the row does not hide what the others say. Each text stands there once.
    """
    import polars as pl

    singles, runs = [_single([], params, path)], []
    for rows in some(rows_of(path, frozenset(params.columns))):
        singles.append(_single([text for values in rows for text in values], params, path))
        runs.append(_joined([text for values in rows for text in neighbours(values)], params))
    return pl.concat([*singles, *runs]).unique(["high", "low"], keep="first", maintain_order=True)


def _single(texts: list[str], params: Leaks, path: Path) -> pl.DataFrame:
    """Texts by themselves; one of a word or two in an object, such as a label, is only compared letter for letter."""
    import polars as pl

    found = pl.Series("text", texts, dtype=pl.String)
    few = (found.str.count_matches(WORD) < LEAST_WORDS) & (path.suffix == ".jsonl")
    grams = pl.when(few).then(_no_grams()).otherwise("grams")
    return _described(found, params).with_columns(grams.alias("grams"), *whole_hashes(found))


def _joined(texts: list[str], params: Leaks) -> pl.DataFrame:
    """Joined texts: only the hash, and of those shorter than an n-gram the whole; their parts stand by themselves."""
    import polars as pl

    found = pl.Series("text", texts, dtype=pl.String)
    short = pl.select(pl.when(found.str.len_chars() <= LONGEST_SHORT).then(found).otherwise(pl.lit("")).alias("text"))
    brief = _described(short["text"], params)
    whole = pl.when(pl.col("grams").list.len() == 1).then("grams").otherwise(_no_grams())
    empty = [pl.lit(None, brief.schema[name]).alias(name) for name in ("bands", "sketch")]
    return brief.with_columns(whole.alias("grams"), *empty, *whole_hashes(found))


def _no_grams() -> pl.Expr:
    import polars as pl

    return pl.lit([], pl.List(pl.UInt64))


def _exact(emitted: pl.DataFrame, evaluation: pl.DataFrame) -> pl.DataFrame:
    """Training rows whose whole text is that of an evaluation row (row, owner, kept, of), the first one of them."""
    import polars as pl

    known = evaluation.with_row_index("owner").unique(["high", "low"], keep="first", maintain_order=True)
    known = known.select("high", "low", "owner", pl.col("row").alias("kept"), pl.col("part").alias("of"))
    train = emitted.filter(pl.col("part") == "train").select("row", "high", "low")
    return train.join(known, on=["high", "low"]).drop("high", "low").sort("row")


def _refuse_exact(exact: pl.DataFrame, emitted: pl.DataFrame, params: Leaks, around: Around) -> None:
    import polars as pl

    first = exact.row(0, named=True)
    row = f"{first['row']:016x}"
    if first["of"] != AGAINST:
        other = f"{first['kept']:016x}"
        raise UserError("data.leak_exact", rows=exact.height, first=row, other=other, part=first["of"])
    whole = emitted.filter(pl.col("row") == first["row"]).select("high", "low").row(0)
    path, line = _line_of(whole, params, around)
    raise UserError("data.leak_exact_against", rows=exact.height, first=row, path=path, line=line)


def _line_of(whole: tuple[int, int], params: Leaks, around: Around) -> tuple[Path, int]:
    """The file and the line of the outside text with this hash, by itself or joined with its neighbours."""
    import polars as pl

    for path in params.against:
        for number, values in lines_of(_found(path, around.project_dir), frozenset(params.columns)):
            hashes = pl.DataFrame(whole_hashes(pl.Series([*values, *neighbours(values)], dtype=pl.String)))
            if whole in hashes.rows():
                return path, number
    raise AssertionError("the hash came from one of these files")


def _postings(evaluation: pl.DataFrame) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint32]]:
    """The distinct n-grams in order, where the rows that hold each begin (grams + 1), and those rows."""
    import numpy as np

    grams = _values(evaluation["grams"], np.uint64)
    holders = np.repeat(np.arange(evaluation.height, dtype=np.uint32), evaluation["grams"].list.len().to_numpy())
    order = np.argsort(grams, kind="stable")
    grams, holders = grams[order], holders[order]
    starts = np.flatnonzero(np.append(True, grams[1:] != grams[:-1]) if len(grams) else grams)
    return grams[starts], np.append(starts, len(grams)), holders


def _overlaps(hits: pl.Series, evaluation: pl.DataFrame, params: Leaks) -> NDArray[np.int64]:
    """The evaluation row that each row with hits leaks, -1 for none."""
    import numpy as np

    from inhouse.data.kernels.ngrams import MOST_OWNERS, write_overlaps

    keys, starts, owners = _postings(evaluation)
    flat_hits = _values(hits, np.uint32)
    bounds = np.append(0, np.cumsum(hits.list.len().to_numpy())).astype(np.int64)
    common = (np.bincount(flat_hits, minlength=len(keys)) > params.common).astype(np.uint8)
    common += common & (np.diff(starts) > MOST_OWNERS)
    sizes = evaluation["grams"].list.len().to_numpy().astype(np.int64)
    best = np.empty(len(hits), np.int64)
    rule = np.array([params.share, params.share_with_common])
    write_overlaps((flat_hits, bounds), (starts, owners, common), sizes, rule, best)
    return best


def _nearest(texts: pl.Series, params: Leaks, asked: pl.DataFrame) -> pl.Series:
    """The number of the evaluation row that each text resembles most, null below the threshold."""
    import numpy as np
    import polars as pl

    from inhouse.data.clusters import band_table, least_resemblance, sketch_column
    from inhouse.data.kernels.minhash import SKETCH_BINS, find_nearest

    near, ordered = pl.repeat(None, len(texts), dtype=pl.Int64, eager=True).alias("near"), asked["bands"][0].to_numpy()
    if params.near is None or not len(ordered):
        return near
    keys, counts = band_table(texts, SHINGLE, params.near, HASHES)
    numbered = _numbered(keys)
    at = np.minimum(np.searchsorted(ordered, numbered), len(ordered) - 1)
    chosen = np.flatnonzero((ordered[at] == numbered).any(axis=1) & (counts >= params.near_from))
    drawn = np.ascontiguousarray(sketch_column(texts.gather(chosen), SHINGLE).to_numpy())
    best, alike = np.full(len(chosen), -1), np.full(len(chosen), least_resemblance(params.near))
    known = asked["sketches"][0].to_numpy().reshape(-1, SKETCH_BINS)
    find_nearest(numbered[chosen], drawn, (ordered, asked["owners"][0].to_numpy(), known), best, alike)
    rows = asked["rows"][0].to_numpy().astype(np.int64)
    return near.scatter(chosen[best >= 0], rows[best[best >= 0]])


def _numbered(bands: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Band keys (rows, bands) with the number of the band above them, so that only keys of one band are equal."""
    import numpy as np

    return bands.astype(np.uint64) | np.arange(bands.shape[1], dtype=np.uint64) << np.uint64(32)


def _values(lists: pl.Series, dtype: Any) -> NDArray[Any]:
    """All values of a column of lists, one after the other."""
    values = lists.drop_nulls()
    return values.filter(values.list.len() > 0).explode().to_numpy().astype(dtype, copy=False)


def _lists(name: str, arrays: list[NDArray[Any]], inner: type[pl.DataType]) -> pl.Series:
    """A column of lists. Of bare arrays of one length polars would make a column of the type Array."""
    import polars as pl

    return pl.Series(name, [pl.Series(array, dtype=inner) for array in arrays], dtype=pl.List(inner))


def _found(path: Path, project_dir: Path) -> Path:
    found = project_dir / path
    if not found.is_file():
        raise UserError("data.leak_no_file", path=path)
    return found
