"""Postal addresses: divisions of China from the gazetteer, then road and number; house number, street and city in English."""

from __future__ import annotations

from inhouse.guard.patterns import begins, matches, pattern
from inhouse.guard.spans import Span
from inhouse.guard.tables import divisions

BACK, AHEAD = 60, 48
NUMBER = r"(?:[0-9０-９]{1,5}(?:[-－—之][0-9]{1,4})?|[一二三四五六七八九十百零〇]{1,5})"
ROAD = (
    r"(?:路|街|大道|大街|道|巷|弄|胡同|里|村|苑|园|小区|花园|新村|大厦|广场|段|院|坊|条|屯|组|社|庄|寨|湾|桥|环|镇|乡|街道|"
    r"开发区|工业园|产业园|科技园|公寓|家园|城|府|居|轩|阁|庭|邨|大楼|中心|区)"
)
# The end of what stands before 号, 室, 栋 …: a road or estate, perhaps its side or section, then the number.
TO_NUMBER = (
    rf"{ROAD}(?:[东西南北中](?:[路街段]|[一二三四五六七八九十]路)?)?(?:[一二三四五六七八九十0-9]{{1,3}}[段期区巷弄条组])?\s?"
    rf"(?:(?:附|甲|乙)?{NUMBER}(?:号院?|弄|栋|幢|座|号楼|单元|村|组|队|社)?\s?[-－]?){{0,3}}(?:附|甲|乙)?{NUMBER}[A-Za-z]?\s?\z"
)
TAIL = (
    rf"\A(?:院|大院)?(?:[\p{{Han}}A-Za-z0-9]{{1,12}}?(?:小区|大厦|大楼|广场|花园|公寓|中心|家园|公馆|国际|新村|苑|城|园))?"
    rf"(?:\s?[-－]?(?:附)?{NUMBER}?[A-Za-z]?{NUMBER}(?:号楼|栋|幢|座|楼|单元|层|室|号|房|户|组)?[东西]?户?){{0,6}}"
)
RUN = r"[\p{Han}A-Za-z0-9０-９\-－—()（）·# ]*\z"
# Words that lead to an address and are no part of it; a road name is looked for after the last of them.
LEADS = r"[在于住至到往是为址从去回寄送达离距位迁搬]"
NOT_HOUSES = r"\A(?:线|楼梯|机|文|令|种|选手|字|店|公馆线|台风|车厢|桌|公告|染色|元素|球|电池|汽油|柴油|下午|上午|早|晚|凌晨|前|后|之|至|到|起|，\d)"
LABELLED = r"(?:地)?[\s　]{0,2}(?:[:：=]|是|为|在|于)?[\s　]{0,2}"
STOPS = r"\A[^，,。；;\n\r\t！!？?\"“”<>|]{2,50}"

TYPE = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Drive|Dr|Lane|Ln|Court|Ct|Place|Pl|Square|Sq|Terrace|Ter|Way|Parkway|"
    r"Pkwy|Highway|Hwy|Circle|Cir|Close|Crescent|Row|Alley|Trail|Trl|Broadway|Plaza|Gardens|Grove|Hill|Mews)"
)
UNIT = r"(?:,?[ ](?:Apt|Apartment|Suite|Ste|Unit|Flat|Room|Rm|Floor|Fl|#)\.?[ ]?#?[0-9A-Za-z-]{1,6})?"
CITY = r"(?:,?[ \n](?:[A-Z][A-Za-z.'’-]+[ ]?){1,3},[ ](?:[A-Z]{2}|[A-Z][a-z]+(?:[ ][A-Z][a-z]+)?)(?:,?[ ][0-9]{5}(?:-[0-9]{4})?)?|,[ ][A-Z][a-z]+(?:[ ][A-Z][a-z]+)?(?:,?[ ][A-Z]{1,2}[0-9][0-9A-Z]?[ ][0-9][A-Z]{2})?)?"
STREET = (
    r"(?:^|[^A-Za-z0-9.#:/-])([0-9]{1,6}[A-Za-z]?(?:-[0-9]{1,4})?,?[ ](?:(?:N|S|E|W|NE|NW|SE|SW|North|South|East|West)\.?[ ])?"
    r"(?:(?:[A-Z][A-Za-z'’.-]*|[0-9]{1,3}(?:st|nd|rd|th))[ ]){0,4}"
    + TYPE
    + r"\b\.?(?:[ ](?:N|S|E|W|NE|NW|SE|SW)\b\.?)?"
    + UNIT
    + CITY
    + ")"
)
BOX = r"\A[ ]?(?:No\.?[ ]?)?#?([0-9]{1,6})" + CITY


