"""Word and Excel files that are made to take all memory or time, and the text of real ones against python-docx."""

from __future__ import annotations

import io
import time
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docx as python_docx
import pytest
from docx.enum.text import WD_BREAK
from docx.oxml.parser import OxmlElement
from docx.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_files import docx, xlsx, zipped

from inhouse.core.plugins import operators
from inhouse.data.readers import docx as docx_reader
from inhouse.data.readers import ooxml, sheets
from inhouse.data.records import Record, Reject

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
SHEET = "xl/worksheets/sheet1.xml"


def read(folder: Path, content: bytes, use: str, **params: Any) -> list[Record | Reject]:
    path = folder / "a.x"
    path.write_bytes(content)
    operator = operators("reader")[use]
    return list(operator.function("read")(path, operator.params(**params)))


def reject(items: Sequence[Record | Reject]) -> Reject:
    [item] = items
    assert isinstance(item, Reject)
    return item


def changed(package: bytes, parts: dict[str, str]) -> bytes:
    """The package with other content in some parts."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()} | parts)


def book(rows: str) -> bytes:
    """A workbook whose one sheet has this XML as its rows."""
    namespace = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    return changed(xlsx({"a": [["x"]]}), {SHEET: f"<worksheet {namespace}><sheetData>{rows}</sheetData></worksheet>"})


def document(body: str) -> bytes:
    """A Word file with this XML as its body."""
    return changed(docx(["x"]), {"word/document.xml": f"<w:document {W}><w:body>{body}</w:body></w:document>"})


# excel


@pytest.mark.parametrize(
    "rows",
    [
        '<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>2</v></c></row>',
        '<row r="1"><c r="A1"><v>1</v></c><c r="XFD1048576"><v>2</v></c></row>',
        '<row r="1048575"/><row><c r="XFC9"/><c><v>2</v></c></row><row><c r="XFD8"><is><t>x</t></is></c></row>'
        '<row><c r="A1048576"><v>1</v></c></row>',
        '<row r="1048576"><c r="A1"><v>1</v></c><c><v>1</v></c><c r="XFD1"><v>1</v></c></row>',
        '<x:row xmlns:x="urn:x" r="1"><x:c r="XFD999999999"><x:v>1</x:v></x:c></x:row>',
        '<row r="1"><c r="ZZZZZ1"><v>1</v></c></row>',
        '<row r="1"><c r="A1"><v>1</v></c></row><row r="3000000"><c><v>1</v></c></row>',
    ],
    ids=[
        "corners",
        "cell in another row",
        "places not said",
        "row beyond its cells",
        "prefix",
        "column beyond the last",
        "row beyond",
    ],
)
def test_sheet_with_cells_far_apart_is_one_reject_with_its_size(rows: str, tmp_path: Path) -> None:
    content = book(rows)
    assert len(content) < 2000
    found = reject(read(tmp_path, content, "excel", columns=["a"], header_lines=0))
    assert found.reason == "sheet_too_large"
    assert "sheet1.xml" in found.detail
    assert "columns" in found.detail


def test_sheet_whose_far_cells_are_empty_is_read(tmp_path: Path) -> None:
    """Excel leaves cells that have a format and no value wherever a user once was."""
    rows = '<row r="1"><c r="A1" t="inlineStr"><is><t>text</t></is></c></row>'
    rows += '<row r="2"><c r="A2"><v>5</v></c></row><row r="1048576"><c r="XFD1048576" s="1"/></row>'
    [found] = read(tmp_path, book(rows), "excel")
    assert isinstance(found, Record)
    assert found.fields == {"text": "5"}


def test_sheet_that_is_long_and_full_is_read_and_one_too_long_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = xlsx({"a": [["n", "m"], *([n, n] for n in range(200))]})
    monkeypatch.setattr(sheets, "SPARSE_CELLS", 10)
    assert len(read(tmp_path, content, "excel")) == 200
    monkeypatch.setattr(sheets, "MAX_CELLS", 400)
    assert reject(read(tmp_path, content, "excel")).reason == "sheet_too_large"


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"xl/sharedStrings.xml": "<sst>" + "<si/>" * 2_000_000 + "</sst>"}, "zip_bomb"),
        ({"XL/Worksheets/Sheet1.xml": "<worksheet/>"}, "damaged"),
        ({SHEET: '<!DOCTYPE a [<!ENTITY b "c">]><worksheet>&b;</worksheet>'}, "damaged"),
        ({SHEET: '<worksheet><sheetData><row r="x"/></sheetData></worksheet>'}, "damaged"),
        ({SHEET: '<worksheet><sheetData><row><c r="1A"/></row></sheetData></worksheet>'}, "damaged"),
        ({SHEET: "<worksheet><sheetData></worksheet>"}, "damaged"),
    ],
    ids=["shared strings", "two of one name", "entities", "row", "cell", "not closed"],
)
def test_workbook_made_to_harm_is_one_reject(parts: dict[str, str], reason: str, tmp_path: Path) -> None:
    assert reject(read(tmp_path, changed(xlsx({"a": [["x"]]}), parts), "excel")).reason == reason


def test_member_longer_than_it_says_is_damaged(tmp_path: Path) -> None:
    """The declared size is what the checks count; a library that unpacks all there is would see more."""
    honest = book('<row r="1"><c r="A1"><v>1</v></c></row>' * 1000)
    with zipfile.ZipFile(io.BytesIO(honest)) as archive:
        size = archive.getinfo(SHEET).file_size
    lying = honest.replace(size.to_bytes(4, "little"), (200).to_bytes(4, "little"))
    assert lying != honest
    assert reject(read(tmp_path, lying, "excel")).reason == "damaged"


def test_package_with_more_xml_than_is_ever_read_is_one_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"xl/worksheets/sheet{n}.xml": "<worksheet/>" * 1000 for n in range(2, 9)}
    content = changed(xlsx({"a": [["x"]]}), many)
    monkeypatch.setattr(ooxml.parts_of, "__defaults__", (20_000,))
    assert reject(read(tmp_path, content, "excel")).reason == "file_too_large"


# docx


def test_docx_that_unpacks_to_millions_of_paragraphs_is_rejected_at_once(tmp_path: Path) -> None:
    content = document("<w:p/>" * 3_500_000)
    assert len(content) < 70_000
    started = time.process_time()
    assert reject(read(tmp_path, content, "docx")).reason == "zip_bomb"
    assert time.process_time() - started < 5


def test_docx_is_read_without_a_tree_of_its_elements(tmp_path: Path) -> None:
    content = document("<w:p/>" * 300_000 + "<w:p><w:r><w:t>end</w:t></w:r></w:p>")
    tracemalloc.start()
    [found] = read(tmp_path, content, "docx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, Record)
    assert found.fields["text"] == "end"
    assert peak < 20 << 20  # a tree would take 70 MB


def test_docx_with_a_long_cell_over_many_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docx_reader, "MAX_XML_BYTES", 100_000)
    first = f'<w:tr><w:tc><w:tcPr><w:vMerge w:val="restart"/></w:tcPr>{"<w:p><w:r><w:t>" + "x" * 999}</w:t></w:r></w:p>'
    more = "</w:tc></w:tr>" + "<w:tr><w:tc><w:tcPr><w:vMerge/></w:tcPr><w:p/></w:tc></w:tr>" * 200
    content = document(f"<w:tbl>{first}{more}</w:tbl>")
    assert reject(read(tmp_path, content, "docx")).reason == "file_too_large"


def test_docx_that_is_no_word_document_is_damaged(tmp_path: Path) -> None:
    assert reject(read(tmp_path, changed(docx(["x"]), {"word/document.xml": "<a/>"}), "docx")).reason == "damaged"


def test_docx_tracked_insertions_and_form_fields_are_read_and_deletions_are_not(tmp_path: Path) -> None:
    run = "<w:r><w:t>{}</w:t></w:r>"
    paragraph = (
        f"<w:p>{run.format('a')}<w:ins>{run.format('b')}</w:ins><w:del><w:r><w:delText>c</w:delText></w:r></w:del>"
        f"<w:sdt><w:sdtPr><w:t>no</w:t></w:sdtPr><w:sdtContent>{run.format('d')}</w:sdtContent></w:sdt></w:p>"
    )
    [found] = read(tmp_path, document(f"<w:sdt><w:sdtContent>{paragraph}</w:sdtContent></w:sdt>"), "docx")
    assert isinstance(found, Record)
    assert found.fields["text"] == "abd"


Block = str | list[list[str]]
words = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn"), include_characters="\t\n"), max_size=12)
tables = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(words, min_size=width, max_size=width), min_size=1, max_size=4)
)


def made(blocks: list[Block], merges: list[tuple[int, int, int, int]]) -> bytes:
    """A document that python-docx writes; `merges` joins cells of the tables where they fit."""
    found = python_docx.Document()
    found.core_properties.title = " A title "
    for block in blocks:
        if isinstance(block, str):
            paragraph = found.add_paragraph(block)
            paragraph.add_run("bold").bold = True
            paragraph.add_run().add_break(WD_BREAK.PAGE)
            paragraph.add_run()._r.append(OxmlElement("w:noBreakHyphen"))
            continue
        table = found.add_table(len(block), len(block[0]))
        for row, cells in zip(table.rows, block, strict=True):
            for cell, text in zip(row.cells, cells, strict=True):
                cell.text = text
        for top, left, bottom, right in merges:
            if bottom < len(block) and right < len(block[0]) and top <= bottom and left <= right:
                table.cell(top, left).merge(table.cell(bottom, right))
                break
    out = io.BytesIO()
    found.save(out)
    return out.getvalue()


def told(content: bytes) -> str:
    """The text by python-docx's own objects."""
    lines = []
    for block in python_docx.Document(io.BytesIO(content)).iter_inner_content():
        if not isinstance(block, Table):
            lines.append(block.text)
            continue
        for row in block.rows:
            cells = {id(cell._tc): cell.text for cell in row.cells}
            lines.append("\t".join(" ".join(text.split()) for text in cells.values()))
    return "\n".join(lines).strip("\n")


