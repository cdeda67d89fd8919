"""Stand-ins for personal data: the same value always gets the same one, of the same form, and none can be real.

They come from HMAC-SHA256 of the value under the project's key: without the key nobody can test a guess.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator

from inhouse.guard.numbers import FULL_WIDTH, country_code, luhn, resident_id_check
from inhouse.guard.patterns import matches
from inhouse.guard.spans import PiiType
from inhouse.guard.tables import people

# No operator of China has been given 1540 (as of 2025); 555-01xx is kept for fiction (NANPA).
MOBILE = "1540"
DIVISION = "99"  # no division's code begins so (GB/T 2260)
ISSUER = "0"  # reserved for industry bodies, on no card (ISO/IEC 7812-1)
STREETS_ZH, STREETS_EN = "示例市样例区示范路", "Example Street, Anytown"
LETTERS = "abcdefghjkmnpqrstuvwxyz"


class Dice:
    """An endless, reproducible choice of numbers from a keyed hash."""

    def __init__(self, key: bytes, type: PiiType, value: str) -> None:
        self._bytes = self._stream(key, f"{type}\0{value}".encode())

    @staticmethod
    def _stream(key: bytes, message: bytes) -> Iterator[int]:
        block = 0
        while True:
            yield from hmac.new(key, message + block.to_bytes(4), hashlib.sha256).digest()
            block += 1

    def below(self, n: int) -> int:
        """A number from 0 to n - 1 (bias below 2^-40)."""
        return int.from_bytes(bytes(next(self._bytes) for _ in range(8))) % n

    def digits(self, n: int) -> str:
        """n decimal digits."""
        return f"{self.below(10**n):0{n}d}" if n > 0 else ""


def replacement(value: str, type: PiiType, key: bytes) -> str:
    """The stand-in for a value; a value that is a stand-in already stays, so doing it twice changes nothing."""
    if _stands_in(value.translate(FULL_WIDTH), type):
        return value
    return MAKERS[type](value, Dice(key, type, canonical(value, type)))


def canonical(value: str, type: PiiType) -> str:
    """The value without what ways of writing it differ in, so that each gets the same stand-in."""
    value = value.translate(FULL_WIDTH)
    if type in ("phone", "cn_resident_id", "bank_card"):
        kept = "".join(c for c in value if c.isalnum()).upper()
        return kept[-11:] if type == "phone" and matches(r"(?:86)?1[3-9][0-9]{9}\z", kept) else kept
    return "".join(value.split()).lower().replace("·", "") if type != "address" else "".join(value.split())


def _write(digits: str, form: str) -> str:
    """The digits in the form of another value: its separators stay, its digits are replaced from the right."""
    left, out = list(digits), []
    for c in reversed(form):
        out.append(left.pop() if (c.isdigit() or c in "xX") and left else c)
    return "".join(reversed(out))


def _phone(value: str, dice: Dice) -> str:
    digits = "".join(c for c in value.translate(FULL_WIDTH) if c.isdigit())
    if matches(r"(?:\A|86)1[3-9][0-9]{9}\z", digits):
        return _write(MOBILE + dice.digits(7), value)
    if matches(r"\A1?[2-9][0-9]{2}[2-9][0-9]{6}\z", digits):
        return _write(f"{2 + dice.below(8)}{dice.digits(2)}55501{dice.digits(2)}", value)
    if value.lstrip("(（")[:1] in "+＋":
        kept = len(country_code(digits))
        return _write("00" + dice.digits(len(digits) - kept - 2), value)  # no national number begins with 00
    area = 3 if digits.startswith(("01", "02")) else 4
    return _write("0" + dice.digits(len(digits) - area - 1), value)  # no subscriber's number begins with 0


def _resident_id(value: str, dice: Dice) -> str:
    day = f"{1940 + dice.below(70)}{1 + dice.below(12):02d}{1 + dice.below(28):02d}"
    if sum(c.isalnum() for c in value) == 15:
        return _write(DIVISION + dice.digits(4) + day[2:] + dice.digits(3), value)
    first = DIVISION + dice.digits(4) + day + dice.digits(3)
    return _write(first + resident_id_check(first), value)


def _bank_card(value: str, dice: Dice) -> str:
    first = ISSUER + dice.digits(sum(c.isdigit() for c in value) - 2)
    return _write(next(first + str(d) for d in range(10) if luhn(first + str(d))), value)


def _email(value: str, dice: Dice) -> str:
    name = "".join(LETTERS[dice.below(len(LETTERS))] for _ in range(8))
    return f"{name}{dice.digits(2)}@example.{('com', 'net', 'org')[dice.below(3)]}"  # RFC 2606


def _ipv4(value: str, dice: Dice) -> str:
    return f"198.{18 + dice.below(2)}.{dice.below(256)}.{1 + dice.below(254)}"  # RFC 2544


def _ipv6(value: str, dice: Dice) -> str:
    return "2001:db8:" + ":".join(f"{1 + dice.below(65535):x}" for _ in range(6))  # RFC 3849


def _passport(value: str, dice: Dice) -> str:
    letters = sum(c.isalpha() for c in value)
    first = "X" * letters + "00" if letters else "0000"
    return first + dice.digits(len(value) - len(first))


def _plate(value: str, dice: Dice) -> str:
    if not value[0].isascii():
        return value[0] + "O" + "".join("0" if c.isalnum() else c for c in value[2:-4]) + dice.digits(4)
    return "XX0" + dice.digits(4)


def _wechat(value: str, dice: Dice) -> str:
    return "example_" + "".join(LETTERS[dice.below(len(LETTERS))] for _ in range(10))


def _qq(value: str, dice: Dice) -> str:
    return "00" + dice.digits(len(value) - 2)  # neither a QQ number nor a phone begins so


def _name(value: str, dice: Dice) -> str:
    if value[0].isascii():
        given, family = people.SURROGATE_GIVEN, people.SURROGATE_FAMILY
        return f"{given[dice.below(len(given))]} {family[dice.below(len(family))]}"
    if len(value) == 1:
        return people.STEMS[dice.below(10)]
    stems = people.STEMS[dice.below(10)] + people.STEMS[dice.below(10)]
    return people.SURROGATE_SURNAMES[dice.below(len(people.SURROGATE_SURNAMES))] + stems


def _address(value: str, dice: Dice) -> str:
    number = 1 + dice.below(9999)
    return f"{number} {STREETS_EN}" if value.isascii() else f"{STREETS_ZH}{number}号"


MAKERS: dict[PiiType, Callable[[str, Dice], str]] = {
    "phone": _phone,
    "cn_resident_id": _resident_id,
    "bank_card": _bank_card,
    "email": _email,
    "ipv4": _ipv4,
    "ipv6": _ipv6,
    "passport": _passport,
    "plate": _plate,
    "wechat": _wechat,
    "qq": _qq,
    "name": _name,
    "address": _address,
}
_FAMILIES = "|".join(people.SURROGATE_FAMILY)
# How to know a stand-in.
STAND_INS: dict[PiiType, str] = {
    "cn_resident_id": r"\A99",
    "bank_card": r"\A0",
    "email": r"(?i)@example\.(?:com|net|org)\z",
    "ipv4": r"\A198\.1[89]\.",
    "ipv6": r"\A2001:db8:",
    "passport": r"\A(?:X{1,2}00|0000)",
    "plate": r"\A(?:.O|XX0)",
    "wechat": r"\Aexample_",
    "qq": r"\A0",
    "name": rf"\A(?:\p{{Han}}[{people.STEMS}])?[{people.STEMS}]\z|\A[A-Z][a-z]+ (?:{_FAMILIES})\z",
    "address": rf"\A{STREETS_ZH}[0-9]+号|\A[0-9]+ {STREETS_EN}",
}
PHONE_STAND_INS = (
    r"\A(?:(?:00)?86)?1540[0-9]{7}\z|\A1?[2-9][0-9]{2}55501[0-9]{2}\z|\A0(?:10|2[0-9]|[3-9][0-9]{2})0[0-9]{6,13}\z"
)


def _stands_in(value: str, type: PiiType) -> bool:
    if type != "phone":
        return matches(STAND_INS[type], value)
    digits = "".join(c for c in value if c.isdigit())
    abroad = value.lstrip("(")[:1] == "+" and digits.removeprefix(country_code(digits)).startswith("00")
    return abroad or matches(PHONE_STAND_INS, digits)
