"""Mix the training rows of several sources in stated proportions, exactly and always the same way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_file
from inhouse.core.messages import text as say
from inhouse.core.params import Params
from inhouse.core.plugins import package_version, require
from inhouse.data.scripts import HAN, SYLLABIC

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

ALL_LATIN = rf"[\p{{L}}\p{{N}}--{SYLLABIC}]+(?:['’.-][\p{{L}}\p{{N}}--{HAN}]+)*"
IDEOGRAPHIC = f"[{SYLLABIC}]"
TENTHS_PER_WORD = 13
TENTHS_PER_IDEOGRAPH = 10
CHOICE = 32  # rows of a source among which those are chosen that meet its quota
LARGEST_CHOICE = 2**23  # what they may add up to: a megabyte of sums for each row


def _with_free_keys(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = {"type": "number", "minimum": 0}


class MixParams(Params):
    """In which proportion the sources stand in the training part: `{domain: 5, general: 3, by: tokens}`.

    Every other key is the name of a source; a source whose name is one of these settings goes into `shares`.
    """

    model_config = ConfigDict(json_schema_extra=_with_free_keys)

    shares: dict[str, float] = Field(
        {}, validate_default=True, description="parts by source name; 0 leaves the source out"
    )
    by: Literal["tokens", "rows", "chars"] = Field("tokens", description="what the proportion is counted in")
    short: Literal["downsample", "repeat", "fail"] = Field(
        "downsample", description="when a source is too short: take less of the others, repeat it, or stop"
    )
    epochs: int = Field(4, ge=1, description="how often a row may stand in the mix at most, for `short: repeat`")
    total: int | None = Field(None, ge=1, description="size of the whole mix; absent: as much as there is")
    tokenizer: str | None = Field(
        None, min_length=1, description="folder or tokenizer.json that counts tokens; absent: they are estimated"
    )

    @model_validator(mode="before")
    @classmethod
    def _names_are_shares(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = {key: item for key, item in value.items() if key in cls.model_fields}
        free = {key: item for key, item in value.items() if key not in cls.model_fields}
        if free and isinstance(known.get("shares", {}), Mapping):
            known["shares"] = {**known.get("shares", {}), **free}
        return known

    @field_validator("shares")
    @classmethod
    def _some_share(cls, shares: dict[str, float]) -> dict[str, float]:
        if bad := [name for name, share in shares.items() if not 0 <= share < float("inf")]:
            raise ValueError(say("problem.negative_part", name=bad[0]))
        if not any(shares.values()):
            raise ValueError(say("problem.no_part"))
        return shares


class MixedSource(BaseModel):
    """One source in a mix. Sizes are in the unit of the mix."""

    model_config = ConfigDict(frozen=True)

    name: str
    asked: float = Field(description="share of the whole that was asked for")
    achieved: float = Field(description="share of the whole that it has")
    available_rows: int
    available: int
    rows: int = Field(description="different rows in the mix")
    copies: int = Field(description="rows in the mix, repeated ones counted each time")
    size: int
    repeats: int = Field(description="how often the most repeated row stands in the mix")


class MixReport(BaseModel):
    """What a mix was asked to be and what it is, for the dataset's record."""

    model_config = ConfigDict(frozen=True)

    by: Literal["tokens", "rows", "chars"]
    estimated: bool = Field(description="tokens were estimated by a rule and not counted by a tokenizer")
    short: Literal["downsample", "repeat", "fail"]
    rows: int
    size: int
    sources: tuple[MixedSource, ...]


def check(params: MixParams, sources: Collection[str]) -> None:
    """Raise data.mix_unknown for a share of no source, data.mix_unnamed for a training source without a share.

    `sources`: names of the sources that give training rows.
    """
    names = ", ".join(sorted(sources))
    if unknown := sorted(set(params.shares) - set(sources)):
        raise UserError("data.mix_unknown", name=unknown[0], sources=names)
    if unnamed := sorted(set(sources) - set(params.shares)):
        raise UserError("data.mix_unnamed", name=unnamed[0])