place = st.integers(0, 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(words | tables, max_size=5), st.lists(st.tuples(place, place, place, place), max_size=4))
def test_docx_text_equals_what_python_docx_reads(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[Block], merges: list[tuple[int, int, int, int]]
) -> None:
    content = made(blocks, merges)
    [found] = read(tmp_path_factory.mktemp("d"), content, "docx")
    assert isinstance(found, Record)
    assert found.fields["text"] == told(content)
    assert found.fields["title"] == "A title"


def test_docx_links_and_tabs_are_read_as_python_docx_reads_them(tmp_path: Path) -> None:
    run = '<w:r><w:t xml:space="preserve">{}</w:t></w:r>'
    body = (
        f"<w:p>{run.format('see ')}<w:hyperlink>{run.format('this')}</w:hyperlink><w:r><w:tab/><w:ptab/><w:cr/>"
        '<w:br w:type="page"/><w:br w:type="textWrapping"/><w:drawing><w:p/></w:drawing></w:r></w:p><w:p/>'
        '<w:tbl><w:tr><w:trPr><w:gridBefore w:val="1"/></w:trPr>'
        '<w:tc><w:tcPr><w:gridSpan w:val="99999999999"/></w:tcPr>'
        f"<w:p>{run.format('in  a ')}</w:p><w:p>{run.format('cell')}</w:p></w:tc></w:tr></w:tbl>"
    )
    [found] = read(tmp_path, document(body), "docx")
    assert isinstance(found, Record)
    assert found.fields["text"] == "see this\t\t\n\n\n\nin a cell"
