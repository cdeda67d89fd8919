"""Write the rows that are left as tables, part by part, each table a stretch of ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.rows import PARTS, Part
from inhouse.data.batch import Batch, drafts_of, read_frame, write_frame
from inhouse.data.build import Built, Site, tracked, write_scratch
from inhouse.data.gather import Stretch, gathered, stretches_of
from inhouse.data.lexicons.gender import balance
from inhouse.data.privacy import pii_steps
from inhouse.data.segments import Shard
from inhouse.data.shapes import Understood as Shape
from inhouse.data.shapes import finish, finish_worse
from inhouse.data.shapes.document import TextShape
from inhouse.data.tasks import Finished, finished, publish
from inhouse.dataset import EXTRA, extra_columns, messages_column, write_table

if TYPE_CHECKING:
    import polars as pl

TABLE_BYTES = 32 * 2**20  # text of one table


@dataclass(frozen=True)
class Form:
    """What the columns of a dataset's tables are: the same for all of them."""

    shapes: Mapping[str, Shape]  # by source
    documents: bool  # every source is plain text: a column text instead of messages
    labels: bool
    tools: bool
    weights: bool  # whether a turn is not learned
    extra: tuple[str, ...]  # of the columns that only some datasets have
    children: bool
    gender: bool  # whether words for men and women are counted, before and after augmentation


@dataclass(frozen=True)
class TableTask:
    """One table to write: the rows that the file `rows` names (row, copies), which lie in these stretches."""

    folder: Path
    part: Part
    number: int
    rows: Path
    stretches: tuple[Stretch | Shard, ...]
    form: Form

    @property
    def name(self) -> str:
        """The table's file name."""
        return f"{self.part}-{self.number:05d}.parquet"


def write_tables(built: Built, copies: pl.DataFrame | None, site: Site) -> list[Finished]:
    """Write the tables of every part below the site's folder; results name their table, its rows and statistics.

    `copies` (row, copies u32) says how often a row of the training part is written; None: once.
    """
    import polars as pl

    form = form_of(built)
    index = built.index.select("row", "shard", "part")
    if copies is None:
        index = index.with_columns(copies=pl.lit(1, pl.UInt32))
    else:
        index = index.join(copies, on="row", how="left", maintain_order="left")
        index = index.with_columns(pl.col("copies").fill_null(1))
    cuts = list(_cuts(built, index))
    if not cuts:
        return []
    placed = [rows.select("row", "shard", table=pl.lit(n, pl.UInt32)) for n, (_, _, rows) in enumerate(cuts)]
    size = sum(shard.megabytes for shard in built.shards)
    if size * 1e6 <= TABLE_BYTES:  # all shards together are no more than a table: each looks through them itself
        found: Mapping[int, Sequence[Stretch | Shard]] = {n: built.shards for n in range(len(cuts))}
    else:
        found = stretches_of(built.shards, pl.concat(placed), site)
    tasks = []
    for n, (part, number, rows) in enumerate(cuts):
        folder = site.folder / "tables" / f"{part}-{number:05d}"
        write_scratch(rows.select("row", "copies"), folder.with_suffix(".rows.arrow"))
        tasks.append(TableTask(folder, part, number, folder.with_suffix(".rows.arrow"), tuple(found[n]), form))
    return list(tracked(site, write_one, tasks, [size / len(tasks)] * len(tasks), "write"))


def form_of(built: Built) -> Form:
    """The columns that this dataset needs."""
    shapes = {source.located.params.name: source.shape for source in built.sources if source.shape is not None}
    used = built.index["shard"].unique().sort().to_list()
    frames = (
        read_frame(built.shards[n].folder / f"{built.shards[n].name}.rows.arrow", "label", "turns", "extra")
        for n in used
    )
    # Whether each column has a value, and which names stand in the JSON of `extra` and of `turns`.
    found = [(frame.null_count() < frame.height, _named(frame["extra"]), _fields(frame["turns"])) for frame in frames]
    return Form(
        shapes=shapes,
        documents=all(isinstance(shape, TextShape) for shape in shapes.values()),
        labels=any(has["label"].item() for has, _, _ in found),
        tools=any("tool_call" in fields for _, _, fields in found),
        weights=any("weight" in fields for _, _, fields in found),
        extra=tuple(name for name in EXTRA if any(name in named for _, named, _ in found)),
        children=built.index["parent"].null_count() < built.index.height,
        gender=any(step.use == "counterfactual" for step in built.params.steps),  # type: ignore[attr-defined]
    )


def _fields(turns: pl.Series) -> set[str]:
    return {name for name in ("tool_call", "weight") if turns.str.contains(f'"{name}', literal=True).any()}


def _named(extra: pl.Series) -> set[str]:
    held = extra.drop_nulls()
    return {name for name in EXTRA if held.str.json_path_match(f"$.{name}").is_not_null().any()} if len(held) else set()


def _cuts(built: Built, index: pl.DataFrame) -> Iterator[tuple[Part, int, pl.DataFrame]]:
    """Every table with its number in its part, and its rows: a stretch of ids."""
    import polars as pl

    size = sum(result.facts["bytes"] for result in built.passes[-1]) if built.passes else 0
    for part in PARTS:
        rows = index.filter(pl.col("part") == part).drop("part")
        count = max(1, ceil(size * rows.height / max(index.height, 1) / TABLE_BYTES))
        height = ceil(rows.height / count)
        for number in range(count if rows.height else 0):
            yield part, number, rows.slice(number * height, height)


