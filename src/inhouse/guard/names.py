"""Names of persons, believed only beside words that announce them; names that nothing announces are not found."""

from __future__ import annotations

from inhouse.guard.patterns import begins, matches, pattern
from inhouse.guard.spans import Span
from inhouse.guard.tables.people import words

AHEAD = 24
HAN = r"\p{Han}"
LINK = r"(?:[（(][^）)]{0,6}[）)])?[\s　]{0,3}(?:[:：=]|是|为|叫)?[\s　]{0,3}"
MARKS = ":：=是为叫"
LINKED = frozenset("（( \t\n\f\r　" + MARKS)  # what a link begins with
MINORITY = r"\A\p{Han}{2,6}[·•]\p{Han}{2,8}"
AFTER_GENDER = r"\A(?:[,，、。;；\s)）]|\d|岁|汉族|\z)"
BEFORE_GENDER = r"(?:^|[^\p{Han}A-Za-z0-9])(\p{Han}{2,4})[\s　]?[,，、（(]?[\s　]?\z"
BEFORE_NUMBER = (
    r"(?:^|[^\p{Han}A-Za-z0-9])(\p{Han}{2,4})[\s　,，、:：（(/|-]{1,2}"
    r"(?:(?:手机|电话|联系电话|手机号|tel|TEL)[:：]?\s?)?\z"
)

WORD = r"[A-Z][a-z\x{C0}-\x{24F}'’]*(?:-?[A-Z]?[a-z\x{C0}-\x{24F}'’]+)"
ENGLISH = rf"\A{WORD}(?:[ ](?:[A-Z]\.[ ]?)?(?:(?:van|von|de|da|del|bin|al)[ ])?{WORD}){{0,2}}"
AFTER_TITLE = r"\A\.?[ ]{1,2}"
AFTER_LABEL = r"(?i)\A(?:\s?(?:'s)?\s?name)?(?:[ \t]{0,3}[:：=]|[ ]is|,)[ \t\n]{1,3}|\A[:：]"
OPENING = r"\A[ ]{1,2}"
PERSONAL = r"(?i)(?:\bmy|\bhis|\bher|full|first|last|family|given|middle|patient|client|holder|maiden|legal)\W?\z"


def _given(chars: str) -> bool:
    return all(c in words("given") for c in chars)


def chinese_name(text: str, sure: bool) -> tuple[int, float]:
    """How long the Chinese name at the beginning is (0 for none), and how sure; `sure` after a label with its mark."""
    if ("·" in text or "•" in text) and (found := begins(MINORITY, text)):
        return (len(found), 0.9) if sure else (0, 0.0)
    family = 2 if text[:2] in words("compound") else int(text[:1] in words("surnames"))
    if not family:
        return 0, 0.0
    run = len(begins(r"\A\p{Han}{0,9}", text))
    if text[:2] in words("not_names") or text[: min(run, 3)] in words("not_names"):
        return 0, 0.0
    if sure and family < run <= family + 2:
        return run, 0.95
    for given in (2, 1):
        size = family + given
        if run < size or not _given(text[family:size]):
            continue
        ends = run == size or text[size] in words("after_name")
        if ends or (given == 2 and sure):
            return size, 0.85 if sure else 0.7
    return 0, 0.0


def find_after_label(text: str, start: int, stop: int) -> list[Span]:
    """A Chinese name right after a word like 姓名, 患者 or 我叫."""
    linked = text[stop : stop + 1] in LINKED
    link = begins(r"\A" + LINK, text[stop : stop + AHEAD]) if linked else ""
    begin = stop + len(link)
    sure = any(c in link for c in MARKS) or text[stop - 1 : stop] == "叫"
    size, score = chinese_name(text[begin : begin + AHEAD], sure)
    return [Span(begin, begin + size, "name", score)] if size else []


