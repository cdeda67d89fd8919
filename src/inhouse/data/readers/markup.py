"""The main text and the title of an HTML page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inhouse.core.plugins import require
from inhouse.data.readers.encoding import MARKS, Encoding, detect
from inhouse.data.records import Damaged

if TYPE_CHECKING:
    from resiliparse.parse.html import HTMLTree

RESULT_DEPENDS_ON = ("Resiliparse",)
CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w:.-]{1,40})""", re.IGNORECASE)
HEAD_BYTES = 4096  # where a charset is looked for; the HTML standard asks for 1024
# Elements that hold no content by what they are or by the role that they state.
STRUCTURE = (
    *("nav", "aside", "footer", "body > header", "dialog", "form", "button", "iframe", "template"),
    *(f"[role={r} i]" for r in ("navigation", "banner", "contentinfo", "complementary", "search", "dialog", "alert")),
)
# Names of boxes that hold none: whole words of a class or id, and parts that stand in no other word.
WORDS = ("nav", "navbar", "menu", "header", "footer", "sidebar", "breadcrumb", "share", "copyright", "pagination")
PARTS = ("cookie", "consent", "gdpr", "sidebar", "navbar", "breadcrumb", "site-header", "page-footer", "site-footer")
NAMES = (
    *(f"[class~={word} i]" for word in WORDS),
    *(f"[id={word} i]" for word in WORDS),
    *(f"[{place}*={part} i]" for part in PARTS for place in ("class", "id")),
)
LITTLE = 0.1  # of the markup is text: only then it is looked whether the names took too much
LEAST_LEFT = 0.2  # of the text: where names take more than the rest, they meant something else (`has-sidebar` on body)


@dataclass(frozen=True)
class Page:
    """What a page says."""

    title: str
    text: str


def page_of(raw: bytes, encoding: Encoding = "auto", charset: str | None = None) -> Page:
    """The page without navigation, headers, footers, scripts and banners, its paragraphs and lists on their lines.

    Resiliparse turns the page into text; its own main-content rule is not used, because it loses every bulleted list
    and is quadratic in the depth of a page (both measured with 2.0.1). `charset` is what the server said. Raises
    Damaged when the bytes are no text.
    """
    require("data", "resiliparse")
    from resiliparse.parse.html import HTMLTree

    html = _decoded(raw, encoding, charset)
    tree = HTMLTree.parse(html)
    text = _text(tree, STRUCTURE + NAMES)
    if len(text) < LITTLE * len(html):
        whole = _text(tree, STRUCTURE)
        text = text if len(text) >= LEAST_LEFT * len(whole) else whole
    return Page(" ".join((tree.title or "").split()), text.replace("\x00", "\ufffd"))


def _text(tree: HTMLTree, without: tuple[str, ...]) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(
        tree, preserve_formatting=True, list_bullets=False, alt_texts=False, skip_elements=list(without)
    ).strip("\n")


def _decoded(raw: bytes, encoding: Encoding, charset: str | None) -> str:
    """By its mark, as UTF-8, as the server or the page says, or as Chinese; always strictly."""
    if encoding != "auto":
        return _strict(raw, (encoding,))
    for mark, name in MARKS:
        if raw.startswith(mark):
            return _strict(raw.removeprefix(mark), (name,))
    stated = CHARSET.search(raw, 0, HEAD_BYTES)
    names = (charset, stated.group(1).decode("ascii") if stated else None)
    codecs = ("utf-8", *(_codec(name) for name in names if name))
    try:
        return _strict(raw, codecs)
    except Damaged:
        if detect(raw) == "utf-8":
            raise
        return _strict(raw, (detect(raw),))


def _codec(label: str) -> str:
    """The codec that browsers use for a label; GB 18030 for GB 2312 and GBK, which it contains."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    name = map_encoding_to_html5(label) or "utf-8"
    return "gb18030" if name in ("gbk", "gb2312") else name


def _strict(raw: bytes, encodings: tuple[str, ...]) -> str:
    problem = ""
    for encoding in encodings:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError as error:
            problem = problem or f"byte {error.start}"
        except LookupError:
            continue  # a label that Python has no codec for
    raise Damaged("invalid_encoding", problem)
