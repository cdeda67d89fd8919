"""Writing tables and what lies beside them: as many as it takes, from as many shards, with the same bytes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from inhouse import dataset
from inhouse.core.rows import PARTS
from inhouse.data import beside, finish, gather, stage
from inhouse.data.build import by_shard
from inhouse.data.segments import Shard

CHAT = {"sources": "a.jsonl", "split": {"test": 0.2}, "steps": [{"use": "length", "min_words": 3}]}


def chat(folder: Any, count: int) -> Any:
    folder.jsonl(
        "a.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": f"Question {n}?"},
                    {"role": "assistant", "content": "Answer. " * n},
                ]
            }
            for n in range(count)
        ],
    )
    return folder


def test_tables_from_groups_of_shards_have_the_same_bytes(
    new_folder: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "TABLE_BYTES", 9000)
    monkeypatch.setattr(stage.perform, "__defaults__", (5000,))  # bytes of a shard
    whole = chat(new_folder(), 150).run(CHAT).bytes()
    assert len([name for name in whole if name.startswith("train-")]) > 5
    for size in (1, 20_000):
        monkeypatch.setattr(gather, "GROUP_BYTES", size)
        assert chat(new_folder(), 150).run(CHAT).bytes() == whole


def test_writing_tables_reads_every_byte_once(new_folder: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "TABLE_BYTES", 9000)
    monkeypatch.setattr(stage.perform, "__defaults__", (5000,))  # bytes of a shard
    opened: Counter[Path] = Counter()
    open_, sort, write = Shard.open, gather.sort_by_table, finish.write_one
    writing = [False]

    def counted(shard: Shard) -> Any:
        if writing[0]:
            opened[shard.folder / shard.name] += 1
        return open_(shard)

    def noting(function: Any) -> Any:
        def noted(task: Any) -> Any:
            writing[0] = True
            try:
                return function(task)
            finally:
                writing[0] = False

        return noted

    read: dict[Path, list[tuple[int, int]]] = {}
    sizes: dict[Path, int] = {}
    open_stretch = gather.Stretch.open

    def read_stretch(stretch: gather.Stretch) -> Any:
        read.setdefault(stretch.path, []).append((stretch.start, stretch.end))
        sizes[stretch.path] = stretch.path.stat().st_size
        return open_stretch(stretch)

    monkeypatch.setattr(Shard, "open", counted)
    monkeypatch.setattr(gather.Stretch, "open", read_stretch)
    monkeypatch.setattr(gather, "sort_by_table", noting(sort))
    monkeypatch.setattr(finish, "write_one", noting(write))
    made = chat(new_folder(), 150).run(CHAT)
    tables = list(made.out.glob("*-0*.parquet"))
    assert len(opened) > 5 and set(opened.values()) == {1}
    assert sum(map(len, read.values())) == len(tables)
    for path, stretches in read.items():  # every byte of what was sorted once
        starts, ends = zip(*sorted(stretches), strict=True)
        assert (0, *ends) == (*starts, sizes[path])


def test_index_is_cut_into_its_shards_in_order_of_ids() -> None:
    index = pl.DataFrame(
        {"row": range(1, 9), "shard": [3, 0, 3, 5, 0, 3, 5, 5], "part": ["train"] * 7 + ["test"]},
        schema={"row": pl.UInt64, "shard": pl.UInt32, "part": pl.Enum(PARTS)},
    )
    found = {number: rows.rows() for number, rows in by_shard(index)}
    assert found == {
        0: [(2, "train"), (5, "train")],
        3: [(1, "train"), (3, "train"), (6, "train")],
        5: [(4, "train"), (7, "train"), (8, "test")],
    }
    assert list(by_shard(index.clear())) == []


@pytest.mark.parametrize("rows", [0, 1, 40, 5000])
@pytest.mark.parametrize("shards", [1, 7])
def test_figures_of_shards_are_written_in_order_as_if_they_were_one_table(
    rows: int, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "STRETCH_ROWS", 300)
    monkeypatch.setattr(dataset, "GROUP_ROWS", 128)
    ids = random.Random(rows).choices(
        [*range(90), *range((1 << 64) - 90, 1 << 64), *range(0, 1 << 64, 1 << 53)], k=rows
    )
    columns = {"row": ids, "slot": range(rows), "kind": ["a"] * rows, "spans": [[n, n + 1] for n in range(rows)]}
    kinds = {"row": pl.UInt64, "slot": pl.UInt32, "kind": pl.String, "spans": pl.List(pl.Int64)}
    whole = pl.DataFrame(columns, schema=kinds)
    # As shards have it: all of a row in one of them.
    frames = [whole.filter(pl.col("row") % shards == n) for n in range(shards)]
    schema = beside._named(whole.clear()).schema
    dataset.write_table_of(beside._by_id(frames), schema, tmp_path / "parts")
    dataset.write_table(beside._named(whole.sort("row", maintain_order=True)), tmp_path / "whole")
    assert pl.read_parquet(tmp_path / "parts").equals(pl.read_parquet(tmp_path / "whole"))
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
