"""Passports, number plates, WeChat and QQ ids: known by the words before them, plates by their form too."""

from __future__ import annotations

from inhouse.guard.patterns import begins, matches, pattern
from inhouse.guard.spans import Span

AHEAD = 64
NUMBER_OF = (
    r"(?i)\s?(?:号码|编号|证号|证件号|证|号|账号|帐号|id|ids|no\.?|number|num|#)?\s?(?:号码|号|no\.?|number|#)?\s?"
)
LINK = r"(?i)(?:\s?[:：=]|\s?[(（]|\s?(?:是|为|is|was|:)|\s?[,，]|)\s{0,2}"
PASSPORT = NUMBER_OF + LINK + r"([A-Za-z]{1,2}[0-9]{6,9}|[0-9]{9}|[0-9]{8})"
PASSPORT_BEFORE = r"(?:^|[^0-9A-Za-z])([A-Za-z]{1,2}[0-9]{7,9})\s?[(（]?(?:中国|普通|美国)?\z"
PLATE = (
    r"\A.[A-HJ-NP-Z]\s?[·•.\-]?\s?(?:[DF][0-9A-HJ-NP-Z][0-9]{4}|[0-9]{5}[DF]|"
    r"[0-9A-HJ-NP-Z]{4}[0-9A-HJ-NP-Z挂学警港澳领])"
)
PLATE_FOREIGN = r"(?i)(?:\s(?:number|no\.?|#))?\s?(?:[:：]|is|was|)\s{0,2}([A-Z0-9]{2,4}[ -]?[A-Z0-9]{2,5})"
WECHAT = (
    r"(?i)(?:号码|号|账号|帐号|\s?(?:id|number|account|handle|name)\b)?"
    r"(\s?[:：=]|\s?(?:是|为|is\b)|\s?[(（]|)\s{0,2}([A-Za-z][A-Za-z0-9_-]{5,19})"
)
QQ = (
    r"(?i)(?:号码|号|群号|群|账号|帐号|\s?(?:id|number|account|no\.?))?(?:\s?[:：=]|\s?(?:是|为|is)|\s?[(（]|)\s{0,2}"
    r"([1-9][0-9]{4,10})"
)
WORDS = (
    "android iphone windows mobile payment payments account official program programs wechat weixin message "
    "messages group groups ecosystem platform developer developers public article articles moments login browser "
    "python javascript integration openapi miniprogram webview redpacket enterprise workweixin number username "
    "because before please through should server client"
)
WORDS_AFTER_WECHAT = frozenset(WORDS.split())


def _after(text: str, stop: int, source: str, group: int = 1) -> tuple[int, int]:
    """Where the pattern's group stands that begins right after a keyword; (0, 0) for nowhere."""
    found = pattern(r"\A" + source).search(text[stop : stop + AHEAD])
    if not found:
        return 0, 0
    begin, end = found.span(group)
    return stop + begin, stop + end


def _ends_as_a_word(text: str, end: int) -> bool:
    after = text[end : end + 1]
    return not (after.isascii() and (after.isalnum() or after == "_"))


def find_passport(text: str, start: int, stop: int) -> list[Span]:
    """A passport's number right after or right before the word."""
    begin, end = _after(text, stop, PASSPORT)
    if end and _ends_as_a_word(text, end):
        chinese = matches(r"(?i)\A(?:[DEGPS][0-9]{8}|E[A-HJ-NP-Z][0-9]{7}|[HM][0-9]{8,10})\z", text[begin:end])
        return [Span(begin, end, "passport", 0.95 if chinese else 0.85)]
    window = max(0, start - 24)
    found = pattern(PASSPORT_BEFORE).search(text[window:start])
    return [Span(window + found.start(1), window + found.end(1), "passport", 0.8)] if found else []


def find_plate(text: str, start: int, stop: int) -> list[Span]:
    """A number plate of China: province, letter, five characters, or six for new energy."""
    mark = begins(PLATE, text[start : start + 12])
    digits = sum(c.isdigit() for c in mark)
    if digits < 2 or not _ends_as_a_word(text, start + len(mark)):
        return []
    return [Span(start, start + len(mark), "plate", 0.95 if digits >= 3 else 0.8)]


def find_foreign_plate(text: str, start: int, stop: int) -> list[Span]:
    """Letters and digits right after 'license plate' or 'plate number'."""
    begin, end = _after(text, stop, PLATE_FOREIGN)
    mark = text[begin:end]
    mixed = any(c.isdigit() for c in mark) and any(c.isalpha() and c.isupper() for c in mark)
    return [Span(begin, end, "plate", 0.75)] if mixed and mark.upper() == mark and _ends_as_a_word(text, end) else []


def find_wechat(text: str, start: int, stop: int) -> list[Span]:
    """A WeChat id right after the word: a letter, then 5 to 19 letters, digits, hyphens or underscores."""
    found = pattern(r"\A" + WECHAT).search(text[stop : stop + AHEAD])
    if not found or not _ends_as_a_word(text, stop + found.end(2)):
        return []
    value, link = found.group(2), found.group(1).strip()
    after = text[stop + found.end(2) : stop + found.end(2) + 2]
    if (
        value.lower() in WORDS_AFTER_WECHAT
        or after[:1] in ("@", "(")
        or after in ("//", ":/")
        or (after[:1] == "." and after[1:].isalnum())
    ):
        return []
    telling = any(c.isdigit() or c == "_" for c in value)
    if not telling and link not in (":", "：", "="):
        return []
    return [Span(stop + found.start(2), stop + found.end(2), "wechat", 0.9 if telling else 0.7)]


def find_qq(text: str, start: int, stop: int) -> list[Span]:
    """A QQ number right after the word."""
    begin, end = _after(text, stop, QQ)
    if not end or not _ends_as_a_word(text, end) or text[end : end + 1] in ("%", "元", "人", "万", "年"):
        return []
    return [Span(begin, end, "qq", 0.9)]