def mix(rows: pl.DataFrame, params: MixParams, seed: int) -> pl.DataFrame:
    """How often each training row stands in the mix: (row, copies u32), sorted by row; 0 = left out.

    `rows`: row u64, source, part and, unless `by: rows`, a column named tokens or chars; other parts are ignored.
    Each source is taken in the order of a hash of seed and row up to its quota; around that place the rows are chosen
    that come closest to it: by a token or so where rows differ, never further than half a row. `by: rows` meets the
    quotas by largest remainder. Raises data.mix_* errors.
    """
    require("data", "polars", "xxhash", "numpy")
    import polars as pl

    train = rows.filter(pl.col("part") == "train")
    check(params, train["source"].unique().to_list())
    groups = {name: _ordered(train.filter(pl.col("source") == name), params, seed) for name in params.shares}
    sizes = {name: int(frame["size"].sum()) for name, frame in groups.items()}
    quotas = _quotas(params, sizes, {name: max(frame["size"], default=0) for name, frame in groups.items()})
    if params.by == "rows":
        quotas = _whole(quotas)
    taken = [_take(frame, quotas.get(name, Fraction(0)), sizes[name]) for name, frame in sorted(groups.items())]
    return pl.concat(taken).sort("row")


def report(rows: pl.DataFrame, mixed: pl.DataFrame, params: MixParams) -> MixReport:
    """What came of a mix: the shares asked for and achieved, rows and repeats of each source."""
    import polars as pl

    train = rows.filter(pl.col("part") == "train").join(mixed, on="row").with_columns(_sizes(params).alias("size"))
    used = pl.col("size") * pl.col("copies")
    counts = train.group_by("source").agg(
        pl.len().alias("available_rows"),
        pl.col("size").sum().alias("available"),
        (pl.col("copies") > 0).sum().alias("rows"),
        pl.col("copies").sum(),
        used.sum().alias("used"),
        pl.col("copies").max().alias("repeats"),
    )
    whole = sum(counts["used"])
    parts = sum(params.shares.values())
    sources = [
        MixedSource(
            name=item["source"],
            asked=params.shares[item["source"]] / parts,
            achieved=item["used"] / whole if whole else 0.0,
            size=item["used"],
            **{key: item[key] for key in ("available_rows", "available", "rows", "copies", "repeats")},
        )
        for item in counts.sort("source").iter_rows(named=True)
    ]
    return MixReport(
        by=params.by,
        estimated=params.by == "tokens" and params.tokenizer is None,
        short=params.short,
        rows=sum(source.copies for source in sources),
        size=whole,
        sources=tuple(sources),
    )


