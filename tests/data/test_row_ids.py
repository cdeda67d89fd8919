"""The ids of rows: what they are made of, and that they stay."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from inhouse.core.rows import PARTS
from inhouse.data.reading import row_id


def ids_of(ran: Any) -> dict[tuple[str, int], str]:
    """The id of every row by its text and place in its file, wherever the row went."""
    parts = [part for part in PARTS if (ran.out / f"{part}-00000.parquet").exists()]
    rows = [row for part in parts for row in ran.rows(part)]
    return {(row["file"], row["offset"]): row["id"] for row in [*rows, *ran.dropped()]}


FOLDER = {"sources": {"name": "s", "from": "d"}, "shape": "text", "steps": [], "split": {"test": 0.2}}


def test_file_added_to_a_folder_leaves_the_other_rows_as_they_are(folder: Any) -> None:
    texts = [{"text": f"text {n % 35}"} for n in range(60)]
    folder.jsonl("d/b.jsonl", texts[:30])
    folder.jsonl("d/c.jsonl", texts[30:])
    data = {**FOLDER, "steps": ["exact_dedup"], "mix": {"s": 1, "total": 15, "by": "rows"}}
    before = folder.run(data)
    folder.jsonl("d/a.jsonl", [{"text": "another text"}])
    after = folder.run(data)
    old, new = ids_of(before), ids_of(after)
    assert len(set(new.values())) == len(new) == len(old) + 1
    assert old.items() <= new.items()
    kept = [{row["id"]: row["kept"] for row in ran.dropped() if row["kept"]} for ran in (before, after)]
    assert kept[0] and kept[0] == kept[1]
    drawn = [{row["id"] for row in ran.dropped() if row["step"] == "mix"} for ran in (before, after)]
    assert len(drawn[0] ^ drawn[1]) <= 2  # the new row may stand where another stood


def test_row_has_the_id_of_its_files_content_and_its_place(folder: Any) -> None:
    folder.jsonl("d/a.jsonl", [{"text": "one"}, {"text": "two"}, {"text": "three"}])
    alone = ids_of(folder.run({**FOLDER, "split": {"test": 0}}))
    digest = hashlib.sha256((folder.path / "d" / "a.jsonl").read_bytes()).hexdigest()
    content = hashlib.sha256(f'[["{digest}"],null]'.encode()).hexdigest()[:32]
    assert alone["a.jsonl", 2] == hashlib.sha256(f"{content}:2".encode()).hexdigest()[:16]
    folder.jsonl("d/b.jsonl", [{"text": "four"}])
    ran = folder.run({**FOLDER, "split": {"test": 0}})
    assert alone.items() <= ids_of(ran).items()
    files = pl.read_parquet(ran.out / "files.parquet")
    assert files.row(0) == ("s", "a.jsonl", content) and files.height == 2


def test_equal_files_give_rows_of_their_own(folder: Any) -> None:
    rows = [{"text": f"text {n}"} for n in range(9)]
    for name in ("d/a.jsonl", "d/b.jsonl", "e/x.jsonl", "e/y.jsonl"):
        folder.jsonl(name, rows if name != "e/y.jsonl" else [{"text": "else"}])
    folder.jsonl("single.jsonl", rows)
    alone = ids_of(folder.run({**FOLDER, "sources": "single.jsonl"}))
    sources = [{"name": "a", "from": "d"}, {"name": "b", "from": "e"}, {"name": "z", "from": "single.jsonl"}]
    found = [ids_of(folder.run({**FOLDER, "sources": order})) for order in (sources, sources[::-1])]
    assert found[0] == found[1] and len(set(found[0].values())) == 4 * 9 + 1
    assert alone.items() <= found[0].items()


def test_dropped_row_of_a_folder_is_found_by_its_place(folder: Any) -> None:
    folder.jsonl("d/a.jsonl", [{"text": "one text that is alone"}, {"text": "one text that is twice"}])
    folder.jsonl("d/b.jsonl", [{"text": "one text that is twice"}])
    ran = folder.run({**FOLDER, "steps": ["exact_dedup"], "split": {"test": 0}})
    contents = pl.read_parquet(ran.out / "files.parquet")["content"]
    ids = {f"{row_id(content, offset):016x}" for content in contents for offset in (0, 1)}
    assert ran.dropped() and {row["id"] for row in ran.dropped()} <= ids
