"""Build a dataset: read sources into shards, take the shards through the steps, write tables of rows."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.messages import text as say
from inhouse.core.plugins import require
from inhouse.core.rows import PARTS
from inhouse.data.batch import read_frame, write_frame
from inhouse.data.operators.around import Around
from inhouse.data.parts import decide_parts
from inhouse.data.privacy import figures_of, may_quote, pii_steps
from inhouse.data.reading import COUNTED, ReadTask, read_shards, sampled_shape, stretches
from inhouse.data.records import TEXTS, WITHOUT_ROW
from inhouse.data.segments import (
    DROPPED_FROM_ROWS,
    MoreTask,
    PassTask,
    Segment,
    Shard,
    Step,
    dropped_schema,
    emit_more,
    pass_shard,
    segments,
)  # fmt: skip
from inhouse.data.settings import DataParams
from inhouse.data.shapes import Understood as Shape
from inhouse.data.source import Located, told_apart
from inhouse.data.split import SplitParams
from inhouse.data.tasks import Crew, Finished, clear_drafts, finished

if TYPE_CHECKING:
    import polars as pl

READS = "read"  # folder of what was read, below that of a build
ID = re.compile(r"[0-9a-f]{16}")
SHOWN = 3  # rejects that an error shows
COMBINED_FROM = 2**21  # emitted rows that are put together at once: some 50 MB
SMALL = 32 * 2**20  # bytes for each worker process: to start one costs what reading and cleaning 10 MB does


@dataclass(frozen=True)
class SourceRead:
    """What reading one source gave."""

    located: Located
    shape: Shape | None
    read: int
    rejected: int
    without_row: int  # rejects that stand for a file without a row
    reads: tuple[Finished, ...]


@dataclass(frozen=True)
class Site:
    """Where a build works: its folder, which survives a crash, who works, and what operators may know."""

    folder: Path
    crew: Crew
    around: Around
    shard_bytes: int


@dataclass(frozen=True)
class Built:
    """Rows that are through all steps, still in shards, with everything that was read and is not among them.

    `index`: row u64, shard u32, part, stated, parent u64; sorted by row. `dropped`: see segments.dropped_schema.
    """

    params: DataParams
    seed: int
    sources: tuple[SourceRead, ...]
    shards: tuple[Shard, ...]
    index: pl.DataFrame
    dropped: pl.DataFrame
    passes: tuple[tuple[Finished, ...], ...] = field(default=())
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)  # what a step tells of all rows, by its label
    looks: tuple[Finished, ...] = ()  # second looks of decisions
    deciding: dict[str, float] = field(default_factory=dict)  # seconds that decisions took, by the step's label

    @property
    def read(self) -> int:
        """Rows read, rejects included: kept + dropped + rejected, less rows that augmentation made."""
        return sum(source.read for source in self.sources)

    @property
    def rejected(self) -> int:
        """Rows that could not be used."""
        return sum(source.rejected for source in self.sources)

    def rejects(self) -> Iterator[str]:
        """Every row that could not be used, as JSON lines, by source and place."""
        for source in self.sources:
            for done in source.reads:
                with (done.folder / "rejects.jsonl").open(encoding="utf-8") as f:
                    yield from f


def build(params: DataParams, located: Sequence[Located], site: Site) -> Built:
    """Read the sources and run the steps; the result does not depend on workers, shards, or the order of sources.

    Raises data.* and split.* errors.
    """
    require("data", "polars", "xxhash", "numpy")
    _refuse_same_content(located)
    clear_drafts(site.folder)
    sources = tuple(_read(params, sorted(told_apart(located), key=lambda s: s.params.name), site))
    shards, index = _index(sources, split_of(params))
    import polars as pl

    built = Built(params, site.around.seed, sources, shards, index, pl.DataFrame(schema=dropped_schema()))
    stages = segments(params.steps)
    for segment in stages:
        built = through(built, segment, site, last=segment is stages[-1])
    return built


def split_of(params: DataParams) -> SplitParams:
    """The split as stated; without one 10 % are the test part, or none when a source is."""
    if params.split is not None:
        return params.split
    return SplitParams(test=0.0) if any(source.part == "test" for source in params.sources) else SplitParams()


def _read(params: DataParams, located: Sequence[Located], site: Site) -> Iterator[SourceRead]:
    tasks: list[ReadTask] = []
    group = split_of(params).group
    shapes = [sampled_shape(params.shape, source, group) for source in located]
    for source, shape in zip(located, shapes, strict=True):
        tasks += _read_tasks(params, source, shape, site, len(tasks))
    sizes = [sum(piece.bytes for piece in task.pieces) for task in tasks]
    done = list(tracked(site, read_shards, tasks, [size / 1e6 for size in sizes], "read"))
    for source, shape in zip(located, shapes, strict=True):
        name = source.params.name
        reads = tuple(r for r, task in zip(done, tasks, strict=True) if task.params.name == name)
        read, rejected, without_row = (sum(r.facts[key] for r in reads) for key in COUNTED)
        found = SourceRead(source, shape, read, rejected, without_row, reads)
        _refuse_unread(found, params.fail_above)
        yield found


def _read_tasks(params: DataParams, source: Located, shape: Shape | None, site: Site, first: int) -> Iterator[ReadTask]:
    for number, pieces in enumerate(stretches(source, site.shard_bytes), first):
        yield ReadTask(
            folder=site.folder / READS / f"{number:05d}",
            params=source.params,
            shape=shape,
            split=split_of(params),
            pieces=pieces,
            shard_bytes=site.shard_bytes,
            excerpts=not pii_steps(params.steps),
        )


def _index(sources: Sequence[SourceRead], split: SplitParams) -> tuple[tuple[Shard, ...], pl.DataFrame]:
    """Every shard in order, and every row with its shard and part."""
    import polars as pl

    reads = [done for source in sources for done in source.reads]
    shards = tuple(Shard(done.folder, shard["name"]) for done in reads for shard in done.facts["shards"])
    frames = []
    for number, shard in enumerate(shards):
        rows = read_frame(shard.folder / f"{shard.name}.rows.arrow", "row", "part", "stated", "parent")
        keys = read_frame(shard.folder / f"{shard.name}.keys.arrow")
        frames.append(rows.join(keys, on="row", maintain_order="left").with_columns(shard=pl.lit(number, pl.UInt32)))
    if not frames:
        return (), pl.DataFrame(schema=index_schema())
    index = pl.concat(frames).sort("row")
    index = index.with_columns(decide_parts(index, split).cast(pl.Enum(PARTS)).alias("part"))
    return shards, index.select(*index_schema())


def index_schema() -> dict[str, Any]:
    """Columns of `Built.index`."""
    import polars as pl

    columns = {"row": pl.UInt64, "shard": pl.UInt32, "part": pl.Enum(PARTS), "stated": pl.Boolean}
    return {**columns, "parent": pl.UInt64}


def through(built: Built, segment: Segment, site: Site, last: bool) -> Built:
    """The build after one segment; what was done before, in a build that was killed, is not done again."""
    import polars as pl

    folder = site.folder / f"steps-{segment.number}"
    tasks = []
    for number, alive in by_shard(built.index):
        path = folder / f"{number:05d}.alive.arrow"
        write_scratch(alive, path)
        tasks.append(PassTask(folder / f"{number:05d}", built.shards[number], path, segment, site.around, last))
    if not tasks:
        return built
    name = f"steps {segment.number + 1}/{len(segments(built.params.steps))}"
    done = list(tracked(site, pass_shard, tasks, [task.shard.megabytes for task in tasks], name))
    shards, frames = list(built.shards), []
    for task, result in zip(tasks, done, strict=True):
        number = int(task.folder.name)
        if result.facts["rewritten"]:
            shards[number] = Shard(result.folder, "shard")
        frames.append(read_frame(result.folder / "rows.arrow").with_columns(shard=pl.lit(number, pl.UInt32)))
    stated = built.index.select("row", "stated")
    index = pl.concat(frames).sort("row").join(stated, on="row", how="left", maintain_order="left")
    index = index.with_columns(pl.col("part").cast(pl.Enum(PARTS)), pl.col("stated").fill_null(value=True))
    dropped = pl.concat([built.dropped, *(read_frame(result.folder / "dropped.arrow") for result in done)])
    after = replace(
        built, shards=tuple(shards), index=index.select(built.index.columns), dropped=dropped,
        passes=(*built.passes, tuple(done)),
    )  # fmt: skip
    for step in segment.deciding:
        try:
            after = _decided(after, step, done, site)
        except UserError as error:
            error.facts |= _places_of(after, error.facts)
            raise
    return after


def _places_of(built: Built, facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts `first` and `other` that are ids of rows, as places that `data why` takes and a person finds."""
    import polars as pl

    named = {name: int(facts[name], 16) for name in ("first", "other") if ID.fullmatch(str(facts.get(name)))}
    rows = pl.DataFrame({"row": list(named.values()), "reason": "", "kept": 0}, schema_overrides={"row": pl.UInt64})
    found = places(built, rows.cast({"kept": pl.UInt64}).unique("row"), 0)
    at = {
        row: f"{source}/{file}:{offset}"
        for row, source, file, offset in found.select("row", "source", "file", "offset").iter_rows()
    }
    return {name: at[row] for name, row in named.items() if row in at}