def write_one(task: TableTask) -> Finished:
    """Write one table, and beside it the length and a hash of every row's text."""
    import polars as pl

    if done := finished(task.folder):
        return done
    with publish(task.folder) as (out, result):
        wanted = read_frame(task.rows)
        batch, copies = gathered(task.stretches, wanted.select("row")), wanted["copies"]
        write_table(_table(batch, copies, task.form), out / task.name)
        write_frame(measured(batch), out / "measured.arrow")
        result.update(part=task.part, name=task.name, rows=int(copies.sum()))
        if task.form.gender:
            docs = batch.docs()
            original = docs.filter(pl.col("parent").is_null())
            result["gender"] = {"before": balance(original).to_dicts(), "after": balance(docs).to_dicts()}
    return finished(task.folder)  # type: ignore[return-value]


def _table(batch: Batch, copies: pl.Series, form: Form) -> pl.DataFrame:
    """The columns of inhouse.dataset."""
    import polars as pl

    columns: dict[str, pl.Series] = {"id": hexadecimal(batch.rows["row"])}
    if form.documents:
        columns["text"] = batch.pieces["text"]
    else:
        shapes = [form.shapes[name] for name in batch.rows["source"]]
        drafts = list(drafts_of(batch))
        turns = [finish(draft, said, shape) for (draft, said), shape in zip(drafts, shapes, strict=True)]
        columns["messages"] = messages_column(turns, tools=form.tools, weights=form.weights)
        if form.extra:
            held = [(draft.tools, finish_worse(draft, said), draft.desirable) for draft, said in drafts]
            columns |= extra_columns(held, among=form.extra)
    if form.labels:
        columns["label"] = batch.rows["label"]
    columns |= {name: batch.rows[name] for name in ("source", "file", "offset")}
    if form.children:
        columns["parent"] = hexadecimal(batch.rows["parent"])
    table = pl.DataFrame(columns)
    return table if copies.max() == 1 else _repeated(table, copies)


def _repeated(table: pl.DataFrame, copies: pl.Series) -> pl.DataFrame:
    """Rows as often as asked, the second and later ones with '#2', '#3' … behind their id."""
    import polars as pl

    table = table.with_columns(turn=pl.int_ranges(1, copies.cast(pl.Int64) + 1, eager=True)).explode("turn")
    marked = pl.when(pl.col("turn") > 1).then(pl.format("{}#{}", "id", "turn")).otherwise("id")
    return table.with_columns(marked.alias("id")).drop("turn")


def hexadecimal(rows: pl.Series) -> pl.Series:
    """Row numbers as ids: 16 hex digits."""
    import polars as pl

    return pl.Series(rows.name, [None if row is None else f"{row:016x}" for row in rows.to_list()], dtype=pl.String)


def measured(batch: Batch) -> pl.DataFrame:
    """Words (between white space), characters and a 64-bit hash of every row's text, without the prompt."""
    import polars as pl
    import xxhash

    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.space import count_words

    texts = batch.docs()["text"]
    data, offsets = flat(texts)
    raw = memoryview(data)  # type: ignore[arg-type]
    digests = [xxhash.xxh3_64_intdigest(raw[start:end]) for start, end in pairwise(offsets.tolist())]
    return batch.rows.select("row", "source", "label").with_columns(
        words=pl.Series(count_words(data, offsets), dtype=pl.UInt32),
        chars=texts.str.len_chars(),
        digest=pl.Series(digests, dtype=pl.UInt64),
    )


def sampled_texts(built: Built, rows: Sequence[int], chars: int) -> list[str]:
    """The beginnings of some rows' texts."""
    import polars as pl

    wanted = built.index.filter(pl.col("row").is_in(list(rows)))
    texts: list[str] = []  # of Python: a slice of a column keeps the whole column in memory
    for number in wanted["shard"].unique().sort():
        batch = built.shards[number].open().only(wanted.filter(pl.col("shard") == number).select("row"))
        texts += batch.docs()["text"].str.slice(0, chars).to_list()
    return texts


def first_texts(built: Built, rows: Sequence[int], chars: int) -> dict[int, str]:
    """How some rows began when they were read; '' for all when a step takes personal data out."""
    import polars as pl

    if pii_steps(built.params.steps):
        return dict.fromkeys(rows, "")
    wanted = pl.DataFrame({"row": pl.Series(sorted(set(rows)), dtype=pl.UInt64)})
    found: dict[int, str] = {}
    for source in built.sources:
        for done in source.reads:
            for shard in done.facts["shards"]:
                docs = Shard(done.folder, shard["name"]).open().only(wanted).docs()
                found |= dict(docs.select("row", pl.col("text").str.slice(0, chars)).iter_rows())
    return found


def test_texts_in_train(done: Sequence[Finished]) -> int:
    """Rows of the training part whose whole text also stands in the test part."""
    import polars as pl

    frames: dict[Any, list[pl.DataFrame]] = {part: [] for part in PARTS}
    for result in done:
        frames[result.facts["part"]].append(read_frame(result.folder / "measured.arrow", "digest"))
    if not frames["test"] or not frames["train"]:
        return 0
    return pl.concat(frames["train"]).join(pl.concat(frames["test"]), on="digest", how="semi").height
