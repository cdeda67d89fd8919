"""HTML, WARC, PDF, Word, Excel and log files: their text, and what is wrong with the rest."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_files import LOCKED, docx, pages, pdf, warc_record, xlsx, zipped

from inhouse.core.plugins import operators
from inhouse.data.readers.markup import page_of
from inhouse.data.records import Record, Reject

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def read(path: Path, use: str, **params: Any) -> list[Record | Reject]:
    operator = operators("reader")[use]
    return list(operator.function("read")(path, operator.params(**params)))


def fields(items: list[Record | Reject]) -> list[dict[str, Any]]:
    return [item.fields for item in items if isinstance(item, Record)]


def texts(items: list[Record | Reject]) -> list[str]:
    return [found["text"] for found in fields(items)]


def bad(items: list[Record | Reject]) -> list[tuple[int, str]]:
    return [(item.offset, item.reason) for item in items if isinstance(item, Reject)]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# html


@pytest.mark.parametrize("name", sorted(pages()))
def test_html_page_keeps_its_text_and_loses_what_surrounds_it(name: str, tmp_path: Path) -> None:
    page = pages()[name]
    [found] = fields(read(written(tmp_path, "a.html", page.html), "html"))
    assert found["title"] == page.title
    assert [wanted for wanted in page.wanted if wanted not in found["text"]] == []
    assert [unwanted for unwanted in page.unwanted if unwanted in found["text"]] == []


def test_html_paragraphs_and_list_items_stand_on_their_own_lines() -> None:
    text = page_of(b"<main><p>One.</p><p>Two <b>bold</b>.</p><ul><li>a<li>b</ul></main>").text
    assert [line.strip() for line in text.splitlines() if line.strip()] == ["One.", "Two bold.", "a", "b"]


def test_html_box_names_that_would_take_the_page_are_not_believed() -> None:
    page = page_of(b"<body class='has-sidebar'><div class='cookie-set'><p>All the text of this page.</p></div></body>")
    assert page.text == "All the text of this page."


def _encodings() -> list[tuple[str, str, str | None]]:
    return [
        ("utf-8", "", None),
        ("utf-8-sig", "<meta charset=gb2312>", None),
        ("utf-16", "", None),
        ("gb18030", '<meta charset="gb2312">', None),
        ("gb18030", "", "gbk"),
        ("gb18030", "", None),
        ("big5", '<meta http-equiv="Content-Type" content="text/html; charset=big5">', None),
        ("utf-8", "<meta charset=iso-8859-1>", "rot13"),
    ]


@pytest.mark.parametrize(("encoding", "meta", "charset"), _encodings())
def test_html_encoding_is_found(encoding: str, meta: str, charset: str | None) -> None:
    html = f"<html><head>{meta}<title>標題</title></head><body><p>今天的天氣很好，我們去公園散步。</p></body></html>"
    if encoding == "gb18030":
        html = html.replace("標題", "标题").replace("天氣", "天气").replace("們", "们").replace("園", "园")
    page = page_of(html.encode(encoding), "auto", charset)
    assert page.title in ("標題", "标题")
    assert page.text.startswith("今天的天")


def test_html_of_unknown_bytes_is_rejected(tmp_path: Path) -> None:
    items = read(written(tmp_path, "a.html", b"<p>caf\xe9 \xff\xfe</p>"), "html")
    assert bad(items) == [(0, "invalid_encoding")]
    assert texts(read(written(tmp_path, "b.html", "<p>中文</p>".encode("gbk")), "html", encoding="gb18030")) == ["中文"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["<div>", "</p>", "<li>", "<table><td>", "<!--", "<script>", "x", "&#0;", "中"])))
def test_html_any_markup_gives_text_without_tags(parts: list[str]) -> None:
    text = page_of("".join(parts).encode()).text
    assert set(text) <= set("x中\ufffd \t\n&#0;</p>lidivtabescr!-")
    assert "\x00" not in text


def test_html_depth_costs_no_time_beyond_its_length() -> None:
    assert page_of(b"<div>" * 30_000 + b"deep").text == "deep"


# warc


def archive() -> bytes:
    return (
        warc_record(b"", kind="warcinfo")
        + warc_record(pages()["news"].html.encode(), "http://example.org/news")
        + warc_record(b"GET /", kind="request")
        + warc_record(b"\x89PNG", http=b"Content-Type: image/png\r\n")
        + warc_record(b"<p>gone</p>", http=b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n")
        + warc_record(
            "<title>中</title><p>今天天气很好，我们去公园。</p>".encode("gbk"),
            "http://example.org/zh",
            http=b"Content-Type: text/html; charset=gbk\r\n",
        )
    )


@pytest.mark.parametrize("packed", [False, True])
def test_warc_pages_arrive_with_url_and_date(packed: bool, tmp_path: Path) -> None:
    content = gzip.compress(archive()) if packed else archive()
    items = read(written(tmp_path, "a.warc.gz" if packed else "a.warc", content), "warc")
    assert [(f["url"], f["date"], f["title"]) for f in fields(items)] == [
        ("http://example.org/news", "2026-01-02T03:04:05+00:00", "Rates rise again | The Daily"),
        ("http://example.org/zh", "2026-01-02T03:04:05+00:00", "中"),
    ]
    assert texts(items)[1] == "今天天气很好，我们去公园。"
    assert "cookies" not in texts(items)[0]
    assert bad(items) == []


def test_warc_bodies_packed_by_the_server_are_unpacked_and_wrong_ones_rejected(tmp_path: Path) -> None:
    coded = b"Content-Type: text/html\r\nContent-Encoding: gzip\r\n"
    chunked = b"Content-Type: text/html\r\nTransfer-Encoding: chunked\r\n"
    content = (
        warc_record(gzip.compress(b"<p>one</p>"), http=coded)
        + warc_record(b"no gzip", "http://example.org/bad", http=coded)
        + warc_record(b"a\r\n<p>two</p>\r\n0\r\n\r\n", http=chunked)
        + warc_record(b"<p>\xff\xfe</p>", "http://example.org/bytes")
        + warc_record(b"<p>last</p>")
    )
    items = read(written(tmp_path, "a.warc", content), "warc")
    assert texts(items) == ["one", "two", "last"]
    assert bad(items) == [(1, "damaged"), (3, "invalid_encoding")]
    assert "http://example.org/bad" in next(i.detail for i in items if isinstance(i, Reject))


def test_warc_cut_short_keeps_the_pages_before(tmp_path: Path) -> None:
    content = warc_record(b"<p>one</p>") + warc_record(b"<p>two is longer</p>")
    items = read(written(tmp_path, "a.warc", content[:-15]), "warc")
    assert texts(items) == ["one"]
    assert bad(items) == [(1, "truncated")]


def test_warc_header_that_promises_too_much_is_not_believed(tmp_path: Path) -> None:
    huge = warc_record(b"<p>x</p>").replace(b"Content-Length: ", b"Content-Length: 9999999")
    items = read(written(tmp_path, "a.warc", warc_record(b"<p>one</p>") + huge), "warc")
    assert texts(items) == ["one"]
    assert bad(items)[0] == (1, "file_too_large")


def test_warc_body_larger_than_a_page_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inhouse.data.readers.warc.MAX_PAGE_BYTES", 2000)
    coded = b"Content-Type: text/html\r\nContent-Encoding: gzip\r\n"
    items = read(written(tmp_path, "a.warc", warc_record(gzip.compress(b"x" * 5000), http=coded)), "warc")
    assert bad(items) == [(0, "file_too_large")]


def test_warc_of_something_else_is_one_reject(tmp_path: Path) -> None:
    assert bad(read(written(tmp_path, "a.warc", b"hello\n" * 50), "warc")) == [(0, "damaged")]
    assert bad(read(tmp_path / "none.warc", "warc")) == [(0, "unreadable")]


# pdf


def test_pdf_pages_are_joined_without_numbers_and_hyphens(tmp_path: Path) -> None:
    content = pdf([["The first line of a docu-", "ment ends with an exam-", "1"], ["ple of text.", "Page 2 of 2"]])
    [found] = fields(read(written(tmp_path, "a.pdf", content), "pdf"))
    assert found == {
        "text": "The first line of a document ends with an example of text.",
        "title": "",
        "file": "a.pdf",
        "folder": tmp_path.name,
    }


def test_pdf_per_page_gives_pages_and_names_those_without_text(tmp_path: Path) -> None:
    path = written(tmp_path, "a.pdf", pdf([["First page", "of three"], [], ["Third page", "- 3 -"]]))
    items = read(path, "pdf", per="page")
    assert [(f["page"], f["text"]) for f in fields(items)] == [(1, "First page\nof three"), (3, "Third page")]
    assert bad(items) == [(1, "no_text")]
    assert texts(read(path, "pdf")) == ["First page\nof three\nThird page"]


@pytest.mark.parametrize("line", ["7", "- 7 -", "Page 7", "page 7 of 9", "7 / 9", "p. 7", "– 12 –"])
def test_pdf_page_number_at_the_edge_of_a_page_is_left_out(line: str, tmp_path: Path) -> None:
    latin = line.replace("–", "-")
    for lines in ([latin, "Text of the page."], ["Text of the page.", latin]):
        assert texts(read(written(tmp_path, "a.pdf", pdf([lines])), "pdf")) == ["Text of the page."]


@pytest.mark.parametrize("line", ["1984 was a year", "7 apples", "42."])
def test_pdf_numbers_that_are_text_stay(line: str, tmp_path: Path) -> None:
    assert texts(read(written(tmp_path, "a.pdf", pdf([["Text", line]])), "pdf")) == [f"Text\n{line}"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pdf([["x"]])[:120], "damaged"),
        (b"%PDF-1.4\n", "damaged"),
        (b"hello", "damaged"),
        (pdf([["secret"]], LOCKED), "encrypted"),
        (pdf([[], []]), "no_text"),
    ],
)
def test_pdf_that_cannot_be_used_is_one_reject(content: bytes, reason: str, tmp_path: Path) -> None:
    assert bad(read(written(tmp_path, "a.pdf", content), "pdf")) == [(0, reason)]


def test_pdf_damaged_page_is_named(tmp_path: Path) -> None:
    content = pdf([["one"], ["two"], ["three"]]).replace(b"5 0 obj\n<< /Type /Page ", b"5 0 obj\n<< /Type /Nope ")
    path = written(tmp_path, "a.pdf", content)
    items = read(path, "pdf", per="page")
    assert len(items) == 3
    if bad(items):  # PDFium repairs what it can, and what it does is its own business
        assert bad(items) == [(1, "damaged")]
        assert bad(read(path, "pdf")) == [(0, "damaged")]


# docx


def test_docx_paragraphs_and_tables_arrive_in_order(tmp_path: Path) -> None:
    content = docx(["标题", "First paragraph.", [["a", "b"], ["c d", "e"]], "After the table."])
    [found] = fields(read(written(tmp_path, "a.docx", content), "docx"))
    assert found["text"] == "标题\nFirst paragraph.\na\tb\nc d\te\nAfter the table."
    assert (found["file"], found["folder"]) == ("a.docx", tmp_path.name)


@pytest.mark.parametrize("use", ["docx", "excel"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (OLE + bytes(100), "encrypted"),
        (b"hello", "damaged"),
        (zipped({"a.txt": "x"}), "damaged"),
        (docx(["x"])[:200], "truncated"),
        (zipped({"word/document.xml": bytes(70 << 20)}), "zip_bomb"),
        (zipped({f"{n}.xml": bytes(60 << 20) for n in range(2)}), "zip_bomb"),
        (zipped({"../evil.xml": "x"}), "unsafe_member"),
    ],
    ids=["encrypted", "other", "empty package", "truncated", "bomb", "bombs", "traversal"],
)
def test_office_file_that_cannot_be_used_is_one_reject(use: str, content: bytes, reason: str, tmp_path: Path) -> None:
    assert bad(read(written(tmp_path, "a.x", content), use)) == [(0, reason)]


def test_docx_with_broken_xml_is_one_reject(tmp_path: Path) -> None:
    whole = docx(["some text"])
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(whole)) as package:
        parts = {name: package.read(name) for name in package.namelist()}
    parts["word/document.xml"] = parts["word/document.xml"][:150]
    assert bad(read(written(tmp_path, "a.docx", zipped(parts)), "docx")) == [(0, "damaged")]


# excel


def test_excel_rows_arrive_as_text_with_their_row_number(tmp_path: Path) -> None:
    book = xlsx({"One": [["text", "label", None], ["hello", 1], [], ["中文", 2.5], ["x"]], "二": [["text"], ["y"]]})
    path = written(tmp_path, "a.xlsx", book)
    items = read(path, "excel")
    assert [(item.offset, item.line, item.fields) for item in items if isinstance(item, Record)] == [
        (0, 2, {"text": "hello", "label": "1"}),
        (1, 4, {"text": "中文", "label": "2.5"}),
        (2, 5, {"text": "x", "label": None}),
    ]
    assert fields(read(path, "excel", sheet="二")) == [{"text": "y"}]


def test_excel_header_can_stand_lower_or_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.xlsx", xlsx({"One": [["A report"], ["text"], ["x", "too much"], ["y"]]}))
    items = read(path, "excel", header_lines=2)
    assert bad(items) == [(0, "column_count")]
    assert fields(items) == [{"text": "y"}]
    assert fields(read(path, "excel", header_lines=3, columns=["a", "b"])) == [{"a": "y", "b": None}]


@pytest.mark.parametrize(
    ("params", "reason", "says"),
    [
        ({"sheet": "Two"}, "no_sheet", "One"),
        ({}, "bad_header", "twice: a"),
        ({"header_lines": 0}, "bad_header", "columns"),
    ],
)
def test_excel_settings_that_do_not_fit_are_named(
    params: dict[str, Any], reason: str, says: str, tmp_path: Path
) -> None:
    [item] = read(written(tmp_path, "a.xlsx", xlsx({"One": [["a", "a"], ["x", "y"]]})), "excel", **params)
    assert isinstance(item, Reject)
    assert item.reason == reason
    assert says in item.detail


def test_excel_sheet_without_rows_yields_nothing(tmp_path: Path) -> None:
    assert read(written(tmp_path, "a.xlsx", xlsx({"One": []})), "excel") == []


# log


def test_log_lines_are_documents_by_default(tmp_path: Path) -> None:
    items = read(written(tmp_path, "a.log", b"one\r\n\n\xff\xfe\nthree"), "log")
    assert [(i.offset, i.fields) for i in items if isinstance(i, Record)] == [
        (0, {"text": "one"}),
        (3, {"text": "three"}),
    ]
    assert bad(items) == [(2, "invalid_encoding")]


def test_log_nginx_lines_are_taken_apart(tmp_path: Path) -> None:
    line = '10.0.0.1 - bob [10/Oct/2026:13:55:36 +0800] "GET /a?b=\\"c\\" HTTP/1.1" 200 23 "-" "Agent (x; y)"'
    items = read(written(tmp_path, "a.log", line + "\nnonsense\n"), "log", format="nginx")
    assert fields(items) == [
        {
            "remote_addr": "10.0.0.1",
            "remote_user": "bob",
            "time": "10/Oct/2026:13:55:36 +0800",
            "request": 'GET /a?b=\\"c\\" HTTP/1.1',
            "status": "200",
            "bytes_sent": "23",
            "referer": "-",
            "agent": "Agent (x; y)",
        }
    ]
    assert bad(items) == [(1, "no_match")]


def test_log_json_lines_are_objects(tmp_path: Path) -> None:
    items = read(written(tmp_path, "a.log", '{"text": "x"}\n\n[1]\n{'), "log", format="json")
    assert fields(items) == [{"text": "x"}]
    assert bad(items) == [(2, "not_an_object"), (3, "broken_json")]


def test_log_multiline_records_take_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inhouse.data.readers.log.BATCH_LINES", 2)  # a record may run over batches
    content = "before\n1 one\n  at a\n\n  at b\n\n2 two\n\xff\nafter\n3 three\n".encode("latin-1")
    path = written(tmp_path, "a.log", content)
    items = read(path, "log", pattern=r"(?P<number>\d) (?P<text>.*)", multiline=True)
    assert [(i.offset, i.fields["number"], i.fields["text"]) for i in items if isinstance(i, Record)] == [
        (1, "1", "one\n  at a\n\n  at b"),
        (6, "2", "two"),
        (9, "3", "three"),
    ]
    assert bad(items) == [(0, "no_match"), (7, "invalid_encoding"), (8, "no_match")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab 1:é中", max_size=8), max_size=8))
def test_log_pattern_finds_what_the_standard_library_does(tmp_path_factory: Any, found: list[str]) -> None:
    pattern = r"(?P<word>[ab]+) ?(?P<text>(?:\d|é|中)*)"
    path = tmp_path_factory.mktemp("log") / "a.log"
    path.write_text("\n".join(found), encoding="utf-8")
    expected = [match.groupdict() for line in found if (match := re.fullmatch(pattern, line))]
    assert fields(read(path, "log", pattern=pattern)) == expected


def test_log_long_line_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inhouse.data.records.MAX_LINE_BYTES", 100)
    path = written(tmp_path, "a.log", '{"a": 1}\n' + "x" * 500 + '\n{"a": 2}\n')
    assert bad(read(path, "log")) == [(1, "line_too_long")]
    assert bad(read(path, "log", format="json")) == [(1, "line_too_long")]


@pytest.mark.parametrize(
    "params", [{"pattern": "("}, {"pattern": "no group"}, {"multiline": True}, {"pattern": r"(?P<a>x)(?=y)"}]
)
def test_log_settings_without_a_usable_pattern_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pattern"):
        operators("reader")["log"].params(**params)
