"""Arrow files, and folders as `save_to_disk` of the `datasets` library lays them out."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from inhouse.core.errors import UserError
from inhouse.core.plugins import operators
from inhouse.data.records import Record, Reject

ROWS: list[dict[str, Any]] = [
    {"text": "one", "tags": ["a", "b"], "who": {"name": "Ann", "age": None}, "n": 1},
    {"text": "第二行", "tags": [], "who": None, "n": None},
    {"text": "three", "tags": None, "who": {"name": "Bo", "age": 3}, "n": 3},
]


def stream(table: pa.Table, path: Path, batch: int | None = None, **options: Any) -> Path:
    """As `datasets.arrow_writer.ArrowWriter` writes: an IPC stream of batches."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def footed(table: pa.Table, path: Path, batch: int | None = None, **options: Any) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def read(path: Path) -> list[Record | Reject]:
    operator = operators("reader")["arrow"]
    return list(operator.function("read")(path, operator.params()))


def fields(items: list[Record | Reject]) -> list[dict[str, Any]]:
    return [item.fields for item in items if isinstance(item, Record)]


def bad(items: list[Record | Reject]) -> list[tuple[int, str]]:
    return [(item.offset, item.reason) for item in items if isinstance(item, Reject)]


def numbers(count: int) -> pa.Table:
    return pa.table({"text": [f"row {n}" for n in range(count)]})


@pytest.mark.parametrize("write", [stream, footed])
@pytest.mark.parametrize("batch", [1, 2, None])
def test_rows_of_streams_and_files_arrive_in_order_with_lists_and_nulls(
    write: Any, batch: int | None, tmp_path: Path
) -> None:
    items = read(write(pa.Table.from_pylist(ROWS), tmp_path / "a.arrow", batch))
    assert fields(items) == ROWS
    assert [item.offset for item in items] == [0, 1, 2]


@pytest.mark.parametrize("write", [stream, footed])
def test_packed_batches_and_packed_files_are_read(write: Any, tmp_path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    path = write(numbers(5000), tmp_path / "a.arrow", 700, options=options)
    assert fields(read(path)) == numbers(5000).to_pylist()
    packed = tmp_path / "b.arrow.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == read(path)


def test_cut_stream_gives_the_whole_batches_before_the_cut(tmp_path: Path) -> None:
    whole = stream(numbers(3000), tmp_path / "a.arrow", 1000).read_bytes()
    for left, rows in ((len(whole) - 8, 3000), (len(whole) - 9, 2000), (200, 0)):
        (tmp_path / "cut.arrow").write_bytes(whole[:left])
        items = read(tmp_path / "cut.arrow")
        assert fields(items) == numbers(3000).to_pylist()[:rows]
        assert [offset for offset, _ in bad(items)] == [rows], left


def test_file_without_its_footer_is_one_reject_and_so_is_what_is_no_arrow(tmp_path: Path) -> None:
    whole = footed(numbers(10), tmp_path / "a.arrow").read_bytes()
    for content, reason in ((whole[:-20], "truncated"), (b"no arrow at all", "damaged"), (b"ARROW1", "damaged")):
        (tmp_path / "bad.arrow").write_bytes(content)
        assert bad(read(tmp_path / "bad.arrow")) == [(0, reason)]
        assert fields(read(tmp_path / "bad.arrow")) == []
    assert bad(read(tmp_path / "missing.arrow")) == [(0, "unreadable")]


def test_row_that_is_no_text_is_lost_alone(tmp_path: Path) -> None:
    raw = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary())
    text = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    items = read(stream(pa.table({"text": text}), tmp_path / "a.arrow"))
    assert (fields(items), bad(items)) == ([{"text": "one"}, {"text": "three"}], [(1, "damaged")])


def test_offsets_beyond_the_text_are_not_believed(tmp_path: Path) -> None:
    path = stream(pa.table({"text": ["marked text", "b"]}), tmp_path / "a.arrow")
    content = path.read_bytes()
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 11, 12))
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, offsets[:8] + (1 << 30).to_bytes(4, "little")))
    assert bad(read(path)) == [(1, "damaged")]