def find_before_title(text: str, start: int, stop: int) -> list[Span]:
    """A Chinese name right before 先生, 女士, 教授 and the like; a frequent surname alone counts before some."""
    if text[stop : stop + 1] in ("们", "会"):
        return []
    for family, given in ((2, 2), (1, 2), (2, 1), (1, 1), (2, 0)):
        begin = start - family - given
        name = text[begin:start] if begin >= 0 else ""
        known = name[:family] in words("compound" if family == 2 else "surnames")
        if known and _given(name[family:]) and name[:2] not in words("not_names"):
            return [Span(begin, start, "name", 0.85)]
    alone = text[max(0, start - 1) : start] in words("common") and start > 0
    if (
        alone
        and text[start:stop] in words("titles_alone")
        and text[max(0, start - 2) : start] not in words("not_names")
    ):
        return [Span(start - 1, start, "name", 0.6)]
    return []


def _whole_name(found: str) -> bool:
    size, _ = chinese_name(found, True)
    return size == len(found) and _given(found[2 if found[:2] in words("compound") else 1 :])


def find_beside_gender(text: str, start: int, stop: int) -> list[Span]:
    """A Chinese name before 男 or 女, as records write it: 张三，男，1980年."""
    if not matches(AFTER_GENDER, text[stop : stop + 2]):
        return []
    return _right_before(text, start, BEFORE_GENDER)


def find_before_number(text: str, start: int) -> list[Span]:
    """A Chinese name right before a phone or id, as lists write it: 张三 138…"""
    return _right_before(text, start, BEFORE_NUMBER)


def _right_before(text: str, stop: int, source: str) -> list[Span]:
    window = max(0, stop - AHEAD)
    found = pattern(source).search(text[window:stop])
    if not found or found.end(1) == stop - window or not _whole_name(found.group(1)):
        return []
    return [Span(window + found.start(1), window + found.end(1), "name", 0.75)]


def _english(text: str, begin: int, least: float, lower: bool = False) -> list[Span]:
    """The English name at `begin`, scored by whether its first or last word is a known one."""
    name = begins(ENGLISH, text[begin : begin + 64])
    if not name and lower:
        name = begins(r"\A[a-z]{2,16}(?:[ ][a-z]{2,16})?", text[begin : begin + 40])
        name = name if name.split(" ")[0] in words("english_given") else ""
    tokens = name.replace("’", "'").lower().split(" ")
    while tokens and tokens[-1].strip(".") in words("not_english"):
        name = name[: -len(tokens.pop())].rstrip(" ")
    if not tokens or not name or tokens[0] in words("not_english"):
        return []
    listed = tokens[0] in words("english_given") or words("pinyin_surnames") & {tokens[0], tokens[-1]}
    score = 0.85 if listed else least
    return [Span(begin, begin + len(name), "name", score)] if score > 0 else []


def find_after_title(text: str, start: int, stop: int) -> list[Span]:
    """An English name right after Mr, Ms, Dr and the like."""
    gap = begins(AFTER_TITLE, text[stop : stop + 4])
    if not gap or not text[start].isupper():
        return []
    return _english(text, stop + len(gap), 0.75)


def find_after_english_label(text: str, start: int, stop: int) -> list[Span]:
    """An English name after 'Name:', 'my name is', 'Patient:', 'From:', 'Dear' or 'Sincerely,'."""
    label = text[start:stop].lower()
    before = text[max(0, start - 12) : start]
    if label == "dear":
        gap, least = begins(OPENING, text[stop : stop + 4]), 0.6
    else:
        gap, least = begins(AFTER_LABEL, text[stop : stop + 12]), 0.0
        gap += begins(r"\A[ \t]{0,3}", text[stop + len(gap) :][:3]) if gap else ""
        told = label == "name" and matches(PERSONAL, before)
        least = 0.75 if told or label not in ("name", "from", "contact", "to", "author") else 0.0
    if not gap or ("," in gap and label not in ("sincerely", "regards")):
        return []
    return _english(text, stop + len(gap), least, lower=label == "name" and "is" in gap)
