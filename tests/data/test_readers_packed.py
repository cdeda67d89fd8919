"""Under the readers: packed files, encodings, spans of a file, and zip archives."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import stat
import tracemalloc
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_files import bomb, docx, gzip_bomb, pages, pdf, zipped

from inhouse.core.errors import UserError
from inhouse.core.plugins import operators
from inhouse.data import records
from inhouse.data.readers.bytes import chunks, ending, lines, whole
from inhouse.data.readers.encoding import detect
from inhouse.data.records import Damaged, Record, Reject, Span
from inhouse.data.source import reader_for, reader_of

ROWS = [{"text": f"row {n} 中文"} for n in range(2000)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def read(path: Path, use: str, **params: Any) -> list[Record | Reject]:
    operator = operators("reader")[use]
    return list(operator.function("read")(path, operator.params(**params)))


def read_any(path: Path) -> list[Record | Reject]:
    reader = reader_for(path)
    return list(operators("reader")[reader.use].function("read")(path, reader))  # type: ignore[attr-defined]


def fields(items: list[Record | Reject]) -> list[dict[str, Any]]:
    return [item.fields for item in items if isinstance(item, Record)]


def bad(items: list[Record | Reject]) -> list[tuple[int, str]]:
    return [(item.offset, item.reason) for item in items if isinstance(item, Reject)]


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


PACK = {".gz": gzip.compress, ".zst": zstd.compress}


# packed files


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("times", [1, 2])
def test_packed_file_reads_like_the_file(suffix: str, times: int, tmp_path: Path) -> None:
    packed = PACK[suffix](JSONL) * times  # several members or frames are one file
    path = written(tmp_path, f"a.jsonl{suffix}", packed)
    assert fields(read_any(path)) == ROWS * times


def _formats() -> dict[str, bytes]:
    parquet = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(parquet)
    return {
        "a.csv": b"text,label\nx,1\n",
        "a.tsv": b"text\tlabel\nx\t1\n",
        "a.json": b'[{"text": "x"}]',
        "b.json": b'{"text": "x"}\n{"text": "y"}',
        "a.txt": b"hello",
        "a.html": pages()["news"].html.encode(),
        "a.pdf": pdf([["hello"]]),
        "a.docx": docx(["hello"]),
        "a.log": b"one\ntwo\n",
        "a.parquet": parquet.getvalue(),
    }


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", _formats())
def test_reader_of_any_format_reads_packed_files(name: str, suffix: str, tmp_path: Path) -> None:
    content = _formats()[name]
    plain = fields(read_any(written(tmp_path, name, content)))
    packed = fields(read_any(written(tmp_path, name + suffix, PACK[suffix](content))))
    assert plain
    assert [f | {"file": ""} for f in packed] == [f | {"file": ""} for f in plain]


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("left", [0.9, 0.5, 0.2])
def test_packed_file_cut_short_gives_whole_rows_and_one_reject(suffix: str, left: float, tmp_path: Path) -> None:
    rows = [{"text": str(n * 7919 % 10007), "n": n} for n in range(30_000)]
    packed = PACK[suffix]("".join(json.dumps(row) + "\n" for row in rows).encode())
    items = read(written(tmp_path, f"a.jsonl{suffix}", packed[: int(len(packed) * left)]), "jsonl")
    found = fields(items)
    assert found == rows[: len(found)]
    assert len(found) > 0.5 * left * len(rows)
    assert bad(items) == [(len(found), "truncated")]


@pytest.mark.parametrize("use", ["csv", "text", "log"])
def test_packed_lines_cut_short_give_whole_rows_and_one_reject(use: str, tmp_path: Path) -> None:
    rows = [f"row {n * 7919 % 10007} {n}" for n in range(3000)]
    packed = gzip.compress("\n".join(["text", *rows, ""]).encode())
    params = {"text": {"per": "line"}, "log": {"pattern": "(?P<text>.*)"}, "csv": {}}[use]
    items = read(written(tmp_path, "a.gz", packed[: len(packed) // 2]), use, **params)
    found = [f["text"] for f in fields(items)]
    expected = rows if use == "csv" else ["text", *rows]
    assert found == expected[: len(found)]
    assert len(found) > 700
    assert bad(items) == [(len(found), "truncated")]


@pytest.mark.parametrize("suffix", PACK)
def test_packed_file_cut_at_any_byte_never_raises(suffix: str, tmp_path: Path) -> None:
    packed = PACK[suffix](b'{"a": 1}\n{"a": 2}\n')
    for size in range(1, len(packed)):
        items = read(written(tmp_path, f"a.jsonl{suffix}", packed[:size]), "jsonl")
        assert [reason for _, reason in bad(items)] == ["truncated"]


@pytest.mark.parametrize("suffix", PACK)
def test_packed_file_with_flipped_bytes_is_one_reject(suffix: str, tmp_path: Path) -> None:
    packed = bytearray(PACK[suffix](JSONL))
    packed[len(packed) // 2] ^= 0xFF
    packed[len(packed) // 2 + 3] ^= 0xFF
    items = read(written(tmp_path, f"a.jsonl{suffix}", bytes(packed)), "jsonl")
    assert bad(items)[-1][1] in ("damaged", "truncated", "broken_json", "invalid_encoding")
    assert read(written(tmp_path, f"b.jsonl{suffix}", b"no archive at all"), "jsonl")[0].reason == "damaged"  # type: ignore[union-attr]


def test_packed_bomb_is_stopped(tmp_path: Path) -> None:
    for name, content in (("a.txt.gz", gzip_bomb()), ("a.txt.zst", zstd.compress(bytes(70 << 20)))):
        assert bad(read_any(written(tmp_path, name, content))) == [(0, "zip_bomb")]


def test_ending_looks_through_packing() -> None:
    names = {"a.jsonl": ".jsonl", "b.v1.JSONL.GZ": ".jsonl", "c.warc.zst": ".warc", "d.gz": "", "e": ""}
    assert {name: ending(Path(name)) for name in names} == names


def test_file_that_cannot_be_opened_is_one_reject(tmp_path: Path) -> None:
    for use in (
        "jsonl",
        "csv",
        "text",
        "json",
        "html",
        "pdf",
        "docx",
        "excel",
        "warc",
        "zip",
        "log",
        "parquet",
        "arrow",
    ):
        items = read(tmp_path / "missing", use)
        assert bad(items) == [(0, "unreadable")], use


def test_document_larger_than_allowed_is_one_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inhouse.data.readers.bytes.MAX_FILE_BYTES", 1000)
    path = written(tmp_path, "a.txt", b"x" * 2000)
    assert bad(read(path, "text")) == [(0, "file_too_large")]
    with pytest.raises(Damaged):
        whole(path)


# lines


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=8), st.integers(1, 9), st.integers(1, 10))
def test_lines_do_not_depend_on_how_the_bytes_arrive(parts: list[bytes], longest: int, first: int) -> None:
    content = b"".join(parts)
    expected = content.split(b"\n")
    if not expected[-1]:
        expected.pop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "MAX_LINE_BYTES", longest)
        found = list(lines(iter(parts), first))
    assert found == [(n, line if len(line) <= longest else None) for n, line in enumerate(expected, first)]


def test_line_of_64_megabytes_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as f:
        f.write(b'{"text": "one"}\n{"text": "')
        for _ in range(64):
            f.write(b"x" * (1 << 20))
        f.write(b'"}\n{"text": "two"}\n')
    tracemalloc.start()
    try:
        items = read(path, "jsonl")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fields(items) == [{"text": "one"}, {"text": "two"}]
    assert bad(items) == [(1, "line_too_long")]
    assert peak < 40 << 20


# encodings

CHINESE = "今天天气很好，我们一起去公园散步，孩子们在草地上放风筝。\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030"])
@pytest.mark.parametrize("use", ["jsonl", "csv", "json", "text", "log"])
def test_encoding_is_found_by_every_reader(encoding: str, use: str, tmp_path: Path) -> None:
    row = {"text": CHINESE.strip()}
    content = {
        "jsonl": json.dumps(row, ensure_ascii=False) + "\n",
        "csv": f"text\n{row['text']}\n",
        "json": json.dumps([row], ensure_ascii=False),
        "text": row["text"],
        "log": row["text"] + "\n",
    }[use]
    raw = content.encode(encoding)
    if encoding == "utf-16-le":
        raw = b"\xff\xfe" + raw
    items = read(written(tmp_path, "a", raw), use)
    assert [found["text"] for found in fields(items)] == [row["text"]]
    assert bad(items) == []


def test_utf16_broken_character_costs_one_line(tmp_path: Path) -> None:
    good = '{"a": "中"}\n'.encode("utf-16-le")
    path = written(tmp_path, "a.jsonl", b"\xff\xfe" + good + b"\x00\xd8" + "\n".encode("utf-16-le") + good + b"x")
    items = read(path, "jsonl")
    assert fields(items) == [{"a": "中"}, {"a": "中"}]
    assert bad(items) == [(1, "invalid_encoding"), (3, "invalid_encoding")]
    big = b"\x00\x00\xfe\xff" + '{"a": 1}\n'.encode("utf-32-be") + b"\xff\xff\xff\xff"
    assert fields(read(written(tmp_path, "b.jsonl", big), "jsonl")) == [{"a": 1}]


def _flipped(line: bytes, others: str, count: int) -> bytes:
    return (others.encode() * count) + line + b"\n" + (others.encode() * count)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "utf-8"),
        (b"plain ascii\n", "utf-8"),
        (CHINESE.encode(), "utf-8"),
        (CHINESE.encode()[:-3], "utf-8"),  # cut inside a character
        (CHINESE.encode("gb18030"), "gb18030"),
        (CHINESE.encode("gbk")[:-2], "gb18030"),
        (b"label,text\n" * 50 + CHINESE.encode("gbk") * 3, "gb18030"),
        (_flipped(b"\xff\xfe broken", CHINESE, 3), "utf-8"),
        (_flipped(CHINESE.strip().encode("gbk"), CHINESE, 3), "utf-8"),  # one line of another encoding
        (_flipped(b"\xe4\xb8 cut", "ascii line\n", 9), "utf-8"),
        ("Die Straße über die Brücke führt nach Köln.\n".encode("latin-1") * 5, "utf-8"),
        ("Москва — столица России.\n".encode("cp1251") * 5, "utf-8"),
        ("日本語のテキストです。\n".encode("shift-jis") * 5, "utf-8"),
        ("今天天氣很好，我們去公園散步。\n".encode("big5") * 5, "utf-8"),
        (bytes(range(256)) * 8, "utf-8"),
        (CHINESE.encode("utf-16"), "utf-16-le"),
    ],
)
def test_encoding_of_a_sample(content: bytes, expected: str) -> None:
    assert detect(content) == expected


def test_encoding_is_found_behind_megabytes_of_ascii(tmp_path: Path) -> None:
    ascii_rows = b'{"text": "plain"}\n' * 150_000
    row = json.dumps({"text": CHINESE.strip()}, ensure_ascii=False) + "\n"
    path = written(tmp_path, "a.jsonl", ascii_rows + row.encode("gb18030") * 3)
    items = read(path, "jsonl")
    assert len(items) == 150_003
    assert fields(items)[-1] == {"text": CHINESE.strip()}


def test_encoding_named_is_not_questioned(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", CHINESE.encode("gb18030"))
    assert bad(read(path, "text", encoding="utf-8")) == [(0, "invalid_encoding")]


# spans


def _by_spans(path: Path, use: str, span_bytes: int, **params: Any) -> list[Record | Reject]:
    operator = operators("reader")[use]
    settings_ = operator.params(**params)
    spans = operator.function("cut")(path, settings_, span_bytes)
    assert spans == sorted(spans, key=lambda span: span.start)
    assert all(a.end == b.start for a, b in pairwise(spans))
    return [item for span in spans for item in operator.function("read")(path, settings_, span)]


row_bytes = st.one_of(st.just(b'{"a": 1}'), st.just('{"中": "文"}'.encode()), st.just(b""), st.binary(max_size=20))


@settings(max_examples=120, deadline=None)
@given(st.lists(row_bytes, max_size=12), st.integers(1, 60), st.sampled_from([b"", b"\xef\xbb\xbf"]), st.booleans())
def test_reading_spans_is_reading_the_file(
    tmp_path_factory: Any, rows: list[bytes], size: int, mark: bytes, end: bool
) -> None:
    content = mark + b"\n".join(rows) + (b"\n" if end else b"")
    path = written(tmp_path_factory.mktemp("span"), "a.jsonl", content)
    assert _by_spans(path, "jsonl", size) == read(path, "jsonl")
    assert _by_spans(path, "text", size, per="line") == read(path, "text", per="line")


def test_spans_have_about_the_size_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", JSONL * 40)  # 2 MB: longer than a block
    operator = operators("reader")["jsonl"]
    spans = operator.function("cut")(path, operator.params(), 200_000)
    assert [span.first for span in spans] == [(JSONL * 40)[: span.start].count(b"\n") for span in spans]
    assert all(200_000 <= span.end - span.start < 200_100 for span in spans[:-1])
    assert spans[-1].end == len(JSONL) * 40
    assert _by_spans(path, "jsonl", 200_000) == read(path, "jsonl")


def test_file_that_cannot_be_cut_is_one_span(tmp_path: Path) -> None:
    packed = written(tmp_path, "a.jsonl.gz", gzip.compress(JSONL))
    assert _by_spans(packed, "jsonl", 100) == read(packed, "jsonl")
    wide = written(tmp_path, "b.jsonl", JSONL.decode().encode("utf-16"))
    assert _by_spans(wide, "jsonl", 100) == read(wide, "jsonl")
    broken = written(tmp_path, "c.jsonl.gz", b"no gzip")
    assert _by_spans(broken, "jsonl", 2) == read(broken, "jsonl")
    text = written(tmp_path, "d.txt", b"one\ntwo\n")
    assert _by_spans(text, "text", 2) == read(text, "text")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 20_000), st.integers(50, 1000))
def test_reading_spans_of_parquet_is_reading_the_file(tmp_path_factory: Any, rows: int, size: int, group: int) -> None:
    path = tmp_path_factory.mktemp("span") / "a.parquet"
    frame = pl.DataFrame({"a": pl.Series([f"text {n}" for n in range(rows)], dtype=pl.String)})
    frame.write_parquet(path, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inhouse.data.readers.parquet.BATCH_ROWS", 500)
        items = _by_spans(path, "parquet", size)
    assert items == [Record(n, {"a": f"text {n}"}) for n in range(rows)]


def test_parquet_that_cannot_be_cut_says_why_when_it_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(buffer)
    packed = written(tmp_path, "a.parquet.gz", gzip.compress(buffer.getvalue()))
    assert fields(_by_spans(packed, "parquet", 10)) == ROWS
    cut = written(tmp_path, "b.parquet", buffer.getvalue()[:-9])
    assert bad(_by_spans(cut, "parquet", 10)) == [(0, "truncated")]


def test_span_of_bytes_is_exact(tmp_path: Path) -> None:
    path = written(tmp_path, "a", b"0123456789")
    assert b"".join(chunks(path, Span(3, 7, 0))) == b"3456"


# zip


def test_zip_members_are_read_by_their_endings(tmp_path: Path) -> None:
    nested = gzip.compress(b'{"text": "packed"}\n{\n')
    content = zipped(
        {
            "a/one.csv": "text\nx\ny\n",
            "b.jsonl.gz": nested,
            "c.unknown": "?",
            "README.md": "about the data",
            ".hidden.txt": "no",
            "folder/": "",
            "folder/doc.txt": "whole file",
        }
    )
    items = read(written(tmp_path, "a.zip", content), "zip")
    assert [(i.offset, i.fields["text"]) for i in items if isinstance(i, Record)] == [
        (0, "x"),
        (1, "y"),
        (2, "packed"),
        (4, "whole file"),
    ]
    assert [(i.offset, i.line, i.reason, i.detail[:9]) for i in items if isinstance(i, Reject)] == [
        (3, 2, "broken_json", "b.jsonl.g"),
        (5, None, "no_reader", "1: c.unkn"),
    ]
    assert fields(items)[-1] | {"text": ""} == {"text": "", "file": "doc.txt", "folder": "folder"}


def test_zip_settings_choose_members_and_their_reader(tmp_path: Path) -> None:
    path = written(tmp_path, "a.zip", zipped({"x/a.data": "text;n\nx;1\n", "y/b.data": "no"}))
    reader = {"use": "csv", "delimiter": ";"}
    assert fields(read(path, "zip", only="x/*", reader=reader)) == [{"text": "x", "n": "1"}]
    named = operators("reader")["csv"].params(delimiter=";")
    assert reader_of(named, path).reader["delimiter"] == ";"  # type: ignore[attr-defined]
    assert reader_of(named, tmp_path / "a.csv") is named
    with pytest.raises(ValueError, match="inside"):
        operators("reader")["zip"].params(reader={"use": "zip"})


def _link(archive: zipfile.ZipFile, name: str) -> None:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def test_zip_unsafe_members_are_rejected_and_the_rest_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first.txt", "first")
        _link(archive, "link.txt")
        archive.writestr("../out.txt", "outside")
        archive.writestr("inner.zip", zipped({"a.txt": "x"}))
        archive.writestr("last.txt", "last")
    raw = bytearray(path.read_bytes())
    items = read(path, "zip")
    assert [found["text"] for found in fields(items)] == ["first", "last"]
    rejected = [(i.offset, i.reason, i.detail) for i in items if isinstance(i, Reject)]
    assert (1, "unsafe_member", "link.txt") in rejected
    assert (rejected[-1][1], rejected[-1][2]) == ("nested_archive", "inner.zip")
    assert not (tmp_path.parent / "out.txt").exists()
    place = raw.rfind(b"PK\x01\x02", 0, raw.rfind(b"last.txt"))
    raw[place + 8] |= 1  # the flag of an encrypted member
    path.write_bytes(raw)
    assert bad(read(path, "zip"))[-1][1] == "encrypted"


def test_zip_bomb_is_rejected_and_its_neighbours_read(tmp_path: Path) -> None:
    items = read(written(tmp_path, "a.zip", bomb()), "zip")
    assert [found["text"] for found in fields(items)] == ["before", "after"]
    assert [(i.offset, i.reason, i.detail) for i in items if isinstance(i, Reject)] == [(1, "zip_bomb", "zeros.txt")]


def test_zip_of_many_members_may_not_unpack_to_more_than_its_share(tmp_path: Path) -> None:
    content = zipped({"a.txt": bytes(40 << 20), "b.txt": bytes(40 << 20), "c.txt": "small"})
    items = read(written(tmp_path, "a.zip", content), "zip", only="[bc]*")
    assert bad(items) == []
    items = read(tmp_path / "a.zip", "zip")
    assert [(i.reason, i.detail) for i in items if isinstance(i, Reject)] == [("zip_bomb", "b.txt")]
    assert fields(items)[-1]["text"] == "small"


def test_zip_damaged_member_costs_no_other(tmp_path: Path) -> None:
    raw = bytearray(zipped({"a.txt": "a" * 50, "b.txt": "b" * 50, "c.txt": "c" * 50}, zipfile.ZIP_STORED))
    raw[raw.index(b"bbbb") + 3] ^= 1
    items = read(written(tmp_path, "a.zip", bytes(raw)), "zip")
    assert [found["text"][0] for found in fields(items)] == ["a", "c"]
    assert bad(items) == [(1, "damaged")]
    assert bad(read(written(tmp_path, "b.zip", bytes(raw[:200])), "zip")) == [(0, "damaged")]
    assert bad(read(written(tmp_path, "c.zip", bz2.compress(b"x")), "zip")) == [(0, "damaged")]


def test_zip_member_that_cannot_be_written_costs_no_other(tmp_path: Path) -> None:
    content = zipped({"a.txt": "a", f"{'n' * 300}.txt": "name too long", "c.txt": "c"})
    items = read(written(tmp_path, "a.zip", content), "zip")
    assert [found["text"] for found in fields(items)] == ["a", "c"]
    assert bad(items) == [(1, "damaged")]


def test_zip_without_room_to_unpack_stops_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("inhouse.data.readers.zip.extract", full)
    with pytest.raises(UserError) as error:
        read(written(tmp_path, "a.zip", zipped({"a.txt": "a"})), "zip")
    assert error.value.code == "store.no_space"


@pytest.mark.parametrize("encoding", ["gbk", "utf-8", "cp437"])
def test_zip_names_are_read_as_they_were_meant(encoding: str, tmp_path: Path) -> None:
    name = "café" if encoding == "cp437" else "银行利率说明"
    raw = name.encode(encoding)
    content = zipped({f"{'n' * len(raw)}/a.txt": "text"}).replace(b"n" * len(raw), raw)  # without the flag for UTF-8
    items = read(written(tmp_path, "a.zip", content), "zip")
    assert [found["folder"] for found in fields(items)] == [name]
