"""Phones, resident ids and bank cards: take the whole digit run, then say what it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from inhouse.guard.patterns import matches, pattern
from inhouse.guard.spans import PiiType, Span
from inhouse.guard.tables.divisions import ID_PROVINCES

FULL_WIDTH = {0xFF10 + n: 48 + n for n in range(10)} | {
    0xFF0B: "+",
    0xFF0D: "-",
    0xFF08: "(",
    0xFF09: ")",
    0xA0: " ",
    0xB7: ".",
}
FULL_WIDTH |= {0x2010 + n: "-" for n in range(4)}
BEFORE = 48
SHORTEST = 10  # digits of what we know, where no plus announces a country code
LONGEST_PART = 7  # groups: +33 1 23 45 67 89

# What may stand between the word and the number: not another value ([ and ] delimit our own placeholders).
GAP = r"[^0-9\[\]]{0,12}\z"
PHONE_WORDS = (
    r"(?i)(?:电话|手机|联系方式|联系|致电|拨打|来电|热线|传真|座机|固话|号码|短信|拨|(?:^|[^a-z])(?:tel|telephone|phone|"
    r"phone number|telephones?|mobile|cell|call(?:s|ed|ing)?|fax|whatsapp|text me|reach|dial|sms|contact|hotline|ring))"
)
OTHER_WORDS = (
    r"(?i)(?:订单|单号|运单|快递|流水|编号|编码|序列号|货号|批号|工单|时间戳|案号|版本|合同号|发票|条码|(?:^|[^a-z])(?:"
    r"order|invoice|tracking|serial|sku|part|ticket|reference|ref|transaction|txn|timestamp|case|batch|build|epoch|hash|"
    r"isbn|issn|doi|ean|upc|barcode|version|commit|job|request|trace|session|offset|bytes|population))"
    r"(?:[\s_-]?(?:id|no|num|number|code|号码|号|#))?[^\p{L}0-9\[\]】\n]{0,6}(?:(?:is|was|为|是)[^\p{L}0-9\[\]\n]{0,3})?\z"
)
CARD_WORDS = (
    r"(?i)(?:银行卡|储蓄卡|信用卡|借记卡|卡号|账号|帐号|账户|尾号|(?:^|[^a-z])(?:card|account|acct|visa|mastercard|"
    r"unionpay|iban|debit|credit|pan|amex))"
)
ID_WORDS = r"(?i)(?:身份证|证件|公民身份|身份号码|居民证|(?:^|[^a-z])(?:id|identity|resident|citizen))"
URL = r"(?i)(?:://|^www\.|[?&][a-z_]+=|^/|\.(?:com|cn|org|net|io|html?)/)"
PHONE_IN_URL = r"(?i)(?:tel|phone|mobile|sms|wa\.me|whatsapp|cell|fax)[:=/.-]*\+?\z"
CURRENCY = "$¥￥€£#"

MOBILE = r"\A1[3-9][0-9]{9}\z"
LANDLINE = r"\A0(10|2[0-9]|[3-9][0-9]{2})[2-8][0-9]{6,7}\z"
NORTH_AMERICAN = r"\A1?[2-9][0-9]{2}[2-9][0-9]{6}\z"
SERVICE = r"\A[48]00[0-9]{7}\z"
# Issuers by first digits and length: Visa, Mastercard, American Express, Diners, Discover, JCB, UnionPay, Maestro, Mir,
# and the older Chinese debit cards (ISO/IEC 7812 ranges as the networks publish them).
ISSUER = (
    r"\A(?:4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|222[1-9][0-9]{12}|22[3-9][0-9]{13}|2[3-6][0-9]{14}|"
    r"27[01][0-9]{13}|2720[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|09|6[0-9]|[89][0-9])[0-9]{11,16}|"
    r"(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12,15}|35(?:2[89]|[3-8][0-9])[0-9]{12,15}|(?:62|81|60|82)[0-9]{14,17}|"
    r"(?:50|5[6-8]|6[0-9])[0-9]{11,17}|220[0-4][0-9]{12,15}|95[0-9]{14,17}|9[0-9]{18})\z"
)
CODES = (
    "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 "
    "84 86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 "
    "235 236 237 238 239 240 241 242 243 244 245 246 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 "
    "264 265 266 267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 "
    "376 377 378 380 381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 "
    "593 594 595 596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 "
    "692 800 850 852 853 855 856 870 880 886 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 "
    "979 992 993 994 995 996 998"
)
COUNTRIES = frozenset(CODES.split())  # ITU-T E.164 assigned codes

Verdict = tuple[PiiType, float] | None


@dataclass(frozen=True)
class Part:
    """Neighbouring groups of a digit run: their digits (an id's X included), sizes, and what stands around."""

    digits: str
    sizes: tuple[int, ...]
    between: str  # the separators
    plus: bool
    before: str

    def announced_by(self, words: str) -> bool:
        """Whether one of the words stands right before."""
        return matches(words + GAP, self.before)


def find_numbers(text: str, start: int, stop: int) -> list[Span]:
    """The phones, resident ids and cards of the digit run text[start:stop]."""
    plus = start > 0 and text[start - 1] in "+＋"
    before = text[max(0, start - BEFORE) : start - plus]
    if _belongs_to_a_token(before, text[stop : stop + 2], plus):
        return []
    run = text[start : stop + 1].translate(FULL_WIDTH)
    groups = [found.span() for found in pattern("[0-9]+").finditer(run[: stop - start])]
    spans, first = [], 0
    while first < len(groups):
        for last in range(min(len(groups), first + LONGEST_PART), first, -1):
            if _cuts_a_number(run, groups, first, last):
                continue
            signed = plus and first == 0
            if not signed and sum(b - a for a, b in groups[first:last]) < SHORTEST:
                continue
            part = _part(run, groups[first:last], signed, before + run[: groups[first][0]])
            if verdict := classify(part):
                begin, end = _with_brackets(text, start + groups[first][0] - part.plus, start + groups[last - 1][1])
                spans.append(Span(begin, end + part.digits.endswith("X"), *verdict))
                first = last - 1
                break
        first += 1
    return spans


def _part(run: str, groups: list[tuple[int, int]], plus: bool, before: str) -> Part:
    digits = "".join(run[a:b] for a, b in groups)
    if len(digits) == 17 and run[groups[-1][1] :][:1] in ("x", "X"):
        digits += "X"
    between = "".join(run[a[1] : b[0]] for a, b in pairwise(groups))
    return Part(digits, tuple(b - a for a, b in groups), between, plus, before)


def _cuts_a_number(run: str, groups: list[tuple[int, int]], first: int, last: int) -> bool:
    """Whether the groups are only part of what hyphens or an even grouping hold together."""
    sizes = [b - a for a, b in groups]
    for inner, outer in ((first, first - 1), (last - 1, last)):
        if not 0 <= outer < len(groups):
            continue
        gap = run[groups[min(inner, outer)][1] : groups[max(inner, outer)][0]]
        # A row of a table: groups of three digits and more on and on. Only a card may have its code behind it.
        least = 4 if last - first >= 4 else 3
        if " " not in gap or (last - first > 1 and sizes[outer] >= least):
            return True
    return False


def _with_brackets(text: str, begin: int, end: int) -> tuple[int, int]:
    """The span with the bracket that opens before an area or country code."""
    if begin and text[begin - 1] in "(（" and any(c in text[begin:end] for c in ")）"):
        return begin - 1, end
    return begin, end


def _belongs_to_a_token(before: str, after: str, plus: bool) -> bool:
    """Whether the run is part of a hash, an address on the web, an amount or an expression."""
    last = before[-1:]
    if after[:1] in ("-", "_", "=") and after[1:] and after[1].isascii() and after[1].isalpha():
        return True
    if plus:
        return (last.isascii() and last.isalnum()) or last in ("+", ")", "]")
    if not last or not last.isascii() or last.isspace():
        return before.rstrip()[-1:] in CURRENCY and bool(before.strip())
    if last in CURRENCY or last == "@":
        return True
    if last not in "-./=:&?%_":
        return False
    token = str(pattern(r"[^\s\x{80}-\x{10FFFF}]*\z").search(before).group())
    if matches(PHONE_IN_URL, before):
        return False
    if last in "-._":
        return token[-2:-1].isalnum()
    return matches(URL, token) or last == "%"


def classify(part: Part) -> Verdict:
    """What the digits are, by length, check digit, grouping and the words before; None for nothing we know."""
    if (verdict := _resident_id(part)) or part.digits.endswith("X"):
        return verdict
    if part.plus:
        return _international(part)
    if part.announced_by(OTHER_WORDS) or matches(OTHER_WORDS, part.before):
        return None
    an_id, a_card = part.announced_by(ID_WORDS), part.announced_by(CARD_WORDS)
    if _reads_as_resident_id(part.digits) and (an_id or not a_card):
        return None
    if a_card and not an_id:
        return _bank_card(part)
    return _phone(part) or _old_resident_id(part) or (None if an_id else _bank_card(part))


def resident_id_check(first_17: str) -> str:
    """The check digit of a resident id (ISO 7064, MOD 11-2)."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(first_17))
    return "10X98765432"[total % 11]


def country_code(digits: str) -> str:
    """The country code (E.164) that a number begins with; empty for none."""
    return next((digits[:n] for n in (1, 2, 3) if digits[:n] in COUNTRIES), "")


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812-1)."""
    doubled = [int(d) * (1 + place % 2) for place, d in enumerate(reversed(digits))]
    return sum(n // 10 + n % 10 for n in doubled) % 10 == 0


def _is_day(year: int, month: int, day: int) -> bool:
    try:
        return 1900 <= date(year, month, day).year <= 2099
    except ValueError:
        return False


def _reads_as_resident_id(digits: str) -> bool:
    """Whether all but the check digit is that of a resident id; with a wrong one it is no card either."""
    if len(digits) != 18 or int(digits[:2]) not in ID_PROVINCES:
        return False
    return _is_day(int(digits[6:10]), int(digits[10:12]), int(digits[12:14]))


def _resident_id(part: Part) -> Verdict:
    digits = part.digits
    if len(part.sizes) > 4 or not _reads_as_resident_id(digits):
        return None
    return ("cn_resident_id", 1.0) if resident_id_check(digits[:17]) == digits[17] else None


def _old_resident_id(part: Part) -> Verdict:
    """The form given out until 1999: 15 digits, years of the 20th century, no check digit."""
    digits = part.digits
    if len(digits) != 15 or len(part.sizes) > 3 or int(digits[:2]) not in ID_PROVINCES:
        return None
    if not _is_day(1900 + int(digits[6:8]), int(digits[8:10]), int(digits[10:12])):
        return None
    return "cn_resident_id", 0.95 if part.announced_by(ID_WORDS) else 0.6


def _bank_card(part: Part) -> Verdict:
    digits, sizes = part.digits, part.sizes
    if not 13 <= len(digits) <= 19 or digits[0] == "0" or len(set(digits)) == 1 or not luhn(digits):
        return None
    if len(sizes) > 1 and (sizes[0] < 4 or min(sizes[:-1]) < 4 or len(sizes) > 5):
        return None
    announced = part.announced_by(CARD_WORDS)
    if not matches(ISSUER, digits):
        return ("bank_card", 0.85) if announced else None
    return "bank_card", 0.98 if announced or len(sizes) > 2 else 0.8


def _phone(part: Part) -> Verdict:
    announced = part.announced_by(PHONE_WORDS)
    return _chinese_phone(part, announced) or _north_american(part, announced) or _announced(part, announced)


def _chinese_phone(part: Part, announced: bool) -> Verdict:
    digits, sizes = part.digits, part.sizes
    national = digits.removeprefix("00") if digits.startswith("0086") else digits
    national = national[2:] if national.startswith("86") and len(national) >= 12 else national
    if matches(MOBILE, national) and min(sizes) >= 2 and len(sizes) <= 5:
        return "phone", 0.97 if announced else 0.9
    found = pattern(LANDLINE).search(digits)
    if found and len(sizes) <= 4 and (len(sizes) == 1 or sizes[0] == len(found.group(1)) + 1):
        return "phone", 0.95 if announced or len(sizes) > 1 else 0.6
    area = sizes[0] - 1
    if 3 <= len(sizes) <= 4 and "-" in part.between and matches(LANDLINE, digits[: -sizes[-1]]) and area in (2, 3):
        return "phone", 0.9  # the last group is an extension
    if matches(SERVICE, digits) and (announced or sizes in ((3, 3, 4), (3, 4, 3))):
        return "phone", 0.7
    return None


def _north_american(part: Part, announced: bool) -> Verdict:
    if not matches(NORTH_AMERICAN, part.digits) or not (announced or any(c in part.between for c in "-.()")):
        return None
    even = part.sizes in ((3, 3, 4), (1, 3, 3, 4), (3, 7))
    if even or (announced and len(part.sizes) == 1):
        return "phone", 0.9 if announced else 0.8
    return None


def _announced(part: Part, announced: bool) -> Verdict:
    """A number of another country in its own notation, believed only after a word for phones."""
    if not announced or not 10 <= len(part.digits) <= 13 or len(part.sizes) > 5:
        return None
    return ("phone", 0.7) if part.digits[0] == "0" or len(part.sizes) > 1 or len(part.digits) == 10 else None


def _international(part: Part) -> Verdict:
    digits = part.digits
    if not 7 <= len(digits) <= 15 or len(part.sizes) > LONGEST_PART:
        return None
    code = country_code(digits)
    national = digits[len(code) :]
    if (
        not code
        or len(national) < 6
        or national.startswith("00")
        or (code == "1" and not matches(NORTH_AMERICAN, digits))
    ):
        return None
    return "phone", 0.95
