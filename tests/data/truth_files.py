"""Files whose content is known: pages with their main text, workbooks, documents, archives, damaged files."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape


@dataclass(frozen=True)
class Page:
    """An HTML page, the sentences of its main text, and what must not be in the extract."""

    html: str
    title: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]


NEWS = (
    "The central bank raised its key rate by a quarter point on Tuesday, the third increase this year.",
    "Analysts had expected the move, but several said that the wording of the statement was unusually firm.",
    "Households with variable mortgages will feel the change within two months, according to the bank's own survey.",
)
NEWS_ZH = (
    "中国人民银行周二宣布下调贷款市场报价利率，这是今年以来的第三次调整。",
    "多位分析师表示，此次调整符合市场预期，但声明的措辞比以往更加谨慎。",
    "根据央行的调查，使用浮动利率房贷的家庭将在两个月内感受到变化。",
)
MANUAL = (
    "Install the package with your usual package manager and create a project folder.",
    "The configuration file has three sections; only the first one is required for a start.",
    "pip install example-tool",
)
FORUM_ZH = (
    "请问各位，笔记本电脑充电时为什么会发热？我的机器使用了大约两年。",
    "充电时电池的化学反应会产生热量，如果温度不超过四十五度，一般不需要担心。",
    "建议清理一下风扇，同时避免在被子上使用电脑，这样可以明显降低温度。",
)
TABLE = ("Average rainfall by month", "January", "81 mm", "The driest month is July, when almost no rain falls.")
PLAIN = ("A page of the old web without any structure.", "It still has two paragraphs that somebody wrote.")

COOKIES = (
    '<div id="cookie-banner" class="cookie-consent"><p>We use cookies to improve your experience.</p>'
    "<button>Accept all</button></div>"
)


def pages() -> dict[str, Page]:
    """Six pages by hand: news, Chinese news, a manual, a Chinese forum, a table, and the old web."""
    return {
        "news": _news(),
        "news_zh": _news_zh(),
        "manual": _manual(),
        "forum_zh": _forum_zh(),
        "table": _table(),
        "plain": Page(
            f"<html><head><title>Old</title></head><body><p>{PLAIN[0]}<p>{PLAIN[1]}</body></html>", "Old", PLAIN, ()
        ),
    }


def _news() -> Page:
    body = "".join(f"<p>{s}</p>" for s in NEWS)
    return Page(
        "<!doctype html><html><head><title>Rates rise again | The Daily</title><style>.x{color:red}</style>"
        "<script>var tracking = 'on';</script></head><body>"
        + COOKIES
        + '<header><a href="/">The Daily</a><nav><ul><li><a href="/w">World news</a></li><li><a href="/s">Sports</a>'
        "</li></ul></nav></header><main><article><h1>Rates rise again</h1>" + body + "</article>"
        '<aside class="sidebar"><h3>Most read stories</h3><ul><li><a href="/1">Ten dogs you will not believe</a></li>'
        "</ul></aside></main><footer><p>Copyright The Daily. All rights reserved.</p></footer></body></html>",
        "Rates rise again | The Daily",
        ("Rates rise again", *NEWS),
        ("cookies", "World news", "Sports", "All rights reserved", "tracking", "color:red", "Ten dogs"),
    )


def _news_zh() -> Page:
    body = "".join(f"<p>　　{s}</p>" for s in NEWS_ZH)
    return Page(
        '<!doctype html><html lang="zh"><head><meta charset="gb2312"><title>央行下调利率_财经频道</title></head><body>'
        '<div class="nav"><a href="/">首页</a><a href="/cj">财经新闻</a><a href="/ty">体育赛事</a></div>'
        '<div class="article-content"><h1>央行下调利率</h1>' + body + "</div>"
        '<div class="footer"><p>版权所有 未经许可不得转载</p><p>京ICP备00000000号</p></div>'
        '<div class="cookie-notice"><p>本网站使用缓存文件以改善体验</p></div></body></html>',
        "央行下调利率_财经频道",
        ("央行下调利率", *NEWS_ZH),
        ("首页", "体育赛事", "版权所有", "ICP备", "缓存文件"),
    )


def _manual() -> Page:
    return Page(
        "<html><head><title>Getting started</title></head><body>"
        '<nav class="sidebar"><ul><li><a href="a">Reference guide</a></li><li><a href="b">Changelog</a></li></ul></nav>'
        f'<main role="main"><h1>Getting started</h1><p>{MANUAL[0]}</p><pre><code>{MANUAL[2]}</code></pre>'
        f"<h2>Configuration</h2><p>{MANUAL[1]}</p><ul><li>name of the project</li><li>path of the data</li></ul></main>"
        "<footer>Built with a generator</footer></body></html>",
        "Getting started",
        ("Getting started", *MANUAL, "name of the project", "path of the data"),
        ("Reference guide", "Changelog", "Built with"),
    )


def _forum_zh() -> Page:
    posts = "".join(f'<div class="post"><div class="post-body"><p>{s}</p></div></div>' for s in FORUM_ZH)
    return Page(
        '<html><head><meta charset="utf-8"><title>充电发热怎么办？ - 数码论坛</title></head><body>'
        '<div id="header"><ul class="menu"><li><a href="/login">登录</a></li><li><a href="/r">注册账号</a></li></ul>'
        "</div>"
        '<div id="content"><h1>充电发热怎么办？</h1>' + posts + "</div>"
        '<div id="footer"><a href="/about">关于我们</a><a href="/contact">联系方式</a></div></body></html>',
        "充电发热怎么办？ - 数码论坛",
        ("充电发热怎么办？", *FORUM_ZH),
        ("注册账号", "关于我们", "联系方式"),
    )


def _table() -> Page:
    rows = "".join(f"<tr><td>{m}</td><td>{v} mm</td></tr>" for m, v in (("January", 81), ("July", 3)))
    return Page(
        "<html><head><title>Rainfall</title></head><body><nav><a href='/'>Weather home</a></nav><main>"
        f"<h1>{TABLE[0]}</h1><table><tr><th>Month</th><th>Rain</th></tr>{rows}</table><p>{TABLE[3]}</p></main>"
        "<footer>Contact the weather office</footer></body></html>",
        "Rainfall",
        TABLE,
        ("Weather home", "Contact the weather office"),
    )


# Other formats, written by hand, so that no reader is tested with the library it is made of.

OOXML = "http://schemas.openxmlformats.org"
XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
Cell = str | int | float | None


def zipped(members: Mapping[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of these files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _package(main: str, kind: str, parts: Mapping[str, str]) -> bytes:
    """An Office file whose main part is `main`."""
    types = (
        f'{XML}<Types xmlns="{OOXML}/package/2006/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Default Extension="xml" ContentType="application/xml"/><Override PartName="/{main}" ContentType="{kind}"/>'
        "</Types>"
    )
    return zipped({"[Content_Types].xml": types, "_rels/.rels": _relations({"r1": ("officeDocument", main)}), **parts})


def _relations(targets: Mapping[str, tuple[str, str]]) -> str:
    kind = f"{OOXML}/officeDocument/2006/relationships"
    rows = "".join(f'<Relationship Id="{i}" Type="{kind}/{t}" Target="{to}"/>' for i, (t, to) in targets.items())
    return f'{XML}<Relationships xmlns="{OOXML}/package/2006/relationships">{rows}</Relationships>'


def xlsx(sheets: Mapping[str, Sequence[Sequence[Cell]]]) -> bytes:
    """A workbook with these sheets."""
    names = "".join(f'<sheet name="{name}" sheetId="{i}" r:id="r{i}"/>' for i, name in enumerate(sheets, 1))
    book = (
        f'{XML}<workbook xmlns="{OOXML}/spreadsheetml/2006/main" '
        f'xmlns:r="{OOXML}/officeDocument/2006/relationships"><sheets>{names}</sheets></workbook>'
    )
    targets = {f"r{i}": ("worksheet", f"worksheets/sheet{i}.xml") for i in range(1, len(sheets) + 1)}
    parts = {"xl/workbook.xml": book, "xl/_rels/workbook.xml.rels": _relations(targets)}
    for number, rows in enumerate(sheets.values(), 1):
        data = "".join(f'<row r="{r}">{_cells(r, row)}</row>' for r, row in enumerate(rows, 1))
        parts[f"xl/worksheets/sheet{number}.xml"] = (
            f'{XML}<worksheet xmlns="{OOXML}/spreadsheetml/2006/main"><sheetData>{data}</sheetData></worksheet>'
        )
    return _package(
        "xl/workbook.xml", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml", parts
    )


def _cells(number: int, row: Sequence[Cell]) -> str:
    found = ""
    for column, value in zip("ABCDEFGH", row, strict=False):
        if isinstance(value, str):
            found += f'<c r="{column}{number}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        elif value is not None:
            found += f'<c r="{column}{number}"><v>{value}</v></c>'
    return found


def docx(blocks: Sequence[str | Sequence[Sequence[str]]]) -> bytes:
    """A Word document of paragraphs and tables, in this order."""
    body = "".join(_paragraph(b) if isinstance(b, str) else _word_table(b) for b in blocks)
    document = (
        f'{XML}<w:document xmlns:w="{OOXML}/wordprocessingml/2006/main"><w:body>{body}<w:sectPr/></w:body></w:document>'
    )
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    return _package("word/document.xml", kind, {"word/document.xml": document})


def _paragraph(text: str) -> str:
    return f'<w:p><w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'


def _word_table(rows: Sequence[Sequence[str]]) -> str:
    cells = ["".join(f"<w:tc>{_paragraph(cell)}</w:tc>" for cell in row) for row in rows]
    grid = "<w:gridCol/>" * len(rows[0])
    return f"<w:tbl><w:tblPr/><w:tblGrid>{grid}</w:tblGrid>{''.join(f'<w:tr>{c}</w:tr>' for c in cells)}</w:tbl>"


def pdf(pages: Sequence[Sequence[str]], trailer: str = "") -> bytes:
    """A PDF with these lines on its pages (Latin-1)."""
    font = 3 + 2 * len(pages)
    kids = " ".join(f"{3 + 2 * i} 0 R" for i in range(len(pages)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>"]
    for number, lines in enumerate(pages):
        shown = "".join(f"({line}) Tj T* " for line in lines)
        stream = f"BT /F1 12 Tf 72 720 Td 14 TL {shown}ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {4 + 2 * number} 0 R "
            f"/Resources << /Font << /F1 {font} 0 R >> >> >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    out, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"trailer << /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n" + table + end).encode("latin-1")


# The owner's and user's entries are not those of the empty password, so that the file needs one (ISO 32000-1, 7.6).
LOCKED = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{'41' * 32}> /U <{'42' * 32}> /P -4 >> /ID [<01><01>]"


def warc_record(
    body: bytes, url: str = "http://example.org/", kind: str = "response", http: bytes = b"Content-Type: text/html\r\n"
) -> bytes:
    """A WARC 1.0 record of an HTTP answer with status 200, or with the status line that `http` begins with."""
    head = http if http.startswith(b"HTTP/") else b"HTTP/1.1 200 OK\r\n" + http
    content = head + b"\r\n" + body
    return (
        (
            f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-02T03:04:05Z\r\n"
            f"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000001>\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(content)}\r\n\r\n"
        ).encode()
        + content
        + b"\r\n\r\n"
    )


def bomb(megabytes: int = 70) -> bytes:
    """A zip archive with a good file before and after one of zeros that unpacks to `megabytes`."""
    return zipped({"a.txt": "before", "zeros.txt": bytes(megabytes << 20), "z.txt": "after"})


def gzip_bomb(megabytes: int = 70) -> bytes:
    """Zeros as gzip."""
    return gzip.compress(bytes(megabytes << 20), 9)
