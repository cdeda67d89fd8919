"""Readers: every good row is read, every bad one is named with its line and reason."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inhouse.core.plugins import operator_of, operators
from inhouse.data import records
from inhouse.data.records import Record, Reject


def read(path: Path, use: str, **params: Any) -> list[Record | Reject]:
    reader = operators("reader")[use].params(**params)
    return list(operator_of("reader", reader).function("read")(path, reader))


def good(items: list[Record | Reject]) -> list[dict[str, Any]]:
    return [item.fields for item in items if isinstance(item, Record)]


def bad(items: list[Record | Reject]) -> list[tuple[int | None, str]]:
    return [(item.line, item.reason) for item in items if isinstance(item, Reject)]


@pytest.mark.parametrize("name", sorted(operators("reader")))
def test_reader_contract_holds(name: str) -> None:
    operator = operators("reader")[name]
    assert operator.params().use == name  # usable with its defaults
    assert operator.params.model_config["frozen"]
    assert all(suffix.startswith(".") for suffix in operator.function("SUFFIXES"))
    assert callable(operator.function("read"))


@pytest.mark.parametrize("name", sorted(operators("reader")))
def test_reader_empty_file_yields_no_row(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    said = [item.reason for item in read(tmp_path / "empty", name) if isinstance(item, Reject)]
    assert said == (["damaged"] if name == "parquet" else [])  # even without rows a Parquet file has its footer
    assert good(read(tmp_path / "empty", name)) == []


def test_jsonl_bad_lines_are_named_and_good_ones_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "first"}\n'
        b"{broken\n"
        b"\n"
        b'{"text": "\xff"}\n'
        b'["list"]\n' + b'{"text": "' + b"x" * 5000 + b'"}\n' + b"[" * 900 + b"\n"
        b'{"text": "\xe6\x9c\x80\xe5\x90\x8e"}'
    )
    items = read(path, "jsonl")
    assert good(items) == [{"text": "first"}, {"text": "最后"}]
    assert bad(items)[:4] == [
        (2, "broken_json"),
        (4, "invalid_encoding"),
        (5, "not_an_object"),
        (6, "line_too_long"),
    ]
    assert bad(items)[4] == (7, "broken_json")
    assert [item.offset for item in items] == [0, 1, 3, 4, 5, 6, 7]  # the blank line is no row


def test_jsonl_gb18030_file_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "银行利率"}\n'.encode("gb18030"))
    assert bad(read(path, "jsonl", encoding="utf-8")) == [(1, "invalid_encoding")]
    assert good(read(path, "jsonl", encoding="gb18030")) == [{"text": "银行利率"}]
    assert good(read(path, "jsonl")) == [{"text": "银行利率"}]


odd = st.sampled_from([2**70, -(2**63), 2**63, 2**64 - 1, 1e300, float("inf"), "\ud800", "x\udfffy", "\x00", "中"])
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), odd)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), scalars, max_size=4), min_size=1, max_size=5))
def test_jsonl_reads_as_the_standard_library_does(tmp_path_factory: Any, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert good(read(path, "jsonl")) == rows


def test_jsonl_odd_json_is_read_or_rejected_but_never_fatal(tmp_path: Path) -> None:
    deep = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1, "a": 2}\n' + deep + b'\n{"a": "\x00"}\n{"a": "\\u0000"}\n{"a": 1}garbage\n')
    items = read(path, "jsonl")
    assert good(items) == [{"a": 2}, {"a": "\x00"}]
    assert bad(items) == [(2, "broken_json"), (3, "broken_json"), (5, "broken_json")]


def test_excerpt_of_deeply_nested_json_is_its_type() -> None:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    assert records.excerpt(value) == "list"


def test_json_array_yields_objects_and_rejects_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": "1"}, 2, {"a": "3"}]')
    items = read(path, "json")
    assert good(items) == [{"a": "1"}, {"a": "3"}]
    assert [(i.offset, i.reason) for i in items if isinstance(i, Reject)] == [(1, "not_an_object")]


def test_json_array_under_key_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"train": [{"a": "1"}], "test": []}')
    assert good(read(path, "json", key="train")) == [{"a": "1"}]


@pytest.mark.parametrize(
    ("content", "params", "reason", "says"),
    [
        ("[1, 2", {}, "broken_json", "line 1"),
        ("[" * 100_000, {}, "broken_json", "recursion"),
        ('{"a": 1}\n{"a": 2}', {}, "broken_json", "jsonl"),
        ('{"rows": []}', {}, "no_array", "rows"),
        ("[]", {"key": "x"}, "no_array", "NoneType"),
        ('["\xff"]', {"encoding": "utf-8"}, "invalid_encoding", "byte 2"),
    ],
)
def test_json_broken_file_is_one_reject_that_says_why(
    content: str, params: dict[str, Any], reason: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(content, encoding="latin-1")
    [item] = read(tmp_path / "a.json", "json", **params)
    assert isinstance(item, Reject)
    assert (item.offset, item.reason) == (0, reason)
    assert says in item.detail


def test_csv_header_names_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('label,text\r\nacq,"one, two"\r\nearn,"a ""quoted""\nword"\r\n', newline="")
    assert good(read(path, "csv")) == [
        {"label": "acq", "text": "one, two"},
        {"label": "earn", "text": 'a "quoted"\nword'},
    ]


def test_csv_tab_file_splits_at_tabs(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("label\ttext\nacq\tone, two\n")
    assert good(read(tmp_path / "a.tsv", "csv")) == [{"label": "acq", "text": "one, two"}]


def test_csv_named_columns_after_header_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.tab").write_text("Category\tText\nd\tstring\nclass\t\n\ntrade\tasian exporters\n")
    found = read(tmp_path / "a.tab", "csv", columns=["label", "text"], header_lines=3)
    assert found == [Record(0, {"label": "trade", "text": "asian exporters"}, 5)]


def test_csv_bad_rows_are_named_and_good_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"label,text\nacq,one\nearn\nacq,\xff\xfe\nacq,two,three\nearn,four\n")
    items = read(path, "csv")
    assert good(items) == [{"label": "acq", "text": "one"}, {"label": "earn", "text": "four"}]
    assert bad(items) == [(3, "column_count"), (4, "invalid_encoding"), (5, "column_count")]


def test_csv_unclosed_quote_accounts_for_every_line_it_swallows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('label,text\nacq,one\nacq,"two\nearn,three\nearn,four\n')
    items = read(path, "csv")
    assert good(items) == [{"label": "acq", "text": "one"}]
    assert bad(items) == [(3, "broken_csv"), (4, "broken_csv"), (5, "broken_csv")]


def test_csv_without_quoting_keeps_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('label,text\nacq,"two\n')
    assert good(read(tmp_path / "a.csv", "csv", quote=None)) == [{"label": "acq", "text": '"two'}]


def test_csv_long_line_is_rejected_and_the_next_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 100)
    (tmp_path / "a.csv").write_text("label,text\nacq," + "x" * 1000 + "\nacq,two\n")
    items = read(tmp_path / "a.csv", "csv")
    assert good(items) == [{"label": "acq", "text": "two"}]
    assert bad(items) == [(2, "line_too_long")]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"a,b,a\n1,2,3\n", "twice: a"), (b"\xff,b\n1,2\n", "gb18030"), (b'"a,b\n1,2\n', "unexpected end")],
)
def test_csv_unusable_header_is_one_reject_that_says_why(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    [item] = read(tmp_path / "a.csv", "csv")
    assert isinstance(item, Reject)
    assert (item.offset, item.reason) == (0, "bad_header")
    assert says in item.detail


@pytest.mark.parametrize("params", [{"header_lines": 0}, {"columns": ["a", "a"]}])
def test_csv_settings_without_column_names_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="column"):
        operators("reader")["csv"].params(**params)


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r\ufeff"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cells, cells), max_size=8))
def test_csv_whatever_the_csv_module_writes_is_read_back(tmp_path_factory: Any, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("x", "y"), *rows])
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    assert good(read(path, "csv")) == [{"x": x, "y": y} for x, y in rows]


def test_parquet_rows_arrive_with_lists_and_nulls(tmp_path: Path) -> None:
    import polars as pl

    rows = [{"a": "一", "messages": [{"role": "user", "content": "hi"}]}, {"a": None, "messages": []}]
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    assert good(read(tmp_path / "a.parquet", "parquet")) == rows


def test_parquet_truncated_file_is_one_reject(tmp_path: Path) -> None:
    import polars as pl

    path = tmp_path / "a.parquet"
    pl.DataFrame({"a": list(range(1000))}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert read(path, "parquet") == [Reject(0, None, "truncated", "no footer")]
    path.write_bytes(b"something else")
    assert [item.reason for item in read(path, "parquet") if isinstance(item, Reject)] == ["damaged"]


def test_parquet_damaged_page_costs_only_rows_around_it(tmp_path: Path) -> None:
    import polars as pl

    path = tmp_path / "a.parquet"
    words = [f"row {n} " + "x" * (n % 50) for n in range(6000)]
    pl.DataFrame({"a": words}).write_parquet(path, row_group_size=1000, compression="zstd", statistics=False)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    items = read(path, "parquet")
    assert [item.offset for item in items] == list(range(6000))  # every row is accounted for
    assert all(item.fields["a"] == words[item.offset] for item in items if isinstance(item, Record))
    assert len(good(items)) >= 4000
    assert {item.reason for item in items if isinstance(item, Reject)} == {"damaged"}


def test_parquet_of_one_value_many_times_is_read(tmp_path: Path) -> None:
    import polars as pl

    pl.DataFrame({"a": ["same"] * 50_000}).write_parquet(tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 50_000
    assert good(read(tmp_path / "a.parquet", "parquet")) == [{"a": "same"}] * 50_000


def test_parquet_footer_that_promises_too_much_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import polars as pl

    pl.DataFrame({"a": ["x"] * 5}).write_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(pl, "len", lambda: pl.lit(1 << 40))  # what a flipped bit in the footer does
    assert [(i.offset, i.reason) for i in read(tmp_path / "a.parquet", "parquet")] == [(0, "damaged")]  # type: ignore[union-attr]
    monkeypatch.setattr(pl, "len", lambda: pl.lit(7))
    items = read(tmp_path / "a.parquet", "parquet")
    assert len(good(items)) == 5
    assert [(i.offset, i.reason) for i in items if isinstance(i, Reject)] == [(5, "truncated"), (6, "truncated")]


def test_text_file_is_one_document_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "pos").mkdir()
    (tmp_path / "pos" / "1.txt").write_bytes(b"good film\r\n\r\nvery\r\n")
    assert good(read(tmp_path / "pos" / "1.txt", "text")) == [
        {"text": "good film\n\nvery\n", "file": "1.txt", "folder": "pos"}
    ]


def test_text_paragraphs_are_documents_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes("一\n二\n\n  \n三\n\n".encode() + b"\xff\n\n" + "四".encode())
    items = read(tmp_path / "a.md", "text", per="paragraph")
    assert [(i.fields["text"], i.line) for i in items if isinstance(i, Record)] == [("一\n二", 1), ("三", 5), ("四", 9)]
    assert bad(items) == [(7, "invalid_encoding")]


def test_text_lines_are_documents_and_a_broken_one_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\n\nthree")
    items = read(tmp_path / "a.txt", "text", per="line")
    assert [f["text"] for f in good(items)] == ["one", "three"]
    assert bad(items) == [(2, "invalid_encoding")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=30), st.just(b'{"text": "x"}')), max_size=8))
def test_jsonl_any_bytes_account_for_every_line(tmp_path_factory: Any, raw: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    content = b"\n".join(raw)
    path.write_bytes(content)
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    items = read(path, "jsonl", encoding="utf-8")
    assert len(items) == sum(bool(line.strip()) for line in lines)
    for item in items:
        json.dumps(item.fields if isinstance(item, Record) else item.excerpt)