def by_shard(index: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """For each shard with rows left its number, and these rows with their parts."""
    import polars as pl

    ordered = index.select("row", "shard", "part").sort("shard", maintain_order=True)
    sizes = index["shard"].value_counts().sort("shard")
    start = 0
    for number, size in sizes.iter_rows():
        yield number, ordered.slice(start, size).select("row", pl.col("part").cast(pl.String))
        start += size


def _decided(built: Built, step: Step, done: Sequence[Finished], site: Site) -> Built:
    """The build after one decision over all rows."""
    import polars as pl

    around = site.around
    site.crew.events.check()
    started, looked = time.monotonic(), 0.0
    emitted = _emitted(built, step, done).sort("row", maintain_order=True)
    decide = step.operator.function("decide")
    if "ask" in vars(step.operator.module):
        found = step.operator.function("ask")(emitted, step.params, around)
        rows, given = found if isinstance(found, tuple) else (found, None)
        before = time.monotonic()
        more, looks = _second_look(built, step, rows, given, site)
        looked = time.monotonic() - before
        built = replace(built, looks=(*built.looks, *looks))
        decided = decide(emitted, step.params, around, more)
        if "report" in vars(step.operator.module):
            told = step.operator.function("report")(emitted, step.params, around, more)
            told = told if may_quote(built.params.steps, step.place) else figures_of(told)
            built = replace(built, reports={**built.reports, step.label: told})
    else:
        decided = decide(emitted, step.params, around)
    gone = decided.filter(pl.col("reason").is_not_null())
    index = built.index.join(gone, on="row", how="anti", maintain_order="left")
    if "part" in decided.columns:
        moved = decided.filter(pl.col("part").is_not_null())
        moved = moved.select("row", pl.col("part").cast(pl.Enum(PARTS)).alias("new"))
        index = index.join(moved, on="row", how="left", maintain_order="left")
        index = index.with_columns(pl.coalesce("new", "part").alias("part")).drop("new")
    dropped = pl.concat([built.dropped, places(built, gone, step.place)])
    spent = {**built.deciding, step.label: round(time.monotonic() - started - looked, 4)}
    return replace(built, index=index, dropped=dropped, deciding=spent)


def _emitted(built: Built, step: Step, done: Sequence[Finished]) -> pl.DataFrame:
    """What a step emitted of the rows that are still in, of all shards; put together on the way where it can be."""
    import polars as pl

    frames = (read_frame(result.folder / f"{step.label}.emitted.arrow") for result in done)
    if "combine" not in vars(step.operator.module):
        return _current(pl.concat(frames), built.index)
    combine = step.operator.function("combine")
    held: list[pl.DataFrame] = []
    combined = 0  # rows that could not be put together any further
    for frame in frames:
        held.append(frame)
        if sum(frame.height for frame in held) > 2 * combined + COMBINED_FROM:
            held = [combine(pl.concat(held), step.params)]
            combined = held[0].height
    return combine(pl.concat(held), step.params)  # type: ignore[no-any-return]


def _current(emitted: pl.DataFrame, index: pl.DataFrame) -> pl.DataFrame:
    """What was emitted of rows that are still in, with the part that they have now."""
    import polars as pl

    alive = index.select("row", pl.col("part").cast(pl.String))
    if "part" not in emitted.columns:
        return emitted.join(alive.select("row"), on="row", how="semi")
    return emitted.drop("part").join(alive, on="row", how="inner").select(emitted.columns)


def _second_look(
    built: Built, step: Step, rows: pl.Series | None, given: pl.DataFrame | None, site: Site
) -> tuple[pl.DataFrame, list[Finished]]:
    """What a step says of the documents that it asked to see again (None: of all), sorted by row, and the work."""
    import polars as pl

    folder = site.folder / f"more-{step.label}"
    asked = None
    if given is not None:
        asked = folder / "given.arrow"
        write_scratch(given, asked)
    wanted = built.index
    if rows is not None:
        asked_for = pl.DataFrame({"row": rows.cast(pl.UInt64)})
        wanted = wanted.join(asked_for, on="row", how="semi", maintain_order="left")
    tasks = []
    for number, alive in by_shard(wanted):
        path = folder / f"{number:05d}.asked.arrow"
        write_scratch(alive, path)
        tasks.append(MoreTask(folder / f"{number:05d}", built.shards[number], path, step, site.around, asked))
    sizes = [task.shard.megabytes for task in tasks]
    looked = list(tracked(site, emit_more, tasks, sizes, step.operator.name))
    frames = [read_frame(result.folder / "emitted.arrow") for result in looked]
    if not frames:  # nothing was asked for: an empty batch shows which columns there are
        empty = built.shards[0].open().only(wanted.select("row", pl.col("part").cast(pl.String)))
        given_ = () if given is None else (given,)
        return step.operator.function("emit_more")(empty.docs(), step.params, site.around, *given_), []
    return pl.concat(frames).sort("row", maintain_order=True), looked


def places(built: Built, gone: pl.DataFrame, place: int) -> pl.DataFrame:
    """Dropped rows with where they came from, which only the shards know."""
    import polars as pl

    shards = built.index.join(gone.select("row"), on="row", how="semi")["shard"].unique().sort()
    frames = [pl.DataFrame(schema=dropped_schema())]
    for number in shards:
        shard = built.shards[number]
        rows = read_frame(shard.folder / f"{shard.name}.rows.arrow", "row", "source", "file", "offset")
        noted = rows.join(gone.select("row", "reason", "kept"), on="row", how="inner", maintain_order="left")
        frames.append(noted.select(*DROPPED_FROM_ROWS, step=pl.lit(place, pl.Int32), kept=pl.col("kept")))
    return pl.concat(frames)


def write_scratch(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame that a resumed build would write again with the same content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.draft")
    write_frame(frame, draft)
    draft.replace(path)


def tracked(
    site: Site, function: Callable[[Any], Finished], tasks: Sequence[Any], megabytes: Sequence[float], name: str
) -> Iterator[Finished]:
    """The results of the tasks in order, with progress in megabytes of text.

    What an earlier build had finished counts as done from the first report on, so that rates are those of this build.
    """
    there = [finished(task.folder) is not None for task in tasks]
    done, total = sum(size for size, found in zip(megabytes, there, strict=True) if found), sum(megabytes)
    if total > 0 and done < total:
        site.crew.events.progress(round(done, 1), round(total, 1), "MB", step=name)
    for result, size, found in zip(site.crew.each(function, tasks), megabytes, there, strict=True):
        done += 0.0 if found else size
        site.crew.events.progress(round(done, 1), round(total, 1), "MB", step=name)
        yield result


def _refuse_same_content(located: Sequence[Located]) -> None:
    """One content listed twice would give two rows one identity, and put the same rows on both sides of a split."""
    first: dict[str, str] = {}
    for source in located:
        other = first.setdefault(source.content, source.params.name)
        if other != source.params.name:
            raise UserError("data.same_content", first=other, second=source.params.name)


def _refuse_unread(found: SourceRead, fail_above: float) -> None:
    """Raise data.empty, or data.too_many_rejects with the first of them."""
    source = found.located.params
    rows, rejected = found.read - found.without_row, found.rejected - found.without_row
    if not rows:
        raise UserError("data.empty", source=source.name, place=source.from_)
    if rejected / rows <= fail_above:
        return
    shown: list[str] = []
    for done in found.reads:
        with (done.folder / "rejects.jsonl").open(encoding="utf-8") as f:
            lost = (line for line in f if json.loads(line)["reason"] not in WITHOUT_ROW)
            shown += [described(line) for line, _ in zip(lost, range(SHOWN - len(shown)), strict=False)]
    raise UserError(
        "data.too_many_rejects", source=source.name, rejected=rejected, read=rows,
        share=f"{rejected / rows:.1%}", allowed=f"{fail_above:.1%}",
        shown="\n".join(f"  {line}" for line in shown),
    )  # fmt: skip


def described(line: str) -> str:
    """One reject as a line for a person: where, as `data why` takes it, the line in the file, and what exactly."""
    item = json.loads(line)
    at = f"{item['source']}/{item['file']}:{item['offset']}"
    where = say("data.at_line", place=at, line=item["line"]) if item["line"] else at
    detail = f" ({item['detail']})" if item["detail"] else ""
    return f"{where}: {say(TEXTS[item['reason']])}{detail}"