def test_columns_of_one_name_and_rows_without_bytes_are_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    assert bad(read(stream(twice, tmp_path / "a.arrow"))) == [(0, "bad_header")]
    nothing = pa.table({"text": pa.nulls(1 << 30)})
    assert bad(read(stream(nothing, tmp_path / "b.arrow"))) == [(0, "damaged")]


def test_large_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    text = "x" * 1000
    path = tmp_path / "a.arrow"
    schema = pa.schema({"text": pa.string()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for _ in range(40):
            writer.write_batch(pa.record_batch({"text": [text] * 1000}))
    before = pa.total_allocated_bytes()
    operator = operators("reader")["arrow"]
    tracemalloc.start()
    count = most = 0
    for _ in operator.function("read")(path, operator.params()):
        count += 1
        most = max(most, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000 and path.stat().st_size > 40e6
    assert most + peak < 8e6


def saved(folder: Path, rows: list[dict[str, Any]], shards: int = 1, **state: Any) -> Path:
    """A folder as `Dataset.save_to_disk` leaves it, and caches as `map` leaves them beside it."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{shards:05d}.arrow" for n in range(shards)]
    for n, name in enumerate(names):
        stream(pa.Table.from_pylist(rows[n::shards]), folder / name)
    stream(pa.table({"prompt": ["cached"], "completion": ["cached"]}), folder / "cache-0123456789abcdef.arrow")
    said = {
        "_data_files": [{"filename": name} for name in names], "_fingerprint": "0a1b", "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": "train",
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps({**said, **state}), encoding="utf-8")
    info = {"builder_name": "json", "features": {}, "license": "", "splits": {}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


PAIRS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(40)]


def test_saved_dataset_is_read_without_its_caches(folder: Any) -> None:
    saved(folder.path / "sets" / "mine", PAIRS, shards=2)
    for place in ("sets/mine", "sets"):  # also from the folder above
        ran = folder.run({"sources": place, "split": {"test": 0.2}})
        assert ran.facts["read"] == 40 and ran.lines("rejected.jsonl") == []
        assert "data.passed_over" not in ran.notes


def test_saved_splits_are_named_and_each_is_read_by_its_folder(folder: Any) -> None:
    dataset = folder.path / "mine"
    saved(dataset / "train", PAIRS[:30])
    saved(dataset / "test", PAIRS[30:], _split="test")
    (dataset / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    with pytest.raises(UserError) as error:
        folder.run({"sources": "mine"})
    assert error.value.code == "data.saved_splits"
    assert error.value.facts["splits"] == "train, test"
    assert error.value.facts["example"].endswith("mine/train")
    assert "data.sources[].from" in str(error.value) and "data.sources[].part" in str(error.value)
    sources = [{"from": f"mine/{name}", "part": name} for name in ("train", "test")]
    ran = folder.run({"sources": sources})
    assert ran.facts["rows"] == {"train": 30, "valid": 0, "test": 10}


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"_data_files": [{"filename": "data-00007-of-00009.arrow"}]}, "data-00007-of-00009.arrow"),
        ({"_data_files": [{"filename": "../other.arrow"}]}, "../other.arrow"),
        ({"_data_files": ["data.arrow"]}, "_data_files"),
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "_indices_data_files"),
    ],
)
def test_saved_dataset_whose_rows_are_not_all_there_is_refused(folder: Any, state: Any, problem: str) -> None:
    stream(pa.Table.from_pylist(PAIRS), folder.path / "other.arrow")
    saved(folder.path / "mine", PAIRS, **state)
    with pytest.raises(UserError) as error:
        folder.run({"sources": "mine"})
    assert (error.value.code, error.value.facts["problem"]) == ("data.saved_damaged", problem)


def test_state_that_is_no_json_is_refused_and_other_folders_have_files_of_that_name(folder: Any) -> None:
    saved(folder.path / "mine", PAIRS)
    folder.write("mine/state.json", "{")
    with pytest.raises(UserError) as error:
        folder.run({"sources": "mine"})
    assert error.value.code == "data.saved_damaged" and "state.json" in error.value.facts["problem"]
    folder.write("other/state.json", json.dumps(PAIRS))
    folder.write("other/dataset_info.json", "{}")
    assert folder.run({"sources": "other", "split": {"test": 0.2}}).facts["read"] == 40
