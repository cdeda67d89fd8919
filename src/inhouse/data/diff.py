"""Compare two versions of a dataset: sources, settings, and what became of every row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.plugins import require
from inhouse.core.rows import PARTS
from inhouse.data.beside import DROPPED
from inhouse.data.reasons import reason_text
from inhouse.data.versions import Version
from inhouse.data.why import rejects
from inhouse.dataset import part_files

if TYPE_CHECKING:
    import polars as pl

PLACE = ["source", "file", "offset"]
PAIRED = ("id", "digest", "label", "part", *PLACE)


class SourceChange(Frozen):
    """One source that is not the same in both."""

    name: str
    change: Literal["added", "removed", "content"]
    rows: tuple[int, int] = Field(description="rows read from it in the first and in the second")


class SettingChange(Frozen):
    """One setting that differs; null where only the other dataset has it."""

    setting: str
    first: Any = None
    second: Any = None


class Ids(Frozen):
    """Rows by id: how many, and which."""

    count: int
    ids: tuple[str, ...]


class Gone(Ids):
    """Rows of one version that the other does not have, for one reason.

    `fate`: dropped (by `step`, because of `reason`), rejected, source_removed, not_made (by
    augmentation), or not_read: the source's content differs, and the row's place in it holds something else or nothing.
    """

    fate: Literal["dropped", "rejected", "source_removed", "not_made", "not_read"]
    step: str | None = None
    reason: str | None = None
    told: str | None = Field(None, description="the reason in words")


class Moved(Ids):
    """Rows that stand in another part."""

    first: str
    second: str


class Difference(Frozen):
    """What changed from the first version to the second. Ids of rows that both have are those in the second."""

    first: str
    second: str
    sources: tuple[SourceChange, ...]
    settings: tuple[SettingChange, ...]
    rows: dict[str, tuple[int, int]]
    same: int = Field(description="rows with the same text, label and part in both")
    renumbered: int = Field(description="rows with the same text whose id changed, as their source's content did")
    only_first: tuple[Gone, ...]
    only_second: tuple[Gone, ...] = Field(description="`fate` is what became of them in the first version")
    text_changed: Ids
    label_changed: Ids
    moved: tuple[Moved, ...]

    def sampled(self, count: int) -> Difference:
        """The same with at most `count` ids for each entry."""
        short = {
            name: tuple(_cut(e, count) for e in getattr(self, name)) for name in ("only_first", "only_second", "moved")
        }
        ids = {name: _cut(getattr(self, name), count) for name in ("text_changed", "label_changed")}
        return self.model_copy(update=short | ids)


def _cut(entry: Ids, count: int) -> Ids:
    return entry.model_copy(update={"ids": entry.ids[:count]})


def compare(first: Version, second: Version) -> Difference:
    """The difference of two versions. Held in memory: ids, places and hashes of rows, never their texts.

    Rows are matched by id; in files whose content changed, where every id is another, then by their text, then by
    their place. Repeats that a mix made do not count.
    """
    require("data", "polars")
    import polars as pl

    before, after = first.facts, second.facts
    one, two = _rows(first.folder), _rows(second.folder)
    matched, one, two = _matched(one, two)
    same_text = matched["digest"] == matched["digest_2"]
    same_label = matched["label"].eq_missing(matched["label_2"])
    same_part = matched["part"] == matched["part_2"]
    return Difference(
        first=first.name,
        second=second.name,
        sources=tuple(_sources(before, after)),
        settings=tuple(_settings(first.record.params, second.record.params, (before["seed"], after["seed"]))),
        rows={part: (before["rows"].get(part, 0), after["rows"].get(part, 0)) for part in PARTS},
        same=int((same_text & same_label & same_part).sum()),
        renumbered=int((matched["id"] != matched["id_2"]).sum()),
        only_first=tuple(_gone(one, second)),
        only_second=tuple(_gone(two, first)),
        text_changed=_ids(matched.filter(~same_text)["id_2"]),
        label_changed=_ids(matched.filter(~same_label)["id_2"]),
        moved=tuple(
            Moved(first=old, second=new, count=len(rows), ids=tuple(sorted(rows)))
            for old, new, rows in matched.filter(~same_part).group_by("part", "part_2").agg(pl.col("id_2"))
            .sort("part", "part_2").iter_rows()
        ),
    )  # fmt: skip


def _ids(rows: pl.Series) -> Ids:
    return Ids(count=len(rows), ids=tuple(sorted(rows.to_list())))


def _rows(folder: Path) -> pl.DataFrame:
    """id, source, file, offset, label, part and a hash of the text of every row, one table at a time."""
    import polars as pl

    frames = []
    for part in PARTS:
        for path in part_files(folder, part):
            scan = pl.scan_parquet(path).filter(~pl.col("id").str.contains("#", literal=True))
            columns = scan.collect_schema()
            label = pl.col("label").hash() if "label" in columns else pl.lit(None, pl.UInt64)
            parent = pl.col("parent") if "parent" in columns else pl.lit(None, pl.String)
            told = {"label": label, "parent": parent, "part": pl.lit(part), "digest": _digest(columns)}
            frames.append(scan.select("id", *PLACE, **told).collect())
    return pl.concat(frames)


def _digest(columns: Any) -> pl.Expr:
    """A hash of a row's texts that is the same for all rows of this process: polars' hash is not for keeping."""
    import polars as pl

    if "text" in columns:
        return pl.col("text").hash()
    said = [_said(columns, name) for name in ("messages", "rejected") if name in columns]
    held = [pl.col(name).cast(pl.String) for name in ("tools", "desirable") if name in columns]
    # Nulls ignored: a row without them has the same digest where no row of the dataset has them.
    return pl.concat_str([*said, *held], separator="\x02", ignore_nulls=True).hash()


def _said(columns: Any, name: str) -> pl.Expr:
    import polars as pl

    fields = [field.name for field in columns[name].inner.fields]
    turn = pl.concat_str([pl.element().struct.field(field).fill_null("") for field in fields], separator="\x00")
    return pl.col(name).list.eval(turn).list.join("\x01")


def _matched(one: pl.DataFrame, two: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Pairs of rows that are the same row, and the rows of each that are left.

    A column `there` of those left says at which offset of the other's file a row would stand: that of the pair before
    it is moved on, so that a line more at the top does not make all others strangers.
    """
    import polars as pl

    pairs: list[pl.DataFrame] = []
    for keys in (["id"], ["source", "digest", "turn"], ["source", "file", "there", "turn"]):
        if "there" in keys:
            known = pl.concat(pairs)
            one = _placed(one, known, "", "_2")
            two = two.with_columns(there=pl.col("offset"))
        left, right = (_turns(frame, keys) for frame in (one, two))
        found = left.join(right.rename({c: f"{c}_2" for c in two.columns if c not in keys}), on=keys)
        found = found.with_columns(**{f"{c}_2": pl.col(c) for c in keys if c in PAIRED})
        pairs.append(found.select(*(c for name in PAIRED for c in (name, f"{name}_2"))))
        one = one.join(found.select("id"), on="id", how="anti")
        two = two.join(found.select(id="id_2"), on="id", how="anti")
    known = pl.concat(pairs)
    return known, one, _placed(two.drop("there"), known, "_2", "")


