"""Every kind of bad input at once: each good row is read, each bad one named by file, offset and reason."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from backports import zstd
from truth_files import LOCKED, bomb, docx, gzip_bomb, pdf, warc_record, xlsx

from inhouse.core.errors import UserError
from inhouse.core.messages import known, text
from inhouse.core.plugins import operator_of
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.data.records import TEXTS, Reject, Unfit
from inhouse.data.shapes.draft import text_of
from inhouse.data.source import Located, SourceParams, locate, read, reader_of

CHINESE = "今天天气很好，我们一起去公园散步。"


@dataclass(frozen=True)
class Bad:
    """A file, the texts of its good rows, and (offset, reason) of its bad ones."""

    content: bytes
    good: tuple[str, ...] = ()
    bad: tuple[tuple[int, str], ...] = ()


def row(text: str) -> bytes:
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"


def parquet(count: int = 3) -> bytes:
    out = io.BytesIO()
    pl.DataFrame({"text": [f"row {n}" for n in range(count)]}).write_parquet(out)
    return out.getvalue()


def arrow(count: int = 3) -> bytes:
    out = io.BytesIO()
    pl.DataFrame({"text": [f"row {n}" for n in range(count)]}).write_ipc_stream(out)
    return out.getvalue()


def files() -> dict[str, Bad]:
    """The bad files of the issue, and their relatives."""
    many = b"".join(row(f"{n} {n * 7919 % 10007}") for n in range(5000))
    half = gzip.compress(many)[: len(gzip.compress(many)) // 2]
    whole_rows = _rows_in(half)
    return {
        "invalid_utf8.jsonl": Bad(
            row("one") + b'{"text": "\xff\xfe"}\n' + row("三"), ("one", "三"), ((1, "invalid_encoding"),)
        ),
        "cut_character.txt": Bad(b"caf\xe9 \xff", (), ((0, "invalid_encoding"),)),
        "broken_json.jsonl": Bad(
            row("one") + b'{"text": "tw\n' + b"[1]\n\n" + row("five"),
            ("one", "five"),
            ((1, "broken_json"), (2, "not_an_object")),
        ),
        "deep.jsonl": Bad(
            b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}\n" + row("two"), ("two",), ((0, "broken_json"),)
        ),
        "array_cut_short.json": Bad(b'[{"text": "one"}, {"te', (), ((0, "broken_json"),)),
        "long_line.jsonl": Bad(
            row("one") + row("x" * (64 << 20)) + row("three"), ("one", "three"), ((1, "line_too_long"),)
        ),
        "truncated.jsonl.gz": Bad(half, whole_rows, ((len(whole_rows), "truncated"),)),
        "truncated.jsonl.zst": Bad(zstd.compress(row("only"))[:-3], (), ((0, "truncated"),)),
        "truncated.parquet": Bad(parquet()[:-20], (), ((0, "truncated"),)),
        "truncated.arrow": Bad(arrow()[:-8], ("row 0", "row 1", "row 2"), ((3, "truncated"),)),
        "no.arrow": Bad(b"text", (), ((0, "damaged"),)),
        "good.parquet": Bad(parquet(), ("row 0", "row 1", "row 2")),
        "surrogate.jsonl": Bad(
            b'{"text": "\\ud800 alone"}\n{"text": "\xed\xa0\x80"}\n{"text": "\\ud83d\\ude00"}\n',
            ("😀",),
            ((0, "invalid_encoding"), (1, "invalid_encoding")),
        ),
        "null.jsonl": Bad(
            b'{"text": null}\n{"text": ""}\n{"text": "\\u0000x"}\n{"text": 1.5}\n{"other": 1}\n',
            ("\x00x",),
            ((0, "empty_text"), (1, "empty_text"), (3, "wrong_type"), (4, "missing_column")),
        ),
        "zero_bytes.jsonl": Bad(row("one") + bytes(20) + b"\n" + row("three"), ("one", "three"), ((1, "broken_json"),)),
        "empty.jsonl": Bad(b""),
        "empty.csv": Bad(b""),
        "empty.txt": Bad(b""),
        "empty.parquet": Bad(b"", (), ((0, "damaged"),)),
        "empty.jsonl.gz": Bad(gzip.compress(b"")),
        "bomb.zip": Bad(bomb(), ("before", "after"), ((1, "zip_bomb"),)),
        "bomb.txt.gz": Bad(gzip_bomb(), (), ((0, "zip_bomb"),)),
        "gb18030.jsonl": Bad((row(CHINESE) * 2).decode().encode("gb18030"), (CHINESE, CHINESE)),
        "gb18030.csv": Bad(f"text\n{CHINESE}\n".encode("gb18030"), (CHINESE,)),
        "gb18030.txt": Bad(CHINESE.encode("gb18030"), (CHINESE,)),
        "utf16.csv": Bad(f"text\n{CHINESE}\n".encode("utf-16"), (CHINESE,)),
        "columns.csv": Bad(
            b'text,label\none,a\ntwo\n\xff,b\nfour,"d\n',
            ("one",),
            ((1, "column_count"), (2, "invalid_encoding"), (3, "broken_csv")),
        ),
        "header.csv": Bad(b"text,text\none,two\n", (), ((0, "bad_header"),)),
        "page.html": Bad(b"<p>text \xff\xfe</p>", (), ((0, "invalid_encoding"),)),
        "cut.pdf": Bad(pdf([["one"]])[:100], (), ((0, "damaged"),)),
        "locked.pdf": Bad(pdf([["one"]], LOCKED), (), ((0, "encrypted"),)),
        "cut.docx": Bad(docx(["one"])[:300], (), ((0, "truncated"),)),
        "cut.xlsx": Bad(xlsx({"a": [["text"], ["one"]]})[:300], (), ((0, "truncated"),)),
        "cut.warc": Bad(warc_record(b"<p>one</p>") + warc_record(b"<p>two</p>")[:-20], ("one",), ((1, "truncated"),)),
        "not.zip": Bad(b"PK\x03\x04 nothing", (), ((0, "damaged"),)),
    }


def _rows_in(half: bytes) -> tuple[str, ...]:
    """The whole rows before the damage, by the standard library one byte at a time."""
    found = b""
    with gzip.open(io.BytesIO(half)) as f:
        try:
            while byte := f.read(1):
                found += byte
        except EOFError:
            pass
    return tuple(json.loads(line)["text"] for line in found.split(b"\n")[:-1])


@pytest.fixture(scope="module")
def all_files() -> dict[str, Bad]:
    return files()


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory, all_files: dict[str, Bad]) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "data"
    folder.mkdir()
    for name, file in all_files.items():
        (folder / name).write_bytes(file.content)
    return folder


def located(folder: Path) -> Located:
    source = SourceParams.model_validate({"from": str(folder), "name": "bad"})
    out = folder.parent
    return locate(source, Context({}, out, out, out / ".sources", out, Events(), 0, True))


def test_every_good_row_is_read_and_every_bad_one_is_named(bad_folder: Path, all_files: dict[str, Bad]) -> None:
    good: dict[str, list[str]] = {}
    bad: dict[str, list[tuple[int, str]]] = {}
    for name, path in located(bad_folder).files:
        reader = reader_of(None, path)
        good[name], bad[name] = [], []
        for item in operator_of("reader", reader).function("read")(path, reader):
            try:
                if isinstance(item, Reject):
                    raise Unfit(item.reason)
                good[name].append(text_of(item.fields, "text"))
            except Unfit as unfit:
                bad[name].append((item.offset, unfit.reason))
    assert bad == {name: list(file.bad) for name, file in all_files.items()}
    assert good == {name: list(file.good) for name, file in all_files.items()}


def test_source_reads_on_behind_damaged_files(bad_folder: Path, all_files: dict[str, Bad]) -> None:
    items = list(read(located(bad_folder)))
    for file in {name for name, _ in items}:
        offsets = [item.offset for name, item in items if name == file]
        assert offsets == sorted(set(offsets)), file  # no row of a file has the offset of another
    rejects = {name for name, item in items if isinstance(item, Reject)}
    assert rejects >= {name for name, file in all_files.items() if not file.good and file.bad}


def test_every_reason_has_its_text(all_files: dict[str, Bad]) -> None:
    assert all(known(code) for code in TEXTS.values())
    assert {reason for file in all_files.values() for _, reason in file.bad} <= set(TEXTS)


def test_file_of_unknown_ending_says_which_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.unknown").write_bytes(b"x")
    with pytest.raises(UserError) as error:
        reader_of(None, tmp_path / "a.unknown")
    assert ".jsonl" in str(error.value)


def test_bad_files_are_read_in_bounded_memory(bad_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from inhouse.data.source import reader_of;"
        "from inhouse.core.plugins import operator_of\n"
        "for name in ('long_line.jsonl', 'bomb.zip'):\n"
        "    path = Path(sys.argv[1], name); reader = reader_of(None, path)\n"
        "    for item in operator_of('reader', reader).function('read')(path, reader): pass\n"
        "from inhouse.core.run import peak_memory; print(peak_memory() >> 20)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bad_folder)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150, "MB of memory: a line of 64 MB or a bomb was held"


@pytest.mark.parametrize("name", ["truncated.parquet", "cut.pdf", "header.csv", "array_cut_short.json", "locked.pdf"])
def test_single_damaged_file_stops_the_run_with_its_reason(name: str, all_files: dict[str, Bad], folder: Any) -> None:
    folder.write(name, all_files[name].content)
    with pytest.raises(UserError) as error:
        folder.run({"sources": name})
    assert error.value.code == "data.too_many_rejects"
    assert name in str(error.value)
    assert text(TEXTS[all_files[name].bad[0][1]]) in str(error.value)  # type: ignore[index]
