"""Postal addresses: in Chinese divisions, road and number; in English house number, street and city."""

from __future__ import annotations

from inhouse.guard.patterns import begins, matches, pattern
from inhouse.guard.spans import Span
from inhouse.guard.tables import divisions

BACK, AHEAD = 60, 48
NUMBER = r"(?:[0-9０-９]{1,5}(?:[-－—之][0-9]{1,4})?|[一二三四五六七八九十百零〇]{1,5})"
ROAD = r"(?:大厦|大楼|广场|公寓|中心|胡同|[路街道巷弄里村苑园段院坊条屯组社庄寨湾桥环镇乡城府居轩阁庭邨区])"
# The end of what stands before 号, 室, 栋 …: a road or estate, perhaps its side or section, then the number.
SIDE_ROAD = r"(?:[东西南北中](?:[路街段]|[一二三四五六七八九十]路)?)?"
SECTION = SIDE_ROAD + r"(?:[一二三四五六七八九十0-9]{1,3}[段期区巷弄条组])?"
TO_NUMBER = (
    rf"{ROAD}{SECTION}\s?"
    rf"(?:(?:附|甲|乙)?{NUMBER}(?:号院?|弄|栋|幢|座|号楼|单元|村|组|队|社)?\s?[-－]?){{0,3}}"
    rf"(?:附|甲|乙)?{NUMBER}[A-Za-z]?\s?\z"
)
ESTATE = r"(?:小区|大厦|大楼|广场|花园|公寓|中心|家园|公馆|国际|新村|苑|城|园)"
TAIL = (
    rf"\A(?:院|大院)?(?:[\p{{Han}}A-Za-z0-9]{{1,12}}?{ESTATE})?"
    rf"(?:\s?[-－]?(?:附)?{NUMBER}?[A-Za-z]?{NUMBER}(?:号楼|栋|幢|座|楼|单元|层|室|号|房|户|组)?[东西]?户?){{0,6}}"
)
RUN = r"[\p{Han}A-Za-z0-9０-９\-－—()（）·# ]*\z"
# Words that lead to an address and are no part of it; a road name is looked for after the last of them.
LEADS = r"[在于住至到往是为址从去回寄送达离距位迁搬]"
NOT_HOUSES = (
    r"\A(?:线|机|文|令|种|选手|字|店|台风|车厢|桌|公告|染色|元素|球|电池|汽油|柴油|"
    r"下午|上午|早|晚|凌晨|前|后|之|至|到|起)"
)
LABELLED = r"(?:地)?[\s　]{0,2}(?:[:：=]|是|为|在|于)?[\s　]{0,2}"
STOPS = r"\A[^，,。；;\n\r\t！!？?\"“”<>|]{2,50}"

TYPE = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Drive|Dr|Lane|Ln|Court|Ct|Place|Pl|Square|Sq|Terrace|Ter|Way|"
    r"Parkway|Pkwy|Highway|Hwy|Circle|Cir|Close|Crescent|Row|Alley|Trail|Trl|Broadway|Plaza|Gardens|Grove|Hill|Mews)"
)
UNIT = r"(?:,?[ ](?:Apt|Apartment|Suite|Ste|Unit|Flat|Room|Rm|Floor|Fl|#)\.?[ ]?#?[0-9A-Za-z-]{1,6})?"
CAPITAL = r"[A-Z][a-z]+(?:[ ][A-Z][a-z]+)?"
CITY = (
    rf"(?:,?[ \n](?:[A-Z][A-Za-z.'’-]+[ ]?){{1,3}},[ ](?:[A-Z]{{2}}|{CAPITAL})(?:,?[ ][0-9]{{5}}(?:-[0-9]{{4}})?)?|"
    rf",[ ]{CAPITAL}(?:,?[ ][A-Z]{{1,2}}[0-9][0-9A-Z]?[ ][0-9][A-Z]{{2}})?)?"
)
SIDE = r"(?:N|S|E|W|NE|NW|SE|SW|North|South|East|West)"
STREET = (
    r"(?:^|[^A-Za-z0-9.#:/-])((?:(?:Flat|Apt|Unit|Suite)\.?[ ][0-9]{1,4}[A-Za-z]?,[ ])?"
    rf"[0-9]{{1,6}}[A-Za-z]?(?:-[0-9]{{1,4}})?,?[ ](?:{SIDE}\.?[ ])?"
    r"(?:(?:[A-Z][A-Za-z'’.-]*|[0-9]{1,3}(?:st|nd|rd|th))[ ]){1,4}"
    rf"{TYPE}\b\.?(?:[ ](?:N|S|E|W|NE|NW|SE|SW)\b\.?)?{UNIT}{CITY})"
)
NOT_BEFORE = (
    r"(?i)(?:section|chapter|figure|fig\.?|table|step|part|version|level|phase|page|no\.?|python|day|week)[ ]\z"
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
        if begin < start < end and not matches(NOT_BEFORE, text[max(0, begin - 12) : begin]):
            return [Span(begin, end, "address", 0.85)]
    return []


def find_box(text: str, start: int, stop: int) -> list[Span]:
    """A post office box."""
    if not matches(r"(?i)(?:^|[^a-z])p\.?[ ]?o\.?[ ]\z", text[max(0, start - 8) : start]):
        return []
    start = max(start - 8, 0) + str(text[max(0, start - 8) : start]).lower().rindex("p")
    found = begins(BOX, text[stop : stop + AHEAD])
    return [Span(start, stop + len(found.rstrip()), "address", 0.8)] if found else []