def estimated_tokens(texts: pl.Series) -> pl.Series:
    """Tokens by a rule that needs no tokenizer: 1.3 a word, 1 an ideograph, syllable or kana, rounded up."""
    words = texts.str.count_matches(ALL_LATIN)
    ideographs = texts.str.count_matches(IDEOGRAPHIC)
    tenths = words.cast(int) * TENTHS_PER_WORD + ideographs.cast(int) * TENTHS_PER_IDEOGRAPH
    return ((tenths + 9) // 10).rename("tokens")


def counted_tokens(texts: pl.Series, tokenizer: Path) -> pl.Series:
    """Tokens by a tokenizer.json, or a folder that holds one, without special tokens. Raises data.mix_tokenizer."""
    require("data", "tokenizers")
    import polars as pl
    from tokenizers import Tokenizer

    path = _file_of(tokenizer)
    if not path.is_file():
        raise UserError("data.mix_tokenizer", path=path, problem="no such file")
    try:
        counter = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions for a file it cannot read
        raise UserError("data.mix_tokenizer", path=path, problem=str(error)) from error
    found = counter.encode_batch_fast(texts.fill_null("").to_list(), add_special_tokens=False)
    return pl.Series("tokens", [len(item.ids) for item in found], dtype=pl.Int64)


def tokenizer_of(params: MixParams, project_dir: Path) -> dict[str, str]:
    """What stands for the tokenizer in the recipe: its content, and the version of the library that runs it."""
    if params.by != "tokens" or params.tokenizer is None:
        return {}
    path = _file_of(project_dir / Path(params.tokenizer).expanduser())
    if not path.is_file():
        raise UserError("data.mix_tokenizer", path=path, problem="no such file")
    return {"tokenizer": hash_file(path), "tokenizers": package_version("tokenizers")}


def _file_of(tokenizer: Path) -> Path:
    return tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer


def _sizes(params: MixParams) -> pl.Expr:
    import polars as pl

    size = pl.lit(1) if params.by == "rows" else pl.col(params.by)
    return size.cast(pl.Int64)


def _ordered(rows: pl.DataFrame, params: MixParams, seed: int) -> pl.DataFrame:
    """The rows of one source (row, size, lot) in the order in which they are taken."""
    import polars as pl
    import xxhash

    lots = [xxhash.xxh3_64_intdigest(f"{seed}:mix:{row:016x}".encode()) for row in rows["row"]]
    ordered = rows.select("row", _sizes(params).alias("size")).with_columns(pl.Series("lot", lots, dtype=pl.UInt64))
    return ordered.sort("lot", "row")


def _quotas(params: MixParams, sizes: Mapping[str, int], longest: Mapping[str, int]) -> dict[str, Fraction]:
    """How much each source is to give. Raises data.mix_empty, data.mix_short."""
    parts = {name: Fraction(str(share)) for name, share in params.shares.items() if share}
    if empty := sorted(name for name in parts if not sizes[name]):
        raise UserError("data.mix_empty", name=empty[0])
    most = {name: sizes[name] / part for name, part in parts.items()}  # of one part
    wanted = Fraction(params.total) / sum(parts.values()) if params.total else max(most.values())
    if params.short == "fail":
        shortage = {name: part * wanted - sizes[name] for name, part in parts.items()}
        if any(shortage[name] >= longest[name] for name in parts):  # less than a row is no shortage
            lines = [f"{name}: {float(parts[name] * wanted):,.0f} / {sizes[name]:,}" for name in sorted(parts)]
            raise UserError("data.mix_short", by=params.by, figures="; ".join(lines))
        unit = min(wanted, *most.values())
    else:
        epochs = params.epochs if params.short == "repeat" else 1
        unit = min(wanted, *(epochs * limit for limit in most.values()))
    return {name: part * unit for name, part in parts.items()}


def _whole(quotas: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Whole numbers that add up to the whole of the quotas: the largest remainders are rounded up."""
    left = sum(quotas.values()).__floor__() - sum(quota.__floor__() for quota in quotas.values())
    by_remainder = sorted(quotas, key=lambda name: (quotas[name].__floor__() - quotas[name], name))
    return {name: Fraction(quotas[name].__floor__() + (name in by_remainder[:left])) for name in quotas}


def _take(rows: pl.DataFrame, quota: Fraction, size: int) -> pl.DataFrame:
    """Whole passes over the source, then the rows that come closest to what is left of the quota."""
    import polars as pl

    passes = int(quota // size) if size else 0
    once_more = _closest(rows["size"].to_numpy(), quota - passes * size)
    return rows.select("row", pl.Series("copies", once_more, dtype=pl.UInt32) + passes)


def _closest(sizes: NDArray[np.int64], quota: Fraction) -> NDArray[np.bool_]:
    """Which rows to take: the first ones, and of some around the place where the quota is reached the best choice."""
    import numpy as np

    sums = sizes.cumsum()
    first = int(sums.searchsorted(quota.__floor__(), side="right")) if quota else 0
    taken = np.arange(len(sizes)) < first
    if not quota or first == len(sizes) or (first and int(sums[first - 1]) == quota):
        return taken
    around = CHOICE
    while around > 1:
        start, end = max(first - around // 2, 0), min(max(first + around // 2, around), len(sizes))
        wanted = quota - int(sizes[:start].sum())
        if wanted + int(sizes[start:end].max()) <= LARGEST_CHOICE:
            taken[start:end] = _best_sum([int(size) for size in sizes[start:end]], wanted)
            return taken
        around //= 2
    taken[first] = int(sums[first]) - quota < quota - (int(sums[first - 1]) if first else 0)
    return taken


def _best_sum(sizes: Sequence[int], wanted: Fraction) -> list[bool]:
    """Which sizes add up closest to what is wanted, the smaller of two equally close sums, early sizes first."""
    whole = wanted.__floor__()
    within = (1 << (whole + max(sizes) + 1)) - 1
    reached = [1]  # bit n: some of the sizes so far add up to n
    for size in sizes:
        reached.append((reached[-1] | reached[-1] << size) & within)
    below = (reached[-1] & ((1 << (whole + 1)) - 1)).bit_length() - 1
    more = reached[-1] >> (whole + 1)
    above = whole + (more & -more).bit_length()
    left = above if more and above - wanted < wanted - below else below
    taken = []
    for size, without in zip(reversed(sizes), reversed(reached[:-1]), strict=True):
        taken.append(not without >> left & 1)
        left -= size * taken[-1]
    return taken[::-1]


def tokens_of(texts: Sequence[str] | pl.Series, params: MixParams, project_dir: Path) -> pl.Series:
    """The size of each text in tokens, by the tokenizer of the settings or by the rule."""
    import polars as pl

    series = texts if isinstance(texts, pl.Series) else pl.Series("text", texts, dtype=pl.String)
    if params.tokenizer is None:
        return estimated_tokens(series)
    return counted_tokens(series, project_dir / Path(params.tokenizer).expanduser())