def find_numbered(text: str, start: int, stop: int) -> list[Span]:
    """A Chinese address up to its house, building or room number, and what follows of it."""
    window = max(0, start - BACK)
    before = str(pattern(RUN).search(text[window:start]).group())
    road = pattern(TO_NUMBER).search(before)
    if not road or begins(NOT_HOUSES, text[stop : stop + 3]):
        return []
    base = start - len(before)
    first, depth = _first_division(before, road.start() + 1)
    tail = stop + len(begins(TAIL, text[stop : stop + AHEAD]).rstrip())
    if first < 0:
        name = _road_name(before, road.start())
        return [Span(base + name, tail, "address", 0.6)] if name >= 0 else []
    return [Span(base + first, tail, "address", 0.9 if depth > 1 else 0.8)]


def _first_division(text: str, limit: int) -> tuple[int, int]:
    """Where the chain of divisions begins that leads to `limit` (-1 for none), and how many they are.

    The last chain of several divisions wins: an address may follow another one. Else the first: roads are named
    after places.
    """
    at, best, depth_of_best = 0, -1, 0
    while at < limit:
        first, depth = at, 0
        size, level = divisions.at(text, at)
        if level == divisions.COUNTY and text[at + size - 1] not in "区县市旗":
            size = 0
        while size:
            at, depth = at + size, depth + 1
            at += text[at : at + 1] in (" ", "-")
            size, _ = divisions.at(text, at)
        if depth > 1 or (depth and best < 0):
            best, depth_of_best = first, depth
        at += depth == 0
    return best, depth_of_best


def _road_name(text: str, road: int) -> int:
    """Where the name of the road begins whose last character is at `road`; -1 when nothing tells."""
    found = list(pattern(LEADS).finditer(text[:road]))
    begin = found[-1].end() if found else 0
    spaced = text.rfind(" ", 0, road) + 1
    begin = max(begin, spaced)
    return begin if 1 <= road - begin <= 8 else -1


def find_labelled(text: str, start: int, stop: int) -> list[Span]:
    """What follows 地址, 住址 or 户籍 when it begins with at least two divisions."""
    begin = stop + len(begins(r"\A" + LABELLED, text[stop : stop + 8]))
    found = begins(STOPS, text[begin : begin + BACK]).rstrip()
    first, depth = _first_division(found, 1)
    if first != 0 or depth < 2:
        return []
    whole = begins(r"\A[\p{Han}A-Za-z0-9０-９\-－—()（）·# ]+", found).rstrip()
    return [Span(begin, begin + len(whole), "address", 0.75)]


def find_street(text: str, start: int, stop: int) -> list[Span]:
    """An English address around a word like Street: house number, names, and city, state and code when they follow."""
    window = max(0, start - BACK)
    for found in pattern(STREET).finditer(text[window : stop + AHEAD]):
        begin, end = window + found.start(1), window + found.end(1)
        if begin < start < end:
            return [Span(begin, end, "address", 0.85)]
    return []


def find_box(text: str, start: int, stop: int) -> list[Span]:
    """A post office box."""
    if not matches(r"(?i)(?:^|[^a-z])p\.?[ ]?o\.?[ ]\z", text[max(0, start - 8) : start]):
        return []
    start = max(start - 8, 0) + str(text[max(0, start - 8) : start]).lower().rindex("p")
    found = begins(BOX, text[stop : stop + AHEAD])
    return [Span(start, stop + len(found.rstrip()), "address", 0.8)] if found else []