def _placed(rows: pl.DataFrame, pairs: pl.DataFrame, here: str, there: str) -> pl.DataFrame:
    """Rows with the offset `there` that they would have in the other dataset's file."""
    import polars as pl

    moved = pl.col(f"offset{there}") - pl.col(f"offset{here}")
    shifts = pairs.select(
        pl.col(f"source{here}").alias("source"), pl.col(f"file{here}").alias("file"),
        pl.col(f"offset{here}").alias("offset"), moved.alias("moved"),
    )  # fmt: skip
    order = ["source", "file", "offset"]
    found = rows.sort(order).join_asof(
        shifts.sort(order), on="offset", by=["source", "file"], strategy="backward", check_sortedness=False
    )
    return found.with_columns(there=pl.col("offset") + pl.col("moved").fill_null(0)).drop("moved")


def _turns(frame: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Rows numbered among those with equal keys, in the order of their place, so that equal texts pair one to one."""
    import polars as pl

    if "turn" not in keys:
        return frame
    among = [key for key in keys if key != "turn"]
    return frame.sort(*PLACE, "id").with_columns(turn=pl.int_range(pl.len()).over(among))


def _gone(rows: pl.DataFrame, other: Version) -> Iterator[Gone]:
    """Rows that the other version does not have, by what became of them there."""
    import polars as pl

    if rows.is_empty():
        return
    facts = other.facts
    dropped = pl.read_parquet(other.folder / DROPPED).select("id", *PLACE, "step", "reason")
    there = {"source": "source", "file": "file", "offset": "there"}
    places = dropped.unique(PLACE, keep="first", maintain_order=True).select(
        *(pl.col(name).alias(new) for name, new in there.items()), step_there="step", reason_there="reason"
    )
    found = rows.join(dropped.select("id", "step", "reason"), on="id", how="left")
    for known in (places, _rejected(other).rename({"offset": "there"})):
        found = found.join(known, on=list(there.values()), how="left")
    # a row made by augmentation stands at its parent's place, whose fate is not its own
    own = pl.col("parent").is_null()
    names = [source["name"] for source in facts["sources"]]
    fate = (
        pl.when(pl.col("step").is_not_null() | (own & pl.col("step_there").is_not_null())).then(pl.lit("dropped"))
        .when(own & pl.col("rejected").is_not_null()).then(pl.lit("rejected"))
        .when(~pl.col("source").is_in(names)).then(pl.lit("source_removed"))
        .when(~own).then(pl.lit("not_made"))
        .otherwise(pl.lit("not_read"))
    )  # fmt: skip
    found = found.with_columns(fate=fate).with_columns(
        step=pl.when(pl.col("fate") == "dropped").then(pl.coalesce("step", "step_there")),
        reason=pl.when(pl.col("fate") == "dropped").then(pl.coalesce("reason", "reason_there"))
        .when(pl.col("fate") == "rejected").then("rejected"),
    )  # fmt: skip
    groups = found.group_by("fate", "step", "reason").agg("id").sort("fate", "step", "reason")
    for what, step, reason, ids in groups.iter_rows():
        told = None if reason is None else reason_text(reason)
        yield Gone(fate=what, step=step, reason=reason, told=told, count=len(ids), ids=tuple(sorted(ids)))


def _rejected(version: Version) -> pl.DataFrame:
    import polars as pl

    found = [(item["source"], item["file"], item["offset"], item["reason"]) for item in rejects(version.folder)]
    schema = {"source": pl.String, "file": pl.String, "offset": pl.Int64, "rejected": pl.String}
    return pl.DataFrame(found, schema=schema, orient="row").unique(PLACE, keep="first", maintain_order=True)


def _sources(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[SourceChange]:
    one, two = ({s["name"]: s for s in facts["sources"]} for facts in (before, after))
    for name in sorted({*one, *two}):
        old, new = one.get(name), two.get(name)
        rows = (old["read"] if old else 0, new["read"] if new else 0)
        if old is None or new is None:
            yield SourceChange(name=name, change="added" if old is None else "removed", rows=rows)
        elif old["content"] != new["content"]:
            yield SourceChange(name=name, change="content", rows=rows)


def _settings(one: Mapping[str, Any], two: Mapping[str, Any], seeds: tuple[int, int]) -> Iterator[SettingChange]:
    """Settings that differ, with steps matched by what they are and not by their place."""
    old = {"seed": seeds[0], **{k: v for k, v in one.items() if k not in ("steps", "sources")}}
    new = {"seed": seeds[1], **{k: v for k, v in two.items() if k not in ("steps", "sources")}}
    yield from _differing("", old, new)
    old, new = ({s["name"]: s for s in params["sources"]} for params in (one, two))
    for name in sorted(old.keys() & new.keys()):
        yield from _differing(f"sources.{name}", old[name], new[name])
    yield from _steps(one["steps"], two["steps"])


def _differing(path: str, old: Any, new: Any) -> Iterator[SettingChange]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _differing(f"{path}.{key}" if path else key, old.get(key), new.get(key))
    elif old != new:
        yield SettingChange(setting=path, first=old, second=new)


def _steps(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Iterator[SettingChange]:
    before, after = ([str(step["use"]) for step in steps] for steps in (old, new))
    for kind, i, i_end, j, j_end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            for place in range(j_end - j):
                yield from _differing(f"{j + place + 1:02d}-{after[j + place]}", old[i + place], new[j + place])
            continue
        for place, step in enumerate(old[i:i_end], i + 1):
            yield SettingChange(setting=f"{place:02d}-{step['use']}", first=dict(step))
        for place, step in enumerate(new[j:j_end], j + 1):
            yield SettingChange(setting=f"{place:02d}-{step['use']}", second=dict(step))
